-- A vm may wait for an image that is not here yet: what follows from its template is not known then, and is NULL. The columns
-- are made anew beside the old ones, because SQLite cannot take NOT NULL away, and the table cannot be made anew while others
-- refer to it.
ALTER TABLE vms RENAME COLUMN template_digest TO old_template_digest;
ALTER TABLE vms RENAME COLUMN driver TO old_driver;
ALTER TABLE vms RENAME COLUMN os TO old_os;
ALTER TABLE vms RENAME COLUMN cpus TO old_cpus;
ALTER TABLE vms RENAME COLUMN memory_mib TO old_memory_mib;
ALTER TABLE vms ADD COLUMN template_digest TEXT;
ALTER TABLE vms ADD COLUMN driver TEXT;
ALTER TABLE vms ADD COLUMN os TEXT;
ALTER TABLE vms ADD COLUMN cpus INTEGER;
ALTER TABLE vms ADD COLUMN memory_mib INTEGER;
UPDATE vms SET template_digest = old_template_digest, driver = old_driver, os = old_os, cpus = old_cpus,
    memory_mib = old_memory_mib;
ALTER TABLE vms DROP COLUMN old_template_digest;
ALTER TABLE vms DROP COLUMN old_driver;
ALTER TABLE vms DROP COLUMN old_os;
ALTER TABLE vms DROP COLUMN old_cpus;
ALTER TABLE vms DROP COLUMN old_memory_mib;
