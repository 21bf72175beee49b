#!/usr/bin/env python3
"""Measures how fast an image becomes a template, compared with `skopeo copy` and with the limits of this machine.

    [BENCH_GIB=8] [BENCH_ROUNDS=3] [BENCH_SPARE_GIB=10] [BENCH_DIR=…] pull.py [pull|update|memory …]

A real registry on loopback serves an image of BENCH_GIB in 16 chunks. Measured in turns: curl of all its blobs to /dev/null,
`skopeo copy` to a directory (which unpacks nothing), and a pull by a fresh service. Then each part of a pull alone: hashing,
decoding, writing. Transferred bytes are counted from the registry's log. Prints tables and writes
target/bench/{pull,update,memory}.json.

The registry's storage is kept in BENCH_DIR (the cache directory's `bench-pull`), because building it takes minutes;
everything else is removed at the end. Refuses to start if less than BENCH_SPARE_GIB would stay free.
"""

import argparse
import contextlib
import fcntl
import hashlib
import json
import os
import pathlib
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor

import bench

CACHE = pathlib.Path(os.environ.get("MAYFLY_CACHE", pathlib.Path(os.environ.get("XDG_CACHE_HOME", pathlib.Path.home() / ".cache")) / "mayfly"))
HELPER = bench.BINARY.parent / "examples" / "bench-pull"
GIB = int(os.environ.get("BENCH_GIB", "8"))
ROUNDS = int(os.environ.get("BENCH_ROUNDS", "3"))
SPARE = float(os.environ.get("BENCH_SPARE_GIB", "10"))
# Increase this number when the content changes: the cached content is not checked.
CONTENT = 2


def removed(path):
    """Also removes templates, which are read-only."""
    shutil.rmtree(path, ignore_errors=True)


class Registry:
    """The distribution's registry, without TLS, as is usual on loopback."""

    def __init__(self, storage, work):
        self.log = work / "registry.log"
        config = {
            "version": 0.1,
            "log": {"level": "info", "formatter": "json", "accesslog": {"disabled": True}},
            "storage": {"filesystem": {"rootdirectory": str(storage)}},
            "http": {"addr": "127.0.0.1:0"},
        }
        # JSON is valid YAML.
        (work / "registry.yml").write_text(json.dumps(config))
        # Without the caller's environment: REGISTRY_* would change the configuration.
        self.process = subprocess.Popen(
            ["docker-registry", "serve", work / "registry.yml"], env={"PATH": os.environ["PATH"]},
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=open(self.log, "wb"),
        )
        self.address = None
        until = time.monotonic() + 20
        while self.address is None and self.process.poll() is None and time.monotonic() < until:
            for line in self.log.read_text().splitlines():
                if "listening on " in line:
                    self.address = json.loads(line)["msg"].split("listening on ")[1].split(",")[0].strip()
            time.sleep(0.02)
        if self.address is None:
            self.stop()
            raise SystemExit("the registry does not report its address:\n" + self.log.read_text())

    def seen(self):
        """The current length of the log, from which it is read later."""
        return self.log.stat().st_size

    def served(self, since):
        """(bytes of all answers, digest → bytes of the blobs) since that position."""
        total, blobs = 0, {}
        with open(self.log, "rb") as log:
            log.seek(since)
            for line in log:
                entry = json.loads(line)
                if entry.get("http.request.method") != "GET" or "http.response.written" not in entry:
                    continue
                written = entry["http.response.written"]
                total += written
                path = entry["http.request.uri"]
                if "/blobs/" in path:
                    digest = path.rsplit("/", 1)[1]
                    blobs[digest] = blobs.get(digest, 0) + written
        return total, blobs

    def stop(self):
        self.process.terminate()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


