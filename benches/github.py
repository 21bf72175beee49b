#!/usr/bin/env python3
"""Runs GitHub jobs in real VMs while faults are injected, and checks that no result is lost.

    [E2E_JOBS=50] [E2E_PATTERNS=a,b] [E2E_SLOTS=2] [E2E_SEED=1] [E2E_NAME=github-jobs] github.py [--list]

For each fault pattern it starts a GitHub (the double of the tests, in real time) and the real service with a pool and
webhooks. In each guest, a stand-in for GitHub's runner does one job and ends it in the order of the real one: first the
completed hook, then the upload of the log, which takes seconds, and last the result. A job counts as complete if its result
arrived and the uploaded log has the checksum that the runner computed.

Prints a table, writes target/bench/<E2E_NAME>.json, and exits with 1 if a job, a runner or a vm is left over or lost. The
last pattern is the control: a hook that kills its vm. It has to lose results, otherwise the other patterns prove nothing.
"""

import argparse
import collections
import contextlib
import datetime
import hashlib
import json
import os
import pathlib
import random
import re
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request

import bench

JOBS = int(os.environ.get("E2E_JOBS", "50"))
SLOTS = int(os.environ.get("E2E_SLOTS", "2"))
NAME = os.environ.get("E2E_NAME", "github-jobs")
SEED = os.environ.get("E2E_SEED", "1")
RUNNER = bench.ROOT / "tests" / "doubles" / "github" / "runner"
DOUBLE = bench.BINARY.parent / "examples" / "github-double"
SECRET = "It's a Secret to Everybody"
# As root on Linux, all runs in a network namespace in which GitHub has a private address, like a GitHub Enterprise Server. The
# guests then have the default mode of a GitHub runner, `internet`, and reach it because it is listed in `network.allow`.
IN_NAMESPACE = "--in-namespace" in sys.argv
GITHUB_ADDRESS = "10.77.0.2"
# A job whose runner is silent for this long is lost (at GitHub: ten minutes). The runner renews its lease every 5 s.
LEASE_SECONDS = 30
# If no job ends for this long, something is stuck.
STUCK_SECONDS = 300
# Time for the cleanup after the last job: orphaned runners can be removed only after their lease has ended.
SETTLE_SECONDS = 180


class Pattern:
    """`happened` checks in the result row that the fault occurred; otherwise the pattern proves nothing."""

    def __init__(self, name, what, delete="", finish="", hook=None, kill=None, loses=False, late_delete=False, happened=None):
        self.name, self.what, self.delete, self.finish = name, what, delete, finish
        self.hook, self.kill = hook or {}, kill
        self.loses, self.late_delete, self.happened = loses, late_delete, happened or (lambda row: True)


def tampered_with(row):
    return row["deletes_tampered_with"]


PATTERNS = [
    Pattern("at-once", "the hook's DELETE comes at once", happened=lambda row: row["announced_by"].get("hook")),
    Pattern("delete-lost", "DELETE never arrives", delete="lost",
            happened=lambda row: tampered_with(row) and not row["announced_by"].get("hook")),
    Pattern("delete-doubled", "DELETE comes twice", delete="doubled", happened=tampered_with),
    Pattern("delete-late", "DELETE comes after the runner's end, and long after the vm's", delete="late", late_delete=True,
            happened=tampered_with),
    Pattern("guest-silent", "neither DELETE nor the wrapper's last word arrives: GitHub alone says that a runner is done",
            delete="lost", finish="lost",
            happened=lambda row: tampered_with(row) and not row["end_signals"].get("runner_finished")),
    Pattern("webhooks-lost", "every second webhook is lost", hook={"lose_percent": 50},
            happened=lambda row: row["deliveries_not_arrived"]),
    Pattern("webhooks-doubled", "every webhook comes twice", hook={"double_percent": 100},
            happened=lambda row: row["deliveries_known_before"]),
    Pattern("webhooks-shuffled", "webhooks come up to 15 s late, in any order", hook={"delay_seconds": 15},
            happened=lambda row: row["deliveries_overtaken"]),
    Pattern("killed", "Mayfly is killed every few seconds", kill=(2, 12), happened=lambda row: row["times_killed"]),
    Pattern("everything", "webhooks lost and shuffled, a guest that says nothing at its end, Mayfly killed", delete="lost",
            finish="lost", hook={"lose_percent": 30, "delay_seconds": 10}, kill=(5, 20),
            happened=lambda row: tampered_with(row) and row["times_killed"] and row["deliveries_not_arrived"]),
    Pattern("counter-proof", "a hook that kills its vm: has to lose", delete="forced", loses=True),
]


