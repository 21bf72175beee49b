"""Observes the hypervisors on the host from /proc, independently of the service and its records."""

import contextlib
import os
import re
import signal
import threading
import time

EVERY = 0.05
# A new process may still execute another program.
YOUNG = 1.0
RECHECK = 1.0
# A second start of an instance briefly has a process that ends because of the lock. Two for longer are a second hypervisor on one
# disk.
DOUBLE_SECONDS = 15
CONSOLE_LIMIT = 1 << 20
UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
CONSOLE_START = re.compile(r"CAMPAIGN-START (\S+) (\S+)")


def start_time(pid):
    """The start time of the process in kernel ticks; with the pid, its identity. None if it has ended or is a zombie."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
        return None if fields[0] in (b"Z", b"X") else int(fields[19])
    except (OSError, IndexError):
        return None


def command_line(pid):
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            return file.read().decode(errors="replace").split("\0")
    except OSError:
        return []


class Guest:
    """One QEMU process."""

    def __init__(self, pid, started, instance, vm, at):
        self.pid, self.started, self.instance, self.vm = pid, started, instance, vm
        self.first_seen, self.last_seen, self.gone = at, at, None
        self.console, self.console_text = None, ""

    def alive(self):
        return start_time(self.pid) == self.started

    def lasted(self):
        """Whether it is not a process that ended because another one holds the lock."""
        return self.last_seen - self.first_seen > 1

    def open_console(self):
        """Kept open, so that the output can be read after the service has removed the file."""
        if self.console is None:
            with contextlib.suppress(OSError):
                self.console = open(os.path.join(self.instance, "console.log"), "rb")

    def read_console(self):
        if self.console is not None:
            with contextlib.suppress(OSError):
                self.console.seek(0)
                self.console_text = self.console.read(CONSOLE_LIMIT).decode(errors="replace")

    def close(self, at):
        self.gone = at
        self.read_console()
        if self.console is not None:
            self.console.close()


class Host:
    """The hypervisors of one data directory: the running ones, and all that ever ran."""

    def __init__(self, data, cap):
        self.instances = str(data / "instances") + "/"
        self.data, self.cap = str(data), cap
        self.running, self.all = [], []
        self.peak, self.violations = 0, []
        self.doubled = {}

    def count(self):
        return len({guest.instance for guest in self.running})


class Watch(threading.Thread):
    """Scans /proc continuously, for every host that was added."""

    def __init__(self):
        super().__init__(name="watch", daemon=True)
        self.hosts = []
        self.ended = threading.Event()
        self.changed = threading.Condition()
        self.known = {}
        self.looks, self.longest_gap = 0, 0.0

    def run(self):
        last = time.monotonic()
        while not self.ended.is_set():
            self.look()
            now = time.monotonic()
            self.longest_gap = max(self.longest_gap, now - last)
            last = now
            self.ended.wait(EVERY)

    def close(self):
        self.ended.set()
        self.join(10)
        for host in self.hosts:
            for guest in host.running:
                guest.close(time.monotonic())

    def look(self):
        now = time.monotonic()
        pids = [int(name) for name in os.listdir("/proc") if name.isdigit()]
        with self.changed:
            self.looks += 1
            self.known = {pid: self.known[pid] for pid in pids if pid in self.known}
            for pid in pids:
                first, next_look = self.known.get(pid, (now, now))
                if now >= next_look:
                    self.examine(pid, now)
                    # A known process is checked again now and then, because its pid may have been reused.
                    next_look = now if now - first < YOUNG else now + RECHECK
                self.known[pid] = (first, next_look)
            for host in self.hosts:
                self.follow(host, now)
            self.changed.notify_all()

    def examine(self, pid, now):
        words = command_line(pid)
        if not os.path.basename(words[0] if words else "").startswith("qemu-system"):
            return
        for host in self.hosts:
            at = next((word.find(host.instances) for word in words if host.instances in word), -1)
            if at < 0:
                continue
            word = next(word for word in words if host.instances in word)
            name = re.split(r"[/,]", word[at + len(host.instances):])[0]
            started = start_time(pid)
            if started is None or any(g.pid == pid and g.started == started for g in host.running):
                return
            vm = UUID.search(name)
            guest = Guest(pid, started, host.instances + name, vm[0] if vm else None, now)
            host.running.append(guest)
            host.all.append(guest)

    def follow(self, host, now):
        for guest in host.running:
            guest.open_console()
            if guest.alive():
                guest.last_seen = now
            else:
                guest.close(now)
        host.running = [guest for guest in host.running if guest.gone is None]
        self.check_cap(host, now)
        self.check_doubled(host, now)

    def check_cap(self, host, now):
        # All of them were alive at the moment between their two looks: `follow` has just looked at each, and here each is
        # looked at again.
        together = {guest.instance for guest in host.running}
        if len(together) > host.peak or len(together) > host.cap:
            together = {guest.instance for guest in host.running if guest.alive()}
            host.peak = max(host.peak, len(together))
            if len(together) > host.cap and not any(v["instances"] == sorted(together) for v in host.violations):
                host.violations.append({"what": "more guests than slots", "at": now, "instances": sorted(together)})

    def check_doubled(self, host, now):
        by_instance = {}
        for guest in host.running:
            by_instance.setdefault(guest.instance, []).append(guest)
        doubled = {name: guests for name, guests in by_instance.items() if len(guests) > 1}
        host.doubled = {name: host.doubled.get(name, now) for name in doubled}
        for name, since in host.doubled.items():
            if now - since > DOUBLE_SECONDS and not any(v["instances"] == [name] for v in host.violations):
                host.violations.append({"what": "two hypervisors for one instance", "at": now, "instances": [name]})

    def of_vm(self, host, vm):
        with self.changed:
            return [guest for guest in host.all if guest.vm == vm]

    def running(self, host):
        with self.changed:
            return list(host.running)


def processes_naming(data, besides=()):
    """(pid, command line) of every process whose command line names the directory."""
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit() and int(name) not in besides and int(name) != os.getpid():
            words = command_line(int(name))
            if any(data in word for word in words) and start_time(int(name)) is not None:
                found.append((int(name), " ".join(words)[:300]))
    return found


def end_processes_naming(data):
    """Kills them by pid. A start that is under way may bring one more, so this ends when there was none for a second."""
    until, quiet_since = time.monotonic() + 20, time.monotonic()
    while time.monotonic() < until and time.monotonic() - quiet_since < 1:
        for pid, _ in processes_naming(data):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
            quiet_since = time.monotonic()
        time.sleep(0.1)
