"""What this machine shows of a secret, and what is left of vms: from its processes and files, not from Mayfly's records."""

import glob
import os
import threading
from pathlib import Path


class SecretWatch(threading.Thread):
    """Looks for the secret in the arguments of all processes, and in the environment of all but those that `may_have` it:
    it gets the program and the arguments of a process."""

    def __init__(self, secret, may_have):
        super().__init__(daemon=True)
        self.secret, self.may_have = secret.encode(), may_have
        self.found, self.looks, self.processes, self.over = set(), 0, 0, threading.Event()

    def run(self):
        while not self.over.wait(0.1):
            self.looks += 1
            for path in glob.glob("/proc/[0-9]*"):
                try:
                    self.look(path)
                except OSError:
                    continue

    def look(self, path):
        arguments = Path(path, "cmdline").read_bytes()
        self.processes += 1
        if self.secret in arguments:
            self.found.add(f"arguments of {shown(arguments)}")
        if self.secret in Path(path, "environ").read_bytes():
            program = os.readlink(f"{path}/exe")
            # Of the same process: one that has just been started has the program and the arguments of its parent at first.
            if not self.may_have(program, Path(path, "cmdline").read_bytes().split(b"\0")):
                self.found.add(f"environment of {program}: {shown(arguments)}")

    def stop(self):
        self.over.set()
        self.join()


def shown(arguments):
    return arguments.replace(b"\0", b" ").decode(errors="replace")[:120]


def files_with(secret, *places, leave=()):
    """Files below these places, except those in directories that are left out."""
    found = []
    for place in places:
        for at, directories, names in os.walk(place):
            directories[:] = [name for name in directories if Path(at, name) not in leave]
            for name in names:
                path = Path(at, name)
                try:
                    if path.is_file() and not path.is_symlink() and secret.encode() in path.read_bytes():
                        found.append(str(path))
                except OSError:
                    continue
    return found


def processes_of(directory, leave):
    """Pids and arguments of the processes that name this directory, except those with these pids."""
    found = {}
    for path in glob.glob("/proc/[0-9]*/cmdline"):
        pid = int(path.split("/")[2])
        try:
            arguments = Path(path).read_bytes()
        except OSError:
            continue
        if str(directory).encode() in arguments and pid not in leave and pid != os.getpid():
            found[pid] = shown(arguments)
    return found
