-- Which driver a queued vm waits for: a host may have one that works beside one that does not.
ALTER TABLE vms ADD COLUMN driver TEXT NOT NULL DEFAULT '';
UPDATE vms SET driver = COALESCE(json_extract(record, '$.draft.driver'), '');
