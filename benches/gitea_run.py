"""Drives the jobs of one pattern of gitea.py and does to each what its fate says."""

import collections
import contextlib
import os
import re
import signal
import sys
import time
import urllib.error

# If no attempt ends for this long, something is stuck.
STUCK_SECONDS = 400
# Longer than any of these jobs may live: it is ended from outside.
ENDLESS_SECONDS = 900
COMING_UP = {"cloning", "booting", "configuring"}
RERUN = {"rerun", "killed_and_rerun"}


class Job:
    def __init__(self, number, fate, run, job):
        self.number, self.fate, self.run, self.id = number, fate, run, job
        self.attempts = 2 if fate in RERUN else 1
        self.completed = {}  # attempt → (conclusion, time)
        self.runners = {}  # attempt → name of its runner
        self.done_to = {}  # attempt → what was done to it
        self.acts_at = None

    def over(self):
        return len(self.completed) >= self.attempts


class Campaign:
    def __init__(self, run, long_seconds):
        self.host, self.random, self.long_seconds = run, run.random, long_seconds
        self.jobs, self.by_run = [], {}
        self.seen_events = self.seen_said = 0
        self.kills = self.kills_while_coming_up = 0
        self.vm_of = {}  # (number, attempt) → vm
        self.memory = collections.Counter()
        self.secrets = []
        self.to_scan = []

    def work(self, count, slots):
        """One job more than slots, so that the poll and the webhook always have one that waits."""
        fates = self.draw(count)
        self.secrets = [token.encode() for token in self.host.gitea.registration_tokens()]
        moved = time.monotonic()
        kill_at, waits_until = self.next_kill(), 0
        while True:
            if self.follow():
                moved = time.monotonic()
            unfinished = [job for job in self.jobs if not job.over()]
            if not unfinished and not fates:
                return
            if time.monotonic() - moved > STUCK_SECONDS:
                print(f"{self.host.pattern.name}: no progress for {STUCK_SECONDS} s with jobs "
                      + ", ".join(f"{job.id} ({job.fate})" for job in unfinished), file=sys.stderr)
                return
            while fates and len(unfinished) <= slots:
                unfinished.append(self.start(fates.pop()))
            for job in unfinished:
                self.act(job)
            self.scan()
            if kill_at and time.monotonic() >= kill_at:
                # Every second kill waits until a guest comes up.
                if waits_until == 0:
                    waits_until = time.monotonic() + (30 if self.kills % 2 else 0)
                coming_up = self.coming_up()
                if coming_up or time.monotonic() >= waits_until:
                    self.kill(coming_up)
                    kill_at, waits_until = self.next_kill(), 0
            time.sleep(0.2)

    def draw(self, count):
        """The fates in random order, each at least once if there are enough jobs."""
        weights = self.host.pattern.fates
        fates = list(weights)[:count] if count >= len(weights) else []
        fates += self.random.choices(list(weights), list(weights.values()), k=count - len(fates))
        self.random.shuffle(fates)
        return fates

    def start(self, fate):
        number = len(self.jobs) + 1
        seconds = {"plain": 1, "rerun": 1, "long": self.long_seconds, "cancelled_queued": 1}.get(fate, ENDLESS_SECONDS)
        run = self.host.gitea.dispatch(number=number, seconds=seconds, power_off="yes" if fate == "powered_off" else "no")
        job = Job(number, fate, run, self.host.gitea.job_of(run)["id"])
        if fate == "cancelled_queued":
            job.acts_at = time.monotonic() + self.random.uniform(0, 8)
        self.jobs.append(job)
        self.by_run[run] = job
        return job

    def follow(self):
        """Takes note of what Gitea and the jobs said since the last call."""
        news = False
        with self.host.relay.lock:
            events = self.host.relay.events[self.seen_events:]
            self.seen_events += len(events)
        for event in events:
            job = self.by_run.get(event["run"])
            if job is None:
                # Its run is still being started.
                self.seen_events -= len(events) - events.index(event)
                break
            attempt = max(event["attempt"], 1)
            if event["action"] == "in_progress":
                job.runners[attempt] = event["runner"]
            if event["action"] == "completed" and attempt not in job.completed:
                job.completed[attempt] = (event["conclusion"], event["at"])
                news = True
                if attempt < job.attempts:
                    self.host.gitea.rerun(job.run, job.id)
        with self.host.front.lock:
            said = self.host.front.said[self.seen_said:]
            self.seen_said += len(said)
        for word in said:
            if word["what"] == "begin":
                job = self.jobs[word["number"] - 1]
                self.vm_of[word["number"], word["attempt"]] = word["vm"]
                self.to_scan.append((job, word["attempt"], word["vm"]))
                if word["attempt"] == 1 and job.fate in ("vm_killed", "killed_and_rerun", "cancelled_running"):
                    job.acts_at = time.monotonic() + self.random.uniform(0, 4)
                if job.fate == "powered_off":
                    job.done_to[1] = "powered_off"
        return news

    def act(self, job):
        if job.acts_at is None or time.monotonic() < job.acts_at:
            return
        job.acts_at = None
        if job.fate.startswith("cancelled"):
            job.done_to[1] = "cancelled"
            self.host.gitea.cancel(job.run)
        else:
            job.done_to[1] = "vm_killed"
            with contextlib.suppress(FileNotFoundError, ProcessLookupError, ValueError):
                os.kill(self.host.serve.pid_of(self.vm_of[job.number, 1]), signal.SIGKILL)

    # --- Mayfly -------------------------------------------------------------------

    def next_kill(self):
        kill = self.host.pattern.kill
        return kill and time.monotonic() + self.random.uniform(*kill)

    def coming_up(self):
        try:
            return any(vm["state"] in COMING_UP for vm in self.host.vms())
        except urllib.error.URLError:
            return False

    def kill(self, coming_up):
        serve = self.host.serve
        serve.process.kill()
        serve.process.wait()
        self.kills += 1
        self.kills_while_coming_up += coming_up
        time.sleep(self.random.uniform(0, 2))
        serve.start()

    # --- what is in a guest's memory ------------------------------------------------

    def scan(self):
        """Looks for registration tokens in the memory of a guest that runs a job. The runner's own token must be found, or
        this would not see anything."""
        left = []
        for job, attempt, vm in self.to_scan:
            name = job.runners.get(attempt)
            if name is None:
                if attempt not in job.completed:
                    left.append((job, attempt, vm))
                continue
            with self.host.front.lock:
                own = [runner["token"].encode() for runner in self.host.front.registered.get(name, [])]
            try:
                found = in_memory(self.host.serve.pid_of(vm), [*self.secrets, *own])
            except (FileNotFoundError, ProcessLookupError, ValueError):
                continue
            self.memory["guests"] += 1
            self.memory["with_registration_token"] += any(secret in found for secret in self.secrets)
            self.memory["with_own_token"] += any(token in found for token in own)
        self.to_scan = left


def in_memory(pid, secrets):
    """Those of the secrets that are in the memory of a process."""
    found, part, overlap = set(), 16 << 20, 64
    with open(f"/proc/{pid}/maps") as maps, open(f"/proc/{pid}/mem", "rb", buffering=0) as memory:
        for line in maps:
            at = re.match(r"([0-9a-f]+)-([0-9a-f]+) rw", line)
            if not at:
                continue
            begin, end = int(at[1], 16), int(at[2], 16)
            if end - begin < 64 << 20:
                continue  # the guest's memory is one large piece
            for offset in range(begin, end, part):
                with contextlib.suppress(OSError):
                    memory.seek(offset)
                    content = memory.read(min(part + overlap, end - offset))
                    found.update(secret for secret in secrets if secret in content)
    return found
