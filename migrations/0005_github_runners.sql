-- What Mayfly registered at GitHub, or was about to: a row is written before GitHub is asked, and goes when GitHub says that
-- the runner is gone. Nothing is removed at GitHub that has no row here. A row may outlive the record of its vm, so it does
-- not refer to it.
CREATE TABLE github_runners (
    -- As GitHub knows it; of one vm and attempt, and never used again.
    name      TEXT    NOT NULL PRIMARY KEY,
    scope     TEXT    NOT NULL,
    vm_id     TEXT    NOT NULL,
    attempt   INTEGER NOT NULL,
    -- NULL: GitHub was asked, and what it answered is not known.
    runner_id INTEGER,
    -- The configuration that its program starts with, encrypted; there while the guest may still be given it.
    sealed    BLOB,
    -- When it was last asked for.
    asked_at  INTEGER NOT NULL,
    -- When GitHub first showed it with a connection: from then on its absence is its end.
    seen_at   INTEGER
) STRICT;
CREATE INDEX github_runners_vm ON github_runners (vm_id);
