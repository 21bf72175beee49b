-- The labels of each vm, to find vms by them. They never change: the record says which they are.
CREATE TABLE vm_labels (
    vm_id TEXT NOT NULL REFERENCES vms (id) ON DELETE CASCADE,
    key   TEXT NOT NULL,
    value TEXT NOT NULL,
    PRIMARY KEY (vm_id, key)
) STRICT, WITHOUT ROWID;
CREATE INDEX vm_labels_value ON vm_labels (key, value, vm_id);
INSERT INTO vm_labels (vm_id, key, value)
    SELECT vms.id, label.key, label.value FROM vms, json_each(vms.record, '$.draft.labels') AS label;

-- Lists of all vms, deleted ones included, by what identifies few of them. Each index has the list's order too.
CREATE INDEX vms_name ON vms (name, id);
CREATE INDEX vms_template ON vms (template, id);
CREATE INDEX vms_template_digest ON vms (template_digest, id);

-- How a vm ended, for lists of failed ones among many that completed.
ALTER TABLE vms ADD COLUMN outcome TEXT GENERATED ALWAYS AS (json_extract(record, '$.outcome.result')) VIRTUAL;
CREATE INDEX vms_outcome ON vms (outcome, id) WHERE outcome IS NOT NULL;
