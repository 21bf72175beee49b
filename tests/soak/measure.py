"""What is measured from outside while it runs: the latency of /healthz, and once a second what the host shows of the service, its
gateways and its hypervisors."""

import collections
import contextlib
import http.client
import os
import threading
import time

import guests
from service import NotAnswered, Refused

# /healthz is asked more often than everything else is measured, so that a short run has a 99th percentile.
PROBE_EVERY = 0.25
METRICS_EVERY = 5
PROBE_TIMEOUT = 10


def percentile(values, part):
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(part * len(ordered)))] if ordered else None


class Probe(threading.Thread):
    """One new connection for each request, as a load balancer or a hook has it. One that fails counts as the longest time."""

    def __init__(self, port):
        super().__init__(name="probe", daemon=True)
        self.port, self.ended = port, threading.Event()
        self.milliseconds, self.failed = [], []

    def run(self):
        while not self.ended.wait(PROBE_EVERY):
            began = time.monotonic()
            try:
                client = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PROBE_TIMEOUT)
                with contextlib.closing(client):
                    client.request("GET", "/healthz")
                    status = client.getresponse().status
                if status != 200:
                    raise OSError(f"status {status}")
                self.milliseconds.append((time.monotonic() - began) * 1000)
            except (OSError, http.client.HTTPException) as error:
                self.failed.append(str(error))
                self.milliseconds.append(PROBE_TIMEOUT * 1000)


def resident(pid):
    """Memory of the process itself, without the pages of its program."""
    with open(f"/proc/{pid}/status") as file:
        return sum(int(line.split()[1]) for line in file if line.startswith(("RssAnon:", "RssShmem:"))) << 10


def descriptors(pid):
    return len(os.listdir(f"/proc/{pid}/fd"))


def processor_seconds(pid):
    """Of the process and of its children that it has waited for."""
    with open(f"/proc/{pid}/stat", "rb") as file:
        fields = file.read().rpartition(b")")[2].split()
    return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")


def machine_seconds():
    """Processor time that anybody on this machine used."""
    with open("/proc/stat") as file:
        fields = [int(field) for field in file.readline().split()[1:9]]
    return (sum(fields) - fields[3] - fields[4]) / os.sysconf("SC_CLK_TCK")


def on_disk(path):
    try:
        status = os.lstat(path)
    except OSError:
        return 0
    return status.st_blocks * 512


class Sampler(threading.Thread):
    """The largest value of everything, and the smallest free space, since the start."""

    def __init__(self, service, data, others):
        super().__init__(name="sampler", daemon=True)
        self.service, self.data, self.ended = service, data, threading.Event()
        self.most = collections.Counter()
        self.least_free = None
        self.series, self.service_memory = [], []
        self.samples, self.errors = 0, []
        self.used = {pid: None for pid in others}
        self.machine = [machine_seconds(), None]

    def run(self):
        next_metrics = 0
        while not self.ended.wait(1):
            self.sample()
            if time.monotonic() >= next_metrics:
                next_metrics = time.monotonic() + METRICS_EVERY
                self.count_series()

    def note(self, what, value):
        self.most[what] = max(self.most[what], value)

    def sample(self):
        self.samples += 1
        counts = collections.Counter()
        for pid, words in guests.processes_naming(str(self.data)):
            kind = self.kind(pid, words)
            counts[kind] += 1
            # It may have ended meanwhile.
            with contextlib.suppress(OSError, IndexError, ValueError):
                memory = resident(pid)
                self.note(f"{kind} memory", memory)
                if kind == "service":
                    self.service_memory.append(memory)
                self.note(f"{kind} descriptors", descriptors(pid))
                self.processor(pid)
        for pid in list(self.used):
            with contextlib.suppress(OSError, IndexError, ValueError):
                self.processor(pid)
        self.note("processes", sum(counts.values()))
        for kind, count in counts.items():
            self.note(f"{kind} processes", count)
        self.machine[1] = machine_seconds()
        self.sample_disk()

    def processor(self, pid):
        now = processor_seconds(pid)
        first, _ = self.used.get(pid) or (now if self.samples == 1 or pid in self.used else 0, now)
        self.used[pid] = (first, now)

    def foreign_share(self):
        """Part of this machine's processor time that went to programs that are no part of this test."""
        own = sum(pair[1] - pair[0] for pair in self.used.values() if pair)
        whole = (self.machine[1] or self.machine[0]) - self.machine[0]
        return max(0.0, whole - own) / (whole or 1)

    def kind(self, pid, words):
        if pid == self.service.process.pid:
            return "service"
        program = os.path.basename(words.split(" ")[0])
        if program.startswith("qemu-system"):
            return "qemu"
        return "gateway" if " guest-gateway " in words else "other"

    def sample_disk(self):
        space = os.statvfs(self.data)
        free = space.f_bavail * space.f_frsize
        self.least_free = free if self.least_free is None else min(self.least_free, free)
        with contextlib.suppress(OSError):
            for instance in os.scandir(self.data / "instances"):
                for name in ("console.log", "watch.log", "qemu.log", "gateway.log"):
                    self.note(name, on_disk(os.path.join(instance.path, name)))
        for root, _, files in os.walk(self.data / "logs"):
            for name in files:
                self.note("one log of a guest", on_disk(os.path.join(root, name)))
        self.note("database", sum(on_disk(self.data / f"mayfly.db{suffix}") for suffix in ("", "-wal", "-shm")))
        self.note("templates and pulls", sum(on_disk(os.path.join(root, name))
                                             for root, _, files in os.walk(self.data / "templates") for name in files))

    def count_series(self):
        try:
            text = self.service.call("GET", "/metrics", timeout=10)
        except (NotAnswered, Refused) as error:
            self.errors.append(f"/metrics: {error}")
            return
        self.series.append(sum(1 for line in text.splitlines() if line and not line.startswith(b"#")))
