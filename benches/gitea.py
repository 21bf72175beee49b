#!/usr/bin/env python3
"""Runs jobs of a real Gitea server with its real runner in real VMs while faults are injected.

    GITEA_SERVER=/path/gitea GITEA_RUNNER=/path/gitea-runner [E2E_JOBS=100] [E2E_PATTERNS=a,b] [E2E_SLOTS=2] [E2E_SEED=1]
    [E2E_NAME=gitea-jobs] gitea.py [--list]

GITEA_SERVER is Gitea 1.25 or newer with SQLite; GITEA_RUNNER is a statically linked runner for the guest's processor, 0.2.12
or newer (3.0 or newer for the counter-proof, which needs the runner's own hooks). Neither is part of this project. A server
that was built without its data needs GITEA_STATIC_ROOT: the directory of its `options`, `public` and `templates`.

For each pattern it starts the server, the real service with a pool and a webhook, and gives every job a fate. A front between
Gitea and all others records who registers and who deletes runners; jobs report their start and end to it. At the end Gitea's
own account of every attempt is compared with what jobs reported and with what was done to them.

Prints a table, writes target/bench/<E2E_NAME>.json, and exits with 1 if a job ran twice, a result was lost that the runner
could deliver, a busy runner was deleted, or a runner, a vm or a registration token is left. The last pattern is the control: a
hook that kills its vm. It has to lose results, otherwise the other patterns prove nothing.
"""

import argparse
import collections
import contextlib
import json
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error

import bench
from gitea_front import Front, Relay, certificates
from gitea_judge import good, judge, table
from gitea_run import Campaign
from gitea_server import Gitea
from github import free_port

JOBS = int(os.environ.get("E2E_JOBS", "100"))
SLOTS = int(os.environ.get("E2E_SLOTS", "2"))
NAME = os.environ.get("E2E_NAME", "gitea-jobs")
SEED = os.environ.get("E2E_SEED", "1")
# All runs in a network namespace in which Gitea has a private address, as a server of one's own has. The guests have the
# default mode of such a runner, `internet`, and reach it because it is listed in `network.allow`.
IN_NAMESPACE = "--in-namespace" in sys.argv
ADDRESS = "10.77.0.2"
# Shorter than the long jobs, and long enough for an emulated guest on a busy machine.
BOOT_SECONDS = int(os.environ.get("E2E_BOOT_SECONDS", "90"))
LONG_SECONDS = BOOT_SECONDS + 15
SETTLE_SECONDS = 180
CURL = bench.ROOT / "tests" / "doubles" / "github" / "runner" / "curl"
HOME = "/opt/gitea-runner"
SECRET = "It's a Secret to Everybody"
WORKFLOW = """\
on:
  workflow_dispatch:
    inputs:
      number: {type: string}
      seconds: {type: string}
      power_off: {type: string}
jobs:
  build:
    runs-on: linux
    steps:
      - name: work
        env:
          NUMBER: ${{ inputs.number }}
          SECONDS_OF_WORK: ${{ inputs.seconds }}
          POWER_OFF: ${{ inputs.power_off }}
        run: |
          say() {
            curl -q -sS --retry 20 --retry-delay 1 --retry-connrefused --max-time 20 -o /dev/null --data-binary \\
              "{\\"number\\":$NUMBER,\\"attempt\\":$GITHUB_RUN_ATTEMPT,\\"what\\":\\"$1\\",\\"vm\\":\\"$MAYFLY_VM_ID\\",\\"seen\\":\\"$2\\"}" \\
              "${GITHUB_SERVER_URL%/}/_e2e/said"
          }
          readable=$(find / -xdev -name .runner 2>/dev/null | tr '\\n' ' ' || true)
          say begin "$readable"
          # Run again, it is a short job, whatever happened to it before.
          if [ "$GITHUB_RUN_ATTEMPT" -gt 1 ]; then SECONDS_OF_WORK=1 POWER_OFF=no; fi
          if [ "$POWER_OFF" = yes ]; then touch /tmp/e2e-power-off; fi
          line=0
          while [ "$line" -lt 200 ]; do line=$((line + 1)); echo "line $line of job $NUMBER"; done
          sleep "$SECONDS_OF_WORK"
          echo "last line of job $NUMBER"
          say end ""
"""


