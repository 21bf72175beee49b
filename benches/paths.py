#!/usr/bin/env python3
"""Counts the source files on the paths of four requests, by running the service and recording which functions it enters.

    paths.py [--binary target/debug/mayfly] [--source .] [--output target/bench/paths.json] [--rounds 5] [NAME …]

    post      POST /vms:               until the ledger's commit; from there until the driver's first verb (`create`)
    delete    DELETE /vms/{id}?force:  of a running vm; until the ledger's commit; from there until the driver's `stop`
    webhook   POST /webhooks/github:   a job is queued; until the commit of the vm's row
    pull      POST /templates:         an image; until the commit of the pull's row; from there until the pull is saved as done

Prints the files of each part in the order in which they are entered, and writes them to the JSON file with the functions that
were entered. Needs Linux on x86-64 (it uses ptrace), nm, llvm-symbolizer, and docker-registry for the pull.

The binary is a debug build (`cargo build --bin mayfly`): nothing is inlined there, and it has line tables. `--source` is the
directory in which it was built. Other commits are measured in the same way, with a worktree and a binary of their own. A
breakpoint is set on each function whose code is in a file under `src/`; an `async fn` is entered at each of its polls.

Background loops run meanwhile, and several loops are woken by the same change. To tell what is on the path, the script also
records which Tokio task is polled on which thread, and which poll wakes or starts which task. An entry counts if it happened
in a poll that led to the end of the part. These polls are found backwards from the end: the earlier polls of the same task,
the polls that woke it, and the blocking functions that they started. The rules in detail:

  * A part ends when SQLite writes a commit (`sqlite3WalFrames` with `isCommit`) after the named function of the store was
    entered, or when the driver's method is entered. The service uses the `fake` driver. Files of a driver do not count.
  * A request to the writer wakes no task while the writer is busy, and a vm's task may see that it has a slot before it is
    woken. So polls that send a request to the writer lead to the writer's next polls, and `ledger::place` leads to the driver.
  * After the commit, the polls of the handler's task do not count: they render the answer.
  * Before the handler, only files under `src/http/` count: the rest is authentication.
  * Each request is measured `--rounds` times. A file counts if one of its functions was entered in all rounds.
  * Functions that `#[derive]` generates do not count. Files of which nothing else was entered are listed.
  * Files that LAYOUTS names do not count: the domain, the platform layer, middleware, authentication, error rendering.
"""

import argparse
import collections
import ctypes
import fnmatch
import hashlib
import hmac
import http.server
import json
import os
import pathlib
import re
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import threading
import time
import urllib.parse
import urllib.request

import bench
from pull import Registry

# What does not count. The first layout applies whose key is a file of the source.
LAYOUTS = {
    "src/platform/mod.rs": {
        "domain": ["src/domain/*"],
        "platform": ["src/platform/*"],
        "middleware": ["src/http/middleware.rs", "src/http/lanes.rs", "src/http/serve.rs", "src/http/surface.rs", "src/http/mod.rs",
                       "src/http/sender.rs", "src/http/connections.rs", "src/http/stalled.rs", "src/http/bodies.rs",
                       "src/telemetry/*"],
        "authentication": ["src/http/auth.rs", "src/service/tokens.rs", "src/store/tokens.rs"],
        "error rendering": ["src/http/problem.rs", "src/http/fault.rs"],
        "behind the driver contract": ["src/drivers/fake/*"],
    },
    # Commit b1759f2, which has no platform layer: its later contents were beside their first users.
    "src/service/clock.rs": {
        "domain": ["src/domain/*"],
        "platform": ["src/service/clock.rs", "src/drivers/command.rs", "src/templates/registry/credentials/private.rs",
                     "src/store/writer.rs"],
        "middleware": ["src/http/frame.rs", "src/http/serve.rs", "src/http/mod.rs", "src/telemetry.rs"],
        "authentication": ["src/http/auth.rs", "src/service/tokens.rs", "src/store/tokens.rs"],
        "error rendering": ["src/http/problem.rs"],
        "behind the driver contract": ["src/drivers/fake/*"],
    },
}


def layout_of(source):
    for file, layout in LAYOUTS.items():
        if (source / file).exists():
            return layout
    raise SystemExit(f"LAYOUTS has no entry for {source}")


