-- Refusals that a filter in shadow mode did not carry out have rows of their own.
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
    shadow     INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY (minute_ms, key_id, client, method, path, route, banned, shadow)
) STRICT, WITHOUT ROWID;
INSERT INTO intercepts_new
    SELECT minute_ms, key_id, client, method, path, route, banned, hint, networks, user_agent, count, first_ms, last_ms, 0 FROM intercepts;
DROP TABLE intercepts;
ALTER TABLE intercepts_new RENAME TO intercepts;
CREATE INDEX intercepts_by_key ON intercepts (key_id, last_ms);
CREATE INDEX intercepts_by_client ON intercepts (client, minute_ms);
CREATE INDEX intercepts_of_key ON intercepts (key_id, minute_ms);
