#!/usr/bin/env python3
"""How the service behaves with many records and many clients.

    load.py lists  [--vms 20000] [--beside OLD_BINARY]    lists of vms by label, name and template, against one vm by its id
    load.py memory [--clients 200] [--seconds 600] [--rest 300] [--beside OLD_BINARY]
                                                          resident memory at rest, under load, and some time after it

Prints a table and writes target/bench/<name>.json. `--beside` measures another build of Mayfly in turns with this one. The
service uses the `fake` driver, so that no guest takes part.
"""

import argparse
import contextlib
import http.client
import json
import pathlib
import signal
import sqlite3
import statistics
import sys
import threading
import time

import bench

# Of 20,000 vms, so many have the rare label and the same name.
RARE = 20
REQUESTS = 200


class Service(bench.Serve):
    def __init__(self, binary):
        super().__init__(settings={"MAYFLY_DRIVERS__QEMU__ENABLED": "false", "MAYFLY_DRIVERS__FAKE__ENABLED": "true",
                                   "MAYFLY_LOG__LEVEL": "warn,mayfly::cli=info"}, binary=binary)

    def __enter__(self):
        self.start()
        disk = self.dir / "disk.raw"
        disk.write_bytes(b"\x01" * 65536)
        self.call("POST", "/templates", {"name": "micro", "driver": "fake", "disk": str(disk), "cpus": 1, "memory_mib": 192})
        return self

    def __exit__(self, *_):
        self.stop()

    def connection(self):
        host = self.url.split("//")[1]
        return http.client.HTTPConnection(host, timeout=60)

    def request(self, connection, method, path, body=None):
        connection.request(method, path, None if body is None else json.dumps(body),
                           {"Authorization": "Bearer " + self.token, "Content-Type": "application/json"})
        answer = connection.getresponse()
        return answer.status, answer.read()


# --- lists -----------------------------------------------------------------------