def left_out(layout, file):
    for why, patterns in layout.items():
        if any(fnmatch.fnmatch(file, pattern) for pattern in patterns):
            return why
    return None


# Functions of Tokio and SQLite that are followed. The key stands in the place of the file.
POLL, POLLED, WAKE, SPAWN, COMMIT = "poll", "polled", "wake", "spawn", "commit"
FOLLOWED = {
    POLL: r"tokio::runtime::task::raw::poll",
    WAKE: r"tokio::runtime::task::waker::wake_by_(val|ref)|.*multi_thread::handle::Handle>::schedule_task",
    SPAWN: r"tokio::runtime::blocking::pool::Spawner::spawn_task",
    COMMIT: r"sqlite3WalFrames",
}

# --- functions of the binary -----------------------------------------------------

Function = collections.namedtuple("Function", "address file line name derived")


def functions(binary, source):
    """(functions of the crate's files, other functions)"""
    names = {}
    listed = subprocess.run(["nm", "--defined-only", "--demangle", binary], stdout=subprocess.PIPE, text=True, check=True)
    for line in listed.stdout.splitlines():
        address, kind, name = line.split(" ", 2)
        if kind in "tTwW":
            names.setdefault(int(address, 16), re.sub(r"\[[0-9a-f]{16}\]", "", name))
    # Generic functions of other crates have line tables, too, but no name of this crate.
    asked = [address for address, name in names.items() if "mayfly::" in name]
    found = subprocess.run(
        ["llvm-symbolizer", f"--obj={binary}", "--output-style=GNU", "--no-inlines", "--functions=none"],
        stdout=subprocess.PIPE, text=True, check=True,
        input="".join(f"{address:#x}\n" for address in asked),
    ).stdout.splitlines()
    own, texts = {}, {}
    for address, place in zip(asked, found, strict=True):
        path, _, number = place.partition(" ")[0].rpartition(":")
        # Line 0 stands for code that is in no file.
        if not path.startswith(f"{source}/src/") or number in ("", "0", "?"):
            continue
        file = path.removeprefix(f"{source}/")
        if file not in texts:
            texts[file] = pathlib.Path(path).read_text().splitlines()
        # The code of a derived function is at the attribute.
        derived = bool(re.match(r"\s*#\[(cfg_attr\(.*)?derive\(", texts[file][int(number) - 1]))
        own[address] = Function(address, file, int(number), names[address], derived)
    others = [Function(address, "", 0, name, False) for address, name in names.items() if address not in own]
    return list(own.values()), others


# --- breakpoints -----------------------------------------------------------------

CONT, GETREGS, SETREGS, SEIZE, TRACECLONE = 7, 12, 13, 0x4206, 8
# The kernel's `user_regs_struct`.
USER_REGS = ["r15", "r14", "r13", "r12", "rbp", "rbx", "r11", "r10", "r9", "r8", "rax", "rcx", "rdx", "rsi", "rdi", "orig_rax",
             "rip", "cs", "eflags", "rsp", "ss", "fs_base", "gs_base", "ds", "es", "fs", "gs"]
# In the order of their numbers in instructions.
REGISTERS = ["rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15"]
# After this many entries in a round, a function's breakpoint is removed: it is in an inner loop.
MOST_ENTRIES = 200


class Registers(ctypes.Structure):
    _fields_ = [(name, ctypes.c_uint64) for name in USER_REGS]


def first_instruction(code):
    """(length, operation and operands) of an instruction that `Tracer.trapped` can carry out, else `None`."""
    if 0x50 <= code[0] <= 0x57:
        return 1, ("push", REGISTERS[code[0] - 0x50])
    if code[0] == 0x41 and 0x50 <= code[1] <= 0x57:
        return 2, ("push", REGISTERS[code[1] - 0x50 + 8])
    if code[:3] == b"\x48\x83\xec":
        return 4, ("sub", struct.unpack("b", code[3:4])[0])
    if code[:3] == b"\x48\x81\xec":
        return 7, ("sub", struct.unpack("<i", code[3:7])[0])
    if code[0] == 0x58:
        return 1, ("pop", "rax")
    if code[0] & 0xfa == 0x48 and code[1] == 0x89 and code[2] >= 0xc0:
        to, of = code[2] & 7 | (code[0] & 1) << 3, code[2] >> 3 & 7 | (code[0] & 4) << 1
        return 3, ("copy", (REGISTERS[to], REGISTERS[of]))
    return None


