-- What is kept and nobody reads: certificates with their keys, encrypted; and who does a thing that one at a time should.
CREATE TABLE vault (
    name TEXT PRIMARY KEY,
    kept BLOB NOT NULL,
    until_ms INTEGER NOT NULL
) STRICT;
CREATE TABLE leases (
    name TEXT PRIMARY KEY,
    holder TEXT NOT NULL,
    until_ms INTEGER NOT NULL
) STRICT;
