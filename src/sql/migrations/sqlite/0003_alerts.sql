-- When somebody was last alerted of a key's intercepts: one row for each such key, trimmed after retention.intercepts.
CREATE TABLE alerts (
    key_id    BLOB    NOT NULL PRIMARY KEY,
    raised_ms INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

-- Events on their way to a webhook: one row for each event and webhook, gone when it has arrived, or after two days.
CREATE TABLE outbox (
    id        TEXT    NOT NULL PRIMARY KEY,
    webhook   TEXT    NOT NULL,
    event     TEXT    NOT NULL,
    attempts  INTEGER NOT NULL DEFAULT 0,
    raised_ms INTEGER NOT NULL,
    -- Whoever takes it to send it moves this on first.
    due_ms    INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX outbox_by_time ON outbox (due_ms);
