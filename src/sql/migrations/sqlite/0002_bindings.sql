-- Who made a binding, what people say of it, and whether the upstream has accepted its key. The version becomes
-- microseconds since 1970 or one more than before, whichever is greater, so that it grows from a row to its successor.
CREATE TABLE bindings_new (
    key_id       BLOB    NOT NULL PRIMARY KEY CHECK (length(key_id) = 32),
    hint         TEXT    NOT NULL,
    rule         TEXT    NOT NULL CHECK (rule IN ('single', 'multiple', 'all', 'roaming')),
    -- CIDRs, separated by commas.
    networks     TEXT    NOT NULL,
    -- With the rule roaming: how many networks, within how many seconds, and when each was used last (ms since 1970).
    networks_max INTEGER CHECK ((rule = 'roaming') = (networks_max IS NOT NULL)),
    window_s     INTEGER CHECK ((rule = 'roaming') = (window_s IS NOT NULL)),
    seen_ms      TEXT    NOT NULL DEFAULT '',
    banned       INTEGER NOT NULL DEFAULT 0 CHECK (banned IN (0, 1)),
    confirmed    INTEGER NOT NULL DEFAULT 1 CHECK (confirmed IN (0, 1)),
    version      INTEGER NOT NULL,
    made_by      TEXT    NOT NULL,
    note         TEXT    NOT NULL DEFAULT '',
    -- Separated by commas.
    labels       TEXT    NOT NULL DEFAULT '',
    created_ms   INTEGER NOT NULL,
    last_used_ms INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
INSERT INTO bindings_new (key_id, hint, rule, networks, banned, version, made_by, created_ms, last_used_ms)
    SELECT key_id, hint, rule, networks, banned, version, 'first_use', created_ms, last_used_ms FROM bindings;
DROP TABLE bindings;
ALTER TABLE bindings_new RENAME TO bindings;
CREATE INDEX bindings_by_use ON bindings (last_used_ms);
CREATE INDEX bindings_unconfirmed ON bindings (created_ms) WHERE NOT confirmed;

-- What left the table above. Trimmed after retention.archive.
CREATE TABLE bindings_archive (
    key_id       BLOB    NOT NULL,
    hint         TEXT    NOT NULL,
    rule         TEXT    NOT NULL,
    networks     TEXT    NOT NULL,
    networks_max INTEGER,
    window_s     INTEGER,
    seen_ms      TEXT    NOT NULL,
    banned       INTEGER NOT NULL,
    confirmed    INTEGER NOT NULL,
    version      INTEGER NOT NULL,
    made_by      TEXT    NOT NULL,
    note         TEXT    NOT NULL,
    labels       TEXT    NOT NULL,
    created_ms   INTEGER NOT NULL,
    last_used_ms INTEGER NOT NULL,
    archived_ms  INTEGER NOT NULL
) STRICT;
CREATE INDEX bindings_archive_by_key ON bindings_archive (key_id);
CREATE INDEX bindings_archive_by_time ON bindings_archive (archived_ms);

-- One row for each minute, key, client, method, path and route, with how often.
CREATE TABLE intercepts_new (
    minute_ms  INTEGER NOT NULL,
    key_id     BLOB    NOT NULL,
    client     TEXT    NOT NULL,
    method     TEXT    NOT NULL,
    path       TEXT    NOT NULL,
    route      TEXT    NOT NULL,
    banned     INTEGER NOT NULL,
    hint       TEXT    NOT NULL,
    networks   TEXT    NOT NULL,
    user_agent TEXT    NOT NULL,
    count      INTEGER NOT NULL,
    first_ms   INTEGER NOT NULL,
    last_ms    INTEGER NOT NULL,
    PRIMARY KEY (minute_ms, key_id, client, method, path, route, banned)
) STRICT, WITHOUT ROWID;
INSERT INTO intercepts_new
    SELECT first_ms - first_ms % 60000, key_id, client, method, path, route, banned, min(hint), '', min(user_agent),
           sum(count), min(first_ms), max(last_ms)
    FROM intercepts GROUP BY 1, 2, 3, 4, 5, 6, 7;
DROP TABLE intercepts;
ALTER TABLE intercepts_new RENAME TO intercepts;
CREATE INDEX intercepts_by_key ON intercepts (key_id, last_ms);