class GitHub:
    """The double, in real time."""

    def __init__(self):
        env = {"GITHUB_DOUBLE_ADDRESS": "0.0.0.0"} if IN_NAMESPACE else {}
        self.process = subprocess.Popen([DOUBLE], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env)
        # The service reaches it on loopback, where plain HTTP is allowed.
        self.origin = self.process.stdout.readline().strip().replace("0.0.0.0", "127.0.0.1")
        if not self.origin:
            raise SystemExit("the GitHub double does not start")
        # As guests reach it.
        self.seen_by_guests = self.origin.replace("127.0.0.1", GITHUB_ADDRESS if IN_NAMESPACE else "10.0.2.2")

    def tell(self, path, **what):
        request = urllib.request.Request(f"{self.origin}/_double/{path}", method="POST", data=json.dumps(what).encode())
        with urllib.request.urlopen(request, timeout=30) as answer:
            return json.loads(answer.read())

    def stop(self):
        self.process.stdin.close()
        self.process.wait(10)


def free_port():
    """A port below the range of ephemeral ports, so that a restarted service can use it again."""
    while True:
        port = random.randrange(20000, 30000)
        with contextlib.closing(socket.socket()) as attempt:
            with contextlib.suppress(OSError):
                attempt.bind(("127.0.0.1", port))
                return port


def make_image(work):
    """The micro guest with the stand-in runner, and with a wrapper around curl that can lose requests."""
    raw, disk = work / "disk.raw", work / "disk.qcow2"
    subprocess.run(["qemu-img", "convert", "-q", "-O", "raw", bench.IMAGE / "disk.qcow2", raw], check=True)
    home = "/opt/actions-runner"
    # Only links and names: debugfs does not update the link count in either step, so the final count is right.
    commands = ["ln /usr/bin/curl /usr/bin/curl-program", "unlink /usr/bin/curl", f"write {RUNNER}/curl /usr/bin/curl",
                f"mkdir {home}", f"mkdir {home}/bin", f"write {RUNNER}/run.sh {home}/run.sh",
                f"write {RUNNER}/bin/Runner.Listener {home}/bin/Runner.Listener"]
    for path in ("/usr/bin/curl", f"{home}/run.sh", f"{home}/bin/Runner.Listener"):
        commands += [f"sif {path} mode 0100755", f"sif {path} uid 0", f"sif {path} gid 0"]
    for path in (home, f"{home}/bin"):
        # The runner writes to its directory, as the user runner.
        commands += [f"sif {path} mode 040755", f"sif {path} uid 1000", f"sif {path} gid 1000"]
    path = os.environ["PATH"] + ":/usr/sbin:/sbin"
    ran = subprocess.run(["debugfs", "-w", "-f", "-", raw], input="\n".join(commands), env={**os.environ, "PATH": path},
                         text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, check=True)
    complaints = [line for line in ran.stderr.splitlines() if not line.startswith("debugfs ")]
    if complaints:
        raise SystemExit("cannot build the guest image: " + "; ".join(complaints))
    subprocess.run(["qemu-img", "convert", "-q", "-f", "raw", "-O", "qcow2", raw, disk], check=True)
    raw.unlink()
    return disk


