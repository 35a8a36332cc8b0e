-- What requests used. Times are seconds since 1970; an empty key id or text means none. Each process adds its sums in batches.

-- The batches that were written: a batch is repeated if its answer was lost. One row for each batch, for one day.
CREATE TABLE usage_batches (
    id     BLOB    NOT NULL PRIMARY KEY,
    made_s INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX usage_batches_by_time ON usage_batches (made_s);

-- Sums by minute (60), hour (3600) and day of UTC (86400), by all fields. Kept for usage.retention.
CREATE TABLE usage_sums (
    step_s            INTEGER NOT NULL,
    at_s              INTEGER NOT NULL,
    key_id            BLOB    NOT NULL,
    subject           TEXT    NOT NULL,
    model             TEXT    NOT NULL,
    route             TEXT    NOT NULL,
    upstream          TEXT    NOT NULL,
    status            INTEGER NOT NULL,
    currency          TEXT    NOT NULL,
    requests          INTEGER NOT NULL,
    input             INTEGER NOT NULL,
    cached_input      INTEGER NOT NULL,
    cache_write       INTEGER NOT NULL,
    output            INTEGER NOT NULL,
    reasoning         INTEGER NOT NULL,
    images            INTEGER NOT NULL,
    audio_ms          INTEGER NOT NULL,
    characters        INTEGER NOT NULL,
    cost_micros       INTEGER NOT NULL,
    unpriced          INTEGER NOT NULL,
    estimated         INTEGER NOT NULL,
    first_token_ms    INTEGER NOT NULL,
    first_tokens      INTEGER NOT NULL,
    generation_ms     INTEGER NOT NULL,
    generation_output INTEGER NOT NULL,
    PRIMARY KEY (step_s, at_s, key_id, subject, model, route, upstream, status, currency)
) STRICT, WITHOUT ROWID;
CREATE INDEX usage_sums_by_key ON usage_sums (key_id, step_s, at_s);

-- The same by hour and day, by key only: reports by key read a fraction of the rows.
CREATE TABLE usage_keys (
    step_s            INTEGER NOT NULL,
    at_s              INTEGER NOT NULL,
    key_id            BLOB    NOT NULL,
    currency          TEXT    NOT NULL,
    requests          INTEGER NOT NULL,
    input             INTEGER NOT NULL,
    cached_input      INTEGER NOT NULL,
    cache_write       INTEGER NOT NULL,
    output            INTEGER NOT NULL,
    reasoning         INTEGER NOT NULL,
    images            INTEGER NOT NULL,
    audio_ms          INTEGER NOT NULL,
    characters        INTEGER NOT NULL,
    cost_micros       INTEGER NOT NULL,
    unpriced          INTEGER NOT NULL,
    estimated         INTEGER NOT NULL,
    first_token_ms    INTEGER NOT NULL,
    first_tokens      INTEGER NOT NULL,
    generation_ms     INTEGER NOT NULL,
    generation_output INTEGER NOT NULL,
    PRIMARY KEY (step_s, at_s, key_id, currency)
) STRICT, WITHOUT ROWID;
CREATE INDEX usage_keys_by_key ON usage_keys (key_id, step_s, at_s);

-- The same by hour and day, without keys and subjects.
CREATE TABLE usage_models (
    step_s            INTEGER NOT NULL,
    at_s              INTEGER NOT NULL,
    model             TEXT    NOT NULL,
    route             TEXT    NOT NULL,
    upstream          TEXT    NOT NULL,
    status            INTEGER NOT NULL,
    currency          TEXT    NOT NULL,
    requests          INTEGER NOT NULL,
    input             INTEGER NOT NULL,
    cached_input      INTEGER NOT NULL,
    cache_write       INTEGER NOT NULL,
    output            INTEGER NOT NULL,
    reasoning         INTEGER NOT NULL,
    images            INTEGER NOT NULL,
    audio_ms          INTEGER NOT NULL,
    characters        INTEGER NOT NULL,
    cost_micros       INTEGER NOT NULL,
    unpriced          INTEGER NOT NULL,
    estimated         INTEGER NOT NULL,
    first_token_ms    INTEGER NOT NULL,
    first_tokens      INTEGER NOT NULL,
    generation_ms     INTEGER NOT NULL,
    generation_output INTEGER NOT NULL,
    PRIMARY KEY (step_s, at_s, model, route, upstream, status, currency)
) STRICT, WITHOUT ROWID;

-- One row for each key: its running total, and in d0 to d31 the running total at the end of each of the 32 days before `day`
-- (days since 1970, modulo 32). The sum of the last days is one subtraction, so a report of the top keys reads one row for
-- each key. Rows without use in these days are deleted.
CREATE TABLE usage_recent_cost (
    key_id BLOB NOT NULL PRIMARY KEY,
    day INTEGER NOT NULL,
    total INTEGER NOT NULL,
    d0 INTEGER NOT NULL DEFAULT 0, d1 INTEGER NOT NULL DEFAULT 0, d2 INTEGER NOT NULL DEFAULT 0, d3 INTEGER NOT NULL DEFAULT 0,
    d4 INTEGER NOT NULL DEFAULT 0, d5 INTEGER NOT NULL DEFAULT 0, d6 INTEGER NOT NULL DEFAULT 0, d7 INTEGER NOT NULL DEFAULT 0,
    d8 INTEGER NOT NULL DEFAULT 0, d9 INTEGER NOT NULL DEFAULT 0, d10 INTEGER NOT NULL DEFAULT 0, d11 INTEGER NOT NULL DEFAULT 0,
    d12 INTEGER NOT NULL DEFAULT 0, d13 INTEGER NOT NULL DEFAULT 0, d14 INTEGER NOT NULL DEFAULT 0, d15 INTEGER NOT NULL DEFAULT 0,
    d16 INTEGER NOT NULL DEFAULT 0, d17 INTEGER NOT NULL DEFAULT 0, d18 INTEGER NOT NULL DEFAULT 0, d19 INTEGER NOT NULL DEFAULT 0,
    d20 INTEGER NOT NULL DEFAULT 0, d21 INTEGER NOT NULL DEFAULT 0, d22 INTEGER NOT NULL DEFAULT 0, d23 INTEGER NOT NULL DEFAULT 0,
    d24 INTEGER NOT NULL DEFAULT 0, d25 INTEGER NOT NULL DEFAULT 0, d26 INTEGER NOT NULL DEFAULT 0, d27 INTEGER NOT NULL DEFAULT 0,
    d28 INTEGER NOT NULL DEFAULT 0, d29 INTEGER NOT NULL DEFAULT 0, d30 INTEGER NOT NULL DEFAULT 0, d31 INTEGER NOT NULL DEFAULT 0
) STRICT, WITHOUT ROWID;
CREATE TABLE usage_recent_tokens (
    key_id BLOB NOT NULL PRIMARY KEY,
    day INTEGER NOT NULL,
    total INTEGER NOT NULL,
    d0 INTEGER NOT NULL DEFAULT 0, d1 INTEGER NOT NULL DEFAULT 0, d2 INTEGER NOT NULL DEFAULT 0, d3 INTEGER NOT NULL DEFAULT 0,
    d4 INTEGER NOT NULL DEFAULT 0, d5 INTEGER NOT NULL DEFAULT 0, d6 INTEGER NOT NULL DEFAULT 0, d7 INTEGER NOT NULL DEFAULT 0,
    d8 INTEGER NOT NULL DEFAULT 0, d9 INTEGER NOT NULL DEFAULT 0, d10 INTEGER NOT NULL DEFAULT 0, d11 INTEGER NOT NULL DEFAULT 0,
    d12 INTEGER NOT NULL DEFAULT 0, d13 INTEGER NOT NULL DEFAULT 0, d14 INTEGER NOT NULL DEFAULT 0, d15 INTEGER NOT NULL DEFAULT 0,
    d16 INTEGER NOT NULL DEFAULT 0, d17 INTEGER NOT NULL DEFAULT 0, d18 INTEGER NOT NULL DEFAULT 0, d19 INTEGER NOT NULL DEFAULT 0,
    d20 INTEGER NOT NULL DEFAULT 0, d21 INTEGER NOT NULL DEFAULT 0, d22 INTEGER NOT NULL DEFAULT 0, d23 INTEGER NOT NULL DEFAULT 0,
    d24 INTEGER NOT NULL DEFAULT 0, d25 INTEGER NOT NULL DEFAULT 0, d26 INTEGER NOT NULL DEFAULT 0, d27 INTEGER NOT NULL DEFAULT 0,
    d28 INTEGER NOT NULL DEFAULT 0, d29 INTEGER NOT NULL DEFAULT 0, d30 INTEGER NOT NULL DEFAULT 0, d31 INTEGER NOT NULL DEFAULT 0
) STRICT, WITHOUT ROWID;
CREATE TABLE usage_recent_requests (
    key_id BLOB NOT NULL PRIMARY KEY,
    day INTEGER NOT NULL,
    total INTEGER NOT NULL,
    d0 INTEGER NOT NULL DEFAULT 0, d1 INTEGER NOT NULL DEFAULT 0, d2 INTEGER NOT NULL DEFAULT 0, d3 INTEGER NOT NULL DEFAULT 0,
    d4 INTEGER NOT NULL DEFAULT 0, d5 INTEGER NOT NULL DEFAULT 0, d6 INTEGER NOT NULL DEFAULT 0, d7 INTEGER NOT NULL DEFAULT 0,
    d8 INTEGER NOT NULL DEFAULT 0, d9 INTEGER NOT NULL DEFAULT 0, d10 INTEGER NOT NULL DEFAULT 0, d11 INTEGER NOT NULL DEFAULT 0,
    d12 INTEGER NOT NULL DEFAULT 0, d13 INTEGER NOT NULL DEFAULT 0, d14 INTEGER NOT NULL DEFAULT 0, d15 INTEGER NOT NULL DEFAULT 0,
    d16 INTEGER NOT NULL DEFAULT 0, d17 INTEGER NOT NULL DEFAULT 0, d18 INTEGER NOT NULL DEFAULT 0, d19 INTEGER NOT NULL DEFAULT 0,
    d20 INTEGER NOT NULL DEFAULT 0, d21 INTEGER NOT NULL DEFAULT 0, d22 INTEGER NOT NULL DEFAULT 0, d23 INTEGER NOT NULL DEFAULT 0,
    d24 INTEGER NOT NULL DEFAULT 0, d25 INTEGER NOT NULL DEFAULT 0, d26 INTEGER NOT NULL DEFAULT 0, d27 INTEGER NOT NULL DEFAULT 0,
    d28 INTEGER NOT NULL DEFAULT 0, d29 INTEGER NOT NULL DEFAULT 0, d30 INTEGER NOT NULL DEFAULT 0, d31 INTEGER NOT NULL DEFAULT 0
) STRICT, WITHOUT ROWID;

-- Times to first token by hour and day: requests in each bucket (0 to 15; src/sql/usage/batch.rs has the bounds).
CREATE TABLE usage_latency (
    step_s            INTEGER NOT NULL,
    at_s              INTEGER NOT NULL,
    model             TEXT    NOT NULL,
    route             TEXT    NOT NULL,
    bucket            INTEGER NOT NULL,
    count             INTEGER NOT NULL,
    PRIMARY KEY (step_s, at_s, model, route, bucket)
) STRICT, WITHOUT ROWID;

-- The request log, if usage.requests is set: one row for each request, without its content.
CREATE TABLE usage_requests (
    at_ms             INTEGER NOT NULL,
    id                BLOB    NOT NULL,
    key_id            BLOB    NOT NULL,
    subject           TEXT    NOT NULL,
    model             TEXT    NOT NULL,
    route             TEXT    NOT NULL,
    upstream          TEXT    NOT NULL,
    status            INTEGER NOT NULL,
    input             INTEGER NOT NULL,
    cached_input      INTEGER NOT NULL,
    cache_write       INTEGER NOT NULL,
    output            INTEGER NOT NULL,
    reasoning         INTEGER NOT NULL,
    images            INTEGER NOT NULL,
    audio_ms          INTEGER NOT NULL,
    characters        INTEGER NOT NULL,
    cost_micros       INTEGER,
    currency          TEXT    NOT NULL,
    source            TEXT    NOT NULL,
    first_token_ms    INTEGER,
    duration_ms       INTEGER NOT NULL,
    streamed          INTEGER NOT NULL,
    PRIMARY KEY (at_ms, id)
) STRICT, WITHOUT ROWID;
CREATE INDEX usage_requests_by_key ON usage_requests (key_id, at_ms, id);
