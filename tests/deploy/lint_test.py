#!/usr/bin/env python3
"""`mayfly template lint` on good templates and on bad ones, each with one fault.

    BINARY=target/debug/mayfly lint_test.py

A guest is an ext4 file system of a few files, with the owners that they would have.
"""

import base64
import fcntl
import json
import os
import plistlib
import shutil
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

BINARY = Path(os.environ.get("BINARY", Path(os.environ.get("CARGO_TARGET_DIR", "target")) / "debug/mayfly")).resolve()
TOOLS = {"PATH": os.environ["PATH"] + ":/usr/sbin:/sbin", "LC_ALL": "C"}
MODEL = ("YnBsaXN0MDDTAQIDBAUGXxAZRGF0YVJlcHJlc2VudGF0aW9uVmVyc2lvbl8QD1BsYXRmb3JtVmVyc2lvbl8QEk1pbmltdW1TdXBwb3J0ZWRPUxQAAAAAAAAA"
         "AAAAAAAAAAABEAKjBwgIEAwQAAgPKz1SY2VpawAAAAAAAAEBAAAAAAAAAAkAAAAAAAAAAAAAAAAAAABt")
PROGRAM = "program"  # a file with the right to be run
RUNNER = "home/runner/actions-runner/"

# What a good image has. The value is the content, `PROGRAM`, or a link as (target,).
GUEST = {
    "etc/passwd": "root:x:0:0:root:/root:/bin/bash\nrunner:x:1000:1000::/home/runner:/bin/bash\n",
    "etc/group": "root:x:0:\nsudo:x:27:\nrunner:x:1000:\n",
    "etc/shadow": "root:*:20000:0:99999:7:::\nrunner:!:20000:0:99999:7:::\n",
    "etc/machine-id": "",
    "etc/ssh/sshd_config": "UseDNS no\n",
    "etc/sudoers": "root ALL=(ALL:ALL) ALL\n%sudo ALL=(ALL:ALL) ALL\n",
    "etc/systemd/system/multi-user.target.wants/ssh.service": ("/lib/systemd/system/ssh.service",),
    "etc/systemd/system/multi-user.target.wants/mayfly-seed.service": ("/etc/systemd/system/mayfly-seed.service",),
    "lib": ("usr/lib",),
    "bin": ("usr/bin",),
    "usr/lib/systemd/systemd": PROGRAM,
    "usr/lib/systemd/system/ssh.service": "[Service]\n",
    "usr/bin/sh": ("dash",),
    "usr/bin/dash": PROGRAM,
    "usr/bin/bash": PROGRAM,
    "usr/bin/curl": PROGRAM,
    "usr/bin/base64": PROGRAM,
    "usr/sbin/poweroff": PROGRAM,
    "usr/sbin/sshd": PROGRAM,
    "home/runner/.profile": "PATH=$HOME/bin:$PATH\n",
    RUNNER + "run.sh": PROGRAM,
    RUNNER + "bin/Runner.Listener.deps.json": '{"targets": {".NETCoreApp": {"Runner.Listener/2.336.0": {}}}}',
    "root/.profile": "",
}

