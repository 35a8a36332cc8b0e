-- When somebody was last alerted of a key's intercepts: one row for each such key, trimmed after retention.intercepts.
CREATE TABLE alerts (
    key_id    bytea       NOT NULL PRIMARY KEY,
    raised_at timestamptz NOT NULL
);

-- Events on their way to a webhook: one row for each event and webhook, gone when it has arrived, or after two days.
CREATE TABLE outbox (
    id        text        NOT NULL PRIMARY KEY,
    webhook   text        NOT NULL,
    event     text        NOT NULL,
    attempts  integer     NOT NULL DEFAULT 0,
    raised_at timestamptz NOT NULL DEFAULT now(),
    -- Whoever takes it to send it moves this on first: nobody else sends it meanwhile.
    due_at    timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX outbox_by_time ON outbox (due_at);
