-- What replicas ask of each other: rows live for as long as somebody waits for the answers, a second or two.
CREATE TABLE questions (
    id       text   NOT NULL PRIMARY KEY,
    -- The replica that asks.
    asker    text   NOT NULL,
    asked_ms bigint NOT NULL,
    body     text   NOT NULL
);
CREATE TABLE answers (
    question text NOT NULL REFERENCES questions (id) ON DELETE CASCADE,
    replica  text NOT NULL,
    body     text NOT NULL,
    PRIMARY KEY (question, replica)
);

CREATE FUNCTION keylatch_mail() RETURNS trigger LANGUAGE plpgsql AS
$$ BEGIN PERFORM pg_notify('keylatch_mail', ''); RETURN NULL; END $$;
CREATE TRIGGER keylatch_mail AFTER INSERT ON questions FOR EACH STATEMENT EXECUTE FUNCTION keylatch_mail();
CREATE TRIGGER keylatch_mail AFTER INSERT ON answers FOR EACH STATEMENT EXECUTE FUNCTION keylatch_mail();
