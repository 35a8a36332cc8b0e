-- What replicas keep together and nobody reads: certificates with their keys, encrypted; and who does a thing that one at a time should.
CREATE TABLE vault (
    name text PRIMARY KEY,
    kept bytea NOT NULL,
    until_ms bigint NOT NULL
);
CREATE TABLE leases (
    name text PRIMARY KEY,
    holder text NOT NULL,
    until_ms bigint NOT NULL
);
