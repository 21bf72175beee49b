"""Finds leftovers after all jobs have ended: processes, files, rows. Each function returns one sentence per leftover."""

import json
import pathlib
import re
import shutil
import sqlite3
import subprocess
import tempfile
import time

from guests import UUID, processes_naming

# Files that a running service may have in addition to those before the first job, such as a template's mark of its last use.
MAY_BE = re.compile(r"^(logs|logs/.*|mayfly\.db(-wal|-shm|-journal)?|admin\.token|templates/[^/]+/used)$")
MENTIONED = 10


def files(directory):
    directory = pathlib.Path(directory)
    return {str(path.relative_to(directory)) for path in directory.rglob("*")}


def left_files(directory, baseline):
    left = sorted(path for path in files(directory) - baseline if not MAY_BE.match(path))
    missing = sorted(baseline - files(directory))
    found = [f"left in the data directory: {path}" for path in left[:MENTIONED]]
    found += [f"missing in the data directory: {path}" for path in missing[:MENTIONED]]
    return found


def left_logs(directory, vms):
    """Only logs of vms with a record may exist."""
    logs = pathlib.Path(directory) / "logs"
    names = [path.name for path in logs.iterdir()] if logs.exists() else []
    strange = [name for name in names if (match := UUID.search(name)) and match[0] not in vms]
    return [f"log of a vm that has no record: {name}" for name in strange[:MENTIONED]]


def left_processes(data, besides, seconds):
    """Waits, because the last guest may just be ending."""
    until = time.monotonic() + seconds
    while (left := processes_naming(data, besides)) and time.monotonic() < until:
        time.sleep(0.1)
    return [f"process {pid} is left: {words}" for pid, words in left[:MENTIONED]]


def left_rows(database, jobs):
    """Checks the database file while the service is stopped."""
    found = []
    connection = sqlite3.connect(f"file:{database}?mode=ro", uri=True)
    try:
        one = lambda query, *values: connection.execute(query, values).fetchone()[0]
        if (said := one("PRAGMA integrity_check")) != "ok":
            found.append(f"the database is damaged: {said}")
        if broken := connection.execute("PRAGMA foreign_key_check").fetchall():
            found.append(f"the database has {len(broken)} rows that refer to nothing")
        for table in ("leases", "vm_secrets"):
            if count := one(f"SELECT COUNT(*) FROM {table}"):
                found.append(f"{count} rows are left in {table}")
        if count := one("SELECT COUNT(*) FROM vms WHERE deleted_at IS NULL"):
            found.append(f"{count} vms are not deleted")
        for job in jobs:
            vms = [row[0] for row in connection.execute(
                "SELECT id FROM vms WHERE json_extract(record, '$.draft.labels.campaign') = ?", (job.nonce,))]
            if len(vms) > 1:
                found.append(f"{job.nonce} was posted with one key and has {len(vms)} vms")
            if job.vm and job.vm not in vms:
                found.append(f"{job.nonce} was answered with vm {job.vm}, which has no row")
    finally:
        connection.close()
    return found


def replayed(program, database):
    """Each vm's events, applied in order, have to give its row; computed by Mayfly's library on a copy of the file."""
    with tempfile.TemporaryDirectory(prefix="mfr") as directory:
        for path in pathlib.Path(database).parent.glob("mayfly.db*"):
            shutil.copy(path, directory)
        ran = subprocess.run([program, f"{directory}/mayfly.db"], capture_output=True, text=True, timeout=300)
    if ran.returncode != 0:
        return [f"the database does not replay: {(ran.stdout + ran.stderr).strip()[-2000:]}"]
    return []


def changed_records(service, jobs):
    """A restarted service has to return the same records of vms."""
    found = []
    for job in jobs:
        if job.done is None:
            continue
        now = service.insist("GET", f"/vms/{job.vm}", seconds=60)
        if json.dumps(now, sort_keys=True) != json.dumps(job.record, sort_keys=True):
            found.append(f"the record of vm {job.vm} is another one after a restart")
    return found[:MENTIONED]
