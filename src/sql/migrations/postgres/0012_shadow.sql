-- Refusals that a filter in shadow mode did not carry out. A process of an older version still writes by the old primary key,
-- so that key stays: the rows of shadow mode have ` (shadow)` behind the name in `replica`.
ALTER TABLE intercepts ADD COLUMN shadow boolean NOT NULL DEFAULT false;
