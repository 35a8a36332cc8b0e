//! Statements that are the same in both databases. This folder is compiled once inside each of
//! `postgres` and `sqlite`: the query types of sqlx differ for each database, and generic code over
//! them would need a page of bounds for every function.
//!
//! The contract: the parent module provides the names imported below. `Own` is an alias of its store
//! type, with `Own::with`, which runs work on a `DbPool` within the time limit of operators' queries. `begin`
//! starts a transaction that writes. `audit` writes audit entries into a transaction. `failed` turns
//! an error of the driver into a [`StoreError`](keylatch_filters::contract::StoreError). `NOW_MS` is
//! the SQL expression of the server's clock, in milliseconds since 1970. The module `usage` writes
//! usage and knows how labels are stored, and `alerts` queues events.

mod accounts;
mod ledger;
mod mailbox;
mod providers;
mod samples;
mod settings;
mod shared_secrets;
pub mod trim;
mod usage;
mod usage_filter;
mod usage_log;

use super::alerts::enqueue;
use super::usage::{fetch_report, filter_label, join_labels, key_index, write_usage};
use super::{Connection, Db, DbPool, NOW_MS, Own, Tx, audit, begin, failed};
