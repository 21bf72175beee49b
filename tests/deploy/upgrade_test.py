#!/usr/bin/env python3
"""Replaces the program under running jobs, as an upgrade does, and goes back. With real guests.

    BINARY=target/debug/mayfly MAYFLY_TEST_IMAGE=… tests/deploy/upgrade_test.py

The program is installed with deploy/install.sh, and the service gets the signal that systemd sends with `KillMode=process`. The
jobs wait at a gate in this test, so each of them ends when the test says so: while the service is away, or after its return.
"""

import hashlib
import http.server
import json
import os
import pathlib
import queue
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
import unittest
from contextlib import closing

ROOT = pathlib.Path(__file__).resolve().parents[2]
BINARY = (ROOT / os.environ.get("BINARY", "target/debug/mayfly")).resolve()
IMAGE = os.environ.get("MAYFLY_TEST_IMAGE", str(pathlib.Path.home() / ".cache/mayfly/images/micro"))
# An emulated guest on a busy machine.
LIFE = 180


class Gate:
    """Jobs ask for `/NAME` here. The answer comes when the test opens the gate of that name."""

    def __init__(self):
        self.arrived, self.opened = queue.Queue(), {}
        gate = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                name = self.path[1:]
                gate.arrived.put(name)
                if name not in gate.opened or not gate.opened[name].wait(LIFE):
                    return self.send_error(404)
                self.send_response(200)
                self.end_headers()

            def log_message(self, *_):
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()

    def job(self, name):
        """A job that asks again if its connection breaks, and says when it is over."""
        self.opened[name] = threading.Event()
        url = "http://10.0.2.2:%d/%s" % (self.server.server_port, name)
        return "echo begun %s; until curl -sSf %s; do sleep 1; done; echo over %s" % (name, url, name)

    def await_jobs(self, *names):
        waiting = set(names)
        while waiting:
            waiting.discard(self.arrived.get(timeout=LIFE))

    def close(self):
        for event in self.opened.values():
            event.set()
        self.server.shutdown()
        self.server.server_close()


