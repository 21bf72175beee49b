#!/usr/bin/env python3
"""Runs a real GARM end to end: it loads this program as its provider, and asks a real `mayfly serve`.

GARM is not part of this project. Build it elsewhere (`go build ./cmd/garm` in its repository) and name it:

    GARM=/path/to/garm tests/peers/garm.py [--version v0.1.1] [--rounds 100] [SCENARIO ...]

GitHub is played (`github_for_garm.py`). The hypervisor is the double of `tart` with guests that do nothing, so what is counted
at the end are the VMs that the hypervisor has, not the records of the service. Without GARM, it says NOT CHECKED and exits
with 0.
"""

import argparse
import glob
import json
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

from github_for_garm import GitHub

ROOT = Path(__file__).resolve().parents[2]
PASSWORD = "a-Long-and-Strong-Passw0rd!"
OWNER, REPOSITORY = "acme", "app"


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def say(*words):
    print(time.strftime("%H:%M:%S"), *words, flush=True)


def request(method, url, token=None, body=None, timeout=30):
    data = None if body is None else json.dumps(body).encode()
    headers = {"content-type": "application/json"}
    if token:
        headers["authorization"] = f"Bearer {token}"
    call = urllib.request.Request(url, data=data, method=method, headers=headers)
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(call, timeout=timeout) as answer:
        text = answer.read()
        return json.loads(text) if text else None


def wait(what, seconds, condition, every=0.5):
    end = time.monotonic() + seconds
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > end:
            raise AssertionError(f"waited {seconds} s in vain: {what}")
        time.sleep(every)


class Mayfly:
    """The service, on a Mac that is played."""

    def __init__(self, program, tart, directory, slots):
        self.program, self.tart, self.directory = program, tart, directory
        self.home = directory / "tart-home"
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.slots = slots
        self.process = None
        base = directory / "base"
        base.mkdir()
        self.home.mkdir()
        (base / "config.json").write_text(json.dumps({
            "version": 1, "os": "linux", "arch": "arm64", "ecid": "YQ==", "hardwareModel": "Yg==", "cpuCountMin": 1,
            "cpuCount": 1, "memorySizeMin": 64 << 20, "memorySize": 128 << 20, "macAddress": "7a:65:e4:3f:b2:51",
            "display": {"width": 1024, "height": 768}}))
        (base / "nvram.bin").write_text("nvram")
        (base / "disk.img").write_bytes(b"\1" * 65536)
        (self.home / "double.json").write_text(json.dumps({"arch": "arm64"}))
        (directory / "key").write_text("")
        self.start()
        self.admin = (directory / "data/admin.token").read_text().strip()
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(directory / "ssh")], check=True)
        self.api("POST", "/templates", {"name": "micro", "vm_dir": str(base), "handover": "ssh", "user": "runner",
                                        "ssh_key": str(directory / "ssh"),
                                        "budgets": {"boot_seconds": 600, "configure_seconds": 60}})
        self.token = self.api("POST", "/tokens", {"name": "garm", "scope": "create"})["token"]

    def start(self):
        data = self.directory / "data"
        data.mkdir(mode=0o700, exist_ok=True)
        environment = {key: value for key, value in os.environ.items() if not key.startswith("MAYFLY_")}
        environment.update({
            "MAYFLY_SERVER__LISTEN": f"127.0.0.1:{self.port}",
            "MAYFLY_GUEST__LISTEN": f"127.0.0.1:{free_port()}",
            "MAYFLY_DRIVERS__QEMU__ENABLED": "false",
            "MAYFLY_DRIVERS__TART__ENABLED": "true",
            "MAYFLY_DRIVERS__TART__ARCH": "aarch64",
            "MAYFLY_DRIVERS__TART__BINARY": str(self.tart),
            "MAYFLY_DRIVERS__TART__HOME": str(self.home),
            "MAYFLY_DRIVERS__TART__LEASE_FILE": str(self.home / "dhcpd_leases"),
            "MAYFLY_SLOTS__LINUX": str(self.slots),
            "MAYFLY_SLOTS__CPUS": "64",
            "MAYFLY_SLOTS__MEMORY_MIB": "65536",
            "MAYFLY_TEMPLATES__MIN_FREE_BYTES": "0",
            "MAYFLY_DATABASE__RESERVE_BYTES": "0",
        })
        log = open(self.directory / "mayfly.log", "ab")
        self.process = subprocess.Popen([self.program, "--data-dir", str(data), "serve"], env=environment,
                                        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=log)
        wait("mayfly serve answers", 60, self.answers)

    def answers(self):
        if self.process.poll() is not None:
            raise AssertionError(f"mayfly serve ended: {(self.directory / 'mayfly.log').read_text()[-2000:]}")
        try:
            request("GET", f"{self.url}/health/live", timeout=5)
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

    def vms(self):
        """By the name in GARM: the vms that are not deleted and not ending."""
        names = {}
        for vm in self.api("GET", "/vms?limit=200")["items"]:
            if vm["outcome"] is None:
                names.setdefault(vm["labels"].get("garm.name"), []).append(vm)
        return names

    def hypervisor(self):
        """Ids of vms, from the VMs that the hypervisor has."""
        found = glob.glob(str(self.home / "vms" / "mayfly-*"))
        return sorted(Path(path).name.removeprefix("mayfly-") for path in found)


