-- Who asked most in each minute (for two days) and each hour (for retention.audit), by replica.
CREATE TABLE tops (
    step_s  bigint NOT NULL,
    at_ms   bigint NOT NULL,
    replica text   NOT NULL,
    counted text   NOT NULL,
    PRIMARY KEY (step_s, at_ms, replica)
);
