#!/usr/bin/env python3
"""A soak: one service with real guests, while a guest, clients, a token and images attack it all at once and for a long time.

    [SOAK_SECONDS=3600] [SEED=1] [SOAK_ALONE=8] [SOAK_PROFILE=release] [SOAK_NAME=soak] main.py

First a well-behaved job runs alone several times. Then it runs again and again beside everything hostile and beside a calm
guest, whose calls are timed. All limits are measured from outside. At the end everything hostile is deleted, and nothing may
be left. Prints a table, writes target/bench/<SOAK_NAME>.json, and exits with 1 if a limit was violated.
"""

import contextlib
import json
import os
import pathlib
import secrets
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time

HERE = pathlib.Path(__file__).resolve().parent
sys.path.append(str(HERE.parent / "campaign"))

import guests
import judge
import lane
import leftovers
import measure
import parameters as soak
import scripts
import settings as campaign
import tools
from service import NotAnswered, Refused, Service

# Longest life of one well-behaved job. Emulated guests on a busy machine are slow.
LIFE = 300
MS_BIND = 4096


def say(text):
    print(f"soak: {text}", flush=True)


class Soak:
    def __init__(self, parameters, work):
        self.parameters, self.work = parameters, work
        # Short, because it contains sockets, and systems limit the length of their paths.
        self.data, self.scratch = work / "d", work / "tmp"
        self.data.mkdir(mode=0o700)
        self.scratch.mkdir()
        self.mounts = tools.Mounts()
        self.attack = self.told = None
        self.alone, self.beside, self.failures, self.left = [], [], [], []
        self.watch, self.host = guests.Watch(), guests.Host(self.data, soak.SLOTS)
        self.service = Service(parameters.binary, self.data, work / "serve.log",
                               soak.environment(self.scratch, parameters, secrets.token_hex(20)))
        self.probe = measure.Probe(self.service.port)
        self.sampler = None

    # --- the run --------------------------------------------------------------------

    def run(self):
        self.prepare()
        for n in range(self.parameters.alone):
            self.alone.append(self.one_job())
        self.quiet_memory = measure.resident(self.service.process.pid)
        say(f"alone: {', '.join(f'{seconds:.1f}' for seconds in self.alone)} s")
        self.attack_beside_jobs()
        self.end_all()

    def prepare(self):
        if self.mounts.possible:
            self.mounts.tmpfs(self.data, soak.SPARE_MIB + 2 * lane.image_mib())
        else:
            say(f"the data directory has no file system of its own: {self.mounts.reason}")
        self.attack = subprocess.Popen([sys.executable, "-B", HERE / "attack.py"], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                       stderr=open(self.work / "attack.log", "w"), text=True)
        self.ports = json.loads(self.attack.stdout.readline() or "{}")
        if not self.ports:
            raise RuntimeError(f"the attack does not start: {(self.work / 'attack.log').read_text()[-2000:]}")
        (self.data / "mayfly.toml").write_text(f"[registries.\"{self.ports['images']}\"]\nplain_http = true\n")
        self.answer_names()
        self.watch.start()
        self.service.start()
        if not self.service.await_answer(60):
            raise RuntimeError(f"the service does not start: {lane.log_tail(self.service.log_path, 2000)}")
        self.service.insist("POST", "/templates", {**lane.template("seed"), "name": "micro"}, seconds=120)
        with self.watch.changed:
            self.watch.hosts.append(self.host)
        self.baseline = leftovers.files(self.data)

    def answer_names(self):
        """Names that the hostile guest asks for go to the attack's own server, or nowhere."""
        self.network = "isolated"
        if self.mounts.possible and self.ports["name_server"]:
            (self.work / "resolv.conf").write_text(f"nameserver {self.ports['name_server']}\n")
            target = os.path.realpath("/etc/resolv.conf").encode()
            if self.mounts.mount(os.fsencode(self.work / "resolv.conf"), target, None, MS_BIND) == 0:
                self.network = "internet"
        if self.network == "isolated":
            say("the hostile guest is isolated: there is no DNS server on loopback for it")

    def one_job(self):
        """Seconds from the request to the end of a well-behaved job."""
        began = time.monotonic()
        vm = self.ask("POST", "/vms", {"template": "micro", "runner": {"kind": "command", "command": scripts.WELL}})
        vm = self.follow(vm, lambda vm: vm["state"] == "deleted", LIFE)
        seconds = time.monotonic() - began
        outcome = vm.get("outcome") or {}
        if outcome.get("result") != "completed" or (vm.get("job") or {}).get("exit_code") != 0 or vm.get("attempt") != 1:
            self.failures.append(f"well-behaved job {vm['id']}: {vm['state']}, {outcome}, attempt {vm.get('attempt')}, "
                                 f"last fault {vm.get('last_fault')}")
        return seconds

    def follow(self, vm, until, seconds):
        """The vm's record as soon as `until` is true for it, or after that time."""
        limit = time.monotonic() + seconds
        while not until(vm) and time.monotonic() < limit:
            vm = self.ask("GET", f"/vms/{vm['id']}?wait_generation={vm['generation']}&timeout_seconds=20")
        return vm

    def ask(self, method, path, body=None):
        """A request of a well-behaved client. No answer is a failure; then the request is repeated."""
        key = secrets.token_hex(8) if method == "POST" else None
        try:
            return self.service.call(method, path, body, key, timeout=30)
        except NotAnswered as error:
            self.failures.append(f"{method} {path} was not answered: {error}")
            return self.service.insist(method, path, body, key, 60)

    def attack_beside_jobs(self):
        create = lambda name, **more: self.service.insist("POST", "/tokens", {"name": name, "scope": "create", **more})
        self.tokens = [create("hostile", limits={"images": ["*"], "max_live_vms": 4}),
                       create("limited", limits={"templates": ["micro"], "max_cpus": 1, "max_live_vms": 1})]
        start = lambda command, **more: self.service.insist("POST", "/vms", {
            "template": "micro", "runner": {"kind": "command", "command": command}, **more})
        self.calm = start(scripts.CALM.format(calls=self.parameters.lifetime_seconds))
        self.hostile = start(scripts.HOSTILE, network=self.network)
        for vm in (self.calm, self.hostile):
            now = self.follow(vm, lambda vm: vm["state"] in ("running", "deleted"), LIFE)
            if now["state"] != "running":
                raise RuntimeError(f"a guest does not run: {json.dumps(now)}")
        self.sampler = measure.Sampler(self.service, self.data, [os.getpid(), self.attack.pid])
        self.attack.stdin.write(json.dumps({
            "port": self.service.port, "calm": self.calm["id"], "seed": self.parameters.seed,
            "token": self.tokens[0]["token"], "limited": self.tokens[1]["token"],
        }) + "\n")
        self.attack.stdin.flush()
        self.probe.start()
        self.sampler.start()
        say(f"everything hostile runs, for {self.parameters.seconds} s")
        until = time.monotonic() + self.parameters.seconds
        next_word = time.monotonic() + 60
        while time.monotonic() < until and self.service.alive():
            self.beside.append(self.one_job())
            if time.monotonic() > next_word:
                next_word = time.monotonic() + 60
                say(f"{len(self.beside)} jobs, {until - time.monotonic():.0f} s are left")
        for vm, name in ((self.calm, "calm"), (self.hostile, "hostile")):
            state = self.service.insist("GET", f"/vms/{vm['id']}", seconds=30)
            if state["state"] != "running":
                self.failures.append(f"the {name} guest ended before its time: {state.get('outcome')}, {state.get('last_fault')}")
        self.probe.ended.set()
        self.probe.join(2 * measure.PROBE_TIMEOUT)
        self.sampler.ended.set()
        self.sampler.join(20)
        self.told = self.end_attack()

    def end_attack(self):
        """What the attack did, or None."""
        with contextlib.suppress(OSError):
            self.attack.stdin.close()
        try:
            text = self.attack.stdout.read()
            self.attack.wait(20)
        except subprocess.TimeoutExpired:
            self.attack.kill()
            text = ""
        self.attack_log = (self.work / "attack.log").read_text()
        return json.loads(text) if text else None

    def end_all(self):
        """Deletes everything hostile. Then nothing may be left."""
        for token in self.tokens:
            self.service.insist("DELETE", f"/tokens/{token['id']}")
        for vm in self.live_vms():
            self.service.insist("DELETE", f"/vms/{vm['id']}?force=true")
        for vm in self.live_vms():
            self.follow(vm, lambda vm: vm["state"] == "deleted", 60)
        for pull in self.service.insist("GET", "/pulls?limit=200")["items"]:
            if pull["state"] in ("pulling", "testing"):
                with contextlib.suppress(Refused):
                    self.service.insist("DELETE", f"/pulls/{pull['id']}")
        # What was interrupted may be kept for the next attempt, until somebody asks for its space.
        self.service.insist("POST", "/templates/prune", {"partial": True})
        found = leftovers.left_processes(str(self.data), {self.service.process.pid}, 20)
        self.settled_memory = measure.resident(self.service.process.pid)
        found += leftovers.left_files(self.data, self.baseline)
        found += leftovers.left_logs(self.data, self.all_vms())
        found += [f"left in its TMPDIR: {path}" for path in sorted(leftovers.files(self.scratch))[:leftovers.MENTIONED]]
        if names := [template["name"] for template in self.service.insist("GET", "/templates")["items"] if template["name"] != "micro"]:
            found.append(f"templates were made of hostile images: {names}")
        status = self.service.stop()
        if status != 0:
            found.append("the service did not end on SIGTERM" if status is None else f"the service ended with {status}")
        found += leftovers.left_rows(self.data / "mayfly.db", [])
        if self.parameters.replay.exists():
            found += leftovers.replayed(self.parameters.replay, self.data / "mayfly.db")
        self.left = found

    def live_vms(self):
        found, cursor = [], ""
        while True:
            page = self.service.insist("GET", "/vms?limit=200" + cursor)
            found += [vm for vm in page["items"] if vm["state"] != "deleted"]
            if not page.get("next_cursor"):
                return found
            cursor = f"&cursor={page['next_cursor']}"

    def all_vms(self):
        with contextlib.closing(sqlite3.connect(f"file:{self.data / 'mayfly.db'}?mode=ro", uri=True)) as connection:
            return {row[0] for row in connection.execute("SELECT id FROM vms")}

    # --- the end --------------------------------------------------------------------

    def close(self):
        """Ends all that this run started."""
        for thread in (self.probe, self.sampler):
            if thread:
                thread.ended.set()
        if self.attack and self.attack.poll() is None:
            self.attack.kill()
            self.attack.wait()
        self.service.kill()
        guests.end_processes_naming(str(self.data))
        if self.watch.is_alive():
            self.watch.close()
        if self.mounts.possible:
            self.mounts.unmount(self.data)


def main():
    parameters = soak.from_environment()
    # Also clean up after Ctrl-C, when the terminal is closed or a CI job is cancelled.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: sys.exit("ended by a signal"))
    for path in (parameters.binary, campaign.IMAGE / "template.json"):
        if not path.exists():
            raise SystemExit(f"soak: {path} does not exist: use `make soak`, which builds it")
    work = pathlib.Path(tempfile.mkdtemp(prefix="mfs", dir="/tmp"))
    run, began = Soak(parameters, work), time.monotonic()
    log = parameters.output / f"{parameters.name}.log"
    try:
        run.run()
        run.watch.close()
        result = judge.judge(run, time.monotonic() - began)
    finally:
        parameters.output.mkdir(parents=True, exist_ok=True)
        if run.service.log_path.exists():
            shutil.copyfile(run.service.log_path, log)
        run.close()
        shutil.rmtree(work, ignore_errors=True)
    (parameters.output / f"{parameters.name}.json").write_text(json.dumps(result, indent=1) + "\n")
    judge.table(result)
    say(f"the service's log is {log}")
    if result["violations"]:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