class Pattern:
    """`fates`: of jobs, by weight. `happened`: whether the result row shows that the fault occurred."""

    def __init__(self, name, what, fates, share=1.0, lose_percent=0, report_seconds=0, kill=None, scope="acme/app",
                 forced=False, happened=None):
        self.name, self.what, self.fates, self.share = name, what, fates, share
        self.lose_percent, self.report_seconds, self.kill, self.scope = lose_percent, report_seconds, kill, scope
        self.forced, self.happened = forced, happened or (lambda row: True)
        self.loses = forced

    def jobs(self):
        return max(3, round(JOBS * self.share))


PLAIN = {"plain": 1}
ALL = {"plain": 6, "long": 1, "vm_killed": 3, "powered_off": 2, "cancelled_queued": 2, "cancelled_running": 2, "rerun": 3,
       "killed_and_rerun": 1}
PATTERNS = [
    Pattern("everything", "vms killed and powered off, webhooks lost, Mayfly killed, jobs cancelled, rerun, and long", ALL,
            lose_percent=30, kill=(8, 40),
            happened=lambda row: row["times_killed"] and row["times_killed_while_coming_up"] and row["webhooks_lost"]
            and all(row["fates"].get(fate) for fate in ALL)),
    Pattern("webhooks-lost", "no webhook arrives: the poll finds the jobs", PLAIN, share=0.1, lose_percent=100, scope="acme",
            happened=lambda row: row["webhooks_lost"] and not row["webhooks_passed"]),
    Pattern("slow-results", "each report of the runner takes 3 s: the vm lives until the result has arrived", PLAIN, share=0.1,
            report_seconds=3, happened=lambda row: row["announced_before_result"]),
    Pattern("counter-proof", "a hook that kills its vm: has to lose", PLAIN, share=0.05, report_seconds=3, forced=True),
]


