"""Tools for disturbances: a separate clock for the service, and a file system that can be filled."""

import ctypes
import errno
import os
import shutil
import struct
import subprocess
import sys

import settings


class Clock:
    """The service's wall clock, `offset` seconds ahead of the machine's."""

    def __init__(self, library, path):
        self.library, self.path, self.offset = library, path, 0
        self.write()

    def step(self, seconds):
        self.offset += seconds
        self.write()

    def write(self):
        # In place: the service has this file mapped. One aligned word is written as a whole.
        with open(os.open(self.path, os.O_WRONLY | os.O_CREAT, 0o600), "wb", buffering=0) as file:
            file.write(struct.pack("=q", self.offset))

    def environment(self):
        return {"LD_PRELOAD": str(self.library), "CAMPAIGN_CLOCK": str(self.path)}


def build_clock(directory):
    """The preloaded library, or None with a message if it cannot be built."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if sys.platform != "linux" or not compiler:
        print("campaign: without clock steps: no C compiler found", flush=True)
        return None
    library = directory / "clock.so"
    source = settings.ROOT / "tests" / "campaign" / "clock.c"
    built = subprocess.run([compiler, "-O2", "-Wall", "-shared", "-fPIC", "-o", library, source, "-ldl"],
                           capture_output=True, text=True, timeout=60)
    if built.returncode != 0:
        print(f"campaign: without clock steps: clock.c does not compile: {built.stderr.strip()}", flush=True)
        return None
    return library


CLONE_NEWNS, MS_REC, MS_PRIVATE, MNT_DETACH = 0x20000, 0x4000, 1 << 18, 2


class Mounts:
    """A mount namespace of this process and its children: its mounts end with them. Linux, as root."""

    def __init__(self):
        self.libc = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None
        self.possible = False
        self.reason = "only on Linux"
        if self.libc is None:
            return
        if self.libc.unshare(CLONE_NEWNS) != 0 or self.mount(b"none", b"/", None, MS_REC | MS_PRIVATE) != 0:
            self.reason = f"a mount namespace needs root ({os.strerror(ctypes.get_errno())})"
            return
        self.possible = True

    def mount(self, source, target, kind, flags, data=None):
        return self.libc.mount(source, target, kind, ctypes.c_ulong(flags), data)

    def tmpfs(self, path, mib):
        if self.mount(b"campaign", os.fsencode(path), b"tmpfs", 0, f"size={mib}m,mode=0700".encode()) != 0:
            raise OSError(ctypes.get_errno(), "tmpfs cannot be mounted", str(path))

    def unmount(self, path):
        if self.possible:
            self.libc.umount2(os.fsencode(path), MNT_DETACH)


class Filler:
    """A file that uses up the free space of a file system, and is removed again."""

    def __init__(self, directory):
        self.path = directory / "filler"

    def fill(self):
        block = bytes(1 << 20)
        file = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            while block:
                try:
                    os.write(file, block)
                except OSError as error:
                    if error.errno != errno.ENOSPC:
                        raise
                    block = block[:len(block) // 2]
        finally:
            os.close(file)

    def free(self):
        self.path.unlink(missing_ok=True)
