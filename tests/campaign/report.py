"""Prints tables, and writes the JSON and the evidence for every failed job."""

import collections
import json
import shutil
import statistics

from service import NotAnswered, Refused

GOAL_PERCENT = 99.0
LOG_SLICE = 256 << 10
EVIDENCE_JOBS = 50


def gather(lanes, verdicts, settings, watch, wall):
    jobs = [verdict for of_lane in verdicts for verdict in of_lane]
    well = sum(verdict.result == "well" for verdict in jobs)
    history = [entry for lane in lanes for entry in lane.disturber.history]
    aways = [entry.ended - entry.began for entry in history if entry.what == "away" and entry.ended]
    kills = sum(lane.disturber.kills for lane in lanes)
    coming_up = sum(lane.disturber.kills_coming_up for lane in lanes)
    percent = 100 * well / len(jobs) if jobs else 0.0
    # 99 of a hundred; of fewer jobs, all.
    enough = percent >= GOAL_PERCENT
    violations = [violation for verdict in jobs for violation in verdict.violations]
    for lane in lanes:
        violations += [f"lane {lane.number}: {v['what']}: {', '.join(v['instances'])}" for v in lane.host.violations]
        violations += [f"lane {lane.number}: {v['what']}: {v['detail']}" for v in lane.disturber.violations]
        violations += [f"lane {lane.number}: {what}" for what in lane.left]
        if lane.client.broken:
            violations.append(f"lane {lane.number}: the client broke: {lane.client.broken}")
        if lane.broken:
            violations.append(f"lane {lane.number} could not be run to its end: {lane.broken}")
    if not enough:
        violations.append(f"{well} of {len(jobs)} jobs went well, which is less than {GOAL_PERCENT:g} %")
    if kills and coming_up * 2 < kills:
        violations.append(f"only {coming_up} of {kills} kills came while a guest came up: this shows too little")
    starts = [seconds for lane in lanes for seconds in lane.start_times()]
    return {
        "name": settings.name, "binary": settings.profile, "seed": settings.seed, "lanes": settings.lanes,
        "slots": settings.slots, "accelerator": settings.accelerator, "boot_seconds": settings.boot_seconds,
        "configure_seconds": settings.configure_seconds, "wall_seconds": round(wall, 1),
        "kills": kills, "kills_while_a_guest_came_up": coming_up,
        "away_median_seconds": round(statistics.median(aways), 1) if aways else None,
        "away_longest_seconds": round(max(aways), 1) if aways else None,
        "away_longer_than_boot_budget": sum(seconds > settings.boot_seconds for seconds in aways),
        "disturbances": dict(collections.Counter(e.what for e in history if e.what not in ("kill", "away"))),
        "starts_that_failed": sum(lane.disturber.failed_starts for lane in lanes),
        "hypervisor_to_job_median_seconds": round(statistics.median(starts), 1) if starts else None,
        "jobs": len(jobs), "well": well, "well_percent": round(percent, 2),
        "jobs_longer_than_boot_budget": sum(verdict.job.long for verdict in jobs),
        "jobs_deleted_while_they_ran": sum(verdict.job.delete_answered for verdict in jobs),
        "started_more_than_once": sum(verdict.starts > 1 for verdict in jobs),
        "guests_at_once": max((lane.host.peak for lane in lanes), default=0),
        "hypervisors_seen": sum(guest.lasted() for lane in lanes for guest in lane.host.all),
        "looks_at_the_host": watch.looks, "longest_gap_between_looks_seconds": round(watch.longest_gap, 2),
        "not_well": [row(verdict) for verdict in jobs if verdict.result != "well"],
        "violations": violations,
    }


def row(verdict):
    record = verdict.job.record or {}
    return {
        "nonce": verdict.job.nonce, "vm": verdict.job.vm, "result": verdict.result, "cause": verdict.cause,
        "recorded": verdict.recorded, "starts": verdict.starts, "starts_on_the_console": verdict.consoles,
        "seconds": verdict.job.seconds, "handover": verdict.job.template, "attempt": record.get("attempt"),
        "deleted_by_the_client": verdict.job.delete_answered, "last_fault": record.get("last_fault"),
    }


LINES = [
    ("kills", "kills"), ("kills_while_a_guest_came_up", "  of them while a guest came up"),
    ("away_median_seconds", "away, median s"), ("away_longest_seconds", "away, longest s"),
    ("away_longer_than_boot_budget", "away longer than the boot budget"), ("starts_that_failed", "starts that failed"),
    ("hypervisor_to_job_median_seconds", "hypervisor to job, median s"), ("jobs", "jobs"),
    ("jobs_longer_than_boot_budget", "  longer than the boot budget"),
    ("jobs_deleted_while_they_ran", "  with a DELETE while they ran"), ("well", "  that went well"),
    ("well_percent", "  in percent"), ("started_more_than_once", "  that started more than once"),
    ("guests_at_once", "most guests at once"), ("hypervisors_seen", "hypervisors seen"), ("wall_seconds", "wall s"),
]


