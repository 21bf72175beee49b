#!/usr/bin/env python3
"""What mach_o.py refuses, and what deploy/release/mach_uuid.py changes: a small program, and the same program with one fault each."""

import hashlib
import struct
import sys
import unittest
from pathlib import Path

sys.dont_write_bytecode = True
sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[2] / "deploy" / "release")]
import mach_o
import mach_uuid

PAGE = 4096
SYSTEM = "/usr/lib/libSystem.B.dylib"


def program(cpu=0x0100000C, kind=2, platform=1, minimum=13 << 16, loads=(SYSTEM,), entry=True, signed=True, adhoc=2, uuid=None, content=b"x"):
    commands = [struct.pack("<6I", 0x32, 24, platform, minimum, 0, 0)]
    for name in loads:
        text = name.encode() + b"\0" * (8 - len(name) % 8)
        commands.append(struct.pack("<6I", 0xC, 24 + len(text), 24, 0, 0, 0) + text)
    if uuid:
        commands.append(struct.pack("<2I", 0x1B, 24) + uuid)
    if entry:
        commands.append(struct.pack("<2I2Q", 0x80000028, 24, 0, 0))
    limit = 2 * PAGE + 100
    slots = 3
    size = 20 + 44 + 32 * slots
    if signed:
        commands.append(struct.pack("<4I", 0x1D, 16, limit, size))
    body = b"".join(commands)
    data = struct.pack("<8I", 0xFEEDFACF, cpu, 0, kind, len(commands), len(body), 0x200000, 0) + body
    data += content * (limit - len(data))
    if not signed:
        return data
    pages = b"".join(hashlib.sha256(data[at : at + PAGE]).digest() for at in range(0, limit, PAGE))
    code = struct.pack(">9I4BI", 0xFADE0C02, 44 + len(pages), 0x20400, adhoc, 44, 0, 0, slots, limit, 32, 2, 0, 12, 0) + pages
    return data + struct.pack(">5I", 0xFADE0CC0, 20 + len(code), 1, 0, 20) + code


class Faults(unittest.TestCase):
    def refused(self, data, text, minimum="13.0"):
        with self.assertRaisesRegex(mach_o.Fault, text):
            mach_o.check(data, minimum)

    def test_a_good_program(self):
        self.assertEqual(mach_o.check(program(), "13.0")["loads"], [SYSTEM])

    def test_every_fault(self):
        self.refused(b"\x7fELF" + b"\0" * 60, "no Mach-O")
        self.refused(program(cpu=0x01000007), "not arm64")
        self.refused(program(kind=6), "not a program")
        self.refused(program(platform=2), "not macOS")
        self.refused(program(minimum=15 << 16), "needs macOS 15.0")
        self.refused(program(loads=()), "does not load libSystem")
        self.refused(program(loads=(SYSTEM, "/opt/homebrew/lib/libfoo.dylib")), "libfoo.dylib, which not every Mac has")
        self.refused(program(entry=False), "no entry point")
        self.refused(program(signed=False), "not signed")
        self.refused(program(adhoc=0), "not signed ad hoc")
        self.refused(program()[:-1], "cut")
        self.refused(program() + b"x", "something follows")

    def test_a_change_after_the_signature(self):
        for at in (3 * PAGE // 2, 2 * PAGE + 99):
            data = bytearray(program())
            data[at] ^= 1
            self.refused(bytes(data), f"page {at // PAGE} was changed")


class Uuids(unittest.TestCase):
    def test_it_depends_on_the_rest_of_the_program_alone(self):
        one, other = (mach_uuid.renewed(program(uuid=uuid)) for uuid in (b"1" * 16, b"2" * 16))
        self.assertEqual(one, other)
        self.assertEqual(mach_uuid.renewed(one), one)
        mach_o.check(one, "13.0")
        changed = mach_uuid.renewed(program(uuid=b"1" * 16, content=b"y"))
        mach_o.check(changed, "13.0")
        self.assertNotEqual(self.uuid(one), self.uuid(changed))

    def uuid(self, data):
        at = data.index(struct.pack("<2I", 0x1B, 24)) + 8
        self.assertEqual((data[at + 6] >> 4, data[at + 8] >> 6), (8, 2), "a UUID of version 8")
        return data[at : at + 16]

    def test_what_it_cannot_renew(self):
        good = program(uuid=b"1" * 16)
        signature = good.index(struct.pack(">I", 0xFADE0CC0))
        two_blobs = good[: signature + 8] + struct.pack(">I", 2) + good[signature + 12 :]
        for data, text in (
            (b"\x7fELF" + b"\0" * 60, "no Mach-O"), (program(), "no UUID"), (program(uuid=b"1" * 16, signed=False), "no signature"),
            (two_blobs, "not one code directory alone"), (good[: signature + 10], "signature is cut"), (good[:-1], "code directory is cut"),
            (good[:40], "load commands are cut"),
        ):
            with self.assertRaisesRegex(mach_uuid.Fault, text):
                mach_uuid.renewed(data)


if __name__ == "__main__":
    unittest.main()