# Name → (changes of the files, changes of template.json, the finding). None removes a file.
BAD = {
    "no SSH server": ({"usr/sbin/sshd": None}, {"handover": "ssh"}, ("error", "access.ssh")),
    "an SSH server that is not enabled": (
        {"etc/systemd/system/multi-user.target.wants/ssh.service": None}, {"handover": "ssh"}, ("error", "access.ssh")),
    "a masked SSH server": (
        {"etc/systemd/system/multi-user.target.wants/ssh.service": None, "etc/systemd/system/ssh.service": ("/dev/null",)},
        {"handover": "ssh"}, ("error", "access.ssh")),
    "no user": ({"etc/passwd": "root:x:0:0:root:/root:/bin/bash\n"}, {}, ("error", "access.user")),
    "a user without a home": (
        {"etc/passwd": "root:x:0:0:root:/root:/bin/bash\nrunner:x:1000:1000::/home/nowhere:/bin/bash\n",
         RUNNER + "run.sh": None}, {}, ("error", "access.home")),
    "a user who cannot log in": (
        {"etc/passwd": "root:x:0:0:root:/root:/bin/bash\nrunner:x:1000:1000::/home/runner:/usr/sbin/nologin\n"}, {},
        ("error", "access.shell")),
    "a user in the group sudo": ({"etc/group": "root:x:0:\nsudo:x:27:runner\nrunner:x:1000:\n"}, {}, ("warning", "access.root")),
    "sudo without a password": ({"etc/sudoers.d/ci": "runner ALL=(ALL) NOPASSWD: ALL\n"}, {}, ("warning", "access.root")),
    "no curl": ({"usr/bin/curl": None}, {}, ("error", "programs.curl")),
    "nothing that reads the seed": (
        {"etc/systemd/system/multi-user.target.wants/mayfly-seed.service": None}, {}, ("error", "programs.seed")),
    "cloud-init without NoCloud": (
        {"usr/bin/cloud-init": PROGRAM, "etc/cloud/cloud.cfg": "datasource_list: [NoCloud, None]\n",
         "etc/cloud/cloud.cfg.d/99.cfg": "datasource_list:\n  - Ec2\n"}, {}, ("error", "programs.seed")),
    "no guest agent": ({}, {"handover": "agent"}, ("error", "programs.agent")),
    "an old runner": (
        {RUNNER + "bin/Runner.Listener.deps.json": '{"targets": {"x": {"Runner.Listener/2.99.0": {}}}}'}, {},
        ("error", "runner.version")),
    "a runner of an unknown version": ({RUNNER + "bin/Runner.Listener.deps.json": "{}"}, {}, ("not_checked", "runner.version")),
    "hooks that are not there": (
        {RUNNER + ".env": "ACTIONS_RUNNER_HOOK_JOB_STARTED=/opt/old/hook.sh\n"}, {}, ("error", "runner.hooks")),
    "exports in .zprofile": ({"home/runner/.zprofile": "export JAVA_HOME=/opt/java\n"}, {}, ("warning", "shell.exports")),
    "the block of an earlier vm": ({"home/runner/.zshenv": "# >>> mayfly >>>\n"}, {}, ("warning", "shell.block")),
    "host keys": ({"etc/ssh/ssh_host_ed25519_key": "-----BEGIN"}, {}, ("error", "secrets.host_keys")),
    "a machine id": ({"etc/machine-id": "0123456789abcdef0123456789abcdef\n"}, {}, ("error", "secrets.machine_id")),
    "the registration of a runner": ({RUNNER + ".credentials": "{}"}, {}, ("error", "secrets.runner")),
    "a private key": (
        {"root/.ssh/id_ed25519": "-----BEGIN OPENSSH PRIVATE KEY-----\n"}, {}, ("error", "secrets.keys")),
    "credentials of AWS": ({"home/runner/.aws/credentials": "[default]\n"}, {}, ("error", "secrets.credentials")),
    "logins to registries": (
        {"home/runner/.docker/config.json": '{"auths": {"r": {"auth": "eDp5"}}}'}, {}, ("error", "secrets.credentials")),
    "the bundle of an earlier vm": ({"opt/mayfly/kit/mayfly.env": "x"}, {}, ("error", "secrets.bundle")),
    "an empty password": ({"etc/shadow": "root:*:1::::::\nrunner::1::::::\n"}, {}, ("error", "secrets.password")),
    "a key of the build": ({"root/.ssh/authorized_keys": "ssh-ed25519 AAAA build\n"}, {}, ("warning", "secrets.root_login")),
    "what was typed": ({"root/.bash_history": "passwd\n"}, {}, ("warning", "secrets.history")),
    "a kernel that panics on a busy host": (
        {}, {"arch": "x86_64", "kernel": "vmlinuz", "cmdline": "root=/dev/vda console=ttyS0"}, ("warning", "machine.cmdline")),
    "a kernel that is missing": (
        {}, {"kernel": "nowhere", "cmdline": "console=ttyS0 no_timer_check"}, ("error", "machine.kernel")),
}


def tool(*arguments, **options):
    subprocess.run(arguments, check=True, stdout=subprocess.DEVNULL, env=os.environ | TOOLS, **options)


