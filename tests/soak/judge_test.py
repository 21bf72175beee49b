#!/usr/bin/env python3
"""Tests that the soak detects violations, and that its hostile image unpacks to more than it claims. Needs no service."""

import pathlib
import sys
import types
import unittest

sys.path.append(str(pathlib.Path(__file__).resolve().parent.parent / "campaign"))

import judge
import measure
import parameters as soak
import registry
from parameters import MIB

CALM = "01950000-0000-7000-8000-000000000001"
ATTACK = ["idle connections", "webhook bodies, unfinished", "webhook bodies, oversized", "invented methods", "unfinished bodies of a token",
          "long polls", "streams", "refused creates, 403", "vms of hostile images"]


def run():
    """A run in which everything is as it has to be."""
    sampler = measure.Sampler(None, None, [])
    sampler.most.update({"service memory": 90 * MIB, "gateway descriptors": 46, "console.log": soak.CONSOLE_BYTES, "watch.log": 1 * MIB,
                         "one log of a guest": 1 * MIB, "qemu processes": 3, "gateway processes": 3, "processes": 7})
    sampler.least_free, sampler.series, sampler.service_memory = soak.MIN_FREE_BYTES, [300] * 16, [90 * MIB] * 16
    console = "SOAK-HOOK 0 202 0.100\n" * 100
    return types.SimpleNamespace(
        parameters=types.SimpleNamespace(profile="release", seconds=100, name="soak", seed=1), sampler=sampler,
        probe=types.SimpleNamespace(milliseconds=[5.0] * 400, failed=[]), calm={"id": CALM}, network="isolated",
        service=types.SimpleNamespace(log_size=lambda: 1 * MIB),
        host=types.SimpleNamespace(all=[types.SimpleNamespace(vm=CALM, console_text=console)], peak=3, violations=[]),
        alone=[10.0, 11.0, 10.0], beside=[12.0] * 5, failures=[], left=[], quiet_memory=20 * MIB, settled_memory=60 * MIB,
        mounts=types.SimpleNamespace(possible=True),
        told={"done": dict.fromkeys(ATTACK, 10), "ends": {"bomb": {"template.invalid": 3}}, "served": {"realm manifests": 1, "redirect blobs": 1, "bomb blobs": 1}, "trapped": []})


class Judge(unittest.TestCase):
    def found(self, change):
        changed = run()
        change(changed)
        return judge.judge(changed, 100)["violations"]

    def test_a_good_run_has_no_violation(self):
        self.assertEqual(self.found(lambda run: None), [])

    def test_each_violation_is_found(self):
        def hook(run, line):
            run.host.all[0].console_text += line
        changes = {
            "/healthz, p99": lambda run: run.probe.milliseconds.__setitem__(slice(0, 5), [101] * 5),
            "/healthz, failed": lambda run: run.probe.failed.append("timed out"),
            "hook call, longest": lambda run: hook(run, "SOAK-HOOK 0 202 5.100\n"),
            "hook call, failed": lambda run: hook(run, "SOAK-HOOK 28 000 5.000\n"),
            "job beside / alone, longest": lambda run: run.beside.append(200.0),
            "service, memory:": lambda run: run.sampler.most.__setitem__("service memory", 900 * MIB),
            "growth in the second half": lambda run: run.sampler.service_memory.__setitem__(slice(12, 16), [130 * MIB] * 4),
            "service, memory after": lambda run: setattr(run, "settled_memory", 900 * MIB),
            "gateway, descriptors": lambda run: run.sampler.most.__setitem__("gateway descriptors", 5000),
            "QEMU, processes": lambda run: run.sampler.most.__setitem__("qemu processes", 9),
            "console.log": lambda run: run.sampler.most.__setitem__("console.log", 40 * MIB),
            "watch.log": lambda run: run.sampler.most.__setitem__("watch.log", 4 * MIB),
            "free disk": lambda run: setattr(run.sampler, "least_free", soak.MIN_FREE_BYTES - 1),
            "metric series": lambda run: run.sampler.series.__setitem__(3, 5000),
            "nobody may be sent to": lambda run: run.told["trapped"].append("GET /blob HTTP/1.1"),
            "(bomb) ended with": lambda run: run.told["ends"]["bomb"].update({"completed": 1}),
            "the attack had none": lambda run: run.told["done"].update({"streams": 0}),
            "was not asked for realm": lambda run: run.told["served"].pop("realm manifests"),
            "the attack ended early": lambda run: run.__dict__.update(told=None, attack_log="Traceback"),
            "wrote little": lambda run: run.sampler.most.__setitem__("watch.log", 100),
            "opened few connections": lambda run: run.sampler.most.__setitem__("gateway descriptors", 12),
            "left in the data": lambda run: run.left.append("left in the data directory: x"),
            "more than one guest": lambda run: run.host.violations.append({"what": "two hypervisors"}),
        }
        for sentence, change in changes.items():
            with self.subTest(sentence):
                self.assertTrue(any(sentence in violation for violation in self.found(change)), self.found(change))

    def test_the_share_of_other_programs_leaves_out_the_own_ones(self):
        sampler = measure.Sampler(None, None, [])
        sampler.machine, sampler.used = [100.0, 300.0], {1: (0.0, 100.0), 2: (10.0, 60.0), 3: None}
        self.assertEqual(sampler.foreign_share(), 0.25)


class Bomb(unittest.TestCase):
    def test_each_block_unpacks_to_64_kib(self):
        stream = registry.packed(2)
        self.assertEqual((stream[:4], stream[-4:]), (b"bv41", b"bv4$"))
        decoded, encoded = int.from_bytes(stream[4:8], "little"), int.from_bytes(stream[8:12], "little")
        self.assertEqual((decoded, len(stream)), (registry.BLOCK, 2 * (12 + encoded) + 4))
        self.assertEqual(unpack(stream[12:12 + encoded]), b"A" * registry.BLOCK)


def unpack(block):
    """A decoder of LZ4 blocks, for this test."""
    out, at = b"", 0

    def length(start):
        nonlocal at
        while start >= 15:
            start += block[at]
            at += 1
            if block[at - 1] != 255:
                break
        return start

    while at < len(block):
        token = block[at]
        at += 1
        literals = length(token >> 4)
        out += block[at:at + literals]
        at += literals
        if at < len(block):
            offset = int.from_bytes(block[at:at + 2], "little")
            at += 2
            count = 4 + length(token & 15)
            assert offset == 1, offset
            out += out[-1:] * count
    return out


if __name__ == "__main__":
    unittest.main()
