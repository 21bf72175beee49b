#!/usr/bin/env python3
"""Asks the socket `nesting.socket` with the real client: the command line of GitLab's `nesting`.

    NESTING=/path/nesting nesting.py

`nesting` is not part of this project. Build it elsewhere and name it. GitLab Runner makes the same calls with the same library.
The service is real, on a Mac that is simulated by the double of `tart`, with real Linux guests. VMs are counted in the double's
directory. Without the program, it says NOT CHECKED and exits with 0.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

from peer import say, wait
from service import IMAGE, ROOT, MayflyOnMac, with_environment

SSH_PORT = 2222


class Mayfly(MayflyOnMac):
    """With guests that can be logged in to, and the socket."""

    def prepare(self):
        super().prepare()
        base = self.directory / "base"
        subprocess.run(["qemu-img", "convert", "-q", "-O", "raw", IMAGE / "disk.qcow2", base / "disk.img"], check=True)
        config = json.loads((base / "config.json").read_text())
        (base / "config.json").write_text(json.dumps({**config, "memorySize": 192 << 20}))
        (self.home / "double.json").write_text(json.dumps({
            "arch": "arm64",
            "guest": {"qemu": {
                "binary": f"qemu-system-{os.uname().machine}", "kernel": str(IMAGE / "vmlinuz"),
                "initramfs": str(IMAGE / "initramfs.img"),
                "cmdline": json.loads((IMAGE / "template.json").read_text())["cmdline"], "ssh_port": SSH_PORT,
                "user": "runner", "key": str(IMAGE / "id_ed25519")}}}))

    def settings(self):
        return {**super().settings(), "MAYFLY_DRIVERS__TART__SSH_PORT": str(SSH_PORT), "MAYFLY_NESTING__NETWORK": "host",
                "MAYFLY_NESTING__SOCKET": str(self.socket), "MAYFLY_NESTING__TEMPLATES": "micro"}

    def template(self):
        return {**super().template(), "ssh_key": str(IMAGE / "id_ed25519")}

    @property
    def socket(self):
        return self.directory / "nesting.sock"


class Client:
    """One process for each call, as the command line is."""

    def __init__(self, program, socket):
        self.program, self.environment = program, {"PATH": os.environ["PATH"], "NESTING_SOCKET": str(socket)}

    def begin(self, *call):
        return subprocess.Popen([self.program, *call], env=self.environment, stdin=subprocess.DEVNULL, text=True,
                                stdout=subprocess.PIPE, stderr=subprocess.PIPE)

    def ask(self, *call):
        process = self.begin(*call)
        out, error = process.communicate(timeout=600)
        return process.returncode, out, error

    def call(self, *call):
        code, out, error = self.ask(*call)
        if code != 0:
            raise AssertionError(f"nesting {' '.join(call)}: {error[:600]}")
        return out

    def refused(self, text, *call):
        code, out, error = self.ask(*call)
        if code != 2 or text not in error or out:
            raise AssertionError(f"nesting {' '.join(call)}: expected {text!r}, found exit code {code}, {out!r}, {error[:600]}")

    def create(self, slot):
        """Ids of the vm and of the one that it replaces, and its address."""
        lines = self.call("create", "micro", str(slot)).splitlines()
        vm, name, address = lines[0].split()
        if name != "micro":
            raise AssertionError(lines)
        stomped = lines[1].removeprefix("stomped vm id ").strip('"') if len(lines) > 1 else None
        return vm, stomped, address

    def list(self):
        return sorted(line.split()[0] for line in self.call("list").splitlines())


def equal(found, expected):
    if found != expected:
        raise AssertionError(f"expected {expected}, found {found}")


def run(mayfly, client):
    exactly = lambda what, *vms: wait(f"{what}: the VMs {vms}", 120, lambda: mayfly.hypervisor() == sorted(vms))
    client.refused("not initialized", "list")
    client.refused("not initialized", "create", "micro", "0")
    client.call("init")
    client.refused("already initialized", "init")
    equal(client.list(), [])
    client.refused('"windows" is not allowed on this host', "create", "windows", "0")
    client.refused("nesting has no vm", "delete", "01999999-9999-7999-8999-999999999999")
    say("errors are those of nesting")

    first, stomped, address = client.create(0)
    equal((stomped, client.list()), (None, [first]))
    hello = subprocess.run(
        ["ssh", "-F", "none", "-i", IMAGE / "id_ed25519", "-p", str(SSH_PORT), "-o", "StrictHostKeyChecking=no", "-o",
         "UserKnownHostsFile=/dev/null", "-o", "LogLevel=ERROR", f"runner@{address}", "id -un"],
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120)
    equal(hello.stdout, "runner\n")
    other, _, _ = client.create(1)
    second, stomped, _ = client.create(0)
    equal(stomped, first)
    exactly("a slot has one vm", second, other)
    equal(client.list(), sorted([second, other]))
    say("slot 0 was stomped, slot 1 was left, and the guest answers at", address)

    killed = 0
    for pid in mayfly.instances():
        if f"mayfly-{second}" in Path(f"/proc/{pid}/cmdline").read_text():
            os.kill(pid, signal.SIGKILL)
            killed += 1
    if not killed:
        raise AssertionError("the vm has no process")
    wait("the vm that went away is not listed", 60, lambda: client.list() == [other])
    third, stomped, _ = client.create(0)
    equal(stomped, None)
    exactly("a vm that went away", third, other)
    say("a vm that went away by itself does not block its slot")

    mayfly.kill()
    code, out, _ = client.ask("list")
    if code == 0 or out:
        raise AssertionError(f"no service, and the list is {out!r}, exit code {code}")
    if not mayfly.socket.is_socket():
        raise AssertionError("the killed service left no socket, so there is none to take over")
    mayfly.start()
    client.refused("not initialized", "list")
    client.call("init")
    equal(client.list(), sorted([third, other]))
    fourth, stomped, _ = client.create(0)
    equal(stomped, third)
    exactly("after the restart", fourth, other)
    say("a killed service: its socket is taken over, and vms and slots are known")

    # The service refuses the token of its own machine, as while it is being replaced.
    token = mayfly.directory / "data/admin.token"
    text = token.read_text()
    token.write_text("mfa_wrong")
    client.refused("is not accepted", "list")
    client.refused("clearing slot", "create", "micro", "0")
    token.write_text(text)
    equal(client.list(), sorted([fourth, other]))
    say("an error is never an empty list")

    client.call("delete", other)
    exactly("deleted", fourth)
    waiting = client.begin("create", "micro", "1")
    wait("the vm of a client that waits", 60, lambda: len(client.list()) == 2, every=0.1)
    waiting.kill()
    waiting.communicate()
    exactly("a client that went away", fourth)
    say("a client that went away leaves no vm")

    client.call("shutdown")
    equal(mayfly.hypervisor(), [fourth])
    client.refused("not initialized", "list")
    client.call("init")
    client.call("delete", fourth)
    client.call("delete", fourth)
    exactly("the end")
    equal(client.list(), [])
    wait("no process is left", 60, lambda: not with_environment(f"TART_HOME={mayfly.home}"))
    say("0 VMs, 0 processes left")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mayfly", default=str(ROOT / "target/debug/mayfly"), type=os.path.abspath)
    parser.add_argument("--tart", default=str(ROOT / "target/debug/examples/tart-double"), type=os.path.abspath)
    options = parser.parse_args()
    program = os.environ.get("NESTING")
    if not program:
        print("NOT CHECKED: NESTING not set")
        return 0
    with tempfile.TemporaryDirectory(prefix="nesting-", dir="/tmp") as name:
        mayfly = None
        try:
            mayfly = Mayfly(options.mayfly, options.tart, Path(name), 3)
            run(mayfly, Client(os.path.abspath(program), mayfly.socket))
        except AssertionError as error:
            say("FAILED:", error)
            if (Path(name) / "mayfly.log").exists():
                Path("/tmp/failed-nesting-mayfly.log").write_bytes((Path(name) / "mayfly.log").read_bytes())
            return 1
        finally:
            if mayfly:
                mayfly.end()
    return 0


if __name__ == "__main__":
    sys.exit(main())
