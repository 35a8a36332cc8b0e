-- Live settings: one row for each that an operator has set apart from the file, so never more than there are names
-- (src/live/mod.rs lists them). A row goes when the setting is given back to the file.
CREATE TABLE settings (
    name       text        NOT NULL PRIMARY KEY,
    value      jsonb       NOT NULL,
    changed_by text        NOT NULL,
    changed_at timestamptz NOT NULL DEFAULT clock_timestamp()
);

CREATE FUNCTION keylatch_settings_changed() RETURNS trigger LANGUAGE plpgsql AS
$$ BEGIN PERFORM pg_notify('keylatch_settings', ''); RETURN NULL; END $$;
CREATE TRIGGER settings_changed AFTER INSERT OR UPDATE OR DELETE ON settings FOR EACH STATEMENT EXECUTE FUNCTION keylatch_settings_changed();
