-- What each budget has spent in each period. Processes add their amounts in batches; see usage_batches.
CREATE TABLE budget_ledger (
    name         TEXT    NOT NULL,
    period       bigint  NOT NULL,
    period_end_s bigint  NOT NULL,
    spent        bigint  NOT NULL,
    amount_max   bigint  NOT NULL,
    -- The highest share in percent that operators were alerted of.
    alerted      bigint  NOT NULL DEFAULT 0,
    PRIMARY KEY (name, period)
);
CREATE INDEX budget_ledger_by_end ON budget_ledger (period_end_s);