class Garm:
    def __init__(self, program, mayfly, github, directory, version):
        self.program, self.mayfly, self.github, self.directory = program, mayfly, github, directory
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}/api/v1"
        (directory / "garm.token").write_text(mayfly.token)
        (directory / "mayfly.toml").write_text(
            f'url = "{mayfly.url}"\ntoken_file = "{directory}/garm.token"\ntimeout_seconds = 60\n')
        os.symlink(mayfly.program, directory / "garm-provider-mayfly")
        (directory / "config.toml").write_text(f"""
[default]
enable_webhook_management = true
[logging]
log_format = "text"
log_level = "debug"
[jwt_auth]
secret = "Seb3*2d9kD!fLq0zPw7^uYvXn5sRtA1c"
time_to_live = "8760h"
[apiserver]
bind = "127.0.0.1"
port = {self.port}
use_tls = false
  [apiserver.webui]
  enable = false
[database]
backend = "sqlite3"
passphrase = "shreotsinWadquidAitNefayctowUrph"
  [database.sqlite3]
  db_file = "{directory}/garm.db"
  busy_timeout_seconds = 5
[[provider]]
name = "mayfly"
provider_type = "external"
description = "vms of Mayfly"
  [provider.external]
  provider_executable = "{directory}/garm-provider-mayfly"
  config_file = "{directory}/mayfly.toml"
  interface_version = "{version}"
""")
        self.process = None
        self.start()
        base = f"http://127.0.0.1:{self.port}"
        self.call("POST", "/first-run", {"username": "admin", "email": "a@example.com", "full_name": "A",
                                         "password": PASSWORD})
        self.login()
        self.call("PUT", "/controller", {"metadata_url": f"{base}/api/v1/metadata",
                                         "callback_url": f"{base}/api/v1/callbacks", "webhook_url": f"{base}/webhooks",
                                         "minimum_job_age_backoff": 0})
        self.call("POST", "/github/endpoints", {"name": "played", "description": "played", "base_url": github.url,
                                                "api_base_url": github.url, "upload_base_url": github.url})
        self.call("POST", "/github/credentials", {"name": "played", "description": "played", "endpoint": "played",
                                                  "auth_type": "pat", "pat": {"oauth2_token": "token"}})
        self.repository = self.call("POST", "/repositories", {
            "owner": OWNER, "name": REPOSITORY, "credentials_name": "played", "webhook_secret": "hook",
            "pool_balancer_type": "roundrobin"})["id"]

    def start(self):
        log = open(self.directory / "garm.log", "ab")
        self.process = subprocess.Popen([self.program, "--config", str(self.directory / "config.toml")], env={},
                                        stdin=subprocess.DEVNULL, stdout=log, stderr=log)

        def answers():
            if self.process.poll() is not None:
                raise AssertionError(f"GARM ended: {(self.directory / 'garm.log').read_text()[-2000:]}")
            try:
                request("GET", f"{self.url}/controller-info", timeout=5)
            except urllib.error.HTTPError:
                return True
            except OSError:
                return False
            return True

        wait("GARM answers", 60, answers)

    def login(self):
        answer = request("POST", f"{self.url}/auth/login", body={"username": "admin", "password": PASSWORD})
        self.token = answer["token"]

    def kill(self):
        self.process.kill()
        self.process.wait()

    def call(self, method, path, body=None):
        try:
            return request(method, self.url + path, getattr(self, "token", None), body)
        except urllib.error.HTTPError as error:
            raise AssertionError(f"GARM answered {error.code} to {method} {path}: {error.read().decode()}") from error

    def new_pool(self, idle, most, **changes):
        body = {"provider_name": "mayfly", "max_runners": most, "min_idle_runners": idle, "image": "micro",
                "flavor": "default", "os_type": "linux", "os_arch": "arm64", "tags": ["mac"], "enabled": True,
                "runner_bootstrap_timeout": 20, **changes}
        return self.call("POST", f"/repositories/{self.repository}/pools", body)["id"]

    def new_scale_set(self, name, idle, most):
        body = {"name": name, "provider_name": "mayfly", "max_runners": most, "min_idle_runners": idle,
                "image": "micro", "flavor": "default", "os_type": "linux", "os_arch": "arm64", "enabled": True,
                "runner_bootstrap_timeout": 20}
        return self.call("POST", f"/repositories/{self.repository}/scalesets", body)["id"]

    def instances(self):
        return {instance["name"]: instance for instance in self.call("GET", "/instances") or []}

    def running(self):
        return sorted(name for name, instance in self.instances().items() if instance["status"] == "running")

    def remove(self, name, force=True):
        self.call("DELETE", f"/instances/{name}?forceRemove={'true' if force else 'false'}")

    def providers(self):
        """Pids of the providers that run now, those of a GARM that was killed as well."""
        found = []
        for entry in glob.glob("/proc/[0-9]*/cmdline"):
            try:
                line = Path(entry).read_bytes().split(b"\0")
            except OSError:
                continue
            if line[0] == str(self.directory / "garm-provider-mayfly").encode():
                found.append(int(entry.split("/")[2]))
        return found