def fill(service, count):
    """Copies one deleted vm `count` times. Stops the service and starts it again."""
    vm = service.call("POST", "/vms", {"template": "micro", "runner": {"kind": "none"}, "name": "old-0",
                                       "labels": {"owner": "bench", "build": "0"}})["id"]
    service.call("DELETE", f"/vms/{vm}?force=true")
    service.wait(vm, "deleted")
    service.process.send_signal(signal.SIGTERM)
    service.process.wait(20)
    service.process = None
    db = sqlite3.connect(service.dir / "mayfly.db")
    # Generated columns cannot be written, and this list leaves them out.
    columns = [row[1] for row in db.execute("PRAGMA table_info(vms)")]
    row = dict(zip(columns, db.execute(f"SELECT {','.join(columns)} FROM vms").fetchone()))
    has_labels = db.execute("SELECT count(*) FROM sqlite_master WHERE name = 'vm_labels'").fetchone()[0]
    marks = ",".join("?" * len(columns))
    with db:
        for n in range(1, count):
            new, name, build = "01800000-0000-7000-8000-%012x" % n, f"old-{n // RARE}", str(n // RARE)
            record = row["record"].replace(vm, new).replace('"old-0"', f'"{name}"').replace('"build":"0"', f'"build":"{build}"')
            copy = dict(row, id=new, name=name, record=record)
            db.execute(f"INSERT INTO vms ({','.join(columns)}) VALUES ({marks})", [copy[c] for c in columns])
            if has_labels:
                db.executemany("INSERT INTO vm_labels VALUES (?, ?, ?)", [(new, "owner", "bench"), (new, "build", build)])
    db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    db.close()
    service.start()
    return vm


def lists(arguments):
    with contextlib.ExitStack() as stack:
        services = [stack.enter_context(Service(binary)) for binary in binaries(arguments)]
        known = [fill(service, arguments.vms) for service in services]
        some = arguments.vms // RARE // 2
        paths = {
            f"by a label of {RARE} vms": f"/vms?state=deleted&label=build%3D{some}&limit=200",
            "by a label of all vms": "/vms?state=deleted&label=owner%3Dbench&limit=200",
            f"by a name of {RARE} vms": f"/vms?state=deleted&name=old-{some}&limit=200",
            "by the template of all vms": "/vms?state=deleted&template=micro&limit=200",
            "by a template of no vm": "/vms?state=deleted&template=none&limit=200",
        }
        rows = {}
        connections = [service.connection() for service in services]
        for label, path in paths.items() | {("one vm by its id", None)}:
            for _ in range(REQUESTS):
                for which, service in enumerate(services):
                    begun = time.monotonic()
                    status, body = service.request(connections[which], "GET", path or f"/vms/{known[which]}")
                    took = (time.monotonic() - begun) * 1000
                    found = len(json.loads(body).get("items", []))
                    if status != 200 or (path and found != (RARE if "of 20" in label else 200 if "all" in label else 0)):
                        raise SystemExit(f"{label}: status {status}, {found} vms")
                    rows.setdefault(label + (", the other build" if which else ""), []).append(took)
    median = lambda label: statistics.median(rows[label])
    bench.report("lists", "ms", f"each list <= 10 ms over {arguments.vms} vms", dict(sorted(rows.items())),
                 longest_median_ms=round(max(median(label) for label in paths), 2),
                 ratio_to_one_vm=round(max(median(label) for label in paths) / median("one vm by its id"), 1))


# --- memory ----------------------------------------------------------------------


class Load:
    """Clients that list, create, look at and delete vms, each over its own connection."""

    def __init__(self, service, clients):
        self.service, self.ending, self.counts = service, threading.Event(), [0] * clients
        self.threads = [threading.Thread(target=self.client, args=(n,), daemon=True) for n in range(clients)]
        for thread in self.threads:
            thread.start()

    def client(self, n):
        connection = self.service.connection()
        while not self.ending.is_set():
            try:
                status, body = self.service.request(connection, "POST", "/vms", {
                    "template": "micro", "runner": {"kind": "command", "command": "make test"}, "labels": {"client": str(n)}})
                self.service.request(connection, "GET", f"/vms?label=client%3D{n}&state=queued&state=deleted&limit=50")
                if status == 202 or status == 201:
                    self.service.request(connection, "DELETE", f"/vms/{json.loads(body)['id']}?force=true")
                self.service.request(connection, "GET", "/host")
                self.counts[n] += 1
            except OSError:
                # The service ends the oldest connections at its limit.
                connection = self.service.connection()

    def end(self):
        self.ending.set()
        for thread in self.threads:
            thread.join(60)
        return sum(self.counts)


def memory(arguments):
    rows, more = {}, {}
    for which, binary in enumerate(binaries(arguments)):
        other = ", the other build" if which else ""
        with Service(binary) as service:
            for _ in range(20):
                service.call("GET", "/host")
            resident = lambda: bench.Resident(service.process.pid).all
            before = resident()
            load = Load(service, arguments.clients)
            during, until = [], time.monotonic() + arguments.seconds
            while time.monotonic() < until:
                time.sleep(1)
                during.append(resident())
            rounds = load.end()
            time.sleep(arguments.rest)
            after = resident()
        rows |= {"at rest" + other: [before], f"with {arguments.clients} clients" + other: during,
                 f"{arguments.rest} s later" + other: [after]}
        more |= {"ratio" + other: round(after / before, 2), "rounds of a client" + other: rounds}
    bench.report("service-memory", "MiB", "after the load <= 1.5 times that at rest", rows, **more)


def binaries(arguments):
    return [bench.BINARY] + ([arguments.beside.resolve()] if arguments.beside else [])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=["lists", "memory"])
    parser.add_argument("--vms", type=int, default=20_000)
    parser.add_argument("--clients", type=int, default=200)
    parser.add_argument("--seconds", type=int, default=600)
    parser.add_argument("--rest", type=int, default=300)
    parser.add_argument("--beside", type=pathlib.Path)
    arguments = parser.parse_args()
    {"lists": lists, "memory": memory}[arguments.name](arguments)


if __name__ == "__main__":
    sys.exit(main())