class Site:
    """A breakpoint."""

    def __init__(self, function, code):
        self.function, self.original = function, code[:1]
        self.instruction = first_instruction(code)
        self.armed, self.entries = False, 0


class Tracer:
    """Calls `on_entry` at each entry of a function, in any thread of the process.

    A process can be traced only by the thread that attached to it, so one thread of this script does all of that. gdb would
    take milliseconds per entry, in which timeouts of the service expire. The first instruction of most functions is one of a
    few simple ones. It is carried out by the tracer, so the breakpoint stays for the other threads. A function that begins with
    another instruction is recorded once per round."""

    def __init__(self, process, sites, on_entry):
        self.pid, self.on_entry = process.pid, on_entry
        self.libc = ctypes.CDLL(None, use_errno=True)
        self.libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
        self.libc.ptrace.restype = ctypes.c_long
        self.memory = os.open(f"/proc/{self.pid}/mem", os.O_RDWR)
        with open(f"/proc/{self.pid}/maps") as maps:
            base = int(maps.readline().split("-")[0], 16)
        self.sites = {}
        for function in sites:
            at = base + function.address
            self.sites[at] = Site(function, os.pread(self.memory, 8, at))
        self.failure = None
        attached = threading.Event()
        threading.Thread(target=self.run, args=(attached,), daemon=True).start()
        attached.wait()
        self.check()

    def check(self):
        if self.failure:
            raise SystemExit(f"the service could not be traced: {self.failure}")

    def ptrace(self, request, tid, address=0, data=0):
        if self.libc.ptrace(request, tid, address, data) < 0:
            error = ctypes.get_errno()
            raise OSError(error, os.strerror(error))

    def arm(self):
        for at, site in self.sites.items():
            self.set(at, site)

    def set(self, at, site):
        site.entries, site.armed = 0, True
        os.pwrite(self.memory, b"\xcc", at)

    def returns(self, registers):
        """Sets a breakpoint where the function that was just entered returns to."""
        at, = struct.unpack("<Q", os.pread(self.memory, 8, registers.rsp))
        if at not in self.sites:
            site = Site(Function(at, POLLED, 0, "", False), os.pread(self.memory, 8, at))
            if site.instruction is None:
                raise ValueError(f"the call of Tokio's raw::poll is followed by an unknown instruction: {site.original.hex()}")
            self.sites[at] = site
            self.set(at, site)

    def disarm(self):
        for at, site in list(self.sites.items()):
            self.restore(at, site)
        # Threads that were stopped before are still handled by the tracer.
        time.sleep(0.1)
        self.check()

    def restore(self, at, site):
        os.pwrite(self.memory, site.original, at)
        site.armed = False

    def run(self, attached):
        try:
            for tid in os.listdir(f"/proc/{self.pid}/task"):
                self.ptrace(SEIZE, int(tid), 0, TRACECLONE)  # threads that are started later are traced, too
            attached.set()
            while True:
                tid, status = os.waitpid(-1, 0x40000000)  # __WALL
                if os.WIFSTOPPED(status):
                    try:
                        self.stopped(tid, status)
                    except ProcessLookupError:
                        pass
                elif tid == self.pid:
                    return
        except BaseException as error:
            self.failure = error
        finally:
            attached.set()

    def stopped(self, tid, status):
        event, number = status >> 16, os.WSTOPSIG(status)
        if number == signal.SIGTRAP and event == 0 and self.trapped(tid):
            number = 0
        elif event:
            number = 0
        self.ptrace(CONT, tid, 0, number)

    def trapped(self, tid):
        registers = Registers()
        self.ptrace(GETREGS, tid, 0, ctypes.addressof(registers))
        at = registers.rip - 1
        site = self.sites.get(at)
        if site is None:
            return False
        registers.rip = at
        if site.armed:
            site.entries += 1
            self.on_entry(self, tid, site.function, registers)
            if site.instruction is None or site.entries >= MOST_ENTRIES and site.function.file.startswith("src/"):
                self.restore(at, site)
            else:
                length, (what, operand) = site.instruction
                registers.rip += length
                if what == "push":
                    pushed = struct.pack("<Q", getattr(registers, operand))
                    os.pwrite(self.memory, pushed, registers.rsp - 8)
                    registers.rsp -= 8
                elif what == "pop":
                    registers.rax, = struct.unpack("<Q", os.pread(self.memory, 8, registers.rsp))
                    registers.rsp += 8
                elif what == "sub":
                    registers.rsp -= operand
                else:
                    setattr(registers, operand[0], getattr(registers, operand[1]))
        self.ptrace(SETREGS, tid, 0, ctypes.addressof(registers))
        return True


