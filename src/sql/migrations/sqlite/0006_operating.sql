-- What the admin API needs. Tables that both databases have in the same form keep times as milliseconds since 1970.

-- Who may sign in: one row for each, made and removed by admins. Names are in lower case.
CREATE TABLE accounts (
    name        TEXT    NOT NULL PRIMARY KEY,
    role        TEXT    NOT NULL CHECK (role IN ('viewer', 'operator', 'admin')),
    -- Argon2id, as PHC string. NULL: he signs in elsewhere.
    password    TEXT,
    disabled    INTEGER NOT NULL,
    must_change INTEGER NOT NULL,
    version     INTEGER NOT NULL,
    created_ms  INTEGER NOT NULL,
    signed_in_ms INTEGER
) STRICT;

-- Who is signed in: one row for each browser, gone with the sign-out, with a change of password or role, and once it has expired.
CREATE TABLE sessions (
    id         TEXT   NOT NULL PRIMARY KEY,
    account    TEXT   NOT NULL REFERENCES accounts (name) ON DELETE CASCADE,
    created_ms INTEGER NOT NULL,
    expires_ms INTEGER NOT NULL,
    origin     TEXT   NOT NULL,
    agent      TEXT   NOT NULL
) STRICT;
CREATE INDEX sessions_by_account ON sessions (account);
CREATE INDEX sessions_by_end ON sessions (expires_ms);

-- Tokens of scripts, by their SHA-256: each has 256 random bits. Gone some time after they have expired.
CREATE TABLE tokens (
    id         TEXT   NOT NULL PRIMARY KEY,
    account    TEXT   NOT NULL REFERENCES accounts (name) ON DELETE CASCADE,
    name       TEXT   NOT NULL,
    scopes     TEXT   NOT NULL,
    sha256     BLOB NOT NULL UNIQUE,
    created_ms INTEGER NOT NULL,
    expires_ms INTEGER NOT NULL,
    used_ms    INTEGER,
    UNIQUE (account, name)
) STRICT;

-- Failed sign-ins by account and by address; one row for each that was tried, gone a day after the last one.
CREATE TABLE login_failures (
    subject   TEXT   NOT NULL PRIMARY KEY,
    failures  INTEGER NOT NULL,
    last_ms   INTEGER NOT NULL,
    locked_ms INTEGER NOT NULL
) STRICT;
CREATE INDEX login_failures_by_time ON login_failures (last_ms);

-- Which replicas there are, and what each counts right now; one row for each, gone a day after its last word.
CREATE TABLE replicas (
    name    TEXT   NOT NULL PRIMARY KEY,
    seen_ms INTEGER NOT NULL,
    state   TEXT   NOT NULL
) STRICT;

-- What was counted in each minute (for two days) and each hour (for retention.audit), by replica.
CREATE TABLE samples (
    step_s  INTEGER NOT NULL,
    at_ms   INTEGER NOT NULL,
    replica TEXT   NOT NULL,
    counted TEXT   NOT NULL,
    PRIMARY KEY (step_s, at_ms, replica)
) STRICT;

-- For the lists: each order that can be asked for, and each way to search.
DROP INDEX bindings_by_use;
CREATE INDEX bindings_by_use ON bindings (last_used_ms, key_id);
CREATE INDEX bindings_by_creation ON bindings (created_ms, key_id);
CREATE INDEX bindings_banned ON bindings (key_id) WHERE banned;
CREATE INDEX bindings_by_hint ON bindings (substr(hint, -4));
CREATE INDEX bindings_by_network ON bindings (networks);
CREATE INDEX bindings_of_many_networks ON bindings (key_id) WHERE instr(networks, ',') > 0;
CREATE INDEX bindings_labelled ON bindings (key_id) WHERE labels <> '';
CREATE INDEX intercepts_by_client ON intercepts (client, minute_ms);
CREATE INDEX intercepts_of_key ON intercepts (key_id, minute_ms);
