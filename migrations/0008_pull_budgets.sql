-- A pull says the budgets that were asked for, and nothing of those that are usual.
UPDATE pulls SET record = json_remove(record, '$.spec.budgets.queue_seconds', '$.spec.budgets_given');
