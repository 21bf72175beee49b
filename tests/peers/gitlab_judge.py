"""The verdict of gitlab.py: what GitLab has of each job, against its script, what its guest reported and what was done to it."""

import collections
import hashlib

LINES = 100
# How each fate ends, if nothing else happens to the job.
ENDS = {
    "plain": ("success", None), "fails": ("failed", "script_failure"), "refused": ("failed", "script_failure"),
    "timed_out": ("failed", "job_execution_timeout"), "canceled_running": ("canceled", None),
    "canceled_early": ("canceled", None), "guest_killed": ("failed", "runner_system_failure"),
    "outlived": ("abandoned", None),
}


def ends_of(job):
    """What the job may end as. `struck` by the service: a session was open, and how its script ended is not known."""
    ends = {ENDS[job.fate]}
    if "runner" in job.struck:
        ends.add(("abandoned", None))
    if "service" in job.struck:
        ends.add(("failed", "runner_system_failure"))
    return ends


def judge(pattern, jobs, left, seen, wall, kills):
    findings = collections.defaultdict(list)
    boots = {}
    for job in jobs:
        end = (job.state, job.failure)
        about = f"job {job.id} ({job.fate}, struck by {sorted(job.struck) or 'nothing'}): {end}"
        begins, finished = job.said["begin"], len(job.said["end"])
        if job.taken != 1 or len(begins) > 1 or finished > 1:
            findings["twice"].append(f"{about}: taken {job.taken} times, begun {len(begins)} times")
        for boot in set(begins):
            if boots.setdefault(boot, job.id) != job.id:
                findings["guest_used_twice"].append(f"{about}, and job {boots[boot]}")
        if end not in ends_of(job):
            findings["wrong_end"].append(about)
        elif job.state == "success" or (job.fate == "fails" and job.failure == "script_failure"):
            if not finished or (job.fate == "fails" and job.exit_code not in (None, 1, job.code)):
                findings["not_as_its_script"].append(f"{about}, exit code {job.exit_code}")
        elif finished and not job.struck:
            findings["not_as_its_script"].append(f"{about}, but its script ended")
        if job.state == "success":
            digest = hashlib.sha256(job.secret.encode()).hexdigest()
            if any(f"line {n} of job {job.id}\n" not in job.log() for n in range(LINES)) or job.log().count(digest) != 2:
                findings["lost_log"].append(about)
        if job.fate == "refused" and ("is not allowed on this runner" not in job.log() or begins):
            findings["not_refused"].append(about)
    if pattern.waits and not any("waits for a slot, position" in job.log() for job in jobs):
        findings["none_waited"].append("there were more jobs than slots, and no log says that its job waits")
    for what, which in (("secret_seen", seen), ("left", left)):
        if which:
            findings[what] = list(which)
    count = lambda which: sum(which(job) for job in jobs)
    return {
        "pattern": pattern.name, "what": pattern.what, "jobs": len(jobs),
        "as_said": count(lambda job: (job.state, job.failure) == ENDS[job.fate]),
        "system_failures": count(lambda job: job.failure == "runner_system_failure" and job.fate != "guest_killed"),
        "abandoned": count(lambda job: job.state == "abandoned" and job.fate != "outlived"),
        "twice": len(findings["twice"]), "secrets": len(seen), "left": len(left), "kills": dict(kills),
        "struck": count(lambda job: bool(job.struck)), "fates": dict(collections.Counter(job.fate for job in jobs)),
        "wall_seconds": round(wall), "has_to_be_bad": pattern.bad,
        "findings": {key: value for key, value in findings.items() if value},
    }


# What the executor of the counter-proof does wrong.
BAD = {"twice", "wrong_end", "secret_seen", "left"}


def good(row):
    return BAD <= set(row["findings"]) if row["has_to_be_bad"] else not row["findings"]


COLUMNS = [("pattern", "pattern", 16), ("jobs", "jobs", 6), ("as_said", "as said", 9), ("system_failures", "service killed", 16),
           ("abandoned", "runner killed", 15), ("twice", "twice", 7), ("secrets", "secrets", 9), ("left", "left", 6),
           ("wall_seconds", "wall s", 8)]


def table(rows):
    show = lambda values: "".join(f"{v:<{w}}" if n == 0 else f"{v:>{w}}" for n, (v, (_, _, w)) in enumerate(zip(values, COLUMNS)))
    print("\n" + show([title for _, title, _ in COLUMNS]))
    for row in rows:
        verdict = ("   (has to be bad)" if row["has_to_be_bad"] else "") if good(row) else "   BAD"
        print(show([row[key] for key, _, _ in COLUMNS]) + verdict)
        if row["kills"]:
            print("    killed: " + ", ".join(f"{what} {times} times" for what, times in row["kills"].items()))
        for what, which in row["findings"].items():
            if not row["has_to_be_bad"]:
                print(f"    {what}: " + "; ".join(which))
