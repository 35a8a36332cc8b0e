-- Live settings: one row for each that an operator has set apart from the file, so never more than there are names
-- (src/live/mod.rs lists them). A row goes when the setting is given back to the file.
CREATE TABLE settings (
    name       TEXT    NOT NULL PRIMARY KEY,
    value      TEXT    NOT NULL,
    changed_by TEXT    NOT NULL,
    changed_ms INTEGER NOT NULL
) STRICT;