# --- one round -------------------------------------------------------------------

Entry = collections.namedtuple("Entry", "at poll function")


class Poll:
    """One poll of a task, and the polls that woke it."""

    def __init__(self, number, task, causes):
        self.number, self.task, self.causes = number, task, causes
        # Polls of the blocking functions that it started. One that returns early wakes no task.
        self.helpers = []


class Recording:
    """What happened in one round."""

    def __init__(self, path):
        self.path, self.passed = path, []
        self.entries, self.seen = [], set()
        self.polls, self.current, self.woken = [], {}, collections.defaultdict(set)
        # Blocking functions that were started and not yet polled, by the address of their task.
        self.spawned = {}
        self.through, self.writing, self.writers = [], [], set()
        self.done, self.last_new = threading.Event(), time.monotonic()
        self.saving, self.last = None, None

    def entered(self, tracer, tid, function, registers):
        if function.file == POLL:
            task = (registers.rdi, function.address)
            self.current[tid] = Poll(len(self.polls), task, self.woken.pop(registers.rdi, set()))
            self.polls.append(self.current[tid])
            if spawner := self.spawned.pop(registers.rdi, None):
                spawner.helpers.append(self.current[tid])
            tracer.returns(registers)
        elif function.file == POLLED:
            self.current.pop(tid, None)
        elif function.file == WAKE:
            # Outside of a poll, the waker is the timer, the network, or a thread of SQLite.
            if tid in self.current:
                self.woken[registers.rsi if "schedule_task" in function.name else registers.rdi].add(self.current[tid])
        elif function.file == SPAWN:
            if tid in self.current:
                self.spawned[registers.rsi] = self.current[tid]
        elif function.file != COMMIT or registers.r8:
            self.function(self.current.get(tid), function)

    def function(self, poll, function):
        task = poll and poll.task
        if poll and WRITE(function):
            self.writing.append(poll)
        if poll and WRITER(function):
            self.writers.add(task)
        if poll and self.path.through and self.path.through(function):
            self.through.append(poll)
        if function.file != COMMIT and (task, function) not in self.seen:
            self.seen.add((task, function))
            self.entries.append(Entry(len(self.entries), poll, function))
            self.last_new = time.monotonic()
        if len(self.passed) < len(self.path.markers) and self.path.markers[len(self.passed)](function):
            self.passed.append((len(self.entries), poll))
            if function.file == COMMIT:
                # A function of the first part may be entered in the second one again.
                self.seen.clear()
            if len(self.passed) == len(self.path.markers):
                self.done.set()
        if poll and self.path.last and self.path.last(function):
            self.saving = poll
        if function.file == COMMIT and self.saving:
            self.last = (len(self.entries), self.saving.task)
            self.saving = None

    def part(self, begin, end, last):
        """Entries from one number to another, in polls that led to the poll `last`."""
        first = min(entry.poll.number for entry in self.entries[begin:end] if entry.poll)
        by_task = collections.defaultdict(list)
        for poll in self.polls:
            by_task[poll.task].append(poll)
        led, todo = set(), [last, *(poll for poll in self.through if poll.number < last.number)]
        while todo:
            poll = todo.pop()
            if poll.number < first or poll in led:
                continue
            led.add(poll)
            todo += poll.causes
            todo += poll.helpers
            if poll.task in self.writers:
                todo += [writing for writing in self.writing if writing.number < poll.number]
            todo += [earlier for earlier in by_task[poll.task] if earlier.number < poll.number]
        return [entry for entry in self.entries[begin:end] if entry.poll in led]


