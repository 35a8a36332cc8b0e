-- Sign-in through OpenID Connect: one row for each provider, made and removed by admins.
CREATE TABLE providers (
    name     TEXT    NOT NULL PRIMARY KEY,
    -- As JSON, without the client secret.
    settings TEXT    NOT NULL,
    -- The client secret, encrypted under a key that follows from secrets.admin. NULL: a public client.
    secret   BLOB,
    version  INTEGER NOT NULL
) STRICT;

-- Who signs in there, and who he is there. Gone with the provider.
ALTER TABLE accounts ADD COLUMN provider TEXT REFERENCES providers (name) ON DELETE CASCADE;
ALTER TABLE accounts ADD COLUMN subject TEXT;
CREATE UNIQUE INDEX accounts_by_subject ON accounts (provider, subject);