def make_image(work, runner):
    """The micro guest with the runner, a wrapper around curl that can kill the vm, and a way for a job to power it off."""
    raw, disk = work / "disk.raw", work / "disk.qcow2"
    subprocess.run(["qemu-img", "convert", "-q", "-O", "raw", bench.IMAGE / "disk.qcow2", raw], check=True)
    inittab = (bench.ROOT / "deploy/images/micro/rootfs/etc/inittab").read_text()
    (work / "inittab").write_text(inittab + f"::once:{HOME}/power-off-on-request\n")
    (work / "power-off-on-request").write_text(
        "#!/bin/sh\nuntil [ -e /tmp/e2e-power-off ]; do sleep 1; done\nexec poweroff\n")
    # Only links and names: debugfs does not update the link count in either step, so the final count is right.
    commands = ["ln /usr/bin/curl /usr/bin/curl-program", "unlink /usr/bin/curl", f"write {CURL} /usr/bin/curl",
                "rm /etc/inittab", f"write {work}/inittab /etc/inittab", f"mkdir {HOME}",
                f"write {runner} {HOME}/gitea-runner", f"write {work}/power-off-on-request {HOME}/power-off-on-request"]
    for path, mode in (("/usr/bin/curl", "0100755"), ("/etc/inittab", "0100644"), (HOME, "040755"),
                       (f"{HOME}/gitea-runner", "0100755"), (f"{HOME}/power-off-on-request", "0100755")):
        commands += [f"sif {path} mode {mode}", f"sif {path} uid 0", f"sif {path} gid 0"]
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
    """One pattern, with its own Gitea and its own service."""

    def __init__(self, pattern, work, disk, programs):
        self.pattern, self.disk = pattern, disk
        self.random = random.Random(f"{SEED} {pattern.name}")
        self.dir = pathlib.Path(tempfile.mkdtemp(prefix="mfg", dir=work))
        self.authority, tls = certificates(self.dir, ADDRESS)
        front_port, gitea_port, port = free_port(), free_port(), free_port()
        self.url = f"https://{ADDRESS}:{front_port}"
        self.front = Front(ADDRESS, front_port, tls, gitea_port, pattern.report_seconds)
        self.gitea = Gitea(programs["GITEA_SERVER"], self.dir / "gitea", gitea_port, self.url)
        data = self.dir / "mayfly"
        data.mkdir(mode=0o700)
        # Guests of other programs on this machine take none of the slots.
        settings = {"MAYFLY_SERVER__LISTEN": f"127.0.0.1:{port}", "MAYFLY_SLOTS__COUNT_FOREIGN": "false"}
        if pattern.forced:
            # Guests reach the admin API on this host's loopback only in the mode `host`.
            settings["MAYFLY_DRIVERS__QEMU__ISOLATED"] = "false"
        self.serve = bench.Serve(slots=SLOTS, directory=data, settings=settings)
        self.admin = f"http://10.0.2.2:{port}"
        self.relay = Relay(lambda: self.random.random() * 100 < pattern.lose_percent,
                           lambda: f"http://127.0.0.1:{port}/webhooks/forge")

    def prepare(self):
        self.gitea.start()
        token = self.gitea.prepare(WORKFLOW, self.relay.url, SECRET)
        self.front.token = self.gitea.token
        self.private("gitea.token", token)
        self.private("webhook.secret", SECRET)
        (self.serve.dir / "mayfly.toml").write_text(f"""\
[sources.forge]
kind = "gitea"
url = "{self.url}"
ca_file = "{self.authority}"
token_file = "{self.serve.dir}/gitea.token"
webhook_secret_files = ["{self.serve.dir}/webhook.secret"]
poll_seconds = 15

[pools.linux]
job_source = "forge"
template = "e2e"
scope = "{self.pattern.scope}"
labels = ["linux"]
max_vms = {SLOTS + 2}

[pools.linux.budgets]
boot_seconds = {BOOT_SECONDS}

[network]
allow = ["{self.url.removeprefix("https://")}"]
ca_bundle_file = "{self.authority}"
""")
        self.serve.start()
        cmdline = json.loads((bench.IMAGE / "template.json").read_text())["cmdline"]
        if self.pattern.forced:
            cmdline += f" mayfly.delete=forced mayfly.admin={self.admin},{self.serve.token}"
        self.serve.call("POST", "/templates", {
            "name": "e2e", "os": "linux", "disk": str(self.disk), "kernel": str(bench.IMAGE / "vmlinuz"),
            "initramfs": str(bench.IMAGE / "initramfs.img"), "cmdline": cmdline, "cpus": 1, "memory_mib": 256,
            "handover": "seed", "user": "runner",
        })

    def private(self, name, text):
        with open(os.open(self.serve.dir / name, os.O_WRONLY | os.O_CREAT, 0o600), "w") as file:
            file.write(text)

    def vms(self, which=""):
        """The live vms, or those in a state."""
        vms, cursor = [], ""
        while True:
            page = self.serve.call("GET", f"/vms?limit=200{which}{cursor}")
            vms += page["items"]
            if not page["next_cursor"]:
                return vms
            cursor = f"&cursor={page['next_cursor']}"

    def left(self):
        """(runners at Gitea, vms of the service or disks of theirs)"""
        instances = self.serve.dir / "instances"
        return len(self.gitea.runners()), max(len(self.vms()), len(list(instances.iterdir())) if instances.exists() else 0)

    def settle(self):
        until = time.monotonic() + SETTLE_SECONDS
        while (left := self.left()) != (0, 0) and time.monotonic() < until:
            time.sleep(0.5)
        return left

    def stop_service(self):
        try:
            self.serve.stop()
        except subprocess.TimeoutExpired:
            self.serve.process.kill()
            self.serve.process.wait()
            self.serve.process = None
            # Ends what is left of the guests.
            self.serve.stop()

    def keep(self, name, text):
        """A log for the analysis of failures."""
        to = bench.TARGET / "bench" / NAME
        to.mkdir(parents=True, exist_ok=True)
        (to / f"{self.pattern.name}.{name}").write_text(text)

    def run(self):
        try:
            self.prepare()
            campaign = Campaign(self, LONG_SECONDS)
            begun = time.monotonic()
            campaign.work(self.pattern.jobs(), SLOTS)
            wall = time.monotonic() - begun
            left = self.settle()
            # The service must be up for the last questions.
            row = judge(self, campaign, wall, left)
            row["fault_happened"] = bool(self.pattern.happened(row))
            return row
        finally:
            self.stop_service()
            self.gitea.stop()
            self.relay.close()
            self.front.close()
            for source, name in ((self.serve.dir / "serve.log", "log"), (self.dir / "gitea/log/gitea.log", "gitea.log")):
                with contextlib.suppress(FileNotFoundError):
                    self.keep(name, source.read_text(errors="replace"))
            shutil.rmtree(self.dir, ignore_errors=True)


