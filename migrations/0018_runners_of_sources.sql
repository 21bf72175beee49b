-- Runners are registered at named sources of jobs. Those that were registered before belong to the source `github`.
ALTER TABLE github_runners RENAME TO runners;
ALTER TABLE runners ADD COLUMN source TEXT NOT NULL DEFAULT 'github';
DROP INDEX github_runners_vm;
CREATE INDEX runners_vm ON runners (vm_id);
