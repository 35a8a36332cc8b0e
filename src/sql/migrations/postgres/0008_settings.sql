-- Live settings in the form that both databases have in common. Whoever writes a row by hand need not say when.
ALTER TABLE settings ALTER COLUMN value TYPE text USING value::text;
ALTER TABLE settings ADD COLUMN changed_ms bigint NOT NULL DEFAULT (extract(epoch FROM clock_timestamp()) * 1000)::bigint;
UPDATE settings SET changed_ms = (extract(epoch FROM changed_at) * 1000)::bigint;
ALTER TABLE settings DROP COLUMN changed_at;
