-- What operators have changed: one row for each change, with the thing before and after as JSON. Written in the
-- transaction of the change itself, never changed, trimmed after retention.audit.
CREATE TABLE audit (
    id     bigint      GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    at     timestamptz NOT NULL DEFAULT clock_timestamp(),
    actor  text        NOT NULL,
    origin text        NOT NULL,
    action text        NOT NULL,
    target text        NOT NULL,
    before text,
    after  text
);
CREATE INDEX audit_by_target ON audit (target, id);
CREATE INDEX audit_by_time ON audit (at);

CREATE FUNCTION keylatch_only_appended() RETURNS trigger LANGUAGE plpgsql AS
$$ BEGIN RAISE EXCEPTION 'the audit is only added to'; END $$;
CREATE TRIGGER audit_only_appended BEFORE UPDATE ON audit FOR EACH ROW EXECUTE FUNCTION keylatch_only_appended();
