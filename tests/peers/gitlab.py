#!/usr/bin/env python3
"""Runs jobs of GitLab through a real GitLab Runner, which has `mayfly gitlab-executor` as its custom executor, in real guests.

    GITLAB_RUNNER=/path/gitlab-runner gitlab.py [--jobs 50] [--slots 2] [--seed 1] [--patterns a,b] [--list]

GitLab Runner is not part of this project. Build it elsewhere and name it (15.4 is the last version whose source can be had
completely); GitLab itself is simulated by gitlab_jobs.py.

Each job has a fate: it succeeds, fails with an exit code of its own, names an image that is not allowed, is canceled before or in
its work, exceeds its time, or loses its guest. Meanwhile the runner and the service are killed and started again. Guests report
the begin and the end of each script to the simulated GitLab, with the boot that they are. At the end, all this is compared.

Prints a table, writes target/bench/gitlab-jobs.json, and exits with 1 if a job ran twice or did not end as its script said, if
a process or a directory of a vm is left, or if a secret of a job was in the arguments or the environment of a program of this
machine or in a file of the service or the runner. The last pattern is the control: an executor that does all of this wrong,
which must be found. Without the program, it says NOT CHECKED and exits with 0.
"""

import argparse
import collections
import json
import os
import random
import signal
import sys
import tempfile
import time
from pathlib import Path

from gitlab_jobs import SECRET, GitLabJobs, Job
from gitlab_judge import LINES, good, judge, table
from gitlab_runner import SHORT_LIFETIME, GitLabRunner
from host_watch import SecretWatch, files_with, processes_of
from peer import say, wait
from service import IMAGE, ROOT, MayflyWithGuests

# Emulated guests on a busy machine.
BOOT_SECONDS = 240
SETTLE_SECONDS = 120
TIMEOUT_OF_JOBS = 150
LONG = "sleep 900"


class Mayfly(MayflyWithGuests):
    def template(self):
        return {**super().template(), "ssh_key": str(IMAGE / "id_ed25519")}

    def pid_of(self, job):
        """The hypervisor of the job's guest."""
        vms = [vm for vm in self.api("GET", f"/vms?label=gitlab.job%3D{job.id}")["items"] if vm["outcome"] is None]
        for vm in vms:
            for path in (self.directory / "data/instances").glob(f"mayfly-{vm['id']}*/qemu.pid"):
                return int(path.read_text())
        return None

    def booted(self):
        """The jobs in whose guests a script may run."""
        return {int(vm["labels"]["gitlab.job"]) for vm in self.api("GET", "/vms?limit=200&label=owner%3Dgitlab")["items"]
                if vm["state"] not in ("queued", "cloning", "booting", "configuring")}


class FatedJob(Job):
    def __init__(self, fate, dice):
        self.fate, self.struck, self.done_to = fate, set(), False
        self.seconds, self.code = dice.randint(1, 15), dice.choice([1, 2, 7, 42, 77, 126, 255])
        image = {"refused": "windows:11", "outlived": "micro:short"}.get(fate, "micro:1")
        super().__init__(self.lines, image, TIMEOUT_OF_JOBS if fate == "timed_out" else 3600)

    def lines(self, number, said):
        say_begin, say_end = (
            f'curl -q -sS --retry 20 --retry-delay 1 --retry-connrefused --max-time 20 -o /dev/null -X POST '
            f'"{said}/{what}/$(cat /proc/sys/kernel/random/boot_id)"' for what in ("begin", "end"))
        work = f"sleep {self.seconds}" if self.fate in ("plain", "fails", "refused") else LONG
        return [
            say_begin, "id -un", 'printf %s "$DEPLOY_KEY" | sha256sum', 'cat "$KEY_FILE" | sha256sum',
            f'n=0; while [ $n -lt {LINES} ]; do echo "line $n of job {number}"; n=$((n + 1)); done', work, say_end,
            f"exit {self.code if self.fate == 'fails' else 0}"]


class Pattern:
    """`fates`: of the jobs, by weight; all of them occur. `kills`: seconds between two kills, from and to. `waits`: there are
    more jobs than slots. `bad`: it has to be found bad."""

    def __init__(self, name, what, fates, jobs=None, kills=None, waits=False, bad=False):
        self.name, self.what, self.fates, self.jobs, self.kills = name, what, fates, jobs, kills
        self.waits, self.bad = waits, bad