class Scene:
    def __init__(self, options, directory):
        self.directory = directory
        self.github = GitHub()
        self.mayfly = Mayfly(options.mayfly, options.tart, directory, slots=options.slots)
        self.garm = Garm(options.garm, self.mayfly, self.github, directory, options.version)
        self.options = options

    def end(self):
        for process in [self.garm.process, self.mayfly.process]:
            if process and process.poll() is None:
                process.send_signal(signal.SIGCONT)
                process.kill()
                process.wait()
        # What the hypervisor runs outlives the service.
        for entry in glob.glob("/proc/[0-9]*/environ"):
            try:
                if f"TART_HOME={self.mayfly.home}".encode() in Path(entry).read_bytes().split(b"\0"):
                    os.kill(int(entry.split("/")[2]), signal.SIGKILL)
            except OSError:
                continue

    def agree(self, seconds=90):
        """Waits until GARM's instances, Mayfly's vms and the hypervisor's VMs are the same, each once."""

        def compare():
            instances = self.garm.instances()
            if any(instance["status"] != "running" for instance in instances.values()):
                return None
            vms = self.mayfly.vms()
            doubled = [name for name, of_name in vms.items() if len(of_name) > 1]
            waiting = [vm["id"] for of_name in vms.values() for vm in of_name if vm["state"] == "queued"]
            ids = sorted(vm["id"] for of_name in vms.values() for vm in of_name)
            held = sorted(set(ids) - set(waiting))
            self.last = {"garm": sorted(instances), "mayfly": sorted(map(str, vms)), "doubled": doubled,
                         "hypervisor": self.mayfly.hypervisor(), "with a slot": held}
            by_attempt = {name.rsplit("-a", 1)[0] if "-a" in name[36:] else name
                          for name in self.mayfly.hypervisor()}
            return not doubled and sorted(instances) == sorted(vms) and by_attempt == set(held)

        try:
            wait("GARM, Mayfly and the hypervisor agree", seconds, compare, every=1)
        except AssertionError as error:
            raise AssertionError(f"{error}: {json.dumps(getattr(self, 'last', None), indent=1)}") from error
        return self.last

    def empty(self, seconds=120):
        """Nothing is left, as the hypervisor sees it."""
        wait("nothing is left", seconds,
             lambda: not self.garm.instances() and not self.mayfly.vms() and not self.mayfly.hypervisor(), every=1)