def entered(name):
    """Whether a function is this one, or the body of this `async fn`."""
    pattern = re.compile(rf"mayfly::{name}(::\{{\{{closure\}}\}}|::\{{closure#0\}})?")
    return lambda function: bool(pattern.fullmatch(function.name))


def committed(function):
    return function.file == COMMIT


def driver_verb(*verbs):
    """Whether a function is one of these methods of the fake driver."""
    pattern = re.compile(rf"Driver>::({'|'.join(verbs)})(::|$)")
    return lambda function: function.file == "src/drivers/fake/mod.rs" and bool(pattern.search(function.name))


# The requests to the task that writes, and that task.
WRITE, WRITER = (
    entered("(store|platform::database)::writer::Writer::write(_and_tell)?"),
    entered("(store|platform::database)::writer::(Task::)?run"))


class Path:
    """`markers`: conditions that functions fulfil in this order, the handler first. `parts`: title and goal of each, and the
    number of the marker at which it ends (`None`: the last commit after a function that fulfils `last`). `through`: functions
    that lead to the end. `goal`: of all parts together."""

    def __init__(self, title, markers, parts, last=None, through=None, goal=None):
        self.title, self.markers, self.parts, self.goal = title, markers, parts, goal
        self.last, self.through = last, through


PATHS = {
    "post": Path("POST /vms",
                 [entered("http::vms::create_vm"), entered("store::ledger::(open|create_vm)"), committed, driver_verb("create", "start")],
                 [("to the commit", 6, 2), ("from there to the driver", 6, 3)], through=entered("store::ledger::place")),
    "delete": Path("DELETE /vms/{id}",
                   [entered("http::vms::end_vm"), entered("store::ledger::apply"), committed, driver_verb("stop", "destroy")],
                   [("to the commit", 6, 2), ("from there to the driver", 4, 3)]),
    "webhook": Path("POST /webhooks/github",
                    [entered("http::webhooks::take_(github_)?webhook"), entered("store::ledger::(open|create_vm)"), committed],
                    [("to the commit of the vm's row", 8, 2)]),
    "pull": Path("POST /templates, an image",
                 [entered("http::templates::create::create_template"), entered("store::pulls::open"), committed],
                 [("to the commit of the pull's row", None, 2), ("from there to the published template", None, None)],
                 last=entered("store::pulls::save"), goal=10),
}


class Service(bench.Serve):
    """The service with the fake driver. Its process is traced."""

    def __init__(self, sites, **settings):
        driver = {"MAYFLY_DRIVERS__QEMU__ENABLED": "false", "MAYFLY_DRIVERS__FAKE__ENABLED": "true"}
        super().__init__(settings=driver | settings)
        self.sites = sites

    def __enter__(self):
        self.start()
        self.recording = None
        self.tracer = Tracer(self.process, self.sites, self.entered)
        return self

    def __exit__(self, *_):
        # The tracer does not wait for a service that ends slowly, and its data is not needed any more.
        self.process.kill()
        self.process.wait()
        self.process = None
        self.stop()

    def entered(self, tracer, tid, function, registers):
        if self.recording:
            self.recording.entered(tracer, tid, function, registers)

    def record(self, path, request):
        """Entries from the request to the end of the path."""
        recording = self.recording = Recording(path)
        self.tracer.arm()
        answered = threading.Event()

        def send():
            request()
            answered.set()

        client = threading.Thread(target=send, daemon=True)
        client.start()
        until = time.monotonic() + 60
        while not recording.done.wait(0.05) and time.monotonic() < until:
            self.tracer.check()
        # A pull goes on after its markers. It has ended when no other function is entered for some time.
        while path.last and time.monotonic() - recording.last_new < 3 and time.monotonic() < until:
            time.sleep(0.1)
        self.tracer.disarm()
        self.recording = None
        client.join(60)
        if not recording.done.is_set() or not answered.is_set():
            raise SystemExit(f"{path.title}: {len(recording.passed)} of {len(path.markers)} markers were passed"
                             f"{'' if answered.is_set() else ', and the request failed'}")
        return recording

    def fake_template(self):
        disk = self.dir / "disk.raw"
        disk.write_bytes(b"\x01" * 65536)
        self.call("POST", "/templates", {"name": "micro", "driver": "fake", "disk": str(disk), "cpus": 1, "memory_mib": 192})

    def create(self):
        return self.call("POST", "/vms", {
            "template": "micro", "runner": {"kind": "command", "command": "make test", "env": {"CI": "true"}},
            "labels": {"repository": "octo/example"},
        })

    def report(self, vm, **event):
        """Sends a report as the guest does."""
        request = urllib.request.Request(
            f"{self.url}/vms/{vm['id']}/events", method="POST", data=json.dumps(event).encode(),
            headers={"Authorization": "Bearer " + vm["callback_token"], "Content-Type": "application/json"})
        urllib.request.urlopen(request, timeout=30).close()

    def running(self):
        vm = self.create()
        self.wait(vm["id"], "booting")
        # A guest reports nothing before the driver has started it.
        quiet()
        self.report(vm, type="guest_ready")
        self.report(vm, type="guest_configured")
        self.wait(vm["id"], "running")
        return vm["id"]

    def end(self, vm):
        self.call("DELETE", f"/vms/{vm}?force=true")
        self.wait(vm, "deleted")


