-- Pools that were made through the API; those of the configuration are in no table. `record` is the whole pool as JSON.
CREATE TABLE pools (
    name       TEXT    NOT NULL PRIMARY KEY,
    created_at INTEGER NOT NULL,
    updated_at INTEGER NOT NULL,
    record     TEXT    NOT NULL
) STRICT;

-- The pool that a vm was made for. A vm never changes its pool, and its record says which one it is.
ALTER TABLE vms ADD COLUMN pool TEXT GENERATED ALWAYS AS (json_extract(record, '$.draft.pool')) VIRTUAL;
CREATE INDEX vms_pool ON vms (pool, id) WHERE pool IS NOT NULL;

-- Which vms ran a job of GitHub's, by GitHub's number of the job. A job that was given to a runner twice has two vms.
CREATE TABLE vm_jobs (
    job_id INTEGER NOT NULL,
    vm_id  TEXT    NOT NULL REFERENCES vms (id) ON DELETE CASCADE,
    PRIMARY KEY (job_id, vm_id)
) STRICT, WITHOUT ROWID;
CREATE INDEX vm_jobs_vm ON vm_jobs (vm_id);