def pool(scene):
    """Three idle runners; one is deleted and replaced; the pool is closed and all go."""
    garm = scene.garm
    number = garm.new_pool(3, 5)
    wait("three runners", 90, lambda: len(garm.running()) == 3)
    say("agree:", scene.agree())
    first = garm.running()[0]
    garm.remove(first, force=False)
    wait("the replacement", 90, lambda: first not in garm.instances() and len(garm.running()) == 3)
    say("replaced:", first, "->", scene.agree()["garm"])
    close_pool(scene, number)


def close_pool(scene, number):
    garm = scene.garm
    path = f"/repositories/{garm.repository}/pools/{number}"
    garm.call("PUT", path, {"enabled": False, "min_idle_runners": 0})
    deadline = time.monotonic() + 180
    while garm.instances():
        for name, instance in garm.instances().items():
            if instance["status"] in ("running", "error"):
                try:
                    garm.remove(name)
                except AssertionError:
                    pass
        if time.monotonic() > deadline:
            raise AssertionError(f"GARM keeps instances: {garm.instances()}")
        time.sleep(2)
    scene.empty()
    garm.call("DELETE", path)
    say("the pool is closed, and nothing is left")


def scale_set(scene):
    """Idle runners of a scale set; a VM that GARM does not know goes with the next list (v0.1.0)."""
    garm = scene.garm
    garm.new_scale_set("my set/x", 2, 4)
    wait("two runners", 90, lambda: len(garm.running()) == 2)
    say("agree:", scene.agree())
    pools = {vm["labels"]["garm.pool"] for of_name in scene.mayfly.vms().values() for vm in of_name}
    say("pool ids of the vms:", pools)
    first = garm.running()[0]
    garm.remove(first, force=False)
    wait("the replacement", 120, lambda: first not in garm.instances() and len(garm.running()) == 2)
    say("replaced:", scene.agree()["garm"])


def killed_provider(scene):
    """Mayfly stands still, the provider of a creation is killed, GARM tries again."""
    garm = scene.garm
    scene.mayfly.stall(True)
    number = garm.new_pool(1, 1)
    wait("a creation is under way", 60, garm.providers, every=0.05)
    time.sleep(1)
    for pid in garm.providers():
        os.kill(pid, signal.SIGKILL)
    say("the provider was killed while Mayfly stood still")
    time.sleep(3)
    scene.mayfly.stall(False)
    wait("one runner", 120, lambda: len(garm.running()) == 1)
    time.sleep(10)
    say("agree:", scene.agree())
    close_pool(scene, number)


def killed_garm(scene):
    """Mayfly stands still, GARM is killed in the middle of a creation and comes back; its provider lives on."""
    garm = scene.garm
    scene.mayfly.stall(True)
    number = garm.new_pool(1, 1)
    wait("a creation is under way", 60, garm.providers, every=0.05)
    time.sleep(2)
    orphans = garm.providers()
    garm.kill()
    garm.start()
    garm.login()
    say("GARM was killed and is back; its providers live on:", orphans)
    time.sleep(12)
    scene.mayfly.stall(False)
    wait("one runner", 120, lambda: len(garm.running()) == 1)
    time.sleep(15)
    say("agree:", scene.agree(), "records:", len(scene.mayfly.api("GET", "/vms?state=deleted")["items"]))
    close_pool(scene, number)


