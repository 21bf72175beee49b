#!/usr/bin/env python3
"""Release archives, the lists of dependencies and Homebrew's formula, made from an already built program.

    [BINARY=target/debug/mayfly] tests/deploy/release_test.py

The programs for other systems are stand-ins here: only deploy/release/build.sh compiles those.
"""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
import unittest
from fnmatch import fnmatch
from pathlib import Path

TREE = Path(__file__).resolve().parents[2]
BINARY = Path(os.environ.get("BINARY", TREE / "target/debug/mayfly")).absolute()
EPOCH = 1_700_000_000
HERE = f"{os.uname().machine}-unknown-linux-gnu"
MAC = "aarch64-apple-darwin"
TARGETS = ["aarch64-apple-darwin", "aarch64-unknown-linux-gnu", "x86_64-unknown-linux-gnu"]
VERSION = re.search(r'^version = "(.*)"', (TREE / "Cargo.toml").read_text(), re.M).group(1)


def run(*command, check=True, cwd=TREE, **environment):
    ran = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env={**os.environ, "SOURCE_DATE_EPOCH": str(EPOCH), **{name: str(value) for name, value in environment.items()}},
        capture_output=True,
        text=True,
    )
    if check and ran.returncode:
        raise AssertionError(f"{command} ended with {ran.returncode}: {ran.stderr}")
    return ran


def archive(target, out, **environment):
    return Path(TREE, run("deploy/release/archive.sh", target, OUT=out, **environment).stdout.strip())


def documented(column):
    """The paths that docs/install.md promises for this kind of archive."""
    text = (TREE / "docs/install.md").read_text()
    table = text[text.index("| Path in the archive |") :].split("\n\n")[0]
    rows = re.findall(r"^\| `([^`]+)` \|.*\| (all|Linux|Macs) \|$", table, re.M)
    return {path for path, who in rows if who in ("all", column)}