def quiet():
    """Waits until the loops are idle that the last request woke."""
    time.sleep(1.5)


def post(sites, path, rounds):
    with Service(sites) as service:
        service.fake_template()
        service.end(service.create()["id"])
        for _ in range(rounds):
            quiet()
            made = []
            yield service.record(path, lambda: made.append(service.create()["id"]))
            service.end(made[0])


def delete(sites, path, rounds):
    with Service(sites) as service:
        service.fake_template()
        for _ in range(rounds):
            vm = service.running()
            quiet()
            yield service.record(path, lambda: service.call("DELETE", f"/vms/{vm}?force=true"))
            service.wait(vm, "deleted")


class NoGitHub(http.server.BaseHTTPRequestHandler):
    """Refuses everything. A job's first vm is stored before any request to GitHub."""

    def do_GET(self):
        self.send_response(503)
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_POST = do_DELETE = do_GET

    def log_message(self, *_):
        pass


SECRET = "It's a Secret to Everybody"


def webhook(sites, path, rounds):
    stub = http.server.ThreadingHTTPServer(("127.0.0.1", 0), NoGitHub)
    threading.Thread(target=stub.serve_forever, daemon=True).start()
    settings = {"MAYFLY_GITHUB_TOKEN": "ghp_" + "0" * 36, "MAYFLY_GITHUB_WEBHOOK_SECRET": SECRET, "MAYFLY_SLOTS__LINUX": "0"}
    service = Service(sites, **settings)
    (service.dir / "mayfly.toml").write_text(f"""\
[github]
url = "https://github.com"
api_url = "http://127.0.0.1:{stub.server_address[1]}"
poll_seconds = 0

[pools.ci]
template = "micro"
scope = "acme"
labels = ["self-hosted", "ci"]
max_vms = 100
""")

    def deliver(job):
        body = json.dumps({
            "action": "queued",
            "workflow_job": {"id": job, "run_id": 7000 + job, "run_attempt": 1, "name": "build", "status": "queued",
                             "labels": ["self-hosted", "ci"]},
            "repository": {"full_name": "acme/app"},
        }).encode()
        request = urllib.request.Request(f"{service.url}/webhooks/github", data=body, headers={
            "X-GitHub-Event": "workflow_job", "X-GitHub-Delivery": f"delivery-{job}", "Content-Type": "application/json",
            "X-Hub-Signature-256": "sha256=" + hmac.new(SECRET.encode(), body, hashlib.sha256).hexdigest()})
        urllib.request.urlopen(request, timeout=60).close()

    try:
        with service:
            service.fake_template()
            for job in range(1, rounds + 1):
                quiet()
                yield service.record(path, lambda: deliver(job))
    finally:
        stub.shutdown()


def upload(registry, repository, data):
    """A blob, and its digest."""
    digest = "sha256:" + hashlib.sha256(data).hexdigest()
    begin = urllib.request.Request(f"http://{registry.address}/v2/{repository}/blobs/uploads/", method="POST", data=b"")
    with urllib.request.urlopen(begin, timeout=30) as answer:
        location = urllib.parse.urljoin(begin.full_url, answer.headers["Location"])
    put = urllib.request.Request(location + ("&" if "?" in location else "?") + "digest=" + urllib.parse.quote(digest),
                                 method="PUT", data=data, headers={"Content-Type": "application/octet-stream"})
    urllib.request.urlopen(put, timeout=30).close()
    return digest


