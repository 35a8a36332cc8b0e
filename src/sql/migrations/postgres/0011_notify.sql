-- The queue of notifications belongs to the whole server, and any client that listens and reads nothing fills it: then every
-- transaction that notifies fails when it commits (54000). A change of a binding must not fail for that. Replicas notice a full
-- queue by their probes. Asking how full it is also lets the server free what was read (17 and later free it at no other time).
CREATE FUNCTION keylatch_notify(channel text, payload text) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    IF pg_notification_queue_usage() < 0.9 THEN
        PERFORM pg_notify(channel, payload);
    END IF;
END $$;

CREATE OR REPLACE FUNCTION keylatch_changed() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP = 'DELETE' THEN
        PERFORM keylatch_notify('keylatch_bindings', encode(OLD.key_id, 'hex') || ' ' || keylatch_version(OLD.version));
        RETURN OLD;
    END IF;
    IF NEW.version <= OLD.version THEN
        NEW.version := keylatch_version(OLD.version);
    END IF;
    -- The old id differs where a row has moved to another secret.
    PERFORM keylatch_notify('keylatch_bindings', encode(OLD.key_id, 'hex') || ' ' || NEW.version);
    RETURN NEW;
END $$;

CREATE OR REPLACE FUNCTION keylatch_settings_changed() RETURNS trigger LANGUAGE plpgsql AS
$$ BEGIN PERFORM keylatch_notify('keylatch_settings', ''); RETURN NULL; END $$;

CREATE OR REPLACE FUNCTION keylatch_mail() RETURNS trigger LANGUAGE plpgsql AS
$$ BEGIN PERFORM keylatch_notify('keylatch_mail', ''); RETURN NULL; END $$;
