#!/usr/bin/env python3
"""Measures Mayfly against a reference, both in the same run, with real guests.

    [BENCH_ROUNDS=3] bench.py turnaround|destroy|footprint|create [--quick] [--beside OLD_BINARY]

Prints a table and writes target/bench/<name>.json: name, ratio (or value), goal, raw samples. Machines are noisy: the figures
to compare are ratios and medians of one run, never seconds of two. `--beside` measures another build of Mayfly in turns with
this one, and writes target/bench/<name>-beside.json. `create` has no reference but that: it is for comparing builds.
"""

import argparse
import http.client
import json
import os
import pathlib
import select
import shutil
import signal
import socket
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parent
sys.path.insert(0, str(ROOT / "tests" / "guest"))
import support  # noqa: E402  (the guest tests' stand-in for the guest API, kits and seeds)

TARGET = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")).resolve()
BINARY = TARGET / os.environ.get("BENCH_PROFILE", "release") / "mayfly"
IMAGE = pathlib.Path(os.environ.get("MAYFLY_TEST_IMAGE", pathlib.Path.home() / ".cache/mayfly/images/micro"))


class Serve:
    """A real service with its own data directory."""

    def __init__(self, slots=2, directory=None, settings=None, binary=None):
        self.binary = binary or BINARY
        self.settings = settings or {}
        self.own = directory is None
        self.dir = pathlib.Path(directory or tempfile.mkdtemp(prefix="mfb", dir="/tmp"))
        self.slots = slots
        self.process = None

    def start(self):
        env = {k: v for k, v in os.environ.items() if not k.startswith("MAYFLY_")}
        env.update(
            MAYFLY_SERVER__LISTEN="127.0.0.1:0",
            MAYFLY_SLOTS__LINUX=str(self.slots),
            MAYFLY_DRIVERS__QEMU__ACCELERATOR="tcg",
        )
        env.update(self.settings)
        self.log = open(self.dir / "serve.log", "ab", buffering=0)
        begun = time.monotonic()
        self.process = subprocess.Popen(
            [self.binary, "--data-dir", self.dir, "serve"], env=env, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        self.url = None
        for line in self.process.stderr:
            self.log.write(line)
            at = line.find(b"listening on http://")
            if at >= 0:
                self.url = line[at + len(b"listening on "):].split()[0].decode()
                break
        if self.url is None:
            raise SystemExit("the service did not start:\n" + (self.dir / "serve.log").read_text())
        threading.Thread(target=lambda: [self.log.write(l) for l in self.process.stderr], daemon=True).start()
        self.token = (self.dir / "admin.token").read_text().strip()
        while True:
            try:
                self.call("GET", "/readyz")
                return time.monotonic() - begun
            except urllib.error.HTTPError:
                time.sleep(0.002)

    def call(self, method, path, body=None, timeout=90):
        request = urllib.request.Request(
            self.url + path, method=method, data=None if body is None else json.dumps(body).encode(),
            headers={"Authorization": "Bearer " + self.token, "Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=timeout) as answer:
            text = answer.read()
            return json.loads(text) if text[:1] in b"{[" else text

    def template(self):
        description = json.loads((IMAGE / "template.json").read_text())
        at = lambda name: str(IMAGE / name)
        self.call("POST", "/templates", {
            "name": "micro", "os": "linux", "disk": at("disk.qcow2"), "kernel": at("vmlinuz"),
            "initramfs": at("initramfs.img"), "cmdline": description["cmdline"], "cpus": 1, "memory_mib": 192,
            "handover": "seed", "user": "root",
        })

    def wait(self, vm, state):
        generation = 0
        for _ in range(200):
            now = self.call("GET", f"/vms/{vm}?wait_generation={generation}&timeout_seconds=30")
            if now["state"] == state:
                return now
            if now["state"] == "deleted":
                raise SystemExit(f"the vm ended early: {json.dumps(now, indent=1)}")
            generation = now["generation"]
        raise SystemExit("the vm did not reach the state in time")

    def pid_of(self, vm):
        return int((self.dir / "instances" / f"mayfly-{vm}" / "qemu.pid").read_text())

    def stop(self):
        if self.process:
            self.process.send_signal(signal.SIGTERM)
            self.process.wait(20)
            self.process = None
        for pidfile in self.dir.glob("instances/*/qemu.pid"):
            try:
                os.kill(int(pidfile.read_text()), signal.SIGKILL)
            except (ProcessLookupError, ValueError):
                pass
        if self.own:
            shutil.rmtree(self.dir, ignore_errors=True)


def gone(pid, within=30):
    """Returns the time at which the process has ended."""
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return time.monotonic()
    try:
        ready, _, _ = select.select([fd], [], [], within)
        if not ready:
            raise SystemExit(f"process {pid} does not end")
        return time.monotonic()
    finally:
        os.close(fd)


def report(name, unit, goal, rows, **more):
    """`rows`: label → list of samples."""
    print(f"\n{name}")
    for label, samples in rows.items():
        if samples:
            print(f"  {label:<46} median {statistics.median(samples):10.3f} {unit}   "
                  f"min {min(samples):.3f}  max {max(samples):.3f}  n {len(samples)}")
    for key, value in more.items():
        print(f"  {key:<46} {value}")
    print(f"  goal: {goal}")
    out = TARGET / "bench"
    out.mkdir(parents=True, exist_ok=True)
    record = {"name": name, "unit": unit, "goal": goal, "samples": rows, **more}
    (out / f"{name}.json").write_text(json.dumps(record, indent=1) + "\n")


# --- turnaround ------------------------------------------------------------------

JOB = "sleep 1"


class Loop:
    """Two shell loops at once. `hooks`: the guest runs the same bundle, which calls a server that always answers 202."""

    def __init__(self, hooks):
        self.hooks = hooks

    def run(self, count):
        with tempfile.TemporaryDirectory(prefix="mfl", dir="/tmp") as temp:
            temp = pathlib.Path(temp)
            workers, servers = [], []
            begun = time.monotonic()
            for worker in range(2):
                work = temp / f"w{worker}"
                work.mkdir()
                env = dict(os.environ)
                if self.hooks:
                    api = support.Api(work / "api.sock")
                    api.look_for_token_in_argv = lambda: None
                    servers.append(api)
                    done = work / "done"
                    os.mkfifo(done)
                    self.tell(api, done)
                    files = support.kit_files("http://10.0.2.100", "command", JOB)
                    seed = support.vfat_image({"user-data": support.user_data(files), "meta-data": b"instance-id: x\n"})
                    env["RELAY"] = f"{BINARY} guest-relay {work / 'api.sock'}"
                    wait = f"sh {HERE / 'wait-fifo.sh'} {done}"
                else:
                    script = b"#!/bin/sh\n%s\necho MAYFLY-BENCH-DONE >/dev/console\n" % JOB.encode()
                    seed = support.vfat_image({"user-data": script, "meta-data": b"instance-id: x\n"})
                    wait = f"sh {HERE / 'wait-console.sh'}"
                (work / "seed.img").write_bytes(seed)
                workers.append(subprocess.Popen(
                    [HERE / "loop.sh", work, IMAGE, work / "seed.img", str(count // 2), wait], env=env))
            for worker in workers:
                if worker.wait(600) != 0:
                    raise SystemExit("the shell loop failed")
            for api in servers:
                api.close()
            return time.monotonic() - begun

    @staticmethod
    def tell(api, fifo):
        """Writes a line for each runner that has finished."""
        def follow():
            seen = 0
            # Opened for both directions, so that the pipe keeps its data while no worker reads.
            with os.fdopen(os.open(fifo, os.O_RDWR), "w", buffering=1) as out:
                while True:
                    with api.news:
                        while len([r for r in api.requests if r["name"] == "runner_finished"]) <= seen:
                            if api.closing.is_set():
                                return
                            api.news.wait(0.5)
                        seen += 1
                    out.write("done\n")
        threading.Thread(target=follow, daemon=True).start()


def mayfly_turnaround(count, binary):
    serve = Serve(slots=2, binary=binary)
    try:
        serve.start()
        serve.template()
        begun = time.monotonic()
        vms = [
            serve.call("POST", "/vms", {"template": "micro", "runner": {"kind": "command", "command": JOB}})["id"]
            for _ in range(count)
        ]
        lives = [serve.wait(vm, "deleted") for vm in vms]
        took = time.monotonic() - begun
        for life in lives:
            if life["outcome"]["result"] != "completed" or life["job"]["exit_code"] != 0:
                raise SystemExit(f"a job failed: {json.dumps(life, indent=1)}")
        return took
    finally:
        serve.stop()


def turnaround(quick, beside):
    count, rounds = (4, 1) if quick else (20, int(os.environ.get("BENCH_ROUNDS", "3")))
    mayfly, old, hooked, bare = [], [], [], []
    # Measured in turns, so that other load of the machine affects all of them equally.
    for n in range(rounds):
        if beside:
            mayfly.append(mayfly_turnaround(count, BINARY))
            old.append(mayfly_turnaround(count, beside))
            print(f"round {n + 1}: mayfly {mayfly[-1]:.1f} s, the other build {old[-1]:.1f} s", flush=True)
        else:
            hooked.append(Loop(True).run(count))
            mayfly.append(mayfly_turnaround(count, BINARY))
            bare.append(Loop(False).run(count))
            print(f"round {n + 1}: mayfly {mayfly[-1]:.1f} s, loop {hooked[-1]:.1f} s, loop without hooks {bare[-1]:.1f} s",
                  flush=True)
    if beside:
        return report_beside("turnaround", "s", {f"{count} jobs on 2 slots": (mayfly, old)})
    ratio = statistics.median(mayfly) / statistics.median(hooked)
    report(
        "turnaround", "s", "ratio <= 1.05",
        {f"mayfly, {count} jobs on 2 slots": mayfly, "shell loop, same guest and hooks": hooked,
         "shell loop, the bare job": bare},
        ratio=round(ratio, 3), ratio_to_bare_job=round(statistics.median(mayfly) / statistics.median(bare), 3),
    )


# --- destroy ---------------------------------------------------------------------


def quit_by_qmp(path):
    """The fastest possible end: QMP `quit`. Returns the time at which it was sent."""
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(str(path))
    lines = connection.makefile("rb")
    lines.readline()
    connection.sendall(b'{"execute":"qmp_capabilities"}\n')
    lines.readline()
    sent = time.monotonic()
    connection.sendall(b'{"execute":"quit"}\n')
    return sent, connection


class Forced:
    """Two vms at a time: one is deleted by force, the other is ended by QMP alone."""

    def __init__(self, binary):
        self.serve = Serve(slots=2, binary=binary)
        self.forced, self.alone = [], []

    def round(self):
        serve = self.serve
        a, b = (serve.call("POST", "/vms", {"template": "micro", "runner": {"kind": "none"}})["id"] for _ in range(2))
        for vm in (a, b):
            serve.wait(vm, "running")
        pid = serve.pid_of(a)
        begun = time.monotonic()
        serve.call("DELETE", f"/vms/{a}?force=true")
        self.forced.append((gone(pid) - begun) * 1000)
        pid = serve.pid_of(b)
        sent, connection = quit_by_qmp(serve.dir / "instances" / f"mayfly-{b}" / "qmp.sock")
        self.alone.append((gone(pid) - sent) * 1000)
        connection.close()
        for vm in (a, b):
            serve.wait(vm, "deleted")


def destroy(quick, beside):
    measured = [Forced(binary) for binary in [BINARY, beside] if binary]
    try:
        for one in measured:
            one.serve.start()
            one.serve.template()
        for _ in range(3 if quick else 12):
            for one in measured:
                one.round()
    finally:
        for one in measured:
            one.serve.stop()
    forced, alone = measured[0].forced, measured[0].alone
    if beside:
        return report_beside("destroy", "ms", {"DELETE force to process gone": (forced, measured[1].forced)})
    extra = statistics.median(forced) - statistics.median(alone)
    report("destroy", "ms", "extra <= 100 ms", {"DELETE force to process gone": forced, "QMP quit alone": alone},
           extra_ms=round(extra, 1), ratio=round(statistics.median(forced) / statistics.median(alone), 2))


# --- footprint -------------------------------------------------------------------


class Resident:
    """The resident memory of a process in MiB, and the anonymous part. The rest is mapped files, most of it the program's
    own, whose pages the system can drop."""

    def __init__(self, pid):
        values = dict(line.split(":", 1) for line in open(f"/proc/{pid}/status"))
        self.all, self.anonymous = (int(values[name].split()[0]) / 1024 for name in ("VmRSS", "RssAnon"))


def fill(database, count):
    """Copies one deleted vm, with its events, `count` times."""
    db = sqlite3.connect(database)
    columns = [r[1] for r in db.execute("PRAGMA table_info(vms)")]
    row = dict(zip(columns, db.execute("SELECT * FROM vms WHERE deleted_at IS NOT NULL").fetchone()))
    events = db.execute("SELECT generation, at, state, event FROM events WHERE vm_id = ? ORDER BY generation",
                        (row["id"],)).fetchall()
    old = row["id"]
    marks = ",".join("?" * len(columns))
    with db:
        for n in range(count):
            new = "01800000-0000-7000-8000-%012x" % n
            copy = dict(row, id=new, name="old-%d" % n, record=row["record"].replace(old, new))
            db.execute(f"INSERT INTO vms ({','.join(columns)}) VALUES ({marks})", [copy[c] for c in columns])
            db.executemany("INSERT INTO events (vm_id, generation, at, state, event) VALUES (?, ?, ?, ?, ?)",
                           [(new, g, at, state, event.replace(old, new)) for g, at, state, event in events])
    db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    db.close()


class Adopted:
    """A service with many old vms and two that run, started again and again."""

    def __init__(self, binary, rows):
        # The guests of the other build run meanwhile, and must not take this one's slots.
        self.serve = Serve(slots=2, settings={"MAYFLY_SLOTS__COUNT_FOREIGN": "false"}, binary=binary)
        self.rows = rows
        self.ready, self.vms = [], []

    def prepare(self):
        serve = self.serve
        serve.start()
        serve.template()
        vm = serve.call("POST", "/vms", {"template": "micro", "runner": {"kind": "none"}})["id"]
        serve.call("DELETE", f"/vms/{vm}?force=true")
        serve.wait(vm, "deleted")
        self.vms = [serve.call("POST", "/vms", {"template": "micro", "runner": {"kind": "none"}})["id"] for _ in range(2)]
        for vm in self.vms:
            serve.wait(vm, "running")
        serve.process.send_signal(signal.SIGTERM)
        serve.process.wait(20)
        fill(serve.dir / "mayfly.db", self.rows)

    def restart(self):
        if self.ready:
            self.serve.process.send_signal(signal.SIGTERM)
            self.serve.process.wait(20)
        self.ready.append(self.serve.start())
        self.serve.call("GET", "/vms")

    def resident_after_use(self):
        """Not directly after the start."""
        for _ in range(200):
            self.serve.call("GET", "/vms?state=deleted&limit=200")
            self.serve.call("GET", "/host")
        resident = Resident(self.serve.process.pid)
        for vm in self.vms:
            self.serve.call("DELETE", f"/vms/{vm}?force=true")
            self.serve.wait(vm, "deleted")
        return resident


def footprint(quick, beside):
    rows = 2_000 if quick else 100_000
    measured = [Adopted(binary, rows) for binary in [BINARY, beside] if binary]
    try:
        for one in measured:
            one.prepare()
        for _ in range(3 if quick else 9):
            for one in measured:
                one.restart()
        resident = [one.resident_after_use() for one in measured]
    finally:
        for one in measured:
            one.serve.stop()
    ready = measured[0].ready
    if beside:
        return report_beside("footprint", "s", {f"start to ready, {rows} rows, 2 vms adopted": (ready, measured[1].ready)},
                             resident_mib=[round(one.all, 1) for one in resident],
                             anonymous_mib=[round(one.anonymous, 1) for one in resident])
    report("footprint", "s", "resident <= 30 MiB; start to ready <= 0.3 s",
           {f"start to ready, {rows} rows, 2 vms adopted": ready},
           resident_mib=round(resident[0].all, 1), anonymous_mib=round(resident[0].anonymous, 1),
           ratio=round(resident[0].all / 30, 2))


# --- create ----------------------------------------------------------------------


def create(quick, beside):
    """`POST /vms` over a connection that stays open. There are no slots, so that the vm is stored and waits."""
    per_round, rounds = (20, 2) if quick else (200, 10)
    settings = {"MAYFLY_DRIVERS__QEMU__ENABLED": "false", "MAYFLY_DRIVERS__FAKE__ENABLED": "true",
                "MAYFLY_QUEUE__MAX_LENGTH": "100000"}
    measured = [(Serve(slots=0, settings=settings, binary=binary), []) for binary in [BINARY, beside] if binary]
    body = json.dumps({"template": "micro", "runner": {"kind": "command", "command": JOB}})
    try:
        for serve, _ in measured:
            serve.start()
            disk = serve.dir / "disk.raw"
            disk.write_bytes(b"\x01" * 65536)
            serve.call("POST", "/templates", {"name": "micro", "driver": "fake", "disk": str(disk), "cpus": 1, "memory_mib": 192})
        for _ in range(rounds):
            for serve, samples in measured:
                connection = http.client.HTTPConnection(serve.url.split("//")[1], timeout=60)
                headers = {"Authorization": "Bearer " + serve.token, "Content-Type": "application/json"}
                for _ in range(per_round):
                    begun = time.monotonic()
                    connection.request("POST", "/vms", body, headers)
                    answer = connection.getresponse()
                    answer.read()
                    samples.append((time.monotonic() - begun) * 1000)
                    if answer.status != 201:
                        raise SystemExit(f"POST /vms was answered with {answer.status}")
                connection.close()
    finally:
        for serve, _ in measured:
            serve.stop()
    label = "POST /vms, stored"
    if beside:
        return report_beside("create", "ms", {label: (measured[0][1], measured[1][1])})
    report("create", "ms", "none", {label: measured[0][1]})


def report_beside(name, unit, rows, **more):
    """`rows`: label → samples of this build and of the other one."""
    samples, ratios = {}, {}
    for label, (ours, old) in rows.items():
        samples |= {label: ours, f"{label}, the other build": old}
        ratios[label] = round(statistics.median(ours) / statistics.median(old), 3)
    report(f"{name}-beside", unit, "not slower than the other build", samples, ratio=ratios, **more)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=["turnaround", "destroy", "footprint", "create"])
    parser.add_argument("--quick", action="store_true", help="fewer samples, to test that the measurement works")
    parser.add_argument("--beside", type=pathlib.Path, help="another build of Mayfly")
    arguments = parser.parse_args()
    beside = arguments.beside.resolve(strict=True) if arguments.beside else None
    globals()[arguments.name](arguments.quick, beside)


if __name__ == "__main__":
    main()