def guest(directory, changes=(), size="2G"):
    """An ext4 file system with these files. Files in a home belong to its user."""
    tree = directory / "tree"
    for name, content in (GUEST | dict(changes)).items():
        if content is None:
            continue
        path = tree / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, tuple):
            path.symlink_to(content[0])
        else:
            path.write_text(content)
            path.chmod(0o755 if content == PROGRAM else 0o644)
    disk = directory / "disk.raw"
    script = 'chown -R 0:0 tree && chown -R 1000:1000 tree/home/runner && truncate -s "$1" disk.raw && ' \
             "mke2fs -q -t ext4 -N 2048 -E lazy_itable_init=1 -d tree disk.raw"
    tool("fakeroot", "sh", "-c", script, "sh", size, cwd=directory)
    shutil.rmtree(tree)
    return disk


def ecid(number):
    return base64.b64encode(plistlib.dumps({"ECID": number}, fmt=plistlib.FMT_BINARY)).decode()


class Lint(unittest.TestCase):
    def setUp(self):
        self.dir = Path(tempfile.mkdtemp(prefix="mayfly-lint-test-"))
        self.addCleanup(shutil.rmtree, self.dir)

    def template(self, changes=(), settings=(), size="2G"):
        guest(self.dir, changes, size)
        (self.dir / "vmlinuz").write_text("kernel")
        (self.dir / "template.json").write_text(json.dumps({"disk": "disk.raw", "disk_format": "raw"} | dict(settings)))

    def lint(self, path=None, *options):
        environment = {"HOME": str(self.dir / "home"), "PATH": TOOLS["PATH"], "TMPDIR": str(self.dir)}
        ran = subprocess.run([BINARY, "--json", "template", "lint", path or self.dir, *options], env=environment,
                             capture_output=True, text=True, timeout=120)
        self.assertIn(ran.returncode, (0, 1), ran.stderr)
        report = json.loads(ran.stdout)
        self.assertEqual(ran.returncode, int(report["errors"] > 0))
        for item in report["items"]:
            self.assertTrue(item["what"] and item["next"], item)
        return report

    def found(self, path=None, *options):
        return [(item["level"], item["check"]) for item in self.lint(path, *options)["items"]]

    def test_a_good_template_has_no_findings(self):
        self.template()
        self.assertEqual(self.lint()["items"], [])
        # Also as qcow2, on a partition, and without a template.json.
        tool("qemu-img", "convert", "-O", "qcow2", self.dir / "disk.raw", self.dir / "golden.qcow2")
        self.assertEqual(self.found(self.dir / "golden.qcow2"), [])
        # Nothing is left of the copy.
        self.assertEqual([p.name for p in self.dir.iterdir() if p.name.startswith("mayfly-lint")], [])
        # Another user is asked for.
        self.assertEqual(self.found(self.dir / "golden.qcow2", "--user", "ci"), [("error", "access.user")])

    def test_bad_templates_have_one_finding_each(self):
        for name, (changes, settings, expected) in BAD.items():
            with self.subTest(name):
                self.template(changes, settings)
                self.assertEqual(self.found(), [expected])
                (self.dir / "disk.raw").unlink()

    def test_a_template_for_ssh_must_accept_its_key(self):
        tool("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", self.dir / "key")
        settings = {"handover": "ssh", "ssh_key": "key"}
        public = (self.dir / "key.pub").read_text()
        for text, expected in [(public, []), ("# " + public, [("error", "access.key")]), ("", [("error", "access.key")])]:
            self.template({"home/runner/.ssh/authorized_keys": text}, settings)
            self.assertEqual(self.found(), expected, text)
            (self.dir / "disk.raw").unlink()

    def test_the_disk_itself(self):
        self.template(size="300M")
        self.assertEqual(self.found(), [("warning", "disk.size")])
        # Filled with what is not in the file system any more.
        with open(self.dir / "disk.raw", "r+b") as disk:
            disk.seek(64 << 20)
            for _ in range(220):
                disk.write(os.urandom(1 << 20))
        self.assertIn(("warning", "disk.sparse"), self.found())
        self.template()
        # As a guest leaves it that was switched off while it ran.
        tool("debugfs", "-w", "-R", "set_super_value state 0", self.dir / "disk.raw", stderr=subprocess.DEVNULL)
        self.assertEqual(self.found(), [("error", "disk.clean")])
        tool("qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b", self.dir / "disk.raw", self.dir / "overlay.qcow2")
        report = self.lint(self.dir / "overlay.qcow2")
        self.assertIn("has a backing file", report["items"][0]["what"])
        (self.dir / "template.json").write_text(json.dumps({"disk": "overlay.qcow2", "disk_format": "raw"}))
        self.assertEqual(self.found(), [("error", "disk.format")])
        # What is no file system is not called good.
        (self.dir / "noise.raw").write_bytes(os.urandom(1 << 20))
        self.assertEqual(self.found(self.dir / "noise.raw"), [("not_checked", "guest.files")])

    def tart(self, name, number):
        directory = self.dir / "vms" / name
        directory.mkdir(parents=True)
        (directory / "config.json").write_text(json.dumps({
            "version": 1, "os": "darwin", "arch": "arm64", "ecid": ecid(number), "hardwareModel": MODEL, "cpuCountMin": 4,
            "cpuCount": 4, "memorySizeMin": 4 << 30, "memorySize": 8 << 30, "macAddress": "7a:65:e4:3f:b2:51", "diskFormat": "raw"}))
        with open(directory / "disk.img", "wb") as disk:
            disk.truncate(1 << 30)
        (directory / "nvram.bin").write_bytes(b"nvram")
        return directory

    def test_a_tart_vm_is_checked_as_far_as_it_can_be_read(self):
        one = self.tart("one", 7)
        self.tart("other", 8)
        report = self.lint(one)
        self.assertEqual((report["errors"], report["warnings"]), (0, 0), report)
        unknown = {item["check"]: item["next"] for item in report["items"]}
        self.assertLessEqual({"access.ssh", "access.user", "programs.curl", "runner.version", "secrets.files"}, set(unknown))
        self.assertIn("mayfly vm exec", unknown["access.ssh"])
        self.tart("copy", 7)
        self.assertIn(("warning", "machine.ecid"), self.found(one))
        (one / "nvram.bin").unlink()
        self.assertIn(("error", "machine.nvram"), self.found(one))
        (one / "state.vzvmsave").write_bytes(b"memory")
        self.assertIn(("error", "machine.state"), self.found(one))

    def test_a_running_tart_vm(self):
        one = self.tart("one", 7)
        with open(one / "config.json", "r+") as held:
            fcntl.lockf(held, fcntl.LOCK_EX)
            self.assertIn(("error", "machine.state"), self.found(one))

    def test_what_is_printed_for_people(self):
        self.template({"etc/machine-id": "0123456789abcdef0123456789abcdef\n", "root/.bash_history": "ls\n"})
        ran = subprocess.run([BINARY, "template", "lint", self.dir], capture_output=True, text=True,
                             env={"HOME": str(self.dir), "PATH": TOOLS["PATH"]})
        lines = ran.stdout.splitlines()
        self.assertEqual((ran.returncode, len(lines)), (1, 2), ran.stdout)
        self.assertTrue(lines[0].startswith("error") and "/etc/machine-id" in lines[0] and "seal.sh" in lines[0], lines)
        self.assertTrue(lines[1].startswith("warning"), lines)
        self.assertIn("1 errors, 1 warnings, 0 not checked", ran.stderr)

    def test_what_is_no_template(self):
        (self.dir / "empty").mkdir()
        for path, text in [(self.dir / "empty", "neither a template.json"), (self.dir / "nowhere", "does not exist")]:
            ran = subprocess.run([BINARY, "template", "lint", path], capture_output=True, text=True, env={"HOME": str(self.dir)})
            self.assertEqual(ran.returncode, 2, ran.stderr)
            self.assertIn(text, ran.stderr)


if __name__ == "__main__":
    if not BINARY.exists():
        sys.exit("lint_test: there is no %s: run cargo build" % BINARY)
    unittest.main()