def restarted_mayfly(scene):
    """Mayfly is killed while runners are created, and comes back after ten seconds."""
    garm = scene.garm
    number = garm.new_pool(3, 3)
    wait("a creation is under way", 60, garm.providers, every=0.05)
    scene.mayfly.kill()
    say("Mayfly was killed")
    time.sleep(10)
    scene.mayfly.start()
    wait("three runners", 120, lambda: len(garm.running()) == 3)
    say("agree:", scene.agree())
    close_pool(scene, number)


def random_kills(scene):
    """Many creations and deletions, while providers, GARM and Mayfly are killed at random."""
    garm, dice = scene.garm, random.Random(scene.options.seed)
    number = garm.new_pool(4, 6)
    created, deleted, kills = set(), 0, {"provider": 0, "garm": 0, "mayfly": 0, "stall": 0}
    while len(created) < scene.options.rounds or deleted < scene.options.rounds:
        time.sleep(dice.uniform(0.2, 1.5))
        what = dice.choices(["delete", "provider", "garm", "mayfly", "stall"], [60, 30, 3, 3, 4])[0]
        try:
            running = garm.running()
            created.update(running)
            if what == "delete" and running:
                garm.remove(dice.choice(running))
                deleted += 1
            elif what == "provider":
                for pid in garm.providers()[:1]:
                    os.kill(pid, signal.SIGKILL)
                    kills["provider"] += 1
            elif what == "garm":
                kills["garm"] += 1
                garm.kill()
                garm.start()
                garm.login()
            elif what == "mayfly":
                kills["mayfly"] += 1
                scene.mayfly.kill()
                scene.mayfly.start()
            elif what == "stall":
                kills["stall"] += 1
                scene.mayfly.stall(True)
                time.sleep(dice.uniform(1, 5))
                scene.mayfly.stall(False)
        except (AssertionError, ProcessLookupError) as error:
            say("skipped:", str(error)[:200])
        if dice.random() < 0.05:
            say(f"{len(created)} created, {deleted} deleted, kills: {kills}")
    say(f"{len(created)} created, {deleted} deleted, kills: {kills}")
    close_pool(scene, number)
    records = scene.mayfly.api("GET", "/vms?state=deleted&limit=200")["items"]
    say(f"{len(records)} records of vms (one page), 0 vms, 0 VMs of the hypervisor: none doubled, none leaked")


SCENARIOS = [pool, scale_set, killed_provider, killed_garm, restarted_mayfly, random_kills]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--garm", default=os.environ.get("GARM"), type=os.path.abspath)
    parser.add_argument("--mayfly", default=str(ROOT / "target/debug/mayfly"), type=os.path.abspath)
    parser.add_argument("--tart", default=str(ROOT / "target/debug/examples/tart-double"), type=os.path.abspath)
    parser.add_argument("--version", default="v0.1.0", choices=["v0.1.0", "v0.1.1"])
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 32))
    parser.add_argument("--slots", type=int, default=4)
    parser.add_argument("scenarios", nargs="*", metavar="SCENARIO", help=", ".join(s.__name__ for s in SCENARIOS))
    options = parser.parse_args()
    if not options.garm:
        print("NOT CHECKED: no GARM (GARM=/path/to/garm)")
        return 0
    chosen = [s for s in SCENARIOS if not options.scenarios or s.__name__ in options.scenarios]
    failed = []
    for scenario in chosen:
        say(f"== {scenario.__name__} (interface {options.version}, seed {options.seed})")
        with tempfile.TemporaryDirectory(prefix="garm-", dir="/tmp") as directory:
            scene = None
            try:
                scene = Scene(options, Path(directory))
                scenario(scene)
                say(f"== {scenario.__name__}: passed")
            except AssertionError as error:
                say(f"== {scenario.__name__}: FAILED: {error}")
                failed.append(scenario.__name__)
                for log in ["garm.log", "mayfly.log"]:
                    path = Path(directory) / log
                    if path.exists():
                        target = Path(f"/tmp/{scenario.__name__}-{log}")
                        target.write_bytes(path.read_bytes())
                        say("kept:", target)
            finally:
                if scene:
                    scene.end()
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
