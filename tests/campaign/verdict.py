"""Compares the two views of one job: the guest's reports that bypass the service, and the service's record."""

from dataclasses import dataclass

import guests


@dataclass
class Verdict:
    job: object
    starts: int
    ended: bool
    consoles: int
    # well, twice, cut short, never ran, wrong record, no answer
    result: str
    # The faults during its life, the strongest first.
    cause: str
    recorded: str
    violations: list


def judge(job, lane):
    vms = lane.watch.of_vm(lane.host, job.vm) if job.vm else []
    for guest in vms:
        if guest.gone is None:
            guest.read_console()
    told = set(lane.witness.runs("start", job.nonce))
    console = {run for guest in vms for nonce, run in guests.CONSOLE_START.findall(guest.console_text) if nonce == job.nonce}
    starts = len(told | console)
    ended = bool(lane.witness.runs("end", job.nonce))
    violations = [f"{job.nonce}: {complaint}" for complaint in job.complaints]
    if starts > 1:
        violations.append(f"{job.nonce}: its job started {starts} times")
    if job.vm and job.done is None:
        violations.append(f"{job.nonce}: vm {job.vm} did not come to its end")
    result = result_of(job, starts, ended)
    if job.delete_answered and result == "cut short":
        violations.append(f"{job.nonce}: a DELETE without force ended its job")
    violations += [f"{job.nonce}: {lie}" for lie in lies(job, starts)]
    return Verdict(job, starts, ended, len(console), result, cause_of(job, lane), recorded(job), violations)


def lies(job, starts):
    """Contents that a record must never have, whatever faults occurred."""
    record = job.record or {}
    code = (record.get("job") or {}).get("exit_code")
    if code is not None and code != job.code:
        yield f"exit code {code} is recorded, and the job's is {job.code}"
    if starts == 0 and (record.get("outcome") or {}).get("result") == "completed":
        yield "recorded as completed, and its job never started"


def result_of(job, starts, ended):
    if starts > 1:
        return "twice"
    if job.vm is None:
        return "no answer"
    record = job.record or {}
    if starts == 0:
        return "never ran"
    if not ended:
        return "cut short"
    completed = (record.get("outcome") or {}).get("result") == "completed"
    if completed and (record.get("job") or {}).get("exit_code") == job.code:
        return "well"
    return "wrong record"


def cause_of(job, lane):
    """The true cause, as far as the campaign knows it: what it did to the service while this job had a hypervisor, or since it
    was posted when it never had one. "nothing" is the service's own fault, or a machine too slow for the boot budget."""
    seen = lane.watch.of_vm(lane.host, job.vm) if job.vm else []
    began = min((guest.first_seen for guest in seen), default=job.posted)
    ended = job.done if job.done is not None else float("inf")
    done = [entry for entry in lane.disturber.history if entry.overlaps(began, ended)]
    for what, name in (("disk", "full disk"), ("descriptors", "few descriptors"), ("clock", "clock step"), ("stall", "stall")):
        if any(entry.what == what for entry in done):
            return name
    aways = [min(e.ended or ended, ended) - max(e.began, began) for e in done if e.what == "away"]
    if any(seconds > lane.settings.boot_seconds for seconds in aways):
        return "away longer than the boot budget"
    return "killed" if aways else "nothing"


def recorded(job):
    record = job.record or {}
    outcome = record.get("outcome") or {}
    words = [outcome.get("result") or record.get("state") or "nothing", outcome.get("code"), record.get("end_signal")]
    return " ".join(word for word in words if word)
