"""A real `mayfly serve` for tests with real peers, and what its hypervisor has."""

import glob
import json
import os
import signal
import subprocess
import urllib.error
import urllib.request
from pathlib import Path

from peer import free_port, request, wait

ROOT = Path(__file__).resolve().parents[2]
IMAGE = Path(os.environ.get("MAYFLY_TEST_IMAGE", Path.home() / ".cache/mayfly/images/micro"))


class Mayfly:
    """The service. A subclass says which hypervisor it has, and makes the template `micro`."""

    def __init__(self, program, directory, slots):
        self.program, self.directory, self.slots = program, directory, slots
        self.port, self.guest_port = free_port(), free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.process = None
        self.prepare()
        self.start()
        self.admin = (directory / "data/admin.token").read_text().strip()
        self.api("POST", "/templates", {"name": "micro", **self.template(),
                                        "budgets": {"boot_seconds": 600, "configure_seconds": 60}})
        self.token = self.api("POST", "/tokens", {"name": "peer", "scope": "create"})["token"]

    def start(self):
        data = self.directory / "data"
        data.mkdir(mode=0o700, exist_ok=True)
        environment = {key: value for key, value in os.environ.items() if not key.startswith("MAYFLY_")}
        environment.update({
            "MAYFLY_SERVER__LISTEN": f"127.0.0.1:{self.port}",
            "MAYFLY_GUEST__LISTEN": f"127.0.0.1:{self.guest_port}",
            "MAYFLY_SLOTS__LINUX": str(self.slots),
            "MAYFLY_TEMPLATES__MIN_FREE_BYTES": "0",
            "MAYFLY_DATABASE__RESERVE_BYTES": "0",
            **self.settings(),
        })
        with open(self.directory / "mayfly.log", "ab") as log:
            self.process = subprocess.Popen([self.program, "--data-dir", str(data), "serve"], env=environment,
                                            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=log)
        wait("mayfly serve answers", 60, self.answers, every=0.1)

    def answers(self):
        if self.process.poll() is not None:
            raise AssertionError(f"mayfly serve ended: {(self.directory / 'mayfly.log').read_text()[-2000:]}")
        try:
            request("GET", f"{self.url}/healthz", timeout=5)
        except urllib.error.HTTPError:
            pass
        except OSError:
            return False
        return True

    def kill(self):
        self.process.kill()
        self.process.wait()

    def stall(self, stalled):
        self.process.send_signal(signal.SIGSTOP if stalled else signal.SIGCONT)

    def api(self, method, path, body=None):
        return request(method, self.url + path, self.admin, body)

    def live(self):
        """The vms that are neither deleted nor ending."""
        return [vm for vm in self.api("GET", "/vms?limit=200")["items"] if vm["outcome"] is None]

    def log(self, vm, source):
        """What the guest said: `boot` or `job`."""
        call = urllib.request.Request(f"{self.url}/vms/{vm}/logs?source={source}",
                                      headers={"authorization": f"Bearer {self.admin}"})
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(call, timeout=30) as answer:
            return answer.read().decode(errors="replace")

    def end(self):
        if self.process and self.process.poll() is None:
            self.process.send_signal(signal.SIGCONT)
            self.kill()
        # What the hypervisor runs outlives the service.
        for pid in self.instances():
            try:
                os.kill(pid, signal.SIGKILL)
            except OSError:
                continue


