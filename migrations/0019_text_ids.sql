-- Ids of jobs and runners are numbers at some servers, and text at others: the columns hold them as text. Records keep them
-- as they are.

CREATE TABLE jobs_with_text_ids (
    seq          INTEGER PRIMARY KEY AUTOINCREMENT NOT NULL,
    source       TEXT    NOT NULL,
    id           TEXT    NOT NULL,
    attempt      INTEGER NOT NULL,
    repository   TEXT    NOT NULL,
    status       TEXT    NOT NULL,
    -- The pool that takes it; NULL: none does.
    pool         TEXT,
    updated_at   INTEGER NOT NULL,
    completed_at INTEGER,
    -- The whole job as JSON; the columns beside it exist to be searched.
    record       TEXT    NOT NULL,
    UNIQUE (source, id, attempt)
) STRICT;
INSERT INTO jobs_with_text_ids (seq, source, id, attempt, repository, status, pool, updated_at, completed_at, record)
SELECT seq, source, CAST(id AS TEXT), attempt, repository, status, pool, updated_at, completed_at, record
  FROM jobs ORDER BY seq;
-- A cursor of a listing is a `seq`: the number of a deleted row is not used again.
DELETE FROM sqlite_sequence WHERE name = 'jobs_with_text_ids';
INSERT INTO sqlite_sequence (name, seq) SELECT 'jobs_with_text_ids', seq FROM sqlite_sequence WHERE name = 'jobs';
DROP TABLE jobs;
ALTER TABLE jobs_with_text_ids RENAME TO jobs;
CREATE INDEX jobs_open ON jobs (seq) WHERE completed_at IS NULL;
CREATE INDEX jobs_completed_at ON jobs (completed_at) WHERE completed_at IS NOT NULL;
CREATE INDEX jobs_pool ON jobs (pool, seq) WHERE pool IS NOT NULL;

CREATE TABLE vm_jobs_with_text_ids (
    job_id  TEXT    NOT NULL,
    source  TEXT    NOT NULL,
    attempt INTEGER NOT NULL,
    vm_id   TEXT    NOT NULL REFERENCES vms (id) ON DELETE CASCADE,
    PRIMARY KEY (job_id, source, attempt, vm_id)
) STRICT, WITHOUT ROWID;
INSERT INTO vm_jobs_with_text_ids (job_id, source, attempt, vm_id)
SELECT CAST(job_id AS TEXT), source, attempt, vm_id FROM vm_jobs;
DROP TABLE vm_jobs;
ALTER TABLE vm_jobs_with_text_ids RENAME TO vm_jobs;
CREATE INDEX vm_jobs_vm ON vm_jobs (vm_id);

-- The runner's id.
ALTER TABLE runners ADD COLUMN remote_id TEXT;
UPDATE runners SET remote_id = CAST(runner_id AS TEXT) WHERE runner_id IS NOT NULL;
ALTER TABLE runners DROP COLUMN runner_id;
ALTER TABLE runners RENAME COLUMN remote_id TO runner_id;
