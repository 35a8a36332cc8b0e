-- Bindings: one row for each key ever used. Grows with the number of keys.
CREATE TABLE bindings (
    key_id       BLOB    NOT NULL PRIMARY KEY CHECK (length(key_id) = 32),
    hint         TEXT    NOT NULL,
    rule         TEXT    NOT NULL CHECK (rule IN ('single', 'multiple', 'all')),
    -- CIDRs, separated by commas.
    networks     TEXT    NOT NULL,
    banned       INTEGER NOT NULL DEFAULT 0 CHECK (banned IN (0, 1)),
    -- Counts the changes of this row.
    version      INTEGER NOT NULL DEFAULT 1,
    -- Milliseconds since 1970, as everywhere below.
    created_ms   INTEGER NOT NULL,
    last_used_ms INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

-- Intercepts: one row for each key, client and path within a flush, with how often. Trimmed after 90 days.
CREATE TABLE intercepts (
    id         INTEGER PRIMARY KEY,
    key_id     BLOB    NOT NULL,
    hint       TEXT    NOT NULL,
    client     TEXT    NOT NULL,
    method     TEXT    NOT NULL,
    path       TEXT    NOT NULL,
    user_agent TEXT    NOT NULL,
    route      TEXT    NOT NULL,
    banned     INTEGER NOT NULL,
    count      INTEGER NOT NULL,
    first_ms   INTEGER NOT NULL,
    last_ms    INTEGER NOT NULL
) STRICT;
CREATE INDEX intercepts_by_time ON intercepts (last_ms);
CREATE INDEX intercepts_by_key ON intercepts (key_id, last_ms);

-- What the database must remember about itself.
CREATE TABLE meta (
    name  TEXT NOT NULL PRIMARY KEY,
    value TEXT NOT NULL
) STRICT, WITHOUT ROWID;
