-- What requests used. Times are seconds since 1970; an empty key id or text means none. Each process adds its sums in batches.

-- The batches that were written: a batch is repeated if its answer was lost. One row for each batch, for one day.
CREATE TABLE usage_batches (
    id     bytea   NOT NULL PRIMARY KEY,
    made_s bigint  NOT NULL
);
CREATE INDEX usage_batches_by_time ON usage_batches (made_s);

-- Sums by minute (60), hour (3600) and day of UTC (86400), by all fields. Kept for usage.retention.
CREATE TABLE usage_sums (
    step_s            bigint  NOT NULL,
    at_s              bigint  NOT NULL,
    key_id            bytea   NOT NULL,
    subject           text    NOT NULL,
    model             text    NOT NULL,
    route             text    NOT NULL,
    upstream          text    NOT NULL,
    status            bigint  NOT NULL,
    currency          text    NOT NULL,
    requests          bigint  NOT NULL,
    input             bigint  NOT NULL,
    cached_input      bigint  NOT NULL,
    cache_write       bigint  NOT NULL,
    output            bigint  NOT NULL,
    reasoning         bigint  NOT NULL,
    images            bigint  NOT NULL,
    audio_ms          bigint  NOT NULL,
    characters        bigint  NOT NULL,
    cost_micros       bigint  NOT NULL,
    unpriced          bigint  NOT NULL,
    estimated         bigint  NOT NULL,
    first_token_ms    bigint  NOT NULL,
    first_tokens      bigint  NOT NULL,
    generation_ms     bigint  NOT NULL,
    generation_output bigint  NOT NULL,
    PRIMARY KEY (step_s, at_s, key_id, subject, model, route, upstream, status, currency)
) WITH (fillfactor = 80);
CREATE INDEX usage_sums_by_key ON usage_sums (key_id, step_s, at_s);

-- The same by hour and day, by key only: reports by key read a fraction of the rows.
CREATE TABLE usage_keys (
    step_s            bigint  NOT NULL,
    at_s              bigint  NOT NULL,
    key_id            bytea   NOT NULL,
    currency          text    NOT NULL,
    requests          bigint  NOT NULL,
    input             bigint  NOT NULL,
    cached_input      bigint  NOT NULL,
    cache_write       bigint  NOT NULL,
    output            bigint  NOT NULL,
    reasoning         bigint  NOT NULL,
    images            bigint  NOT NULL,
    audio_ms          bigint  NOT NULL,
    characters        bigint  NOT NULL,
    cost_micros       bigint  NOT NULL,
    unpriced          bigint  NOT NULL,
    estimated         bigint  NOT NULL,
    first_token_ms    bigint  NOT NULL,
    first_tokens      bigint  NOT NULL,
    generation_ms     bigint  NOT NULL,
    generation_output bigint  NOT NULL,
    PRIMARY KEY (step_s, at_s, key_id, currency)
) WITH (fillfactor = 80);
CREATE INDEX usage_keys_by_key ON usage_keys (key_id, step_s, at_s);

-- The same by hour and day, without keys and subjects.
CREATE TABLE usage_models (
    step_s            bigint  NOT NULL,
    at_s              bigint  NOT NULL,
    model             text    NOT NULL,
    route             text    NOT NULL,
    upstream          text    NOT NULL,
    status            bigint  NOT NULL,
    currency          text    NOT NULL,
    requests          bigint  NOT NULL,
    input             bigint  NOT NULL,
    cached_input      bigint  NOT NULL,
    cache_write       bigint  NOT NULL,
    output            bigint  NOT NULL,
    reasoning         bigint  NOT NULL,
    images            bigint  NOT NULL,
    audio_ms          bigint  NOT NULL,
    characters        bigint  NOT NULL,
    cost_micros       bigint  NOT NULL,
    unpriced          bigint  NOT NULL,
    estimated         bigint  NOT NULL,
    first_token_ms    bigint  NOT NULL,
    first_tokens      bigint  NOT NULL,
    generation_ms     bigint  NOT NULL,
    generation_output bigint  NOT NULL,
    PRIMARY KEY (step_s, at_s, model, route, upstream, status, currency)
) WITH (fillfactor = 80);

