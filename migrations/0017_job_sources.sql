-- Jobs come from named sources. What was stored before belongs to the source `github`.

-- A row per job and attempt. `seq` is the order in which they were first reported: ids are numbers of one server.
CREATE TABLE jobs_of_sources (
    seq          INTEGER PRIMARY KEY AUTOINCREMENT NOT NULL,
    source       TEXT    NOT NULL,
    id           INTEGER NOT NULL,
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
INSERT INTO jobs_of_sources (source, id, attempt, repository, status, pool, updated_at, completed_at, record)
SELECT 'github', id, json_extract(record, '$.run_attempt'), repository, status, pool, updated_at, completed_at,
       json_set(record, '$.source', 'github')
  FROM jobs ORDER BY id;

-- The key of a pool's vm names the source and the attempt. Only the key that is used next can still be looked up.
UPDATE idempotency_keys
   SET key = (SELECT 'job-github-' || id || '-' || json_extract(record, '$.run_attempt') || '-' ||
                     (json_extract(record, '$.tries') + 1)
                FROM jobs WHERE key = 'github-job-' || id || '-' || (json_extract(record, '$.tries') + 1))
 WHERE owner = 'service'
   AND key IN (SELECT 'github-job-' || id || '-' || (json_extract(record, '$.tries') + 1) FROM jobs);

DROP TABLE jobs;
ALTER TABLE jobs_of_sources RENAME TO jobs;
CREATE INDEX jobs_open ON jobs (seq) WHERE completed_at IS NULL;
CREATE INDEX jobs_completed_at ON jobs (completed_at) WHERE completed_at IS NOT NULL;
CREATE INDEX jobs_pool ON jobs (pool, seq) WHERE pool IS NOT NULL;

-- Which vms ran a job. A job that was given to a runner twice has two vms.
CREATE TABLE vm_jobs_of_sources (
    job_id  INTEGER NOT NULL,
    source  TEXT    NOT NULL,
    attempt INTEGER NOT NULL,
    vm_id   TEXT    NOT NULL REFERENCES vms (id) ON DELETE CASCADE,
    PRIMARY KEY (job_id, source, attempt, vm_id)
) STRICT, WITHOUT ROWID;
INSERT INTO vm_jobs_of_sources (job_id, source, attempt, vm_id)
SELECT job_id, 'github', COALESCE((SELECT attempt FROM jobs WHERE source = 'github' AND id = job_id), 1), vm_id
  FROM vm_jobs;
DROP TABLE vm_jobs;
ALTER TABLE vm_jobs_of_sources RENAME TO vm_jobs;
CREATE INDEX vm_jobs_vm ON vm_jobs (vm_id);

-- Each source has its own ids of deliveries and its own secret, so a delivery is known to its source only.
CREATE TABLE deliveries_of_sources (
    seq         INTEGER PRIMARY KEY AUTOINCREMENT NOT NULL,
    source      TEXT    NOT NULL,
    guid        TEXT    NOT NULL,
    event       TEXT    NOT NULL,
    action      TEXT,
    received_at INTEGER NOT NULL,
    -- pending, worked, ignored, refused
    result      TEXT    NOT NULL,
    -- Why it was ignored or refused.
    detail      TEXT,
    worked_at   INTEGER,
    -- The payload, until it is processed.
    body        BLOB,
    -- SHA-256 of the payload. The id of a delivery is a header, which the signature does not cover: the same signed body
    -- under another id is the same delivery.
    content     BLOB,
    UNIQUE (source, guid)
) STRICT;
INSERT INTO deliveries_of_sources
       (seq, source, guid, event, action, received_at, result, detail, worked_at, body, content)
SELECT seq, 'github', guid, event, action, received_at, result, detail, worked_at, body, content
  FROM webhook_deliveries;
DROP TABLE webhook_deliveries;
ALTER TABLE deliveries_of_sources RENAME TO webhook_deliveries;
CREATE INDEX webhook_deliveries_pending ON webhook_deliveries (seq) WHERE result = 'pending';
CREATE INDEX webhook_deliveries_received_at ON webhook_deliveries (received_at);
CREATE UNIQUE INDEX webhook_deliveries_content ON webhook_deliveries (source, content) WHERE content IS NOT NULL;
