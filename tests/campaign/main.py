#!/usr/bin/env python3
"""A kill campaign: kills the service repeatedly and injects other faults, while jobs run in real guests.

    [KILLS=500] [SEED=1] [CAMPAIGN_LANES=1] [CAMPAIGN_BOOT_SECONDS=30] [CAMPAIGN_NAME=campaign] main.py

An observer that does not depend on the service and its records counts the hypervisors on the host and the starts of each job
in the guests. Every job has to start at most once, 99 of a hundred have to run to their end and be recorded as such, no more
guests than slots may run, and nothing may be left over. Prints tables, writes target/bench/<CAMPAIGN_NAME>.json, keeps
evidence of failures in target/bench/<CAMPAIGN_NAME>/, and exits with 1 if one of these conditions was violated.
"""

import pathlib
import shutil
import signal
import sys
import tempfile
import threading
import time

import guests
import report
import settings as parameters
import tools
import verdict
import witness
from lane import Lane

# Time limit of one kill: the longest wait for its moment, the longest downtime, and everything else.
SECONDS_FOR_ONE_KILL = 120


def shares(kills, lanes):
    return [kills // lanes + (n < kills % lanes) for n in range(lanes)]


def prepare(settings):
    for path in (settings.binary, settings.replay, parameters.IMAGE / "template.json"):
        if not path.exists():
            raise SystemExit(f"campaign: {path} does not exist: use `make campaign`, which builds it")
    mounts = tools.Mounts()
    if "disk" in settings.extras and not mounts.possible:
        print(f"campaign: without full disks: {mounts.reason}", flush=True)
    if "descriptors" in settings.extras and not shutil.which("prlimit"):
        raise SystemExit("campaign: prlimit is missing (package util-linux)")
    return mounts


def run(settings, lanes, watch):
    """Runs until every lane has ended, or until a generous time limit."""
    watch.start()
    threads = [threading.Thread(target=lane.run, name=f"lane-{lane.number}", daemon=True) for lane in lanes]
    for thread in threads:
        thread.start()
    until = time.monotonic() + 1800 + SECONDS_FOR_ONE_KILL * max(lane.count for lane in lanes)
    for lane, thread in zip(lanes, threads):
        thread.join(max(0, until - time.monotonic()))
        if thread.is_alive():
            lane.broken = "its time is up"


def main():
    settings = parameters.from_environment()
    # Also clean up after Ctrl-C (which a shell may have ignored), when the terminal is closed or a CI job is cancelled.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: sys.exit("ended by a signal"))
    mounts = prepare(settings)
    work = pathlib.Path(tempfile.mkdtemp(prefix="mfc", dir="/tmp"))
    watch, observer, lanes = guests.Watch(), witness.Witness(), []
    began = time.monotonic()
    try:
        clock = tools.build_clock(work) if "clock" in settings.extras else None
        for number, count in enumerate(shares(settings.kills, settings.lanes)):
            lanes.append(Lane(number + 1, count, settings, work, watch, observer, mounts, clock))
        run(settings, lanes, watch)
        verdicts = [[verdict.judge(job, lane) for job in lane.client.jobs] for lane in lanes]
        result = report.gather(lanes, verdicts, settings, watch, time.monotonic() - began)
        for lane in lanes:
            lane.answer_again()
        evidence = report.keep_evidence(lanes, verdicts, settings)
        result["evidence"] = str(evidence) if evidence else None
        report.write(result, settings)
    finally:
        for lane in lanes:
            lane.close()
        watch.close()
        observer.close()
        shutil.rmtree(work, ignore_errors=True)
    report.table(result)
    if evidence:
        print(f"  evidence: {evidence}")
    if result["violations"]:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