class MayflyOnMac(Mayfly):
    """The service on a Mac that is simulated: the double of `tart`, with guests that do nothing."""

    def __init__(self, program, tart, directory, slots):
        self.tart = tart
        self.home = directory / "tart-home"
        super().__init__(program, directory, slots)

    def prepare(self):
        base = self.directory / "base"
        base.mkdir()
        self.home.mkdir()
        (base / "config.json").write_text(json.dumps({
            "version": 1, "os": "linux", "arch": "arm64", "ecid": "YQ==", "hardwareModel": "Yg==", "cpuCountMin": 1,
            "cpuCount": 1, "memorySizeMin": 64 << 20, "memorySize": 128 << 20, "macAddress": "7a:65:e4:3f:b2:51",
            "display": {"width": 1024, "height": 768}}))
        (base / "nvram.bin").write_text("nvram")
        (base / "disk.img").write_bytes(b"\1" * 65536)
        (self.home / "double.json").write_text(json.dumps({"arch": "arm64"}))
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(self.directory / "ssh")], check=True)

    def settings(self):
        return {
            "MAYFLY_DRIVERS__QEMU__ENABLED": "false",
            "MAYFLY_DRIVERS__TART__ENABLED": "true",
            "MAYFLY_DRIVERS__TART__ARCH": "aarch64",
            "MAYFLY_DRIVERS__TART__BINARY": str(self.tart),
            "MAYFLY_DRIVERS__TART__HOME": str(self.home),
            "MAYFLY_DRIVERS__TART__LEASE_FILE": str(self.home / "dhcpd_leases"),
            "MAYFLY_SLOTS__CPUS": "64",
            "MAYFLY_SLOTS__MEMORY_MIB": "65536",
        }

    def template(self):
        return {"vm_dir": str(self.directory / "base"), "handover": "ssh", "user": "runner",
                "ssh_key": str(self.directory / "ssh")}

    def hypervisor(self):
        """Ids of vms, from the VMs that the hypervisor has. An attempt after the first has its number in the name."""
        found = glob.glob(str(self.home / "vms" / "mayfly-*"))
        return sorted(Path(path).name.removeprefix("mayfly-")[:36] for path in found)

    def instances(self):
        return with_environment(f"TART_HOME={self.home}")


class MayflyWithGuests(Mayfly):
    """The service with QEMU and real guests. `programs` are added to the guest: a path in an existing directory or in
    `directory_of_runner`, which is made and belongs to the runner, and the local file."""

    def __init__(self, program, directory, slots, programs, directory_of_runner=None):
        self.programs, self.directory_of_runner = programs, directory_of_runner
        super().__init__(program, directory, slots)

    def prepare(self):
        raw = self.directory / "disk.raw"
        subprocess.run(["qemu-img", "convert", "-q", "-O", "raw", IMAGE / "disk.qcow2", raw], check=True)
        commands = []
        if self.directory_of_runner:
            path = self.directory_of_runner
            commands += [f"mkdir {path}", f"sif {path} mode 040755", f"sif {path} uid 1000", f"sif {path} gid 1000"]
        for path, source in self.programs.items():
            commands += [f"write {source} {path}", f"sif {path} mode 0100755", f"sif {path} uid 0", f"sif {path} gid 0"]
        ran = subprocess.run(["debugfs", "-w", "-f", "-", raw], input="\n".join(commands), text=True,
                             env={**os.environ, "PATH": os.environ["PATH"] + ":/usr/sbin:/sbin"},
                             stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, check=True)
        complaints = [line for line in ran.stderr.splitlines() if not line.startswith("debugfs ")]
        if complaints:
            raise AssertionError("cannot build the guest image: " + "; ".join(complaints))
        subprocess.run(["qemu-img", "convert", "-q", "-f", "raw", "-O", "qcow2", raw, self.directory / "disk.qcow2"],
                       check=True)
        raw.unlink()

    def settings(self):
        # The peers listen on loopback, which guests reach only in the mode `host`.
        return {"MAYFLY_DRIVERS__QEMU__ACCELERATOR": "tcg", "MAYFLY_DRIVERS__QEMU__ISOLATED": "false",
                "MAYFLY_SLOTS__COUNT_FOREIGN": "false"}

    def template(self):
        cmdline = json.loads((IMAGE / "template.json").read_text())["cmdline"]
        return {"os": "linux", "disk": str(self.directory / "disk.qcow2"), "kernel": str(IMAGE / "vmlinuz"),
                "initramfs": str(IMAGE / "initramfs.img"), "cmdline": cmdline, "cpus": 1, "memory_mib": 192,
                "handover": "seed", "user": "runner"}

    def hypervisor(self):
        """Ids of vms, from the directories of instances."""
        found = glob.glob(str(self.directory / "data/instances/mayfly-*"))
        return sorted(Path(path).name.removeprefix("mayfly-")[:36] for path in found)

    def instances(self):
        found = []
        for path in glob.glob(str(self.directory / "data/instances/*/qemu.pid")):
            try:
                found.append(int(Path(path).read_text()))
            except (OSError, ValueError):
                continue
        return found


def with_environment(line):
    """Pids of the processes that have this line in their environment."""
    found = []
    for entry in glob.glob("/proc/[0-9]*/environ"):
        try:
            if line.encode() in Path(entry).read_bytes().split(b"\0"):
                found.append(int(entry.split("/")[2]))
        except OSError:
            continue
    return found