def programs(patterns):
    """The paths of the real server and runner, which this project does not contain."""
    found = {}
    for name, what in (("GITEA_SERVER", "Gitea's server, 1.25 or newer, built with SQLite"),
                       ("GITEA_RUNNER", "Gitea's runner for the guest, statically linked (CGO_ENABLED=0)")):
        value = os.environ.get(name, "")
        path = pathlib.Path(value).resolve()
        if not value or not path.is_file() or not os.access(path, os.X_OK):
            raise SystemExit(f"{name} {'is not set' if not value else f'is no program: {value}'}: set it to the path of {what}")
        found[name] = path
    settings = subprocess.run([found["GITEA_RUNNER"], "generate-config"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
                              text=True, timeout=60)
    if any(p.forced for p in patterns) and "job_completed:" not in settings.stdout:
        raise SystemExit("this GITEA_RUNNER has no hooks, and the counter-proof needs them: use 3.0 or newer, or leave the "
                         "counter-proof out of E2E_PATTERNS")
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--list", action="store_true", help="the patterns")
    parser.add_argument("--in-namespace", action="store_true", help=argparse.SUPPRESS)
    if parser.parse_args().list:
        for pattern in PATTERNS:
            print(f"{pattern.name:<16} {pattern.what}")
        return
    wanted = os.environ.get("E2E_PATTERNS", "").replace(",", " ").split()
    if unknown := set(wanted) - {p.name for p in PATTERNS}:
        raise SystemExit(f"unknown pattern: {', '.join(sorted(unknown))}; see --list")
    if JOBS < 1 or SLOTS < 1:
        raise SystemExit("E2E_JOBS and E2E_SLOTS must be at least 1")
    patterns = [p for p in PATTERNS if not wanted or p.name in wanted]
    found = programs(patterns)
    if sys.platform != "linux":
        raise SystemExit("this needs Linux: server, guests and service share a network namespace")
    if not IN_NAMESPACE:
        how = ["--net"] if os.geteuid() == 0 else ["--user", "--map-root-user", "--net"]
        os.execvp("unshare", ["unshare", *how, sys.executable, "-B", __file__, *sys.argv[1:], "--in-namespace"])
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    subprocess.run(["ip", "address", "add", f"{ADDRESS}/32", "dev", "lo"], check=True)
    # Also clean up when the terminal is closed or a CI job is cancelled.
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: sys.exit("ended by a signal"))
    work = pathlib.Path(tempfile.mkdtemp(prefix="mf", dir="/tmp"))
    rows = []
    out = bench.TARGET / "bench"
    out.mkdir(parents=True, exist_ok=True)
    try:
        disk = make_image(work, found["GITEA_RUNNER"])
        for pattern in patterns:
            row = Run(pattern, work, disk, found).run()
            rows.append(row)
            print(f"{row['pattern']}: {row['jobs']} jobs, {row['attempts']} attempts, {row['lost']} lost, "
                  f"{row['wall_seconds']} s", flush=True)
            versions = {name: version_of(path) for name, path in found.items()}
            record = {"name": NAME, "binary": bench.BINARY.parent.name, "slots": SLOTS, "seed": SEED, **versions, "rows": rows}
            (out / f"{NAME}.json").write_text(json.dumps(record, indent=1) + "\n")
    finally:
        shutil.rmtree(work, ignore_errors=True)
    table(rows)
    if not all(good(row) for row in rows):
        raise SystemExit(1)


def version_of(program):
    ran = subprocess.run([program, "--version"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, timeout=60)
    return ran.stdout.strip()


if __name__ == "__main__":
    main()