def lz4(data):
    """Apple's framing around LZ4 blocks of literals."""
    framed = b""
    for at in range(0, len(data), 65536):
        piece = data[at:at + 65536]
        more, rest = divmod(len(piece) - 15, 255)
        block = b"\xf0" + b"\xff" * more + bytes([rest]) + piece
        framed += b"bv41" + struct.pack("<II", len(piece), len(block)) + block
    return framed + b"bv4$"


def push_image(registry, repository, number):
    """A small image in Tart's layout, with three chunks of the disk: random bytes, zeros, and a pattern."""
    def blob(media_type, data):
        return {"mediaType": media_type, "digest": upload(registry, repository, data), "size": len(data)}

    def layer(part, data):
        return blob("application/vnd.cirruslabs.tart." + part, data)

    described = json.dumps({
        "version": 1, "os": "darwin", "arch": "arm64", "ecid": "YQ==", "hardwareModel": "Yg==",
        "cpuCountMin": 1, "cpuCount": 4, "memorySizeMin": 64 << 20, "memorySize": 4096 << 20,
        "macAddress": "7a:65:e4:3f:b2:51", "display": {"width": 1024, "height": 768},
    }).encode()
    layers = [layer("config.v1", described)]
    contents = [os.urandom(1 << 20), bytes(1 << 20), struct.pack("<I", number) * (1 << 18)]
    for content in contents:
        data = lz4(content)
        layers.append(layer("disk.v2", data) | {"annotations": {
            "org.cirruslabs.tart.uncompressed-size": str(len(content)),
            "org.cirruslabs.tart.uncompressed-content-digest": "sha256:" + hashlib.sha256(content).hexdigest(),
        }})
    layers.append(layer("nvram.v1", b"\x07" * 65536))
    stub = json.dumps({"architecture": "arm64", "os": "darwin"}).encode()
    kind = "application/vnd.oci.image.manifest.v1+json"
    manifest = json.dumps({
        "schemaVersion": 2, "mediaType": kind, "layers": layers,
        "config": blob("application/vnd.oci.image.config.v1+json", stub),
        "annotations": {"org.cirruslabs.tart.uncompressed-disk-size": str(sum(map(len, contents)))},
    }).encode()
    put = urllib.request.Request(f"http://{registry.address}/v2/{repository}/manifests/v{number}", method="PUT", data=manifest,
                                 headers={"Content-Type": kind})
    urllib.request.urlopen(put, timeout=30).close()
    return f"{registry.address}/{repository}:v{number}"


def pull(sites, path, rounds):
    with tempfile.TemporaryDirectory(prefix="mfp", dir="/tmp") as work:
        work = pathlib.Path(work)
        registry = Registry(work / "storage", work)
        try:
            with Service(sites, MAYFLY_REGISTRY__PLAIN_HTTP="true") as service:
                for number in range(rounds):
                    image = push_image(registry, "paths/image", number)
                    quiet()
                    yield service.record(path, lambda: service.call("POST", "/templates", {"name": "pulled", "image": image}))
                    service.call("GET", "/templates/pulled")
        finally:
            registry.stop()


# --- the result ------------------------------------------------------------------

MEASURED = {"post": post, "delete": delete, "webhook": webhook, "pull": pull}


def files_of(entries, handler):
    """File → functions of it that were entered, in the order in which the files were entered first."""
    files = {}
    for entry in entries:
        if entry.at >= handler or entry.function.file.startswith("src/http/"):
            files.setdefault(entry.function.file, {})[entry.function] = None
    return files


def entries_of(recording, begin, last):
    """(entries of the part that ends at this marker, where the next part begins)"""
    poll = None
    if last is None:
        end, task = recording.last
    else:
        end, poll = recording.passed[last]
        # SQLite runs in a thread of its own. The commit belongs to the task that entered the function before.
        task = (poll or recording.passed[last - 1][1]).task
    if poll is None:
        poll = [entry.poll for entry in recording.entries[:end] if entry.poll and entry.poll.task == task][-1]
    entries = recording.part(begin, end, poll)
    if begin:
        entries = [entry for entry in entries if entry.poll.task != recording.passed[0][1].task]
    return entries, end


