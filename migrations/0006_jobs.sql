-- What GitHub sent to the webhook: written before it is answered, worked later. One delivery is one row, however often it comes.
CREATE TABLE webhook_deliveries (
    seq         INTEGER PRIMARY KEY AUTOINCREMENT NOT NULL,
    guid        TEXT    NOT NULL UNIQUE,
    event       TEXT    NOT NULL,
    action      TEXT,
    received_at INTEGER NOT NULL,
    -- pending, worked, ignored, refused
    result      TEXT    NOT NULL,
    -- Why it was ignored or refused.
    detail      TEXT,
    worked_at   INTEGER,
    -- The payload, until it is worked.
    body        BLOB
) STRICT;
CREATE INDEX webhook_deliveries_pending ON webhook_deliveries (seq) WHERE result = 'pending';
CREATE INDEX webhook_deliveries_received_at ON webhook_deliveries (received_at);

-- GitHub's jobs, one row per job and attempt. `record` is the whole job as JSON; the columns beside it exist to be searched. The
-- row of a job that is over stays for a while: late news of it must not bring it back.
CREATE TABLE jobs (
    id           INTEGER NOT NULL PRIMARY KEY,
    repository   TEXT    NOT NULL,
    status       TEXT    NOT NULL,
    -- Who wants it; NULL: nobody here.
    pool         TEXT,
    updated_at   INTEGER NOT NULL,
    completed_at INTEGER,
    record       TEXT    NOT NULL
) STRICT;
CREATE INDEX jobs_open ON jobs (id) WHERE completed_at IS NULL;
CREATE INDEX jobs_completed_at ON jobs (completed_at) WHERE completed_at IS NOT NULL;
CREATE INDEX jobs_pool ON jobs (pool, id) WHERE pool IS NOT NULL;

-- GitHub says which runner has a job by the runner's name.
CREATE INDEX vms_runner ON vms (json_extract(record, '$.registered.name'))
    WHERE json_extract(record, '$.registered.name') IS NOT NULL;
