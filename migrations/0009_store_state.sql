-- What the database knows of itself: one row.
CREATE TABLE store_state (
    id             INTEGER PRIMARY KEY CHECK (id = 1) NOT NULL,
    -- 1 after an orderly shutdown, until the next start. Otherwise the next start checks every page and index.
    closed_cleanly INTEGER NOT NULL,
    -- Written to find out whether writes reach the disk.
    probe          BLOB    NOT NULL
) STRICT;
INSERT INTO store_state (id, closed_cleanly, probe) VALUES (1, 0, x'');