class Service(bench.Serve):
    """A fresh service that pulls."""

    def __init__(self, work):
        super().__init__(directory=tempfile.mkdtemp(prefix="serve", dir=work), settings={
            "MAYFLY_REGISTRY__PLAIN_HTTP": "true",
            "MAYFLY_DRIVERS__QEMU__ENABLED": "false",
            "MAYFLY_DRIVERS__FAKE__ENABLED": "true",
        })

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, *_):
        self.stop()
        removed(self.dir)

    def pull(self, reference):
        """Returns seconds, and the result."""
        env = {k: v for k, v in os.environ.items() if not k.startswith("MAYFLY_")}
        env.update(MAYFLY_URL=self.url, MAYFLY_TOKEN=self.token)
        begun = time.monotonic()
        ran = subprocess.run([bench.BINARY, "template", "pull", reference, "--as", "bench", "--json"], env=env,
                             stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        took = time.monotonic() - begun
        if ran.returncode != 0:
            raise SystemExit(f"the pull failed:\n{ran.stderr}\n{(self.dir / 'serve.log').read_text()[-4000:]}")
        return took

    def status(self, key):
        for line in open(f"/proc/{self.process.pid}/status"):
            if line.startswith(key + ":"):
                return int(line.split()[1]) / 1024
        return None

    def peak_mib(self):
        """Peak resident memory."""
        return self.status("VmHWM")

    def cpu_seconds(self):
        fields = open(f"/proc/{self.process.pid}/stat").read().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@contextlib.contextmanager
def prepared():
    """The working directory, the registry and its images. Everything is stopped and removed at the end, also after errors."""
    home = pathlib.Path(os.environ.get("BENCH_DIR", CACHE / "bench-pull"))
    home.mkdir(parents=True, exist_ok=True)
    # Also clean up when the terminal is closed or a CI job is cancelled.
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: sys.exit("ended by a signal"))
    with open(home / ".lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise SystemExit(f"another run of this measurement uses {home}")
        # Left over from a killed run: this process holds the lock.
        for left in [*home.glob("work-*"), *home.glob("new-*")]:
            removed(left)
        stored = home / f"{CONTENT}-{GIB}"
        enough_space(home, stored)
        work = pathlib.Path(tempfile.mkdtemp(prefix="work-", dir=home))
        try:
            if not (stored / "images.json").exists():
                removed(stored)
                make(home, stored, work)
            registry = Registry(stored / "storage", work)
            try:
                yield work, registry, stored, json.loads((stored / "images.json").read_text())
            finally:
                registry.stop()
        finally:
            removed(work)


def enough_space(home, stored):
    # Per GiB: the registry's 0.5 (once), and at most the template, its update, and their difference.
    needed = GIB * (1.6 + (0 if (stored / "images.json").exists() else 0.6)) + 1
    free = shutil.disk_usage(home).free / 2**30
    if free < needed + SPARE:
        raise SystemExit(f"{home} has {free:.1f} GiB free; {needed:.1f} are needed, and {SPARE:.1f} must stay free. "
                         "BENCH_GIB, BENCH_SPARE_GIB and BENCH_DIR change that.")


def make(home, stored, work):
    print(f"building the images in {stored} (once)", flush=True)
    new = pathlib.Path(tempfile.mkdtemp(prefix="new-", dir=home))
    try:
        registry = Registry(new / "storage", work)
        try:
            described = subprocess.run([HELPER, "make", "--registry", registry.address, "--gib", str(GIB)],
                                       stdout=subprocess.PIPE, check=True).stdout
        finally:
            registry.stop()
        (new / "images.json").write_bytes(described)
        subprocess.run(["sync", "-f", new], check=True)
        new.rename(stored)
    finally:
        removed(new)


def curl(registry, image):
    """All blobs to /dev/null, four at a time."""
    urls = [f"http://{registry.address}/v2/bench/pull/blobs/{digest}"
            for digest in {c["digest"]: None for c in image["chunks"]}]
    one = lambda url: subprocess.run(["curl", "--silent", "--show-error", "--fail", "--output", os.devnull, url], check=True)
    begun = time.monotonic()
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(one, urls))
    return time.monotonic() - begun


def skopeo(registry, image, work):
    """(seconds of the copy, and until all of it is on disk)"""
    to = work / "skopeo"
    try:
        begun = time.monotonic()
        subprocess.run(["skopeo", "--insecure-policy", "copy", "--quiet", "--src-tls-verify=false",
                        f"docker://{registry.address}{image['reference']}", f"dir:{to}"], check=True)
        took = time.monotonic() - begun
        subprocess.run(["sync", "-f", to], check=True)
        return took, time.monotonic() - begun
    finally:
        removed(to)


def settled():
    """Pending writes of one measurement must not slow down the next one."""
    subprocess.run(["sync"], check=True)


def mib(rate):
    return f"{rate / 2**20:.0f} MiB/s"


