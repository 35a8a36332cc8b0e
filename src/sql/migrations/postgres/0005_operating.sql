-- What the admin API needs. Tables that both databases have in the same form keep times as milliseconds since 1970.

-- Who may sign in: one row for each, made and removed by admins. Names are in lower case.
CREATE TABLE accounts (
    name        text    NOT NULL PRIMARY KEY,
    role        text    NOT NULL CHECK (role IN ('viewer', 'operator', 'admin')),
    -- Argon2id, as PHC string. NULL: he signs in elsewhere.
    password    text,
    disabled    boolean NOT NULL,
    must_change boolean NOT NULL,
    version     bigint  NOT NULL,
    created_ms  bigint  NOT NULL,
    signed_in_ms bigint
);

-- Who is signed in: one row for each browser, gone with the sign-out, with a change of password or role, and once it has expired.
CREATE TABLE sessions (
    id         text   NOT NULL PRIMARY KEY,
    account    text   NOT NULL REFERENCES accounts (name) ON DELETE CASCADE,
    created_ms bigint NOT NULL,
    expires_ms bigint NOT NULL,
    origin     text   NOT NULL,
    agent      text   NOT NULL
);
CREATE INDEX sessions_by_account ON sessions (account);
CREATE INDEX sessions_by_end ON sessions (expires_ms);

-- Tokens of scripts, by their SHA-256: each has 256 random bits. Gone some time after they have expired.
CREATE TABLE tokens (
    id         text   NOT NULL PRIMARY KEY,
    account    text   NOT NULL REFERENCES accounts (name) ON DELETE CASCADE,
    name       text   NOT NULL,
    scopes     text   NOT NULL,
    sha256     bytea  NOT NULL UNIQUE,
    created_ms bigint NOT NULL,
    expires_ms bigint NOT NULL,
    used_ms    bigint,
    UNIQUE (account, name)
);

-- Failed sign-ins by account and by address; one row for each that was tried, gone a day after the last one.
CREATE TABLE login_failures (
    subject   text   NOT NULL PRIMARY KEY,
    failures  bigint NOT NULL,
    last_ms   bigint NOT NULL,
    locked_ms bigint NOT NULL
);
CREATE INDEX login_failures_by_time ON login_failures (last_ms);

-- Which replicas there are, and what each counts right now; one row for each, gone a day after its last word.
CREATE TABLE replicas (
    name    text   NOT NULL PRIMARY KEY,
    seen_ms bigint NOT NULL,
    state   text   NOT NULL
);

-- What was counted in each minute (for two days) and each hour (for retention.audit), by replica.
CREATE TABLE samples (
    step_s  bigint NOT NULL,
    at_ms   bigint NOT NULL,
    replica text   NOT NULL,
    counted text   NOT NULL,
    PRIMARY KEY (step_s, at_ms, replica)
);

-- For the lists: each order that can be asked for, and each way to search.
DROP INDEX bindings_by_use;
CREATE INDEX bindings_by_use ON bindings (last_used_at, key_id);
CREATE INDEX bindings_by_creation ON bindings (created_at, key_id);
CREATE INDEX bindings_banned ON bindings (key_id) WHERE banned;
CREATE INDEX bindings_by_hint ON bindings (right(hint, 4));
CREATE INDEX bindings_by_network ON bindings ((networks[1]));
CREATE INDEX bindings_of_many_networks ON bindings (key_id) WHERE cardinality(networks) > 1;
CREATE INDEX intercepts_by_client ON intercepts (client, minute);
CREATE INDEX intercepts_of_key ON intercepts (key_id, minute);