PATTERNS = [
    Pattern("everything", "jobs of all fates, while runner and service are killed",
            {"plain": 20, "fails": 8, "canceled_running": 3, "canceled_early": 3, "timed_out": 2, "guest_killed": 3,
             "refused": 2}, kills=(30, 80), waits=True),
    Pattern("machine-lost", "the runner is killed with all that it started: the lifetime of its vms ends them",
            {"outlived": 1}, jobs=2),
    Pattern("counter-proof", "an executor that does all wrong", {"plain": 1, "fails": 1}, jobs=2, bad=True),
]


class Run:
    """One pattern, with its own GitLab, service and runner."""

    def __init__(self, pattern, options, directory):
        self.pattern, self.options, self.directory = pattern, options, directory
        self.dice = random.Random(f"{options.seed} {pattern.name}")
        self.kills, self.next_kill = collections.Counter(), None
        self.mayfly = self.runner = None
        self.gitlab = GitLabJobs()
        executor = options.mayfly
        if pattern.bad:
            executor = directory / "bad-executor"
            executor.write_text((ROOT / "tests/peers/bad_executor.sh").read_text().replace("$MAYFLY", options.mayfly))
            executor.chmod(0o755)
        # The runner gives each stage all variables of its job in its environment: nothing else may have them.
        may_have = lambda program, arguments: program == options.runner or (
            program == options.mayfly and b"gitlab-executor" in arguments)
        self.watch = SecretWatch(SECRET, may_have)
        try:
            self.mayfly = Mayfly(options.mayfly, directory, options.slots, {})
            self.watch.start()
            self.runner = GitLabRunner(options.runner, directory, self.gitlab, self.mayfly, executor, options.slots + 2)
        except BaseException:
            self.end()
            raise

    def end(self):
        if self.watch.is_alive():
            self.watch.stop()
        if self.runner:
            self.runner.end()
        if self.mayfly:
            self.mayfly.end()
        self.gitlab.shutdown()
        self.gitlab.server_close()

    def new_jobs(self):
        number = self.pattern.jobs or max(self.options.jobs, len(self.pattern.fates))
        fates = list(self.pattern.fates)
        fates += self.dice.choices(fates, list(self.pattern.fates.values()), k=number - len(fates))
        self.dice.shuffle(fates)
        return [self.gitlab.add(FatedJob(fate, self.dice)) for fate in fates]

    def strike(self, job):
        """Does to a job what its fate is, once it has got there."""
        if job.done_to or job.over():
            return
        if job.fate == "canceled_early" and " of the template " in job.log() or job.fate == "canceled_running" and job.said["begin"]:
            self.gitlab.cancel(job)
            job.done_to = True
        elif job.fate == "guest_killed" and job.said["begin"]:
            pid = self.mayfly.pid_of(job)
            if pid:
                os.kill(pid, signal.SIGKILL)
                job.done_to = True

    def kill_something(self):
        now = time.monotonic()
        if self.next_kill is None or now < self.next_kill:
            self.next_kill = self.next_kill or now + self.dice.uniform(*self.pattern.kills)
            return
        self.next_kill = now + self.dice.uniform(*self.pattern.kills)
        # Both in turn, so that both happen also with few jobs.
        what = "service" if self.kills["service"] <= self.kills["runner"] else "runner"
        if what == "service":
            at_risk = self.mayfly.booted()
            self.mayfly.kill()
            for job in self.gitlab.running():
                if job.id in at_risk:
                    job.struck.add("service")
            time.sleep(self.dice.uniform(0, 5))
            self.mayfly.start()
        else:
            self.runner.kill()
            struck = self.gitlab.running()
            for job in struck:
                job.struck.add("runner")
            self.gitlab.abandon(struck)
            self.runner.start()
        self.kills[what] += 1
        say(f"killed the {what}")

    def lose_the_machine(self, jobs):
        """Only the lifetime of the vms is left to end them."""
        wait("all jobs run", BOOT_SECONDS * 2, lambda: all(job.said["begin"] for job in jobs))
        vms = set(self.mayfly.hypervisor())
        stages = self.runner.kill_with_stages()
        killed = time.monotonic()
        self.gitlab.abandon(jobs)
        self.kills["runner with its stages"] += 1
        say(f"killed the runner and {stages} stages")
        # It was no one else who ended them.
        time.sleep(10)
        if set(self.mayfly.hypervisor()) != vms or len(vms) != len(jobs):
            raise AssertionError(f"vms ended before their lifetime: {vms} were there, now {self.mayfly.hypervisor()}")
        wait("the vms end with their lifetime", SHORT_LIFETIME + SETTLE_SECONDS, lambda: not self.mayfly.hypervisor())
        say(f"their vms ended {time.monotonic() - killed:.0f} s later")
        self.runner.start()

    def work(self, jobs):
        deadline = time.monotonic() + BOOT_SECONDS * (len(jobs) + 1)
        told = set()
        while not all(job.over() for job in jobs):
            if time.monotonic() > deadline:
                missing = [f"{job.id} ({job.fate}): {job.state}, {job.log()[-300:]!r}" for job in jobs if not job.over()]
                raise AssertionError(f"jobs did not end: {missing}")
            for job in jobs:
                self.strike(job)
                if job.over() and job.id not in told:
                    told.add(job.id)
                    say(f"job {job.id} ({job.fate}): {job.state} {job.failure or ''}, {len(told)} of {len(jobs)}")
            if self.pattern.kills:
                self.kill_something()
            time.sleep(0.3)

    def left(self):
        """Of the vms: processes and directories. The service and the runner go on."""
        instances = self.directory / "data/instances"
        found = [f"directory {path.name}" for path in instances.iterdir()] if instances.exists() else []
        mine = {self.mayfly.process.pid, self.runner.process.pid}
        return found + [f"process {arguments}" for arguments in processes_of(self.directory, mine).values()]

    def settle(self):
        end = time.monotonic() + SETTLE_SECONDS
        while (left := self.left()) and time.monotonic() < end:
            # Nothing will end these.
            if self.pattern.bad and not any("gitlab-executor" in line for line in left):
                break
            time.sleep(0.5)
        return left

    def row(self):
        begun = time.monotonic()
        jobs = self.new_jobs()
        if self.pattern.name == "machine-lost":
            self.lose_the_machine(jobs)
        self.work(jobs)
        left = self.settle()
        self.mayfly.answers()
        # The runner keeps the jobs of killed stages in its own directory.
        seen = set(self.watch.found) | set(files_with(SECRET, self.directory, leave=(self.runner.temporary,)))
        if Path(f"/tmp/{SECRET}").exists():
            seen.add("a program of the job ran on this machine")
            Path(f"/tmp/{SECRET}").unlink()
        if not self.watch.looks:
            raise AssertionError("nothing was looked at")
        say(f"{self.watch.looks} looks at {self.watch.processes} processes")
        return judge(self.pattern, jobs, left, sorted(seen), time.monotonic() - begun, self.kills)

    def keep_logs(self):
        to = ROOT / "target/bench/gitlab-jobs"
        to.mkdir(parents=True, exist_ok=True)
        for name in ("runner.log", "mayfly.log"):
            if (self.directory / name).exists():
                (to / f"{self.pattern.name}.{name}").write_bytes((self.directory / name).read_bytes())
        for job in self.gitlab.jobs:
            (to / f"{self.pattern.name}.job-{job.id}.log").write_text(
                f"{job.fate} {job.state} {job.failure} {job.exit_code} {job.struck} {dict(job.said)}\n{job.log()}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mayfly", default=str(ROOT / "target/debug/mayfly"), type=os.path.realpath)
    parser.add_argument("--runner", default=os.environ.get("GITLAB_RUNNER"), type=os.path.realpath)
    parser.add_argument("--jobs", default=50, type=int, help="of the first pattern")
    parser.add_argument("--slots", default=2, type=int)
    parser.add_argument("--seed", default="1")
    parser.add_argument("--patterns", default=",".join(pattern.name for pattern in PATTERNS))
    parser.add_argument("--list", action="store_true", help="the patterns")
    options = parser.parse_args()
    if options.list:
        for pattern in PATTERNS:
            print(f"{pattern.name:<16} {pattern.what}")
        return 0
    if unknown := set(options.patterns.split(",")) - {pattern.name for pattern in PATTERNS}:
        parser.error(f"unknown pattern: {', '.join(sorted(unknown))}; see --list")
    if not options.runner:
        print("NOT CHECKED: GITLAB_RUNNER not set")
        return 0
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: sys.exit("ended by a signal"))
    rows = []
    for pattern in PATTERNS:
        if pattern.name not in options.patterns.split(","):
            continue
        say(f"== {pattern.name}: {pattern.what} (seed {options.seed})")
        with tempfile.TemporaryDirectory(prefix="gitlab-", dir="/tmp") as directory:
            run = Run(pattern, options, Path(directory))
            try:
                rows.append(run.row())
                version = run.runner.version()
            finally:
                run.end()
                run.keep_logs()
        out = ROOT / "target/bench"
        out.mkdir(parents=True, exist_ok=True)
        record = {"gitlab_runner": version, "slots": options.slots, "seed": options.seed, "rows": rows}
        (out / "gitlab-jobs.json").write_text(json.dumps(record, indent=1) + "\n")
    print(f"\nGitLab Runner {version}, {options.slots} slots")
    table(rows)
    return 0 if all(good(row) for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
