-- Times are UTC milliseconds since 1970. Ids are UUIDs in their usual spelling; a vm's is version 7, so ids sort by age.

-- One row per vm: the fold of its events. `record` is the whole vm as JSON; the columns beside it exist to be searched.
CREATE TABLE vms (
    id              TEXT    NOT NULL PRIMARY KEY,
    name            TEXT    NOT NULL,
    state           TEXT    NOT NULL,
    generation      INTEGER NOT NULL,
    template        TEXT    NOT NULL,
    template_digest TEXT    NOT NULL,
    os              TEXT    NOT NULL,
    cpus            INTEGER NOT NULL,
    memory_mib      INTEGER NOT NULL,
    -- Hash of what was asked for, so that a repeated request is told from a different one of the same name.
    request_hash    BLOB    NOT NULL,
    not_before      INTEGER,
    created_at      INTEGER NOT NULL,
    deleted_at      INTEGER,
    record          TEXT    NOT NULL
) STRICT;

-- A name belongs to one vm at a time; the record of a deleted one does not hold it.
CREATE UNIQUE INDEX vms_live_name ON vms (name) WHERE deleted_at IS NULL;
CREATE INDEX vms_live ON vms (id) WHERE deleted_at IS NULL;
CREATE INDEX vms_queued ON vms (id) WHERE state = 'queued';
CREATE INDEX vms_deleted_at ON vms (deleted_at) WHERE deleted_at IS NOT NULL;

-- Everything that ever happened to a vm, in order. AUTOINCREMENT: a sequence number is never given twice, because clients
-- resume the event stream by it.
CREATE TABLE events (
    seq        INTEGER PRIMARY KEY AUTOINCREMENT NOT NULL,
    vm_id      TEXT    NOT NULL REFERENCES vms (id) ON DELETE CASCADE,
    generation INTEGER NOT NULL,
    at         INTEGER NOT NULL,
    state      TEXT    NOT NULL,
    event      TEXT    NOT NULL,
    UNIQUE (vm_id, generation)
) STRICT;

-- Who holds a slot. A row appears with `slot_taken` and goes with the event that says the instance is gone, in the same
-- transaction as the vm's own row.
CREATE TABLE leases (
    vm_id      TEXT    NOT NULL PRIMARY KEY REFERENCES vms (id),
    os         TEXT    NOT NULL,
    cpus       INTEGER NOT NULL,
    memory_mib INTEGER NOT NULL,
    taken_at   INTEGER NOT NULL
) STRICT;

-- What only the guest may see (its script and environment), encrypted with the key in the data directory. Removed with the
-- instance.
CREATE TABLE vm_secrets (
    vm_id  TEXT NOT NULL PRIMARY KEY REFERENCES vms (id) ON DELETE CASCADE,
    sealed BLOB NOT NULL
) STRICT;

CREATE TABLE idempotency_keys (
    key          TEXT    NOT NULL PRIMARY KEY,
    request_hash BLOB    NOT NULL,
    vm_id        TEXT    NOT NULL REFERENCES vms (id) ON DELETE CASCADE,
    created_at   INTEGER NOT NULL
) STRICT;
CREATE INDEX idempotency_keys_vm ON idempotency_keys (vm_id);

-- API tokens, by the SHA-256 of their secret.
CREATE TABLE tokens (
    id         TEXT    NOT NULL PRIMARY KEY,
    name       TEXT    NOT NULL,
    scope      TEXT    NOT NULL,
    hash       BLOB    NOT NULL UNIQUE,
    created_at INTEGER NOT NULL,
    revoked_at INTEGER
) STRICT;
CREATE UNIQUE INDEX tokens_live_name ON tokens (name) WHERE revoked_at IS NULL;