def table(result):
    print(f"\n{result['name']}: seed {result['seed']}, {result['lanes']} lanes of {result['slots']} slots, "
          f"{result['accelerator']}, {result['binary']} binary, boot budget {result['boot_seconds']} s")
    for key, title in LINES:
        print(f"  {title:<36}{'-' if result[key] is None else result[key]:>10}")
    for what, count in sorted(result["disturbances"].items()):
        print(f"  {what:<36}{count:>10}")
    if result["not_well"]:
        print(f"\n  {'by the observer':<14} {'what was done to the service':<34} {'by the record':<52} jobs")
        groups = collections.Counter((r["result"], r["cause"], r["recorded"]) for r in result["not_well"])
        for (what, cause, recorded), count in sorted(groups.items()):
            print(f"  {what:<14} {cause:<34} {recorded:<52} {count:>4}")
    print(f"\n  violations: {len(result['violations']) or 'none'}")
    for violation in result["violations"][:40]:
        print(f"    {violation}")
    if len(result["violations"]) > 40:
        print(f"    and {len(result['violations']) - 40} more")


def write(result, settings):
    settings.output.mkdir(parents=True, exist_ok=True)
    (settings.output / f"{settings.name}.json").write_text(json.dumps(result, indent=1) + "\n")


def keep_evidence(lanes, verdicts, settings):
    """Collects evidence while the service still runs; missing answers are left out. Returns the directory, if there is any."""
    shutil.rmtree(settings.evidence, ignore_errors=True)
    suspects = [(lane, verdict) for lane, of_lane in zip(lanes, verdicts) for verdict in of_lane
                if verdict.result != "well" or verdict.violations]
    troubled = suspects or any(lane.left or lane.broken or lane.client.broken or lane.host.violations or lane.disturber.violations for lane in lanes)
    if not troubled:
        return None
    for lane in lanes:
        directory = settings.evidence / f"lane-{lane.number}"
        directory.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(lane.service.log_path, directory / "serve.log")
        (directory / "disturbances.txt").write_text("".join(
            f"{entry.began - lane.began:8.2f} {('%8.2f' % (entry.ended - lane.began)) if entry.ended else '       …'} "
            f"{entry.what} {entry.detail}\n" for entry in lane.disturber.history))
    for lane, verdict in suspects[:EVIDENCE_JOBS]:
        one_job(lane, verdict, settings.evidence / verdict.job.nonce)
    return settings.evidence


def one_job(lane, verdict, directory):
    directory.mkdir(parents=True, exist_ok=True)
    job = verdict.job
    at = lambda moment: None if moment is None else round(moment - lane.began, 2)
    guests = [guest for guest in lane.watch.of_vm(lane.host, job.vm) if guest.lasted()] if job.vm else []
    observed = {
        **row(verdict), "violations": verdict.violations, "posted": at(job.posted), "deleted": at(job.done),
        "starts": {run: at(t) for run, t in lane.witness.runs("start", job.nonce).items()},
        "ends": {run: at(t) for run, t in lane.witness.runs("end", job.nonce).items()},
        "hypervisors": [{"pid": g.pid, "instance": g.instance, "from": at(g.first_seen), "to": at(g.gone)} for g in guests],
        "disturbances": [[at(e.began), at(e.ended), e.what, e.detail] for e in lane.disturber.history
                         if e.overlaps(job.posted, job.done if job.done is not None else float("inf"))],
        "seconds_count_from": "the start of the lane",
    }
    (directory / "observed.json").write_text(json.dumps(observed, indent=1) + "\n")
    (directory / "vm.json").write_text(json.dumps(job.record, indent=1) + "\n")
    if job.vm and lane.service.alive():
        try:
            events = lane.service.insist("GET", f"/vms/{job.vm}/events?limit=200", seconds=5)
            (directory / "events.json").write_text(json.dumps(events, indent=1) + "\n")
        except (NotAnswered, Refused):
            pass
    for n, guest in enumerate(guests):
        (directory / f"console-{n + 1}.log").write_text(guest.console_text[-65536:])
    with open(lane.service.log_path, "rb") as log:
        to = job.log_to or lane.service.log_size()
        log.seek(max(job.log_from, to - LOG_SLICE))
        (directory / "serve.log").write_bytes(log.read(max(0, to - log.tell())))
