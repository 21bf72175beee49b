#!/usr/bin/env python3
"""Sets the UUID of a program for macOS to a digest of the program, and renews its ad hoc signature: mach_uuid.py FILE

The linker computes the UUID (the load command LC_UUID) before the names of local functions are stripped. The compiler puts
numbers into some of these names that differ between two builds of the same source, so that two programs with the same code had
different UUIDs. macOS needs a UUID: it is how crash reports and the permission for the local network identify a program.

The format: <mach-o/loader.h> and <kern/cs_blobs.h> of macOS. Running it twice changes nothing.
"""

import hashlib
import os
import struct
import sys

LC_UUID, LC_CODE_SIGNATURE = 0x1B, 0x1D
MH_MAGIC_64, CSMAGIC_EMBEDDED_SIGNATURE, CSMAGIC_CODEDIRECTORY, CSSLOT_CODEDIRECTORY = 0xFEEDFACF, 0xFADE0CC0, 0xFADE0C02, 0
SHA256 = (32, 2)


class Fault(Exception):
    pass


def load_commands(data):
    """The offset of each load command, by its number."""
    if len(data) < 32 or struct.unpack_from("<I", data)[0] != MH_MAGIC_64:
        raise Fault("it is no Mach-O file of one 64-bit architecture")
    count, size = struct.unpack_from("<2I", data, 16)
    found, at = {}, 32
    for _ in range(count):
        if at + 8 > min(32 + size, len(data)):
            raise Fault("its load commands are cut")
        number, length = struct.unpack_from("<2I", data, at)
        if length < 8 or at + length > min(32 + size, len(data)):
            raise Fault("its load commands are cut")
        found[number] = at
        at += length
    return found


def code_directory(data, start):
    """The offset of the code directory. A signature with anything else in it is not ad hoc, or has more to renew."""
    if start + 20 > len(data):
        raise Fault("its signature is cut")
    magic, _, count, kind, offset = struct.unpack_from(">5I", data, start)
    if magic != CSMAGIC_EMBEDDED_SIGNATURE or (count, kind) != (1, CSSLOT_CODEDIRECTORY):
        raise Fault("its signature is not one code directory alone, as a linker makes it")
    if start + offset + 44 > len(data) or struct.unpack_from(">I", data, start + offset)[0] != CSMAGIC_CODEDIRECTORY:
        raise Fault("its code directory is damaged")
    return start + offset


def renewed(data):
    """The program with its UUID and its signature."""
    data = bytearray(data)
    commands = load_commands(data)
    for command, name in ((LC_UUID, "UUID"), (LC_CODE_SIGNATURE, "signature")):
        if command not in commands:
            raise Fault(f"it has no {name}")
    uuid = commands[LC_UUID] + 8
    start = struct.unpack_from("<I", data, commands[LC_CODE_SIGNATURE] + 8)[0]
    code = code_directory(data, start)
    hashes, _, _, slots, limit, hash_size, hash_kind, _, page_bits = struct.unpack_from(">5I4B", data, code + 16)
    page = 1 << page_bits
    if (hash_size, hash_kind) != SHA256 or limit != start or slots != -(-limit // page):
        raise Fault("its signature does not have one SHA-256 digest for each page")
    if code + hashes + 32 * slots > len(data):
        raise Fault("its code directory is cut")

    data[uuid : uuid + 16] = bytes(16)
    digest = bytearray(hashlib.sha256(data[:limit]).digest()[:16])
    # The version of a UUID from a digest, and the variant (RFC 9562, 4.1 and 5.8).
    digest[6] = digest[6] & 0x0F | 0x80
    digest[8] = digest[8] & 0x3F | 0x80
    data[uuid : uuid + 16] = digest
    for index in {uuid // page, (uuid + 15) // page}:
        piece = data[index * page : min((index + 1) * page, limit)]
        data[code + hashes + 32 * index : code + hashes + 32 * index + 32] = hashlib.sha256(piece).digest()
    return bytes(data)


def main():
    (path,) = sys.argv[1:]
    with open(path, "rb") as file:
        data = file.read()
    try:
        new = renewed(data)
    except Fault as fault:
        sys.exit(f"mach_uuid: {path}: {fault}")
    # Another file, because a Mac remembers the signature of the file that it has run.
    with open(f"{path}.new", "wb") as file:
        file.write(new)
    os.chmod(f"{path}.new", os.stat(path).st_mode & 0o777)
    os.replace(f"{path}.new", path)


if __name__ == "__main__":
    main()
