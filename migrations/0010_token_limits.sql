-- `limits` is an object as JSON; NULL: the token has none. Unknown members are refused when it is read.
ALTER TABLE tokens ADD COLUMN expires_at INTEGER;
ALTER TABLE tokens ADD COLUMN last_used_at INTEGER;
ALTER TABLE tokens ADD COLUMN limits TEXT;

-- The token that a vm was created with; its record says which one it is.
ALTER TABLE vms ADD COLUMN created_by TEXT GENERATED ALWAYS AS (json_extract(record, '$.draft.created_by')) VIRTUAL;
CREATE INDEX vms_created_by ON vms (created_by) WHERE created_by IS NOT NULL AND deleted_at IS NULL;

-- A key belongs to an owner: `tokens` (all tokens without limits share theirs), `service` (its loops), or the id of a token
-- with limits.
CREATE TABLE owned_idempotency_keys (
    owner        TEXT    NOT NULL,
    key          TEXT    NOT NULL,
    request_hash BLOB    NOT NULL,
    vm_id        TEXT    NOT NULL REFERENCES vms (id) ON DELETE CASCADE,
    created_at   INTEGER NOT NULL,
    PRIMARY KEY (owner, key)
) STRICT;
INSERT INTO owned_idempotency_keys (owner, key, request_hash, vm_id, created_at)
SELECT CASE
           WHEN vms.pool IS NOT NULL THEN 'service'
           WHEN k.key GLOB 'mayfly-canary-*' AND json_extract(vms.record, '$.draft.labels."mayfly.canary"') IS NOT NULL
               THEN 'service'
           ELSE 'tokens'
       END,
       k.key, k.request_hash, k.vm_id, k.created_at
  FROM idempotency_keys AS k JOIN vms ON vms.id = k.vm_id;
DROP TABLE idempotency_keys;
ALTER TABLE owned_idempotency_keys RENAME TO idempotency_keys;
CREATE INDEX idempotency_keys_vm ON idempotency_keys (vm_id);
