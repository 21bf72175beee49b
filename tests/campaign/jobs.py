"""The jobs, and a client that posts them like an autoscaler: with an idempotency key, repeated until there is an answer."""

import random
import threading
import time
from dataclasses import dataclass, field
from typing import Optional

from service import NotAnswered, Refused

# Number of queued jobs beside those with a slot.
WAITING = 2
EVERY = 0.5
# Fraction of jobs that get a DELETE without force while they run. They have to run to their end nevertheless.
ANNOUNCED = 0.1
# Fraction of POSTs that are repeated although they were answered.
REPEATED = 0.2
ANSWER_SECONDS = 400


@dataclass
class Job:
    nonce: str
    seconds: float
    long: bool
    code: int
    template: str
    announced: bool
    posted: float = 0.0
    vm: Optional[str] = None
    delete_answered: bool = False
    # When it was seen as deleted, and the service's record of it.
    done: Optional[float] = None
    record: Optional[dict] = None
    log_from: int = 0
    log_to: int = 0
    complaints: list = field(default_factory=list)


def draw(dice, nonce, settings):
    long = dice.random() * 100 < settings.long_percent
    seconds = dice.uniform(1.1, 1.5) * settings.boot_seconds if long else dice.uniform(0.2, 4)
    return Job(
        nonce=nonce, seconds=round(seconds, 1), long=long,
        code=0 if dice.random() < 0.7 else dice.randrange(1, 100),
        template="ssh" if dice.random() * 100 < settings.ssh_percent else "seed",
        announced=dice.random() < ANNOUNCED,
    )


class Client(threading.Thread):
    def __init__(self, lane):
        super().__init__(name=f"client-{lane.number}", daemon=True)
        self.lane, self.service, self.witness = lane, lane.service, lane.witness
        self.dice = random.Random(f"jobs {lane.settings.seed} {lane.number}")
        self.jobs, self.by_vm = [], {}
        self.posting = threading.Event()
        self.posting.set()
        self.idle = threading.Event()
        self.stop = lane.stop
        self.broken = None

    def run(self):
        try:
            while not self.stop.is_set():
                live = [job for job in self.jobs if job.done is None and job.vm]
                while self.posting.is_set() and not self.stop.is_set() and len(live) < self.lane.settings.slots + WAITING:
                    live.append(self.post())
                for job in live:
                    self.look_at(job)
                if not self.posting.is_set() and all(job.done is not None for job in self.jobs if job.vm):
                    self.idle.set()
                self.stop.wait(EVERY)
        except Exception as error:  # an error of the campaign itself, which must not count as a pass
            self.broken = error
            self.idle.set()
            raise

    def body(self, job):
        return {
            "template": job.template, "labels": {"campaign": job.nonce},
            "runner": {"kind": "command", "command": self.witness.script(job.nonce, job.seconds, job.code)},
        }

    def post(self):
        job = draw(self.dice, f"{self.lane.settings.seed}-{self.lane.number}-{len(self.jobs) + 1}", self.lane.settings)
        job.posted, job.log_from = time.monotonic(), self.service.log_size()
        self.jobs.append(job)
        for _ in range(2 if self.dice.random() < REPEATED else 1):
            try:
                vm = self.service.insist("POST", "/vms", self.body(job), job.nonce, ANSWER_SECONDS, self.stop)["id"]
            except (NotAnswered, Refused) as error:
                job.complaints.append(f"POST: {error}")
                return job
            if job.vm and vm != job.vm:
                job.complaints.append(f"the same POST made two vms, {job.vm} and {vm}")
            job.vm = vm
            self.by_vm[vm] = job
        return job

    def look_at(self, job):
        if job.vm is None:
            return
        try:
            if job.announced and not job.delete_answered and self.runs_now(job):
                self.service.call("DELETE", f"/vms/{job.vm}")
                job.delete_answered = True
            record = self.service.call("GET", f"/vms/{job.vm}")
        except NotAnswered:
            return
        except Refused as error:
            # An accepted vm exists until its record's retention ends.
            if str(error) not in job.complaints:
                job.complaints.append(str(error))
            return
        job.record = record
        if record["state"] == "deleted":
            job.done, job.log_to = time.monotonic(), self.service.log_size()
            if alive := [g.pid for g in self.lane.watch.of_vm(self.lane.host, job.vm) if g.alive()]:
                job.complaints.append(f"deleted by its record while its guest runs (pid {alive[0]})")

    def runs_now(self, job):
        return self.witness.runs("start", job.nonce) and not self.witness.runs("end", job.nonce)

    def finish(self, seconds):
        """Starts no more jobs; True if all have ended within that time."""
        self.posting.clear()
        return self.idle.wait(seconds) and self.broken is None
