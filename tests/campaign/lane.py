"""One service with its own data directory, jobs, observer and disturbances. Lanes run concurrently and share nothing."""

import json
import os
import signal
import threading
import time

import disturbances
import guests
import jobs
import leftovers
import plan
import settings as places
import tools
from service import Service

# Size of the file system that is filled, in addition to the templates.
SPARE_MIB = 256
MIN_FREE_BYTES = 16 << 20


class Lane:
    def __init__(self, number, count, settings, work, watch, witness, mounts, clock_library):
        self.number, self.count, self.settings = number, count, settings
        self.watch, self.witness, self.mounts = watch, witness, mounts
        self.stop = threading.Event()
        self.dir = work / str(number)
        # Short, because it contains sockets, and systems limit the length of their paths.
        self.data = self.dir / "d"
        self.data.mkdir(parents=True, mode=0o700)
        self.scratch = self.dir / "tmp"
        self.scratch.mkdir()
        self.filler = self.mounted = None
        if mounts.possible and "disk" in settings.extras:
            mounts.tmpfs(self.data, SPARE_MIB + 2 * image_mib())
            self.mounted, self.filler = True, tools.Filler(self.data)
        self.clock = None
        if clock_library and "clock" in settings.extras:
            self.clock = tools.Clock(clock_library, self.dir / "clock")
        self.host = guests.Host(self.data, settings.slots)
        self.service = Service(settings.binary, self.data, self.dir / "serve.log", self.environment())
        self.disturber = disturbances.Disturber(self)
        self.client = jobs.Client(self)
        self.left, self.broken = [], None
        self.began = self.ended = time.monotonic()

    def environment(self):
        settings = self.settings
        environment = {
            "TMPDIR": str(self.scratch),
            "MAYFLY_SLOTS__LINUX": str(settings.slots),
            "MAYFLY_SLOTS__CPUS": str(settings.slots),
            # Guests of other lanes and of other programs on this machine do not count.
            "MAYFLY_SLOTS__COUNT_FOREIGN": "false",
            "MAYFLY_DRIVERS__QEMU__ACCELERATOR": settings.accelerator,
            # Jobs report to the observer, which listens on this host's loopback.
            "MAYFLY_DRIVERS__QEMU__ISOLATED": "false",
            "MAYFLY_TEMPLATES__MIN_FREE_BYTES": str(MIN_FREE_BYTES),
            "MAYFLY_QUEUE__TIMEOUT_SECONDS": str(6 * 3600),
            "MAYFLY_BUDGETS__BOOT_SECONDS": str(settings.boot_seconds),
            "MAYFLY_BUDGETS__CONFIGURE_SECONDS": str(settings.configure_seconds),
            "MAYFLY_BUDGETS__LIFETIME_SECONDS": str(settings.lifetime_seconds),
        }
        return {**environment, **(self.clock.environment() if self.clock else {})}

    # --- the run --------------------------------------------------------------------

    def run(self):
        try:
            self.prepare()
            self.client.start()
            self.disturber.run(plan.make(f"{self.settings.seed} {self.number}", self.count, self.settings.boot_seconds,
                                         self.settings.extras))
            self.settle()
        except Exception as error:
            self.broken = f"{type(error).__name__}: {error}"
            raise
        finally:
            self.ended = time.monotonic()
            self.stop.set()

    def prepare(self):
        self.service.start()
        if not self.service.await_answer(60):
            raise RuntimeError(f"the service does not start: {log_tail(self.service.log_path, 2000)}")
        for name in ("seed", "ssh"):
            self.service.insist("POST", "/templates", template(name), seconds=120)
        with self.watch.changed:
            self.watch.hosts.append(self.host)
        self.baseline = leftovers.files(self.data)

    def settle(self):
        """Without faults, all jobs have to reach their end, and nothing may be left over."""
        self.disturber.bring_up()
        # The longest life that is left: three attempts, a job until its lifetime is over, and some for a busy machine.
        limit = 3 * (self.settings.boot_seconds + self.settings.configure_seconds) + 2 * self.settings.lifetime_seconds + 120
        self.client.finish(limit)
        self.client.join(5)
        self.left = self.look_around()

    def look_around(self):
        jobs = self.client.jobs
        found = leftovers.left_processes(str(self.data), {self.service.process.pid}, 20)
        found += leftovers.left_files(self.data, self.baseline)
        found += leftovers.left_logs(self.data, self.client.by_vm)
        found += [f"left in its TMPDIR: {path}" for path in sorted(leftovers.files(self.scratch))[:leftovers.MENTIONED]]
        status = self.service.stop()
        if status != 0:
            found.append("the service did not end on SIGTERM" if status is None else f"the service ended with {status}")
        found += leftovers.left_rows(self.data / "mayfly.db", jobs)
        found += leftovers.replayed(self.settings.replay, self.data / "mayfly.db")
        self.service.start()
        if self.service.await_answer(60):
            found += leftovers.changed_records(self.service, jobs)
        else:
            found.append("the service does not start on what it left")
        self.service.stop()
        return found

    def progress(self, step):
        ended = sum(job.done is not None for job in self.client.jobs)
        print(f"lane {self.number}: {step.number} of {self.count} kills, {ended} jobs have ended, "
              f"{time.monotonic() - self.began:.0f} s", flush=True)

    # --- what the observer knows ----------------------------------------------------

    def coming_up(self):
        """Names of the guests whose hypervisor runs and whose job has not started."""
        found = set()
        for guest in self.watch.running(self.host):
            job = self.client.by_vm.get(guest.vm)
            if job is None or not self.witness.runs("start", job.nonce):
                found.add(os.path.basename(guest.instance))
        return found

    def start_times(self):
        """Seconds from the start of a hypervisor to the start of its job."""
        seconds = []
        for job in self.client.jobs[-40:]:
            starts = self.witness.runs("start", job.nonce)
            seen = self.watch.of_vm(self.host, job.vm) if job.vm and starts else []
            if seen:
                seconds.append(min(starts.values()) - seen[0].first_seen)
        return [s for s in seconds if s > 0]

    # --- the end --------------------------------------------------------------------

    def answer_again(self):
        """For the evidence: the service's records of its vms."""
        self.service.signal(signal.SIGCONT)
        if not self.service.alive():
            self.service.start()
        self.service.await_answer(30)

    def close(self):
        """Ends all that this lane started."""
        self.stop.set()
        self.service.signal(signal.SIGCONT)
        self.service.kill()
        guests.end_processes_naming(str(self.data))
        if self.mounted:
            self.mounts.unmount(self.data)


def image_mib():
    return sum(path.stat().st_size for path in places.IMAGE.iterdir() if path.is_file()) // (1 << 20) + 1


def template(name):
    image = places.IMAGE
    body = {
        "name": name, "os": "linux", "disk": str(image / "disk.qcow2"), "kernel": str(image / "vmlinuz"),
        "initramfs": str(image / "initramfs.img"), "cpus": 1, "memory_mib": 192, "handover": name, "user": "root",
        "cmdline": json.loads((image / "template.json").read_text())["cmdline"],
    }
    return {**body, "ssh_key": str(image / "id_ed25519")} if name == "ssh" else body


def log_tail(path, size):
    with open(path, "rb") as file:
        file.seek(max(0, os.path.getsize(path) - size))
        return file.read().decode(errors="replace")
