-- What replicas ask of each other, as in PostgreSQL; here there is one, and it asks nobody.
CREATE TABLE questions (
    id       TEXT    NOT NULL PRIMARY KEY,
    asker    TEXT    NOT NULL,
    asked_ms INTEGER NOT NULL,
    body     TEXT    NOT NULL
) STRICT;
CREATE TABLE answers (
    question TEXT NOT NULL REFERENCES questions (id) ON DELETE CASCADE,
    replica  TEXT NOT NULL,
    body     TEXT NOT NULL,
    PRIMARY KEY (question, replica)
) STRICT;
