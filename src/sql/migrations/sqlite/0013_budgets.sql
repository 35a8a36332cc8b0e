-- What each budget has spent in each period. Processes add their amounts in batches; see usage_batches.
CREATE TABLE budget_ledger (
    name         TEXT    NOT NULL,
    period       INTEGER NOT NULL,
    period_end_s INTEGER NOT NULL,
    spent        INTEGER NOT NULL,
    amount_max   INTEGER NOT NULL,
    -- The highest share in percent that operators were alerted of.
    alerted      INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY (name, period)
) STRICT, WITHOUT ROWID;
CREATE INDEX budget_ledger_by_end ON budget_ledger (period_end_s);
