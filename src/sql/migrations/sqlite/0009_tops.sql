-- Who asked most in each minute (for two days) and each hour (for retention.audit), by replica.
CREATE TABLE tops (
    step_s  INTEGER NOT NULL,
    at_ms   INTEGER NOT NULL,
    replica TEXT    NOT NULL,
    counted TEXT    NOT NULL,
    PRIMARY KEY (step_s, at_ms, replica)
) STRICT;