-- One row for each key: its running total, and in d0 to d31 the running total at the end of each of the 32 days before `day`
-- (days since 1970, modulo 32). The sum of the last days is one subtraction, so a report of the top keys reads one row for
-- each key. Rows without use in these days are deleted.
CREATE TABLE usage_recent_cost (
    key_id bytea NOT NULL PRIMARY KEY,
    day bigint NOT NULL,
    total bigint NOT NULL,
    d0 bigint NOT NULL DEFAULT 0, d1 bigint NOT NULL DEFAULT 0, d2 bigint NOT NULL DEFAULT 0, d3 bigint NOT NULL DEFAULT 0,
    d4 bigint NOT NULL DEFAULT 0, d5 bigint NOT NULL DEFAULT 0, d6 bigint NOT NULL DEFAULT 0, d7 bigint NOT NULL DEFAULT 0,
    d8 bigint NOT NULL DEFAULT 0, d9 bigint NOT NULL DEFAULT 0, d10 bigint NOT NULL DEFAULT 0, d11 bigint NOT NULL DEFAULT 0,
    d12 bigint NOT NULL DEFAULT 0, d13 bigint NOT NULL DEFAULT 0, d14 bigint NOT NULL DEFAULT 0, d15 bigint NOT NULL DEFAULT 0,
    d16 bigint NOT NULL DEFAULT 0, d17 bigint NOT NULL DEFAULT 0, d18 bigint NOT NULL DEFAULT 0, d19 bigint NOT NULL DEFAULT 0,
    d20 bigint NOT NULL DEFAULT 0, d21 bigint NOT NULL DEFAULT 0, d22 bigint NOT NULL DEFAULT 0, d23 bigint NOT NULL DEFAULT 0,
    d24 bigint NOT NULL DEFAULT 0, d25 bigint NOT NULL DEFAULT 0, d26 bigint NOT NULL DEFAULT 0, d27 bigint NOT NULL DEFAULT 0,
    d28 bigint NOT NULL DEFAULT 0, d29 bigint NOT NULL DEFAULT 0, d30 bigint NOT NULL DEFAULT 0, d31 bigint NOT NULL DEFAULT 0
) WITH (fillfactor = 50);
CREATE TABLE usage_recent_tokens (
    key_id bytea NOT NULL PRIMARY KEY,
    day bigint NOT NULL,
    total bigint NOT NULL,
    d0 bigint NOT NULL DEFAULT 0, d1 bigint NOT NULL DEFAULT 0, d2 bigint NOT NULL DEFAULT 0, d3 bigint NOT NULL DEFAULT 0,
    d4 bigint NOT NULL DEFAULT 0, d5 bigint NOT NULL DEFAULT 0, d6 bigint NOT NULL DEFAULT 0, d7 bigint NOT NULL DEFAULT 0,
    d8 bigint NOT NULL DEFAULT 0, d9 bigint NOT NULL DEFAULT 0, d10 bigint NOT NULL DEFAULT 0, d11 bigint NOT NULL DEFAULT 0,
    d12 bigint NOT NULL DEFAULT 0, d13 bigint NOT NULL DEFAULT 0, d14 bigint NOT NULL DEFAULT 0, d15 bigint NOT NULL DEFAULT 0,
    d16 bigint NOT NULL DEFAULT 0, d17 bigint NOT NULL DEFAULT 0, d18 bigint NOT NULL DEFAULT 0, d19 bigint NOT NULL DEFAULT 0,
    d20 bigint NOT NULL DEFAULT 0, d21 bigint NOT NULL DEFAULT 0, d22 bigint NOT NULL DEFAULT 0, d23 bigint NOT NULL DEFAULT 0,
    d24 bigint NOT NULL DEFAULT 0, d25 bigint NOT NULL DEFAULT 0, d26 bigint NOT NULL DEFAULT 0, d27 bigint NOT NULL DEFAULT 0,
    d28 bigint NOT NULL DEFAULT 0, d29 bigint NOT NULL DEFAULT 0, d30 bigint NOT NULL DEFAULT 0, d31 bigint NOT NULL DEFAULT 0
) WITH (fillfactor = 50);
CREATE TABLE usage_recent_requests (
    key_id bytea NOT NULL PRIMARY KEY,
    day bigint NOT NULL,
    total bigint NOT NULL,
    d0 bigint NOT NULL DEFAULT 0, d1 bigint NOT NULL DEFAULT 0, d2 bigint NOT NULL DEFAULT 0, d3 bigint NOT NULL DEFAULT 0,
    d4 bigint NOT NULL DEFAULT 0, d5 bigint NOT NULL DEFAULT 0, d6 bigint NOT NULL DEFAULT 0, d7 bigint NOT NULL DEFAULT 0,
    d8 bigint NOT NULL DEFAULT 0, d9 bigint NOT NULL DEFAULT 0, d10 bigint NOT NULL DEFAULT 0, d11 bigint NOT NULL DEFAULT 0,
    d12 bigint NOT NULL DEFAULT 0, d13 bigint NOT NULL DEFAULT 0, d14 bigint NOT NULL DEFAULT 0, d15 bigint NOT NULL DEFAULT 0,
    d16 bigint NOT NULL DEFAULT 0, d17 bigint NOT NULL DEFAULT 0, d18 bigint NOT NULL DEFAULT 0, d19 bigint NOT NULL DEFAULT 0,
    d20 bigint NOT NULL DEFAULT 0, d21 bigint NOT NULL DEFAULT 0, d22 bigint NOT NULL DEFAULT 0, d23 bigint NOT NULL DEFAULT 0,
    d24 bigint NOT NULL DEFAULT 0, d25 bigint NOT NULL DEFAULT 0, d26 bigint NOT NULL DEFAULT 0, d27 bigint NOT NULL DEFAULT 0,
    d28 bigint NOT NULL DEFAULT 0, d29 bigint NOT NULL DEFAULT 0, d30 bigint NOT NULL DEFAULT 0, d31 bigint NOT NULL DEFAULT 0
) WITH (fillfactor = 50);

