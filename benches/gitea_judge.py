"""The verdict of gitea.py: Gitea's account of every attempt against what jobs reported and what was done to them."""

import collections


def judge(run, campaign, wall, left):
    front, relay = run.front, run.relay
    begins, ends, readable = collections.Counter(), {}, 0
    for word in front.said:
        key = (word["number"], word["attempt"])
        if word["what"] == "begin":
            begins[key] += 1
            readable += bool(word["seen"].strip())
        else:
            ends[key] = word["at"]
    findings = collections.defaultdict(list)
    attempts = results = 0
    delays, after_power_off = [], collections.Counter()
    for job in campaign.jobs:
        now = run.gitea.job_of(job.run)
        attempts += len(job.completed)
        if now["status"] != "completed" or not job.over() or max(now["run_attempt"], 1) != job.attempts:
            findings["not_as_often"].append(f"job {job.id} ({job.fate}): {now['status']}, attempt {now['run_attempt']}")
        for attempt, (conclusion, at) in sorted(job.completed.items()):
            key = (job.number, attempt)
            about = f"job {job.id}, attempt {attempt} ({job.fate}): {conclusion}, runner {job.runners.get(attempt)}"
            if begins[key] > 1:
                findings["twice"].append(about)
            if job.done_to.get(attempt) == "powered_off" and key not in ends and conclusion != "success":
                # What the runner makes of the signal at the end of its guest is its own, but it must not be a success.
                after_power_off[conclusion] += 1
                continue
            if conclusion == "success":
                results += 1
                if begins[key] != 1 or key not in ends:
                    findings["success_without_work"].append(about)
                else:
                    delays.append(at - ends[key])
            elif key in ends:
                # The last line had run, so the runner had a result to deliver, unless Gitea had not heard it for too long.
                findings["given_up_while_working" if at < ends[key] else "lost"].append(about)
            elif attempt not in job.done_to:
                findings["failed_for_no_reason"].append(about)
            elif (job.done_to[attempt] == "cancelled") != (conclusion == "cancelled"):
                findings["other_conclusion"].append(about)
            if attempt == job.attempts and (conclusion == "success" or attempt not in job.done_to):
                log = run.gitea.log(job.id)
                if conclusion != "success":
                    run.keep(f"job-{job.id}.log", log)
                    continue
                whole = all(f"line {n} of job {job.number}\n" in log for n in range(1, 201))
                if not whole or f"last line of job {job.number}" not in log:
                    findings["lost_log"].append(about)
    if unknown := set(begins) - {(job.number, attempt) for job in campaign.jobs for attempt in job.completed}:
        findings["unknown_to_gitea"] = [str(key) for key in sorted(unknown)]
    # The row of an ephemeral runner that took a job goes with the job: one that Mayfly could delete was still busy.
    worked = {event["runner_id"] for event in relay.events if event["runner_id"]}
    removed = {row["id"]: row for row in front.deleted if row["status"] == 204}
    for row in removed.values():
        if row["busy"] or row["id"] in worked:
            findings["busy_deleted"].append(f"{row['name']} ({row['id']}, busy: {row['busy']})")
    # A service that was killed before it had the answer removes that runner before it registers the name again.
    for name, runners in front.registered.items():
        if any(int(runner["id"]) not in removed for runner in runners[:-1]):
            findings["name_used_twice"].append(name)
    vms = run.vms("&state=deleted")
    announced = collections.Counter(str(vm.get("announced_by")) for vm in vms)
    return {
        "pattern": run.pattern.name, "what": run.pattern.what, "expected_jobs": run.pattern.jobs(), "jobs": len(campaign.jobs),
        "attempts": attempts, "results": results, "lost": len(findings["lost"]) + len(findings["lost_log"]),
        "twice": len(findings["twice"]), "busy_deleted": len(findings["busy_deleted"]),
        "runners_left": left[0], "vms_left": left[1], "expected_to_lose": run.pattern.loses,
        "fates": dict(collections.Counter(job.fate for job in campaign.jobs)),
        "vms": len(vms), "registered": sum(map(len, front.registered.values())), "rows_deleted": len(front.deleted),
        "announced_by": dict(announced), "result_after_end_seconds": rounded(delays),
        "announced_before_result": bool(announced.get("hook")) and bool(delays) and min(delays) > run.pattern.report_seconds,
        "webhooks_passed": relay.passed, "webhooks_lost": relay.lost, "webhooks_refused": relay.refused,
        "times_killed": campaign.kills, "times_killed_while_coming_up": campaign.kills_while_coming_up,
        "after_power_off": dict(after_power_off), "registration_files_readable": readable, "memory": dict(campaign.memory), "wall_seconds": round(wall, 1),
        "fault_happened": None, "findings": {key: value for key, value in findings.items() if value},
    }


def rounded(values):
    return [round(min(values), 1), round(max(values), 1)] if values else None


def good(row):
    if row["jobs"] != row["expected_jobs"] or row["runners_left"] or row["vms_left"] or not row["fault_happened"]:
        return False
    memory = row["memory"]
    if row["registration_files_readable"] or memory.get("with_registration_token") or row["webhooks_refused"]:
        return False
    # Otherwise nothing was seen in the memory of the guests.
    if not memory.get("with_own_token"):
        return False
    if row["expected_to_lose"]:
        # The control counts only if results were lost, not if something else failed.
        return set(row["findings"]) <= {"lost", "busy_deleted"} and row["lost"] > 0
    return not row["findings"]


COLUMNS = [("pattern", "pattern", 16), ("jobs", "jobs", 6), ("attempts", "attempts", 9), ("results", "results", 8),
           ("lost", "lost", 5), ("twice", "twice", 6), ("busy_deleted", "busy deleted", 13), ("runners_left", "runners", 8),
           ("vms_left", "vms", 4), ("times_killed", "kills", 6), ("wall_seconds", "wall s", 8)]


def table(rows):
    show = lambda values: "".join(f"{v:<{w}}" if n == 0 else f"{v:>{w}}" for n, (v, (_, _, w)) in enumerate(zip(values, COLUMNS)))
    print("\n" + show([title for _, title, _ in COLUMNS]))
    for row in rows:
        verdict = "" if good(row) else "   BAD"
        if row["expected_to_lose"] and good(row):
            verdict = "   (has to lose)"
        print(show([row[key] for key, _, _ in COLUMNS]) + verdict, flush=True)
        for what, which in row["findings"].items():
            if not row["expected_to_lose"]:
                print(f"    {what}: " + "; ".join(which))
