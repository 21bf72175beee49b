-- Events are about a vm or about a template; one sequence numbers both, because clients resume one stream. The table is made
-- anew: SQLite cannot take a NOT NULL away. Every position stays what it was, and so does the counter, which may be ahead of
-- the newest event when that one was forgotten.
CREATE TABLE events_of_all (
    seq        INTEGER PRIMARY KEY AUTOINCREMENT NOT NULL,
    vm_id      TEXT    REFERENCES vms (id) ON DELETE CASCADE,
    -- Name of the template, or its digest where it has no name.
    template   TEXT,
    -- Of a vm's events only.
    generation INTEGER,
    at         INTEGER NOT NULL,
    -- Of a vm's events only.
    state      TEXT,
    event      TEXT    NOT NULL,
    UNIQUE (vm_id, generation),
    CHECK ((vm_id IS NULL) <> (template IS NULL)),
    CHECK ((vm_id IS NULL) = (generation IS NULL) AND (vm_id IS NULL) = (state IS NULL))
) STRICT;
INSERT INTO events_of_all (seq, vm_id, generation, at, state, event)
    SELECT seq, vm_id, generation, at, state, event FROM events;
DELETE FROM sqlite_sequence WHERE name = 'events_of_all';
INSERT INTO sqlite_sequence (name, seq) SELECT 'events_of_all', seq FROM sqlite_sequence WHERE name = 'events';
DROP TABLE events;
ALTER TABLE events_of_all RENAME TO events;
CREATE INDEX events_template ON events (template, seq) WHERE template IS NOT NULL;
CREATE INDEX events_template_at ON events (at) WHERE template IS NOT NULL;

-- One row per pull. `record` is the whole pull as JSON, without secrets; the columns beside it exist to be searched.
CREATE TABLE pulls (
    id           TEXT    NOT NULL PRIMARY KEY,
    state        TEXT    NOT NULL,
    -- Grows with every change.
    generation   INTEGER NOT NULL,
    -- Of what was asked for: an equal request joins the pull that is under way.
    request_hash BLOB    NOT NULL,
    created_at   INTEGER NOT NULL,
    ended_at     INTEGER,
    record       TEXT    NOT NULL
) STRICT;
CREATE UNIQUE INDEX pulls_live_request ON pulls (request_hash) WHERE ended_at IS NULL;
CREATE INDEX pulls_live ON pulls (id) WHERE ended_at IS NULL;
CREATE INDEX pulls_ended_at ON pulls (ended_at) WHERE ended_at IS NOT NULL;

-- Templates that follow a tag.
CREATE TABLE watches (
    template TEXT NOT NULL PRIMARY KEY,
    record   TEXT NOT NULL
) STRICT;
