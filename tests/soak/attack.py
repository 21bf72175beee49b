#!/usr/bin/env python3
"""The hostile clients, the hostile registry and a DNS server, in a process of their own, so that the measurements do not wait
for them. Started by main.py: prints its ports on one line, reads one line with the targets and tokens, attacks until its
standard input ends, and prints what it did."""

import collections
import contextlib
import http.client
import itertools
import json
import os
import pathlib
import random
import resource
import socket
import socketserver
import sys
import threading
import time

HERE = pathlib.Path(__file__).resolve().parent
sys.path.append(str(HERE.parent / "campaign"))

import parameters
import registry

IDLE_CONNECTIONS = 3 * parameters.MAX_CONNECTIONS
OVERSIZED = 26_000_000
NAME_SERVER = ("127.0.0.88", 53)


class Attack:
    def __init__(self, config, images, trap, stop):
        self.port, self.calm = config["port"], config["calm"]
        self.token, self.limited = config["token"], config["limited"]
        self.images, self.trap, self.stop = images, trap, stop
        self.seed = config["seed"]
        self.turn = itertools.count()
        self.done = collections.Counter()
        self.ends = collections.defaultdict(collections.Counter)

    def start(self):
        threads = [(self.idle, 1), (self.webhooks, 6), (self.methods, 2), (self.bodies, 4), (self.waits, 24), (self.refused, 1),
                   (self.pulls, 2)]
        started = [threading.Thread(target=self.run, args=(what, f"{self.seed} {what.__name__} {n}"), daemon=True)
                   for what, count in threads for n in range(count)]
        for thread in started:
            thread.start()
        return started

    def run(self, what, seed):
        dice = random.Random(seed)
        while not self.stop.is_set():
            # The service may close and refuse these connections.
            with contextlib.suppress(OSError, http.client.HTTPException):
                what(dice)
            # A client that never pauses would mostly load this machine, and not the service.
            self.stop.wait(0.05)

    def connect(self, dice, seconds=15):
        """From an address of its own, as a client on another machine has one."""
        source = f"127.0.0.{dice.randrange(2, 10)}"
        return socket.create_connection(("127.0.0.1", self.port), timeout=seconds, source_address=(source, 0))

    def request(self, method, path, body=None, token=None, seconds=35, headers=()):
        client = http.client.HTTPConnection("127.0.0.1", self.port, timeout=seconds, source_address=("127.0.0.20", 0))
        try:
            client.request(method, path, None if body is None else json.dumps(body),
                           {"Authorization": f"Bearer {token}", "Content-Type": "application/json", **dict(headers)})
            answer = client.getresponse()
            return answer.status, json.loads(answer.read() or b"{}")
        finally:
            client.close()

    # --- without a token ---

    def idle(self, dice):
        """Thousands of silent connections; those that were closed are opened again."""
        held = collections.deque()
        try:
            while not self.stop.is_set():
                for _ in range(50):
                    with contextlib.suppress(OSError):
                        held.append(self.connect(dice, 2))
                        self.done["idle connections"] += 1
                while len(held) > IDLE_CONNECTIONS:
                    held.popleft().close()
                self.stop.wait(0.5)
        finally:
            for connection in held:
                connection.close()

    def webhooks(self, dice):
        kind = dice.choice(["unfinished", "unfinished unsigned", "oversized", "endless", "whole"])
        length = {"oversized": OVERSIZED, "whole": 200_000}.get(kind, 20_000_000)
        head = "POST /webhooks/github HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\nx-github-event: workflow_job\r\n" \
               f"x-github-delivery: {dice.randrange(1 << 60)}\r\n"
        if kind != "unfinished unsigned":
            head += f"x-hub-signature-256: sha256={dice.randrange(1 << 256):064x}\r\n"
        head += "transfer-encoding: chunked\r\n\r\n" if kind == "endless" else f"content-length: {length}\r\n\r\n"
        with self.connect(dice) as connection:
            self.done[f"webhook bodies, {kind}"] += 1
            connection.sendall(head.encode())
            piece = b" " * (64 << 10)
            if kind == "endless":
                for _ in range(OVERSIZED // len(piece)):
                    connection.sendall(b"%x\r\n%s\r\n" % (len(piece), piece))
            else:
                for _ in range(3 if kind == "whole" else dice.randrange(1, 32)):
                    connection.sendall(piece)
                if kind == "whole":
                    connection.sendall(b" " * (length - 3 * len(piece)))
            # The service ends it.
            while connection.recv(4096) and not self.stop.is_set():
                pass

    def methods(self, dice):
        with self.connect(dice) as connection:
            for _ in range(50):
                path = dice.choice(["/nowhere", f"/nowhere/{dice.randrange(1 << 40)}", f"/vms/{dice.randrange(1 << 40)}"])
                connection.sendall(f"M-{dice.randrange(1 << 40)} {path} HTTP/1.1\r\nhost: x\r\n\r\n".encode())
                if not connection.recv(16384):
                    return
                self.done["invented methods"] += 1

    # --- with a token of the scope `create` ---

    def bodies(self, dice):
        open_ones = []
        try:
            for _ in range(50):
                connection = self.connect(dice)
                open_ones.append(connection)
                connection.sendall(f"POST /vms HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {self.token}\r\ncontent-type: application/json\r\n"
                                   "content-length: 900000\r\n\r\n{".encode() + b" " * 100_000)
                self.done["unfinished bodies of a token"] += 1
            while open_ones[0].recv(4096) and not self.stop.is_set():
                pass
        finally:
            for connection in open_ones:
                connection.close()

    def waits(self, dice):
        path = dice.choice([f"/vms/{self.calm}?wait_generation=999999&timeout_seconds=20", "/events"])
        with self.connect(dice, 25) as connection:
            connection.sendall(f"GET {path} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {self.token}\r\n\r\n".encode())
            self.done["streams" if path == "/events" else "long polls"] += 1
            # A stream has no end of its own.
            until = time.monotonic() + 20
            while connection.recv(16384) and time.monotonic() < until and not self.stop.is_set():
                pass

    def refused(self, dice):
        body = dice.choice([
            {"template": "no-such-template"}, {"template": "micro", "cpus": 64}, {"template": "micro", "memory_mib": 100_000},
            {"template": "micro", "name": "/"}, {"template": f"{self.images}/evil/bomb:{dice.randrange(1 << 30)}"},
        ])
        status, _ = self.request("POST", "/vms", {"queue_timeout_seconds": 0, **body}, self.limited)
        self.done[f"refused creates, {status}"] += 1

    def pulls(self, dice):
        """Vms of hostile images and of addresses that no image may come from."""
        tag = dice.randrange(1 << 40)
        elsewhere = [f"169.254.169.254/latest/meta-data:{tag}", f"localhost:{self.trap.rsplit(':')[-1]}/x/y:{tag}", f"{self.trap}/x/y:{tag}",
                     f"localhost:{self.port}/x/y:{tag}", f"127.0.0.1:{self.port}/x/y:{tag}", f"10.255.255.1/x/y:{tag}"]
        # In turn, so that a short run has each of them. Those that end at once come first.
        kind = ("elsewhere", "realm", "redirect", "bomb", "endless", "manifest", "large", "slow")[next(self.turn) % 8]
        image = dice.choice(elsewhere) if kind == "elsewhere" else f"{self.images}/evil/{kind}:{tag}"
        status, said = self.request("POST", "/vms", {
            "template": image, "queue_timeout_seconds": parameters.IMAGE_SECONDS, "runner": {"kind": "none"}}, self.token)
        if status != 201:
            self.ends[kind][f"{status} {said.get('code')}"] += 1
            return
        self.done["vms of hostile images"] += 1
        until = time.monotonic() + 4 * parameters.IMAGE_SECONDS
        while said.get("state") != "deleted" and time.monotonic() < until and not self.stop.is_set():
            status, now = self.request("GET", f"/vms/{said['id']}?wait_generation={said['generation']}&timeout_seconds=10",
                                       None, self.token)
            if status == 200:
                said = now
            else:
                self.stop.wait(0.5)
        if not self.stop.is_set():
            self.ends[kind][(said.get("outcome") or {}).get("code") or said.get("state")] += 1


class NameServer(registry.Quiet, socketserver.ThreadingUDPServer):
    pass


class NoSuchName(socketserver.BaseRequestHandler):
    def handle(self):
        query, connection = self.request
        self.server.asked["name lookups that left the gateway"] += 1
        connection.sendto(query[:2] + b"\x81\x83" + query[4:6] + b"\0\0\0\0\0\0" + query[12:], self.client_address)


def main():
    os.nice(10)
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    stop = threading.Event()
    images, trap = registry.start(stop)
    asked = collections.Counter()
    names = None
    with contextlib.suppress(OSError):
        names = NameServer(NAME_SERVER, NoSuchName)
        names.asked = asked
        threading.Thread(target=names.serve_forever, kwargs={"poll_interval": 0.2}, daemon=True).start()
    address = "127.0.0.1:%d" % images.server_address[1]
    print(json.dumps({"images": address, "trap": images.trap, "name_server": NAME_SERVER[0] if names else None}), flush=True)
    line = sys.stdin.readline()
    if not line:
        return
    attack = Attack(json.loads(line), address, images.trap, stop)
    threads = attack.start()
    sys.stdin.read()
    stop.set()
    until = time.monotonic() + 5
    for thread in threads:
        thread.join(max(0, until - time.monotonic()))
    print(json.dumps({"done": {**attack.done, **asked}, "ends": attack.ends, "served": images.served, "trapped": trap.visits}), flush=True)


if __name__ == "__main__":
    main()
