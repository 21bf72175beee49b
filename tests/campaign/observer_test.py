#!/usr/bin/env python3
"""Tests that the observer detects violations: more guests than slots, a job that starts twice, leftovers.

Needs QEMU but no service: the QEMU processes of these tests never run an instruction."""

import os
import pathlib
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import types
import unittest
import urllib.request

import guests
import leftovers
import plan
import settings
import verdict
import witness

VMS = ["01950000-0000-7000-8000-%012x" % n for n in range(3)]


class Observer(unittest.TestCase):
    def setUp(self):
        self.dir = pathlib.Path(tempfile.mkdtemp(prefix="mfc", dir="/tmp"))
        self.watch = guests.Watch()
        self.host = guests.Host(self.dir, cap=2)
        self.watch.hosts.append(self.host)
        self.watch.start()

    def tearDown(self):
        self.watch.close()
        for pid, _ in guests.processes_naming(str(self.dir)):
            os.kill(pid, signal.SIGKILL)
        shutil.rmtree(self.dir)

    def hypervisor(self, vm):
        instance = self.dir / "instances" / f"mayfly-{vm}"
        instance.mkdir(parents=True)
        (instance / "console.log").write_text("CAMPAIGN-START 1-1-1 run-1\n")
        subprocess.run(["qemu-system-x86_64" if os.uname().machine == "x86_64" else "qemu-system-aarch64", "-S", "-M", "none",
                        "-nodefaults", "-display", "none", "-daemonize", "-pidfile", instance / "qemu.pid"],
                       check=True, timeout=60)
        return int((instance / "qemu.pid").read_text())

    def until(self, condition):
        """Waits for a look of the watch after which it holds."""
        until = time.monotonic() + 20
        with self.watch.changed:
            while not condition():
                self.assertGreater(until, time.monotonic(), "not seen within 20 s")
                self.watch.changed.wait(1)

    def test_guests_beyond_the_slots_are_seen(self):
        for vm in VMS[:2]:
            self.hypervisor(vm)
        self.until(lambda: self.host.count() == 2)
        self.assertEqual(self.host.violations, [])
        self.hypervisor(VMS[2])
        self.until(lambda: self.host.count() == 3)
        self.assertEqual([violation["what"] for violation in self.host.violations], ["more guests than slots"])
        self.assertEqual(self.host.peak, 3)

    def test_a_console_is_read_after_its_file_is_gone(self):
        pid = self.hypervisor(VMS[0])
        self.until(lambda: any(guest.console for guest in self.host.running if guest.pid == pid))
        shutil.rmtree(self.dir / "instances")
        os.kill(pid, signal.SIGKILL)
        self.until(lambda: not self.host.running)
        self.assertTrue(any("run-1" in guest.console_text for guest in self.watch.of_vm(self.host, VMS[0])))

    def test_what_is_left_is_named(self):
        baseline = leftovers.files(self.dir)
        pid = self.hypervisor(VMS[0])
        self.assertIn(str(pid), " ".join(leftovers.left_processes(str(self.dir), set(), 0)))
        self.assertTrue(any("console.log" in what for what in leftovers.left_files(self.dir, baseline)))


class Reports(unittest.TestCase):
    def setUp(self):
        self.witness = witness.Witness()

    def tearDown(self):
        self.witness.close()

    def report(self, *words):
        url = f"http://127.0.0.1:{self.witness.port}/" + "/".join(words)
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(url, timeout=10) as answer:
            self.assertEqual(answer.status, 200)

    def judge(self, **record):
        job = types.SimpleNamespace(nonce="1-1-1", vm=VMS[0], code=3, posted=0.0, done=1.0, record=record, complaints=[],
                                    delete_answered=False)
        lane = types.SimpleNamespace(witness=self.witness, host=None, disturber=types.SimpleNamespace(history=[]),
                                     watch=types.SimpleNamespace(of_vm=lambda host, vm: []),
                                     settings=types.SimpleNamespace(boot_seconds=30))
        return verdict.judge(job, lane)

    COMPLETED = {"outcome": {"result": "completed"}, "job": {"exit_code": 3}}

    def test_a_report_that_is_repeated_counts_once(self):
        for _ in range(3):
            self.report("start", "1-1-1", "run-1")
        self.report("end", "1-1-1", "run-1")
        verdict = self.judge(**self.COMPLETED)
        self.assertEqual((verdict.starts, verdict.result, verdict.violations), (1, "well", []))

    def test_a_job_that_starts_again_counts_twice(self):
        self.report("start", "1-1-1", "run-1")
        self.report("start", "1-1-1", "run-2")
        self.report("end", "1-1-1", "run-2")
        verdict = self.judge(**self.COMPLETED)
        self.assertEqual((verdict.starts, verdict.result), (2, "twice"))
        self.assertTrue(verdict.violations)

    def test_records_are_not_believed(self):
        self.assertTrue(self.judge(**self.COMPLETED).violations, "completed, and it never started")
        self.report("start", "1-1-1", "run-1")
        self.assertEqual(self.judge(**self.COMPLETED).result, "cut short")
        self.report("end", "1-1-1", "run-1")
        self.assertEqual(self.judge(outcome={"result": "lost"}).result, "wrong record")
        self.assertTrue(self.judge(outcome={"result": "completed"}, job={"exit_code": 0}).violations)


class Plans(unittest.TestCase):
    def test_a_plan_follows_from_its_seed_and_has_everything_in_it(self):
        wanted = tuple(settings.EXTRAS)
        self.assertEqual(plan.make("1", 6, 30, wanted), plan.make("1", 6, 30, wanted))
        self.assertNotEqual(plan.make("1", 6, 30, wanted), plan.make("2", 6, 30, wanted))
        for seed in range(20):
            steps = plan.make(str(seed), 6, 30, wanted)
            self.assertEqual({step.extra for step in steps}, {None, *wanted})
            self.assertGreaterEqual(sum(step.moment == "coming_up" for step in steps), 4)
        steps = plan.make("1", 500, 30, wanted)
        self.assertTrue(any(step.away > 55 for step in steps))
        self.assertTrue(all(0.5 <= step.away <= 60 for step in steps))


if __name__ == "__main__":
    sys.dont_write_bytecode = True
    unittest.main()
