-- Times are timestamptz. A version is microseconds since 1970 by this server's clock, or one more than the
-- version before, whichever is greater: it grows with every change, also from a row to its successor.

CREATE FUNCTION keylatch_version(before bigint) RETURNS bigint LANGUAGE sql VOLATILE AS
$$ SELECT greatest(before + 1, (extract(epoch FROM clock_timestamp()) * 1e6)::bigint) $$;

-- Bindings: one row for each key in use. First uses unused for retention.archive_after leave it, keys that the upstream
-- never accepted after retention.unconfirmed; banned ones and those that operators made stay. About 250 bytes a row with its indexes.
CREATE TABLE bindings (
    key_id       bytea       NOT NULL PRIMARY KEY CHECK (octet_length(key_id) = 32),
    hint         text        NOT NULL,
    rule         text        NOT NULL CHECK (rule IN ('single', 'multiple', 'all', 'roaming')),
    networks     cidr[]      NOT NULL CHECK (rule IN ('all', 'roaming') OR cardinality(networks) > 0),
    -- With the rule roaming: how many networks, within how many seconds, and when each was used last (ms since 1970).
    networks_max bigint      CHECK ((rule = 'roaming') = (networks_max IS NOT NULL) AND networks_max BETWEEN 1 AND 64),
    window_s     bigint      CHECK ((rule = 'roaming') = (window_s IS NOT NULL) AND window_s >= 60),
    seen_ms      bigint[]    NOT NULL DEFAULT '{}',
    banned       boolean     NOT NULL DEFAULT false,
    confirmed    boolean     NOT NULL DEFAULT true,
    version      bigint      NOT NULL,
    made_by      text        NOT NULL,
    note         text        NOT NULL DEFAULT '',
    labels       text[]      NOT NULL DEFAULT '{}',
    created_at   timestamptz NOT NULL,
    last_used_at timestamptz NOT NULL
) WITH (fillfactor = 80);
-- For archiving. Last uses change it, so they are written together and not each.
CREATE INDEX bindings_by_use ON bindings (last_used_at);
CREATE INDEX bindings_unconfirmed ON bindings (created_at) WHERE NOT confirmed;
CREATE INDEX bindings_by_label ON bindings USING gin (labels);

-- What left the table above, for those who ask later. One row for each time a key was archived; trimmed after
-- retention.archive.
CREATE TABLE bindings_archive (
    LIKE bindings,
    archived_at timestamptz NOT NULL
);
CREATE INDEX bindings_archive_by_key ON bindings_archive (key_id);
CREATE INDEX bindings_archive_by_time ON bindings_archive (archived_at);

-- Every replica hears of every change, whoever makes it; first uses and last uses are none.
CREATE FUNCTION keylatch_changed() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP = 'DELETE' THEN
        PERFORM pg_notify('keylatch_bindings', encode(OLD.key_id, 'hex') || ' ' || keylatch_version(OLD.version));
        RETURN OLD;
    END IF;
    IF NEW.version <= OLD.version THEN
        NEW.version := keylatch_version(OLD.version);
    END IF;
    -- The old id differs where a row has moved to another secret.
    PERFORM pg_notify('keylatch_bindings', encode(OLD.key_id, 'hex') || ' ' || NEW.version);
    RETURN NEW;
END $$;
CREATE TRIGGER bindings_deleted AFTER DELETE ON bindings FOR EACH ROW EXECUTE FUNCTION keylatch_changed();
CREATE TRIGGER bindings_changed BEFORE UPDATE OF key_id, rule, networks, networks_max, window_s, banned ON bindings
    FOR EACH ROW WHEN ((OLD.key_id, OLD.rule, OLD.networks, OLD.networks_max, OLD.window_s, OLD.banned)
        IS DISTINCT FROM (NEW.key_id, NEW.rule, NEW.networks, NEW.networks_max, NEW.window_s, NEW.banned))
    EXECUTE FUNCTION keylatch_changed();

-- Intercepts: one row for each minute, key, client, method, path and route, with how often. Trimmed after
-- retention.intercepts; it grows with the number of different refusals, not with their number.
CREATE TABLE intercepts (
    minute     timestamptz NOT NULL,
    key_id     bytea       NOT NULL,
    client     inet        NOT NULL,
    method     text        NOT NULL,
    path       text        NOT NULL,
    route      text        NOT NULL,
    replica    text        NOT NULL,
    banned     boolean     NOT NULL,
    hint       text        NOT NULL,
    networks   cidr[]      NOT NULL,
    user_agent text        NOT NULL,
    count      bigint      NOT NULL,
    first_at   timestamptz NOT NULL,
    last_at    timestamptz NOT NULL,
    PRIMARY KEY (minute, key_id, client, method, path, route, replica, banned)
);
CREATE INDEX intercepts_by_key ON intercepts (key_id, last_at);

-- What the database must remember about itself.
CREATE TABLE meta (
    name  text NOT NULL PRIMARY KEY,
    value text NOT NULL
);
