#!/usr/bin/env python3
"""Checks a program for macOS without a Mac: mach_o.py FILE MINIMUM

Apple Silicon, the oldest macOS that it runs on (MINIMUM, like 13.0), what it loads, and its signature: macOS kills a program
whose signature is missing, or does not match its bytes.

The format: <mach-o/loader.h> and <kern/cs_blobs.h> of macOS.
"""

import hashlib
import struct
import sys

LC_LOAD_DYLIB = {0xC: "", 0x80000018: "weakly", 0x8000001F: "again"}
LC_SEGMENT_64, LC_CODE_SIGNATURE, LC_BUILD_VERSION, LC_MAIN = 0x19, 0x1D, 0x32, 0x80000028

# Parts of every macOS that Mayfly runs on.
SYSTEM = {
    "/usr/lib/libSystem.B.dylib",
    "/usr/lib/libiconv.2.dylib",
    "/usr/lib/libcharset.1.dylib",
    "/System/Library/Frameworks/CoreFoundation.framework/Versions/A/CoreFoundation",
    "/System/Library/Frameworks/Security.framework/Versions/A/Security",
}


class Fault(Exception):
    pass


def need(condition, text):
    if not condition:
        raise Fault(text)


def version(number):
    return f"{number >> 16}.{number >> 8 & 0xFF}"


def read(data):
    """The parts of the file that are checked."""
    need(len(data) >= 32, "it is no Mach-O file")
    magic, cpu, _, kind, count, size, flags, _ = struct.unpack_from("<8I", data)
    need(magic == 0xFEEDFACF, "it is no Mach-O file of one 64-bit architecture")
    need(cpu == 0x0100000C, f"its processor is {cpu:#x}, not arm64")
    need(kind == 2, f"it is a file of type {kind}, not a program")
    need(flags & 0x200000, "it cannot be loaded at any address (MH_PIE)")
    found = {"loads": [], "minimum": None, "signature": None, "main": False}
    at = 32
    for _ in range(count):
        command, length = struct.unpack_from("<2I", data, at)
        need(length >= 8 and at + length <= 32 + size, "its load commands are cut")
        if command in LC_LOAD_DYLIB:
            name = data[at + struct.unpack_from("<I", data, at + 8)[0] : at + length]
            found["loads"].append(name.split(b"\0")[0].decode())
        elif command == LC_BUILD_VERSION:
            platform, minimum = struct.unpack_from("<2I", data, at + 8)
            need(platform == 1, f"its platform is {platform}, not macOS")
            found["minimum"] = version(minimum)
        elif command == LC_CODE_SIGNATURE:
            found["signature"] = struct.unpack_from("<2I", data, at + 8)
        elif command == LC_MAIN:
            found["main"] = True
        at += length
    return found


def directory(signature):
    """The code directory of a signature: what was signed."""
    magic, length, count = struct.unpack_from(">3I", signature)
    need(magic == 0xFADE0CC0 and length <= len(signature), "its signature is damaged")
    for index in range(count):
        kind, offset = struct.unpack_from(">2I", signature, 12 + 8 * index)
        if kind == 0:
            return signature[offset:]
    raise Fault("its signature has no code directory")


def check_signature(data, where):
    """Ad hoc (nobody's), and true: the digest of every page of the file matches."""
    need(where, "it is not signed")
    start, size = where
    need(start + size == len(data), "something follows its signature, or it is cut")
    code = directory(data[start:])
    fields = struct.unpack_from(">9I4B", code)
    magic, _, _, flags, hashes, _, _, slots, limit, hash_size, hash_kind, _, page = fields
    need(magic == 0xFADE0C02, "its code directory is damaged")
    need(flags & 0x2, "it is not signed ad hoc")
    need((hash_size, hash_kind) == (32, 2), "its signature does not use SHA-256")
    need(limit == start, f"its signature covers {limit} bytes of {start}")
    step = 1 << page
    need(slots == -(-limit // step), "its signature does not have one digest per page")
    for index in range(slots):
        piece = data[index * step : min((index + 1) * step, limit)]
        digest = code[hashes + 32 * index : hashes + 32 * index + 32]
        need(hashlib.sha256(piece).digest() == digest, f"its page {index} was changed after it was signed")


def check(data, minimum):
    found = read(data)
    need(found["main"], "it has no entry point")
    need(found["minimum"] == minimum, f"it needs macOS {found['minimum']}, not {minimum}")
    need("/usr/lib/libSystem.B.dylib" in found["loads"], "it does not load libSystem")
    foreign = sorted(set(found["loads"]) - SYSTEM)
    need(not foreign, f"it loads {', '.join(foreign)}, which not every Mac has")
    check_signature(data, found["signature"])
    return found


def main():
    path, minimum = sys.argv[1:]
    with open(path, "rb") as file:
        data = file.read()
    try:
        found = check(data, minimum)
    except Fault as fault:
        sys.exit(f"mach_o: {path}: {fault}")
    print(f"{path}: arm64, macOS {minimum} or later, signed ad hoc, {len(data) >> 20} MiB; loads:")
    for name in found["loads"]:
        print(f"  {name}")


if __name__ == "__main__":
    main()