class Run:
    """One pattern, with its own GitHub and its own service."""

    def __init__(self, pattern, work, disk):
        self.pattern, self.disk = pattern, disk
        self.random = random.Random(f"{SEED} {pattern.name}")
        self.dir = pathlib.Path(tempfile.mkdtemp(prefix="mfe", dir=work))
        self.github = GitHub()
        port = free_port()
        # Guests of other programs on this machine take none of the slots.
        settings = {"MAYFLY_SERVER__LISTEN": f"127.0.0.1:{port}", "MAYFLY_SLOTS__COUNT_FOREIGN": "false"}
        if not IN_NAMESPACE or pattern.delete == "forced":
            # The guests reach GitHub, or the admin API for the control, on this host's loopback only in the mode `host`.
            settings["MAYFLY_DRIVERS__QEMU__ISOLATED"] = "false"
        self.serve = bench.Serve(slots=SLOTS, directory=self.dir, settings=settings)
        self.admin = f"http://10.0.2.2:{port}"
        self.kills = 0

    def prepare(self):
        tell = self.github.tell
        permissions = {"organization_self_hosted_runners": "write", "administration": "write", "actions": "read",
                       "metadata": "read"}
        tell("places", places=["orgs/acme", "repos/acme/app"])
        tell("knobs", live=True, lease_seconds=LEASE_SECONDS, session_seconds=15,
             server_url=self.github.seen_by_guests)
        app = tell("apps", permissions=permissions, events=["workflow_job"])
        tell("installations", app=app["id"], account="acme", permissions=permissions)
        self.private("app.pem", app["pkcs1"])
        self.private("webhook.secret", SECRET)
        (self.dir / "mayfly.toml").write_text(f"""\
[github]
url = "https://github.com"
api_url = "{self.github.origin}"
app_id = "{app['client_id']}"
private_key_file = "{self.dir}/app.pem"
webhook_secret_files = ["{self.dir}/webhook.secret"]
poll_seconds = 15

[pools.e2e]
template = "e2e"
scope = "acme"
labels = ["self-hosted", "e2e"]
repositories = ["acme/app"]
max_vms = {2 * SLOTS + 2}

[network]
allow = ["{self.github.seen_by_guests.removeprefix("http://") if IN_NAMESPACE else GITHUB_ADDRESS}"]
""")
        self.serve.start()
        self.make_template()
        tell("hooks", url=f"{self.serve.url}/webhooks/github", secret=SECRET, ping=True)
        tell("hook", **self.pattern.hook)

    def private(self, name, text):
        with open(os.open(self.dir / name, os.O_WRONLY | os.O_CREAT, 0o600), "w") as file:
            file.write(text)

    def make_template(self):
        cmdline = json.loads((bench.IMAGE / "template.json").read_text())["cmdline"]
        if self.pattern.delete:
            cmdline += f" mayfly.delete={self.pattern.delete}"
        if self.pattern.finish:
            cmdline += f" mayfly.finish={self.pattern.finish}"
        if self.pattern.delete == "forced":
            cmdline += f" mayfly.admin={self.admin},{self.serve.token}"
        self.serve.call("POST", "/templates", {
            "name": "e2e", "os": "linux", "disk": str(self.disk), "kernel": str(bench.IMAGE / "vmlinuz"),
            "initramfs": str(bench.IMAGE / "initramfs.img"), "cmdline": cmdline, "cpus": 1, "memory_mib": 192,
            "handover": "seed", "user": "runner",
        })

    def jobs(self):
        return self.github.tell("state")["jobs"]

    def queue(self):
        self.github.tell("jobs", repository="acme/app", labels=["self-hosted", "e2e"], name="build")

    def work(self, count):
        """As many concurrent jobs as slots, so that the wait for a slot is not measured."""
        asked, last, moved = 0, 0, time.monotonic()
        kill_at = self.next_kill()
        while True:
            jobs = self.jobs()
            done = sum(job["status"] == "completed" for job in jobs)
            if done > last:
                last, moved = done, time.monotonic()
            if done == count:
                return
            if time.monotonic() - moved > STUCK_SECONDS:
                print(f"{self.pattern.name}: no progress for {STUCK_SECONDS} s", file=sys.stderr)
                return
            while asked < count and asked - done < SLOTS:
                self.queue()
                asked += 1
            if kill_at and time.monotonic() >= kill_at:
                self.kill()
                kill_at = self.next_kill()
            time.sleep(0.2)

    def next_kill(self):
        return self.pattern.kill and time.monotonic() + self.random.uniform(*self.pattern.kill)

    def kill(self):
        self.serve.process.kill()
        self.serve.process.wait()
        self.kills += 1
        time.sleep(self.random.uniform(0, 2))
        self.serve.start()

    def vms(self, which=""):
        """The live vms, or those in a state."""
        vms, query = [], f"/vms?limit=200{which}"
        cursor = ""
        while True:
            page = self.serve.call("GET", query + cursor)
            vms += page["items"]
            if not page["next_cursor"]:
                return vms
            cursor = f"&cursor={page['next_cursor']}"

    def left(self):
        """(runners at GitHub, vms of the service or disks of theirs)"""
        runners = [r for place in self.github.tell("state")["runners"].values() for r in place]
        live = self.vms()
        instances = self.dir / "instances"
        return len(runners), max(len(live), len(list(instances.iterdir())) if instances.exists() else 0)

    def settle(self):
        until = time.monotonic() + SETTLE_SECONDS
        while (left := self.left()) != (0, 0) and time.monotonic() < until:
            time.sleep(0.5)
        return left

    def late_deletes(self):
        """A DELETE may arrive long after the vm has ended. Returns how many were not answered with its record."""
        refused = 0
        for vm in self.vms("&state=deleted"):
            try:
                refused += self.serve.call("DELETE", f"/vms/{vm['id']}")["state"] != "deleted"
            except urllib.error.HTTPError:
                refused += 1
        return refused

    def overtaken(self, deliveries):
        """Number of deliveries that arrived right after one that GitHub had sent later."""
        sent = {d["guid"]: n for n, d in enumerate(deliveries)}
        came = [d["guid"] for d in self.serve.call("GET", "/webhooks/github/deliveries?limit=200")["items"]]
        order = [sent[guid] for guid in reversed(came) if guid in sent]
        return sum(a > b for a, b in zip(order, order[1:]))

    def known_before(self):
        """Repeated deliveries, as counted by the current service process."""
        found = re.search(r'^mayfly_webhooks_total\{[^}]*result="known"[^}]*\} (\d+)', self.serve.call("GET", "/metrics").decode(), re.M)
        return int(found[1]) if found else 0

    def judge(self, wall, left):
        state = self.github.tell("state")
        jobs = state["jobs"]
        lost = [job for job in jobs if not complete(job)]
        waits = sorted(seconds(job["started_at"]) - seconds(job["created_at"]) for job in jobs if job["runner_id"])
        vms = self.vms("&state=deleted")
        count = lambda key: dict(collections.Counter(str(vm.get(key)) for vm in vms))
        deliveries = state["deliveries"]
        arrived = lambda d: 200 <= d["status_code"] < 300
        return {
            "pattern": self.pattern.name, "what": self.pattern.what, "jobs": len(jobs), "complete": len(jobs) - len(lost),
            "lost": len(lost), "runners_left": left[0], "vms_left": left[1],
            "requests_per_job": round(len(self.github.tell("requests")) / max(len(jobs), 1), 1),
            "queued_to_in_progress_median": round(statistics.median(waits), 2) if waits else None,
            "queued_to_in_progress_p95": round(waits[max(0, -(-95 * len(waits) // 100) - 1)], 2) if waits else None,
            "wall_seconds": round(wall, 1), "expected_to_lose": self.pattern.loses,
            "vms": len(vms), "announced_by": count("announced_by"), "end_signals": count("end_signal"),
            "deliveries": len(deliveries), "deliveries_not_arrived": sum(not arrived(d) for d in deliveries),
            "deletes_tampered_with": sum(f"this DELETE is {self.pattern.delete}" in job["log"] for job in jobs),
            "deliveries_known_before": self.known_before(), "deliveries_overtaken": self.overtaken(deliveries),
            "times_killed": self.kills, "fault_happened": None,
            "lost_jobs": [{k: job[k] for k in ("id", "status", "conclusion", "lost", "runner_name")} for job in lost],
        }

    def run(self, count):
        try:
            self.prepare()
            begun = time.monotonic()
            self.work(count)
            wall = time.monotonic() - begun
            left = self.settle()
            row = self.judge(wall, left)
            if self.pattern.late_delete:
                row["late_deletes_refused"] = self.late_deletes()
            row["fault_happened"] = bool(self.pattern.happened(row))
            return row
        finally:
            self.serve.stop()
            self.github.stop()
            # The service's log is kept for the analysis of failures.
            to = bench.TARGET / "bench" / NAME
            to.mkdir(parents=True, exist_ok=True)
            with contextlib.suppress(FileNotFoundError):
                shutil.copyfile(self.dir / "serve.log", to / f"{self.pattern.name}.log")
            shutil.rmtree(self.dir, ignore_errors=True)


def seconds(text):
    return datetime.datetime.fromisoformat(text).timestamp()


def complete(job):
    """The result arrived, and before it the complete log of the runner."""
    return (job["status"] == "completed" and job["conclusion"] == "success" and not job["lost"]
            and job["log"].startswith(f"job {job['id']} on ")
            and hashlib.sha256(job["log"].encode()).hexdigest() == job["outputs"].get("log_sha256"))


def good(row):
    if row["jobs"] != JOBS or row["runners_left"] or row["vms_left"] or row.get("late_deletes_refused"):
        return False
    if not row["fault_happened"]:
        return False
    # The control counts only if a runner fell silent, not if something else failed.
    if row["expected_to_lose"] and not any(job["lost"] for job in row["lost_jobs"]):
        return False
    return (row["lost"] > 0) == row["expected_to_lose"]


COLUMNS = [("pattern", "pattern", 18), ("jobs", "jobs", 5), ("complete", "complete", 9), ("lost", "lost", 5),
           ("runners_left", "runners", 8), ("vms_left", "vms", 4), ("requests_per_job", "req/job", 8),
           ("queued_to_in_progress_median", "median s", 9), ("queued_to_in_progress_p95", "p95 s", 7),
           ("wall_seconds", "wall s", 8)]


def table(rows):
    show = lambda values: "".join(f"{v:<{w}}" if n == 0 else f"{v:>{w}}" for n, (v, (_, _, w)) in enumerate(zip(values, COLUMNS)))
    print("\n" + show([title for _, title, _ in COLUMNS]))
    for row in rows:
        verdict = "" if good(row) else "   BAD"
        if row["expected_to_lose"] and good(row):
            verdict = "   (has to lose)"
        values = ["-" if row[key] is None else row[key] for key, _, _ in COLUMNS]
        print(show(values) + verdict, flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--list", action="store_true", help="the patterns")
    parser.add_argument("--in-namespace", action="store_true", help=argparse.SUPPRESS)
    if parser.parse_args().list:
        for pattern in PATTERNS:
            print(f"{pattern.name:<18} {pattern.what}")
        return
    wanted = [name for name in os.environ.get("E2E_PATTERNS", "").replace(",", " ").split()]
    if unknown := set(wanted) - {p.name for p in PATTERNS}:
        raise SystemExit(f"unknown pattern: {', '.join(sorted(unknown))}; see --list")
    if JOBS < 1 or SLOTS < 1:
        raise SystemExit("E2E_JOBS and E2E_SLOTS must be at least 1")
    if IN_NAMESPACE:
        subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
        subprocess.run(["ip", "address", "add", f"{GITHUB_ADDRESS}/32", "dev", "lo"], check=True)
    elif sys.platform == "linux" and os.geteuid() == 0:
        os.execvp("unshare", ["unshare", "--net", sys.executable, __file__, *sys.argv[1:], "--in-namespace"])
    # Also clean up when the terminal is closed or a CI job is cancelled.
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: sys.exit("ended by a signal"))
    work = pathlib.Path(tempfile.mkdtemp(prefix="mf", dir="/tmp"))
    rows = []
    out = bench.TARGET / "bench"
    out.mkdir(parents=True, exist_ok=True)
    try:
        disk = make_image(work)
        for pattern in PATTERNS:
            if wanted and pattern.name not in wanted:
                continue
            row = Run(pattern, work, disk).run(JOBS)
            rows.append(row)
            print(f"{row['pattern']}: {row['complete']} of {row['jobs']} complete, {row['wall_seconds']} s", flush=True)
            record = {"name": NAME, "binary": bench.BINARY.parent.name, "slots": SLOTS, "seed": SEED, "rows": rows}
            (out / f"{NAME}.json").write_text(json.dumps(record, indent=1) + "\n")
    finally:
        shutil.rmtree(work, ignore_errors=True)
    table(rows)
    if not all(good(row) for row in rows):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