def judge(path, rounds, layout):
    parts = []
    begin = [0] * len(rounds)
    for title, goal, last in path.parts:
        measured = [entries_of(recording, at, last) for recording, at in zip(rounds, begin)]
        found = [files_of(entries, recording.passed[0][0] - 1) for recording, (entries, _) in zip(rounds, measured)]
        begin = [end for _, end in measured]
        part = {"part": title, "goal": goal, "files": [], "derived_only": [], "left_out": {}, "not_in_all_rounds": []}
        functions = {}
        for file in dict.fromkeys(file for each in found for file in each):
            always = [f for f in found[0].get(file, {}) if all(f in each.get(file, {}) for each in found)]
            written = sorted({f.name for f in always if not f.derived})
            if why := left_out(layout, file):
                if always:
                    part["left_out"].setdefault(why, []).append(file)
            elif not always:
                part["not_in_all_rounds"].append(file)
            elif not written:
                part["derived_only"].append(file)
            else:
                part["files"].append(file)
                functions[file] = written
        before = {file for part in parts for file in part["files"]}
        part |= {"count": len(part["files"]), "new": len(set(part["files"]) - before), "functions": functions}
        parts.append(part)
    return {"request": path.title, "goal": path.goal, "count": len({f for p in parts for f in p["files"]}), "parts": parts}


def show(result):
    goal = lambda of: "" if of["goal"] is None else f" (goal: {of['goal']})"
    print(f"\n{result['request']}: {result['count']} different files{goal(result)}")
    before = set()
    for part in result["parts"]:
        new = f", {part['new']} of them not before" if before else ""
        print(f"  {part['part']}: {part['count']} files{new}{goal(part)}")
        for number, file in enumerate(part["files"], 1):
            print(f"    {number:2} {file}{'  (again)' if file in before else ''}")
        for label, files in [("derived code only", part["derived_only"]), ("not in all rounds", part["not_in_all_rounds"]),
                             *part["left_out"].items()]:
            if files:
                print(f"       not counted, {label}: {', '.join(files)}")
        before.update(part["files"])


def commit_of(source):
    shown = subprocess.run(["git", "-C", source, "describe", "--always", "--dirty"], stdout=subprocess.PIPE, text=True)
    return shown.stdout.strip() or None


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="|".join(PATHS), help="all of them, without")
    parser.add_argument("--binary", type=pathlib.Path, default=bench.TARGET / "debug" / "mayfly")
    parser.add_argument("--source", type=pathlib.Path, default=bench.ROOT)
    parser.add_argument("--output", type=pathlib.Path, default=bench.TARGET / "bench" / "paths.json")
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    if unknown := set(args.names) - set(PATHS):
        parser.error(f"there is no path {', '.join(sorted(unknown))}")
    if os.uname().machine != "x86_64" or not sys.platform.startswith("linux"):
        raise SystemExit("this measurement needs Linux on x86-64")
    # The service and the registry have to end with this script.
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: sys.exit("ended by a signal"))
    names = args.names or list(PATHS)
    needed = ["nm", "llvm-symbolizer", *(["docker-registry"] if "pull" in names else [])]
    if missing := [tool for tool in needed if not shutil.which(tool)]:
        raise SystemExit(f"not installed: {', '.join(missing)}")
    binary, source = args.binary.resolve(), args.source.resolve()
    bench.BINARY = binary
    layout = layout_of(source)
    own, others = functions(binary, source)
    followed = [f._replace(file=what) for what, name in FOLLOWED.items() for f in others if re.fullmatch(name, f.name)]
    if not own or {f.file for f in followed} != set(FOLLOWED):
        raise SystemExit(f"{binary} is not a debug build that was made in {source}")
    commit = commit_of(source)
    print(f"commit {commit}: {len(own)} functions in {len({f.file for f in own})} files")
    results = {}
    for name in names:
        results[name] = judge(PATHS[name], list(MEASURED[name](own + followed, PATHS[name], args.rounds)), layout)
        show(results[name])
    args.output.parent.mkdir(parents=True, exist_ok=True)
    record = {"name": "paths", "commit": commit, "rounds": args.rounds, "paths": results}
    args.output.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
