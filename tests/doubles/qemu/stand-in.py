#!/usr/bin/env python3
"""Plays QEMU on a host whose KVM does not work as it seems.

Under the emulator it becomes the real QEMU. Under KVM it simulates the whole of it: the probe's guest succeeds at once, and every
other guest does what the file `stand-in.json` beside this program says:

    version   what `--version` answers
    kvm       "hangs": the guest does nothing at all
              "breaks": it writes to its console, and is stopped by an internal error after a moment
              "dies": the hypervisor aborts
              "stops": as `state` and `event` say, after a moment
              "works": the real QEMU runs it, by emulation
    state     what `query-status` then says, for "stops"
    event     what is announced with it, for "stops"
    emulator  the real QEMU

Each guest that is started is a line in `stand-in.log`: its accelerator and its name.
"""

import fcntl
import json
import os
import select
import signal
import socket
import sys
import time

HERE = os.path.dirname(os.path.abspath(sys.argv[0]))
PROBE = "mayfly-probe"
MOMENT = 2.0


def option(args, name):
    return args[args.index(name) + 1] if name in args else None


def path_in(value):
    """The path in a chardev's options; a doubled comma is a literal one."""
    text = value.replace(",,", "\0")
    return next(part[5:] for part in text.split(",") if part.startswith("path=")).replace("\0", ",")


def chardevs(args):
    found = {}
    for name, value in zip(args, args[1:]):
        if name == "-chardev":
            ident = next(part[3:] for part in value.split(",") if part.startswith("id="))
            found[ident] = value
    return found


def emulated(args):
    """The same machine, emulated."""
    args = list(args)
    args[args.index("-accel") + 1] = "tcg,thread=multi,tb-size=128"
    args[args.index("-cpu") + 1] = "max"
    return args


def become(program, args):
    os.execvp(program, [os.path.basename(program)] + args)


def probe():
    """The probe's guest as a good accelerator runs it: every stage, a few rounds of its work, its end mark."""
    out = sys.stdout
    out.write("ABCDEFGHIJKLM")
    for _ in range(9):
        out.write("<")
        out.flush()
        time.sleep(0.002)
        out.write(">")
        out.flush()
    out.write("MAYFLY\n")
    out.flush()