class Archives(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.work = Path(tempfile.mkdtemp())
        cls.addClassCleanup(shutil.rmtree, cls.work)
        cls.program = cls.work / "mayfly"
        run("strip", "-o", cls.program, BINARY)
        # Small, where the program itself does not matter.
        cls.stand_in = cls.work / "stand-in"
        cls.stand_in.write_bytes(b"not a program")
        cls.stand_in.chmod(0o755)
        cls.linux = archive(HERE, cls.work / "one", BINARY=cls.stand_in, WRITER=cls.program)
        cls.mac = archive(MAC, cls.work / "one", BINARY=cls.stand_in, WRITER=cls.program)

    def test_the_content_is_what_the_page_says(self):
        for path, column in ((self.linux, "Linux"), (self.mac, "Macs")):
            directory = path.name.removesuffix(".tar.gz")
            with tarfile.open(path) as file:
                names = [m.name.removeprefix(f"{directory}/") for m in file if m.isfile()]
            promised = documented(column)
            self.assertGreater(len(promised), 8)
            for pattern in promised:
                self.assertTrue(any(fnmatch(name, pattern) for name in names), f"{path.name} has no {pattern}")
            for name in names:
                self.assertTrue(any(fnmatch(name, pattern) for pattern in promised), f"{path.name}: {name} is not documented")

    def test_nothing_of_this_machine_is_in_it(self):
        for path in (self.linux, self.mac):
            directory = path.name.removesuffix(".tar.gz")
            with tarfile.open(path) as file:
                members = file.getmembers()
            self.assertEqual([m.name for m in members], sorted((m.name for m in members), key=lambda name: name.split("/")))
            for member in members:
                self.assertEqual(member.name.split("/")[0], directory)
                self.assertTrue(member.isfile() or member.isdir(), member.name)
                self.assertEqual((member.uid, member.gid, member.uname, member.gname), (0, 0, "root", "root"), member.name)
                self.assertEqual(member.mtime, EPOCH, member.name)
                runs = member.isdir() or member.name.endswith(("/bin/mayfly", "install.sh", "rotate-logs.sh"))
                self.assertEqual(member.mode, 0o755 if runs else 0o644, member.name)

    def test_two_archives_are_equal(self):
        # Another directory, user mask, time zone and language, and later.
        time.sleep(1.1 - time.time() % 1)
        mask = os.umask(0o077)
        try:
            other = {"TZ": "Pacific/Kiritimati", "TMPDIR": tempfile.mkdtemp(dir=self.work)}
            linux = archive(HERE, self.work / "two", BINARY=self.stand_in, WRITER=self.program, **other)
            mac = archive(MAC, self.work / "two", BINARY=self.stand_in, WRITER=self.program, **other)
        finally:
            os.umask(mask)
        for one, two in ((self.linux, linux), (self.mac, mac)):
            self.assertNotEqual(one, two)
            self.assertEqual(one.read_bytes(), two.read_bytes(), one.name)

    def test_it_runs_where_it_is_unpacked(self):
        prefix = self.work / "prefix"
        prefix.mkdir()
        path = archive(HERE, self.work / "runs", BINARY=self.program, LEVEL=1)
        run("tar", "-xzf", path, "--strip-components=1", "--no-same-owner", "-C", prefix)
        program = prefix / "bin/mayfly"
        self.assertIn(VERSION, run(program, "version").stdout)
        run(program, "serve", "--check", "--data-dir", self.work / "data")
        unit = (prefix / "lib/systemd/system/mayfly.service").read_text()
        self.assertIn("\nExecStart=/usr/local/bin/mayfly serve\n", unit)
        pages = {page.name for page in (prefix / "share/man/man1").iterdir()}
        self.assertTrue({"mayfly.1", "mayfly-vm-logs.1"} <= pages, pages)
        self.assertIn("_mayfly", (prefix / "share/bash-completion/completions/mayfly").read_text())

    def test_what_is_installed_is_removed_and_nothing_else(self):
        prefix = self.work / "removed"
        own = prefix / "share/man/man1/mayflower.1"
        own.parent.mkdir(parents=True)
        own.write_text("another program's")
        files = lambda: sorted(path for path in prefix.rglob("*") if not path.is_dir())
        run("deploy/install.sh", PREFIX=prefix, BINARY=self.stand_in, WRITER=self.program)
        self.assertGreater(len(files()), 20)
        for _ in range(2):
            run("deploy/install.sh", "--remove", PREFIX=prefix)
            self.assertEqual(files(), [own])
        self.assertEqual(run("deploy/install.sh", "--purge", PREFIX=prefix, check=False).returncode, 2)

    def test_unknown_systems_are_refused(self):
        ran = run("deploy/release/archive.sh", "x86_64-pc-windows-msvc", check=False, BINARY=self.program, OUT=self.work / "no")
        self.assertEqual(ran.returncode, 2)
        self.assertFalse((self.work / "no").exists())


class Dependencies(unittest.TestCase):
    def test_the_list_has_what_is_compiled_in(self):
        with tempfile.TemporaryDirectory() as work:
            one, two = Path(work, "one"), Path(work, "two")
            run("deploy/release/sbom.py", MAC, one)
            run("deploy/release/sbom.py", MAC, two)
            self.assertEqual(one.read_bytes(), two.read_bytes())
            listed = json.loads(one.read_text())
        self.assertEqual(listed["bomFormat"], "CycloneDX")
        self.assertEqual(listed["metadata"]["component"]["version"], VERSION)
        crates = {(part["name"], part["version"]) for part in listed["components"]}
        tree = run("cargo", "tree", "--locked", "--target", MAC, "--edges", "normal", "--prefix", "none", "--format", "{p}").stdout
        compiled = {tuple(line.split()[:2]) for line in tree.splitlines()} - {("mayfly", f"v{VERSION}")}
        self.assertEqual(crates, {(name, version.removeprefix("v")) for name, version in compiled})
        self.assertIn("security-framework", {name for name, _ in crates})
        self.assertNotIn("tikv-jemallocator", {name for name, _ in crates})
        self.assertFalse([part["name"] for part in listed["components"] if not part.get("licenses")])
        self.assertFalse(str(TREE) in json.dumps(listed), "a directory of this machine is in it")
        known = {part["bom-ref"] for part in (*listed["components"], listed["metadata"]["component"])}
        for edges in listed["dependencies"]:
            self.assertLessEqual({edges["ref"], *edges.get("dependsOn", [])}, known)


@unittest.skipUnless(shutil.which("ruby"), "NOT CHECKED: Homebrew's formula (there is no ruby)")
class Formula(unittest.TestCase):
    REPOSITORY = "https://forge.example/ci/mayfly"

    def fill(self, dist, repository=REPOSITORY):
        return run("deploy/homebrew/fill.sh", dist, repository, check=False)

    def test_it_installs_the_archives(self):
        with tempfile.TemporaryDirectory() as work:
            work = Path(work)
            stand_in = work / "stand-in"
            stand_in.write_text("#!/bin/sh\necho stand-in\n")
            stand_in.chmod(0o755)
            archives = {target: archive(target, work / "dist", BINARY=stand_in, WRITER=BINARY) for target in TARGETS}
            self.assertEqual(self.fill(work / "dist").returncode, 0)
            formula = work / "dist/mayfly.rb"
            run("ruby", "-wc", formula)
            for target, path in archives.items():
                unpacked = work / target
                unpacked.mkdir()
                run("tar", "-xzf", path, "--strip-components=1", "-C", unpacked)
                prefix = work / f"{target}-prefix"
                system, processor = ("mac", "arm") if target == MAC else ("linux", "arm" if "aarch64" in target else "intel")
                ran = run("ruby", TREE / "tests/deploy/formula.rb", formula, system, processor, prefix, cwd=unpacked)
                said = json.loads(ran.stdout)
                self.assertEqual(said["version"], VERSION)
                self.assertEqual(said["url"], f"{self.REPOSITORY}/releases/download/v{VERSION}/{path.name}")
                self.assertEqual(said["sha256"], hashlib.sha256(path.read_bytes()).hexdigest())
                for name in ("bin/mayfly", "share/man/man1/mayfly.1", "share/doc/mayfly/LICENSE", "etc/bash_completion.d/mayfly"):
                    self.assertTrue((prefix / name).is_file(), name)
                agents = sorted(agent.name for agent in prefix.glob("*.plist"))
                if target != MAC:
                    self.assertEqual(agents, [])
                    continue
                self.assertEqual(agents, ["dev.mayfly.agent.plist", "dev.mayfly.logs.plist"])
                self.assertEqual(said["service"], "dev.mayfly.agent")
                for agent in agents:
                    self.check_agent(prefix / agent, prefix)

    def check_agent(self, file, prefix):
        import plistlib

        text = file.read_text()
        self.assertNotIn("@", text.replace("DTDs", ""), "a word that was not filled in")
        content = plistlib.loads(text.encode())
        self.assertEqual(f"{content['Label']}.plist", file.name)
        for argument in content["ProgramArguments"]:
            if argument.startswith(str(prefix)):
                self.assertTrue(Path(argument).exists(), argument)
        if content["Label"] == "dev.mayfly.agent":
            self.assertEqual(content["ProgramArguments"], [f"{prefix}/bin/mayfly", "serve"])
            self.assertEqual(set(content["EnvironmentVariables"]), {"PATH"})
            self.assertTrue(content["AbandonProcessGroup"])
            self.assertEqual(content["StandardOutPath"], f"{prefix}/var/log/mayfly/mayfly.log")
        else:
            self.assertEqual(content["ProgramArguments"][-1], f"{prefix}/var/log/mayfly")

    def test_what_is_missing_or_wrong_is_said(self):
        with tempfile.TemporaryDirectory() as work:
            ran = self.fill(work)
            self.assertEqual(ran.returncode, 1)
            self.assertIn(TARGETS[0], ran.stderr)
            for repository in ("http://forge.example/mayfly", "https://", "https://forge.example/a|b", 'https://forge.example/"'):
                ran = self.fill(work, repository)
                self.assertEqual(ran.returncode, 2, repository)
                self.assertIn("REPOSITORY_URL", ran.stderr)
            self.assertEqual(os.listdir(work), [])


if __name__ == "__main__":
    if not BINARY.is_file():
        sys.exit(f"release_test: there is no program {BINARY}: cargo build, or name another one with BINARY")
    unittest.main()