class Installation:
    """A data directory, and a program that deploy/install.sh put below a prefix."""

    def __init__(self):
        self.dir = pathlib.Path(tempfile.mkdtemp(prefix="mfu-"))
        self.data, self.program = self.dir / "data", self.dir / "usr/bin/mayfly"
        self.data.mkdir(0o700)
        self.environment = {
            "PATH": os.environ["PATH"], "HOME": str(self.dir), "MAYFLY_DATA_DIR": str(self.data),
            "MAYFLY_SERVER__LISTEN": "127.0.0.1:0", "MAYFLY_DRIVERS__QEMU__ACCELERATOR": "tcg",
            # Guests of other tests on this machine take no slots of this one.
            "MAYFLY_SLOTS__COUNT_FOREIGN": "false",
        }
        self.service = None

    def install(self, binary):
        environment = self.environment | {"BINARY": str(binary), "PREFIX": str(self.dir / "usr")}
        subprocess.run([ROOT / "deploy/install.sh"], env=environment, check=True, capture_output=True, timeout=LIFE)

    def start(self):
        self.service = subprocess.Popen([self.program, "serve"], env=self.environment, stdin=subprocess.DEVNULL,
                                        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        news, log = threading.Event(), []

        def read(stream):
            with stream:
                for line in stream:
                    log.append(line)
                    if "listening on" in line:
                        news.set()
            news.set()

        threading.Thread(target=read, args=(self.service.stderr,), daemon=True).start()
        if not news.wait(60) or not any("listening on" in line for line in log):
            raise AssertionError("the service does not start:\n%s" % "".join(log))

    def stop(self):
        """As `systemctl stop` does: the service alone gets the signal."""
        self.service.send_signal(signal.SIGTERM)
        code = self.service.wait(60)
        if code != 0:
            raise AssertionError("the service ended with %s" % code)

    def mayfly(self, *arguments, code=0):
        ran = subprocess.run([self.program, *arguments], env=self.environment, capture_output=True, text=True, timeout=LIFE)
        if ran.returncode != code:
            raise AssertionError("mayfly %s: %s %s" % (" ".join(arguments), ran.returncode, ran.stderr))
        return ran.stdout

    def vm(self, name):
        return json.loads(self.mayfly("--json", "vm", "show", name))

    def processes(self):
        """The processes that have this directory in their arguments: {pid: arguments}."""
        found = {}
        for process in pathlib.Path("/proc").glob("[0-9]*"):
            try:
                arguments = (process / "cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if any(str(self.dir).encode() in argument for argument in arguments):
                found[int(process.name)] = b" ".join(arguments).decode(errors="replace")
        return found

    def hypervisors(self):
        return {pid for pid, arguments in self.processes().items() if "qemu-system" in arguments.split(" ")[0]}

    def remove(self):
        for pid in self.processes():
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        if self.service:
            self.service.wait(20)
        shutil.rmtree(self.dir)


class Upgrade(unittest.TestCase):
    def setUp(self):
        self.gate, self.host = Gate(), Installation()
        self.addCleanup(self.host.remove)
        self.addCleanup(self.gate.close)
        self.host.install(BINARY)
        self.host.start()
        self.host.mayfly("template", "add", "micro", "--from", IMAGE)

    def create(self, *names):
        for name in names:
            # In the mode `host` a guest reaches the gate on this machine's loopback interface.
            self.host.mayfly("vm", "create", "--template", "micro", "--name", name, "--network", "host", "--command",
                             self.gate.job(name))
        self.gate.await_jobs(*names)

    def ended_well(self, name):
        self.host.mayfly("vm", "wait", name, "--timeout", str(LIFE))
        vm = self.host.vm(name)
        self.assertEqual((vm["state"], vm["outcome"]["result"], vm["job"]["exit_code"]), ("deleted", "completed", 0), vm)
        self.assertEqual((vm["end_signal"], vm["announced_by"]), ("runner_finished", "hook"))
        # Once, and to its end, without a line of the job missing.
        log = self.host.mayfly("vm", "logs", name)
        self.assertEqual((log.count("begun " + name), log.count("over " + name)), (1, 1), log)
        events = self.host.mayfly("vm", "events", name)
        self.assertEqual(events.count("slot_taken"), 1, events)

    def replaced(self, binary):
        """The program is another file now, also while the old one runs."""
        before = self.host.program.stat().st_ino
        self.host.install(binary)
        self.assertNotEqual(self.host.program.stat().st_ino, before)

    def test_jobs_outlive_an_upgrade_and_the_way_back(self):
        host, gate = self.host, self.gate
        self.create("before-1", "before-2")
        guests = host.hypervisors()
        self.assertEqual(len(guests), 2)
        # What an administrator keeps: the program as it was, and a copy of the database made while the service runs.
        previous = host.dir / "mayfly.previous"
        shutil.copy2(host.program, previous)

        self.replaced(BINARY)
        old = host.service.pid
        host.stop()
        self.assertEqual(host.hypervisors(), guests, "the guests run on without the service")
        # This job ends while nobody listens; its guest repeats the report.
        gate.opened["before-1"].set()
        host.start()
        self.assertNotEqual(host.service.pid, old)
        self.ended_well("before-1")
        gate.opened["before-2"].set()
        self.ended_well("before-2")

        # Back to the program from before, whose schema is the same.
        self.create("after")
        self.replaced(previous)
        host.stop()
        host.start()
        gate.opened["after"].set()
        self.ended_well("after")
        self.assertEqual(host.hypervisors(), set())

    def test_an_older_program_refuses_a_newer_database_before_it_touches_anything(self):
        host = self.host
        self.create("kept")
        guests = host.hypervisors()
        host.stop()
        database = host.data / "mayfly.db"
        with closing(sqlite3.connect(database)) as source, closing(sqlite3.connect(host.dir / "backup.db")) as backup:
            source.backup(backup)
        # As a release with one more migration leaves it.
        with closing(sqlite3.connect(database)) as newer:
            newer.execute("INSERT INTO _sqlx_migrations SELECT 9999, 'newer', installed_on, success, checksum, execution_time "
                          "FROM _sqlx_migrations WHERE version = 1")
            newer.commit()
        before = self.contents()
        ran = subprocess.run([host.program, "serve"], env=host.environment, capture_output=True, text=True, timeout=LIFE)
        self.assertEqual(ran.returncode, 2, ran.stderr)
        for words in ["was made by a newer Mayfly", "start that version, or restore the backup from before the upgrade"]:
            self.assertIn(words, ran.stderr)
        self.assertEqual(self.contents(), before)
        self.assertEqual(host.hypervisors(), guests)
        # The backup is the way back. It knows the vm, so the job ends as if nothing had happened.
        shutil.copy2(host.dir / "backup.db", database)
        database.chmod(0o600)
        host.start()
        self.gate.opened["kept"].set()
        self.ended_well("kept")

    def contents(self):
        """What the start of a service could change: everything but the files of the guests that run."""
        return {
            str(file): hashlib.sha256(file.read_bytes()).hexdigest()
            for file in self.host.data.rglob("*")
            if file.is_file() and "instances" not in file.parts and "logs" not in file.parts
        }


if __name__ == "__main__":
    for needed in (BINARY, pathlib.Path(IMAGE) / "template.json"):
        if not needed.exists():
            sys.exit("upgrade_test: there is no %s" % needed)
    unittest.main()
