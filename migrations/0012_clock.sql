-- What the clocks showed when the last step of the system's clock was applied to all deadlines, in the same transaction. A start
-- continues from there if the heartbeat file is older.
ALTER TABLE store_state ADD COLUMN clock TEXT;