class Guest:
    def __init__(self, args, plan):
        devices = chardevs(args)
        self.plan = plan
        self.uuid = option(args, "-uuid")
        self.state = "prelaunch" if "-S" in args else "running"
        self.console = path_in(devices["console"])
        self.listeners, self.clients = [], {}
        for ident, value in devices.items():
            if ident != "console":
                listener = socket.socket(socket.AF_UNIX)
                path = path_in(value)
                if os.path.exists(path):
                    os.unlink(path)
                listener.bind(path)
                listener.listen(8)
                self.listeners.append(listener)
        # The guest's network card: it sends nothing and takes everything.
        self.network = None
        network = option(args, "-netdev")
        if network:
            path = path_in(network.replace("addr.path=", "path="))
            if os.path.exists(path):
                os.unlink(path)
            self.network = socket.socket(socket.AF_UNIX)
            self.network.bind(path)
            self.network.listen(1)
        self.links = []
        self.log = None
        watch = devices.get("watch", "").replace(",,", "\0")
        for part in watch.split(","):
            if part.startswith("logfile="):
                self.log = open(part[8:].replace("\0", ","), "w")
        self.due = time.monotonic() + MOMENT if self.state == "running" else None
        open(self.console, "a").close()

    def send(self, client, message):
        try:
            client.sendall((json.dumps(message) + "\r\n").encode())
        except OSError:
            pass

    def announce(self, name, data=None):
        event = {"timestamp": {"seconds": int(time.time()), "microseconds": 0}, "event": name}
        if data is not None:
            event["data"] = data
        if self.log:
            self.log.write(json.dumps(event) + "\r\n")
            self.log.flush()
        for client in self.clients:
            self.send(client, event)

    def words(self, text):
        os.write(2, text.encode())

    def happen(self):
        kind = self.plan["kvm"]
        self.due = None
        if kind == "hangs":
            return
        with open(self.console, "a") as console:
            console.write("Linux version 6.1\n")
        if kind == "breaks":
            self.words("KVM internal error. Suberror: 1\nemulation failure\nRAX=0000000000000000\n")
            self.state = "internal-error"
            self.announce("STOP")
        elif kind == "dies":
            self.words("qemu-system-x86_64: ../accel/kvm/kvm-all.c:2535: kvm_cpu_exec: Assertion failed.\n")
            os.kill(os.getpid(), signal.SIGKILL)
        elif kind == "stops":
            self.state = self.plan["state"]
            self.announce(self.plan["event"], {})
            self.announce("STOP")

    def answer(self, request):
        command = request.get("execute")
        if command == "query-status":
            return {"status": self.state, "running": self.state == "running", "singlestep": False}
        if command == "query-uuid":
            return {"UUID": self.uuid}
        if command == "human-monitor-command":
            return ""
        if command == "cont" and self.state == "prelaunch":
            self.state = "running"
            self.due = time.monotonic() + MOMENT
            self.announce("RESUME")
        return {}

    def run(self):
        while True:
            wait = None if self.due is None else max(0.0, self.due - time.monotonic())
            network = [self.network] if self.network else []
            ready, _, _ = select.select(self.listeners + list(self.clients) + network + self.links, [], [], wait)
            if self.due is not None and time.monotonic() >= self.due:
                self.happen()
            for source in ready:
                if source is self.network:
                    self.links.append(source.accept()[0])
                    continue
                if source in self.links:
                    try:
                        data = source.recv(65536)
                    except OSError:
                        data = b""
                    if not data:
                        source.close()
                        self.links.remove(source)
                    continue
                if source in self.listeners:
                    client, _ = source.accept()
                    self.clients[client] = b""
                    self.send(client, {"QMP": {"version": {"qemu": {"micro": 0, "minor": 2, "major": 7}, "package": ""}, "capabilities": []}})
                    continue
                try:
                    data = source.recv(65536)
                except OSError:
                    data = b""
                if not data:
                    source.close()
                    del self.clients[source]
                    continue
                lines = (self.clients[source] + data).split(b"\n")
                self.clients[source] = lines.pop()
                for line in lines:
                    request = json.loads(line)
                    self.send(source, {"return": self.answer(request), "id": request.get("id")})
                    if request.get("execute") == "quit":
                        self.announce("SHUTDOWN", {"guest": False, "reason": "host-qmp-quit"})
                        return


def lock(args):
    """Like QEMU: a second process of the same instance ends."""
    pid_file = os.open(option(args, "-pidfile"), os.O_CREAT | os.O_RDWR, 0o600)
    try:
        fcntl.lockf(pid_file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.write(2, b"qemu: cannot create PID file: Cannot lock pid file: Resource temporarily unavailable\n")
        os._exit(1)
    os.ftruncate(pid_file, 0)
    os.write(pid_file, b"%d\n" % os.getpid())
    return pid_file


def main():
    with open(os.path.join(HERE, "stand-in.json")) as file:
        plan = json.load(file)
    args = sys.argv[1:]
    if "--version" in args:
        print(plan["version"])
        return
    if option(args, "-M") == "help":
        # Asked with `-sandbox`, to see whether that is refused.
        become(plan["emulator"], args)
    accelerator = (option(args, "-accel") or "").split(",")[0]
    if option(args, "-name") == PROBE:
        if accelerator != "kvm":
            become(plan["emulator"], args)
        # An equally slow emulator would be no worse.
        return probe()
    with open(os.path.join(HERE, "stand-in.log"), "a") as log:
        log.write("%s %s\n" % (accelerator, option(args, "-name").split(",")[0]))
    if accelerator != "kvm":
        become(plan["emulator"], args)
    if plan["kvm"] == "works":
        become(plan["emulator"], emulated(args))
    pid_file = lock(args)
    guest = Guest(args, plan)
    guest.run()


main()