def pull(work, registry, stored, images):
    image = images["image"]
    wire = sum({c["digest"]: c["size"] for c in image["chunks"]}.values())
    rows = {"pull": [], "skopeo copy to a directory": [], "skopeo copy, and on disk": [], "curl to nowhere": []}
    peaks, cpus = [], []
    for n in range(ROUNDS):
        rows["curl to nowhere"].append(curl(registry, image))
        settled()
        copied, on_disk = skopeo(registry, image, work)
        rows["skopeo copy to a directory"].append(copied)
        rows["skopeo copy, and on disk"].append(on_disk)
        settled()
        with Service(work) as service:
            before = service.cpu_seconds()
            rows["pull"].append(service.pull(registry.address + image["reference"]))
            cpus.append(service.cpu_seconds() - before)
            peaks.append(service.peak_mib())
            if n == 0:
                verify(service, image)
        settled()
        print(f"round {n + 1}: pull {rows['pull'][-1]:.2f} s ({peaks[-1]:.0f} MiB, {cpus[-1]:.1f} s of cores), skopeo "
              f"{copied:.2f} s (on disk {on_disk:.2f}), curl {rows['curl to nowhere'][-1]:.2f} s", flush=True)
    limits = json.loads(subprocess.run(
        [HELPER, "limits", "--images", stored / "images.json", "--storage", stored / "storage", "--work", work],
        stdout=subprocess.PIPE, check=True).stdout)
    alone = {"curl to nowhere": statistics.median(rows["curl to nowhere"]), **limits["seconds"]}
    took = statistics.median(rows["pull"])
    tightest = max(alone, key=alone.get)
    for label, seconds in alone.items():
        rows.setdefault(f"alone: {label}", [seconds])
    bench.report(
        "pull", "s", "ratio to skopeo's rate >= 2; of the tightest limit >= 0.9; peak <= 256 MiB", rows,
        ratio=round(statistics.median(rows["skopeo copy to a directory"]) / took, 2),
        ratio_on_disk=round(statistics.median(rows["skopeo copy, and on disk"]) / took, 2),
        of_tightest_limit=round(alone[tightest] / took, 2),
        tightest_limit=tightest,
        # All parts in turn, each with all cores: the lower bound for a program that wastes no time.
        of_all_limits_in_sum=round(sum(alone.values()) / took, 2),
        peak_mib=round(max(peaks), 1),
        cpu_seconds=round(statistics.median(cpus), 2),
        image=f"{images['gib']} GiB, {len(image['chunks'])} chunks, {wire / 2**20:.0f} MiB compressed",
        rate=mib(wire / took) + " compressed, " + mib(image["disk_bytes"] / took) + " of the disk",
        skopeo_rate=mib(wire / statistics.median(rows["skopeo copy to a directory"])),
        limits=limits, wire_bytes=wire,
    )


def verify(service, image):
    """Checks that the pulled disk is the image, with digests that another program computes."""
    [disk] = service.dir.glob("templates/sha256-*/disk")
    with open(disk, "rb") as file:
        for n, chunk in enumerate(image["chunks"]):
            hasher, left = hashlib.sha256(), chunk["content_size"]
            while left:
                piece = file.read(min(left, 1 << 20))
                if not piece:
                    raise SystemExit("the pulled disk is too short")
                hasher.update(piece)
                left -= len(piece)
            if "sha256:" + hasher.hexdigest() != chunk["content_digest"]:
                raise SystemExit(f"chunk {n} of the pulled disk is wrong")


def update(work, registry, _, images):
    old, new = images["image"], images["update"]
    before = {c["digest"] for c in old["chunks"]}
    changed = {c["digest"]: c["size"] for c in new["chunks"] if c["digest"] not in before}
    # Two templates exist at the same time.
    with Service(work) as service:
        first = service.pull(registry.address + old["reference"])
        settled()
        since = registry.seen()
        took = service.pull(registry.address + new["reference"])
        served, blobs = registry.served(since)
        peak = service.peak_mib()
    missing = set(changed) - set(blobs)
    if missing:
        raise SystemExit(f"the registry's log does not show {missing}")
    expected = sum(changed.values())
    bench.report(
        "update", "s", "bytes over the wire <= 1.02 of the changed blobs",
        {"the first pull": [first], "the update": [took]},
        ratio=round(served / expected, 5), wire_bytes=served, changed_bytes=expected,
        changed_chunks=len(changed), chunks=len(new["chunks"]), peak_mib=round(peak, 1),
    )


def memory(work, registry, _, images):
    rows, peaks = {}, {}
    for image in images["sparse"]:
        gib = round(image["disk_bytes"] / 2**30)
        with Service(work) as service:
            rows[f"{gib} GiB"] = [service.pull(registry.address + image["reference"])]
            peaks[f"{gib} GiB"] = round(service.peak_mib(), 1)
        settled()
        print(f"{gib} GiB: {rows[f'{gib} GiB'][0]:.2f} s, {peaks[f'{gib} GiB']} MiB", flush=True)
    first, last = images["sparse"][0], images["sparse"][-1]
    seconds = [samples[0] for samples in rows.values()]
    growth = (seconds[-1] / seconds[0]) / (last["disk_bytes"] / first["disk_bytes"])
    bench.report(
        "memory", "s", "peak <= 256 MiB whatever the image; seconds grow as the image does", rows,
        peak_mib=peaks, ratio=round(max(peaks.values()) / 256, 2), growth_over_linear=round(growth, 2),
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    measurements = {"pull": pull, "update": update, "memory": memory}
    parser.add_argument("names", nargs="*", metavar="pull|update|memory", help="all of them, without")
    names = parser.parse_args().names or list(measurements)
    if unknown := set(names) - set(measurements):
        parser.error(f"there is no measurement {', '.join(sorted(unknown))}")
    with prepared() as at:
        for name in names:
            measurements[name](*at)


if __name__ == "__main__":
    main()