-- Times to first token by hour and day: requests in each bucket (0 to 15; src/sql/usage/batch.rs has the bounds).
CREATE TABLE usage_latency (
    step_s            bigint  NOT NULL,
    at_s              bigint  NOT NULL,
    model             text    NOT NULL,
    route             text    NOT NULL,
    bucket            bigint  NOT NULL,
    count             bigint  NOT NULL,
    PRIMARY KEY (step_s, at_s, model, route, bucket)
) WITH (fillfactor = 80);

-- The request log, if usage.requests is set: one row for each request, without its content.
CREATE TABLE usage_requests (
    at_ms             bigint  NOT NULL,
    id                bytea   NOT NULL,
    key_id            bytea   NOT NULL,
    subject           text    NOT NULL,
    model             text    NOT NULL,
    route             text    NOT NULL,
    upstream          text    NOT NULL,
    status            bigint  NOT NULL,
    input             bigint  NOT NULL,
    cached_input      bigint  NOT NULL,
    cache_write       bigint  NOT NULL,
    output            bigint  NOT NULL,
    reasoning         bigint  NOT NULL,
    images            bigint  NOT NULL,
    audio_ms          bigint  NOT NULL,
    characters        bigint  NOT NULL,
    cost_micros       bigint,
    currency          text    NOT NULL,
    source            text    NOT NULL,
    first_token_ms    bigint,
    duration_ms       bigint  NOT NULL,
    streamed          bigint  NOT NULL,
    PRIMARY KEY (at_ms, id)
);
CREATE INDEX usage_requests_by_key ON usage_requests (key_id, at_ms, id);
