//! The authority in one SQLite file (WAL), for one process; operators' commands may open it at the
//! same time. Also in memory, for trials and tests.
//!
//! First uses go through one worker, which commits all queued ones in one transaction: each is on
//! the disk before its request goes on, and many share one flush. Contains no cache.

mod alerts;
mod audit;
mod bindings;
mod connect;
mod intercepts;
mod lists;
mod manage;
mod text;
mod usage;

#[expect(clippy::duplicate_mod, reason = "compiled once for each database")]
#[path = "../common/mod.rs"]
mod common;

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use ipnet::IpNet;
use keylatch_filters::contract::{Binding, BoxFuture, FirstUse, KeyId, StoreError};
use sqlx::sqlite::SqlitePool;

use bindings::{bind, read, roam, settle, write};
pub use connect::{alone, restoring};

use super::audit::{Actor, AuditEntry, AuditQuery};
use super::batch::Batch;
use super::batcher::Batcher;
use super::intercepts::Page;
use super::outbox::{Attempted, Delivery, KeyOverThreshold, Threshold};
use super::record::{BindingCursor, Change, Changed, Query, Record, RetentionPolicy, RetentionResult, version_now};
use super::{Authority, Events, ServerInfo};
use crate::util::time::millis;

// The contract of `common`.
type Db = sqlx::Sqlite;
type Own = Sqlite;
type DbPool = SqlitePool;
type Tx = sqlx::Transaction<'static, Db>;
type Connection = sqlx::SqliteConnection;
/// The clock of SQLite, in milliseconds since 1970.
const NOW_MS: &str = "CAST(unixepoch('subsec') * 1000 AS INTEGER)";

async fn begin(own: &Own) -> Result<Tx, StoreError> {
    own.pool.begin_with("BEGIN IMMEDIATE").await.map_err(failed)
}

/// The maximum number of first uses in one transaction.
const BATCH_MAX: usize = 512;
/// The maximum size of an in-memory database in pages of 4 KiB: a gigabyte, about four million
/// keys.
const MEMORY_PAGES_MAX: i64 = 1 << 18;
/// The time that a statement waits for another process's lock.
const BUSY_MAX: Duration = Duration::from_secs(5);

/// An open file.
pub struct Sqlite {
    pool: SqlitePool,
    pages_max: i64,
    reads: Batcher<KeyId, Option<Binding>>,
    first_uses: Batcher<FirstUse, Binding>,
    settled: Batcher<(KeyId, i64, bool), bool>,
}

impl Sqlite {
    /// Opens the file. With `makes`, the file and its folder are created if missing, and the schema
    /// is migrated. Without, both must exist and be up to date.
    pub async fn open(path: &Path, makes: bool) -> Result<Self, String> {
        Ok(Self::on(connect::pool(path, makes).await?, i64::MAX))
    }

    /// Opens an in-memory database, which is lost with the process.
    pub async fn in_memory() -> Result<Self, String> {
        Ok(Self::on(connect::in_memory().await?, MEMORY_PAGES_MAX))
    }

    fn on(pool: SqlitePool, pages_max: i64) -> Self {
        let (reading, uses, released) = (pool.clone(), pool.clone(), pool.clone());
        let reads = Batcher::new(2, BATCH_MAX, 2 * BUSY_MAX, move |ids| read(reading.clone(), ids));
        let first_uses = Batcher::new(1, BATCH_MAX, 2 * BUSY_MAX, move |all| bind(uses.clone(), pages_max, all));
        let settled = Batcher::new(1, BATCH_MAX, 2 * BUSY_MAX, move |all| settle(released.clone(), all));
        Self { pool, pages_max, reads, first_uses, settled }
    }

    /// Runs an operator's query.
    async fn with<T>(&self, work: impl AsyncFnOnce(SqlitePool) -> Result<T, StoreError>) -> Result<T, StoreError> {
        work(self.pool.clone()).await
    }
}

impl Authority for Sqlite {
    fn get(&self, id: KeyId) -> BoxFuture<'_, Result<Option<Binding>, StoreError>> {
        Box::pin(self.reads.submit(id))
    }

    fn bind_first_use(&self, first: FirstUse) -> BoxFuture<'_, Result<Binding, StoreError>> {
        Box::pin(self.first_uses.submit(first))
    }

    fn adopt(&self, id: KeyId, from: KeyId) -> BoxFuture<'_, Result<Option<Binding>, StoreError>> {
        Box::pin(async move {
            let moved = sqlx::query(
                "UPDATE bindings SET key_id = $1, version = max(version + 1, $3)
                 WHERE key_id = $2 AND NOT EXISTS (SELECT 1 FROM bindings WHERE key_id = $1)",
            );
            moved.bind(id.0.as_slice()).bind(from.0.as_slice()).bind(version_now(0)).execute(&self.pool).await.map_err(failed)?;
            self.get(id).await
        })
    }

    fn roam(&self, id: KeyId, network: IpNet, at: SystemTime) -> BoxFuture<'_, Result<Option<Binding>, StoreError>> {
        Box::pin(roam(&self.pool, id, network, at))
    }

    fn settle(&self, id: KeyId, version: i64, accepted: bool) -> BoxFuture<'_, Result<bool, StoreError>> {
        Box::pin(self.settled.submit((id, version, accepted)))
    }

    fn write<'a>(&'a self, batch: &'a Batch) -> BoxFuture<'a, Result<(), StoreError>> {
        Box::pin(async move { write(&self.pool, batch).await.map_err(failed) })
    }

    fn owner(&self) -> BoxFuture<'_, Result<Option<String>, String>> {
        Box::pin(connect::owner(&self.pool))
    }

    fn own(&self, fingerprint: String, before: Option<String>) -> BoxFuture<'_, Result<(), String>> {
        Box::pin(async move { connect::own(&self.pool, &fingerprint, before.as_deref()).await })
    }

    fn server_info(&self) -> BoxFuture<'_, Result<ServerInfo, StoreError>> {
        Box::pin(async move {
            let version: String = sqlx::query_scalar("SELECT sqlite_version()").fetch_one(&self.pool).await.map_err(failed)?;
            // SQLite uses the clock of this machine.
            Ok(ServerInfo { version: format!("SQLite {version}"), major: 3, now_ms: millis(SystemTime::now()) })
        })
    }

    fn copy(&self, to: PathBuf) -> BoxFuture<'_, Result<(), String>> {
        Box::pin(async move {
            let path = to.to_str().ok_or("the path is not UTF-8")?;
            // One transaction copies one state; writers continue.
            let copied = sqlx::query("VACUUM INTO ?").bind(path).execute(&self.pool).await;
            copied.map(|_| ()).map_err(|e| format!("{}: {e}", to.display()))
        })
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        // SQLite moves its log into the database file when the last connection closes.
        Box::pin(self.pool.close())
    }

    fn try_write(&self) -> BoxFuture<'_, Result<(), StoreError>> {
        Box::pin(bindings::try_write(&self.pool, self.pages_max))
    }

    fn ping(&self) -> BoxFuture<'_, Result<(), StoreError>> {
        Box::pin(async move { sqlx::query("SELECT 1 FROM meta LIMIT 1").fetch_optional(&self.pool).await.map(|_| ()).map_err(failed) })
    }

    fn list(&self, query: Query) -> BoxFuture<'_, Result<Page<Record, BindingCursor>, StoreError>> {
        Box::pin(self.select(query))
    }

    fn count(&self, query: Query) -> BoxFuture<'_, Result<Option<u64>, StoreError>> {
        Box::pin(self.count_rows(query))
    }

    fn change(&self, id: KeyId, change: Change, actor: Actor) -> BoxFuture<'_, Result<Changed<Record>, StoreError>> {
        Box::pin(self.update(id, change, actor))
    }

    fn remove(&self, id: KeyId, expects: Option<i64>, actor: Actor) -> BoxFuture<'_, Result<Changed<()>, StoreError>> {
        Box::pin(self.delete(id, expects, actor))
    }

    fn audit(&self, query: AuditQuery) -> BoxFuture<'_, Result<Vec<AuditEntry>, StoreError>> {
        Box::pin(audit::list(&self.pool, query))
    }

    fn admin_store(&self) -> &dyn super::AdminStore {
        self
    }

    fn intercepted_since(&self, at: SystemTime) -> BoxFuture<'_, Result<Vec<KeyId>, StoreError>> {
        Box::pin(self.keys_intercepted_since(at))
    }

    fn keys_over_threshold(&self, ids: Vec<KeyId>, threshold: Threshold) -> BoxFuture<'_, Result<Vec<KeyOverThreshold>, StoreError>> {
        Box::pin(async move { self.hot_keys(&ids, threshold).await })
    }

    fn record_alert(&self, id: KeyId, window: Duration, events: Events) -> BoxFuture<'_, Result<bool, StoreError>> {
        Box::pin(async move { self.raise_alert(id, window, &events).await })
    }

    fn lease_deliveries(&self, webhooks: Vec<String>, lease: Duration) -> BoxFuture<'_, Result<Vec<Delivery>, StoreError>> {
        Box::pin(async move { self.take_due(&webhooks, lease).await })
    }

    fn attempted(&self, id: String, what: Attempted) -> BoxFuture<'_, Result<(), StoreError>> {
        Box::pin(async move { self.note_attempt(&id, what).await })
    }

    fn apply_retention(&self, policy: RetentionPolicy) -> BoxFuture<'_, Result<Option<RetentionResult>, StoreError>> {
        Box::pin(async move { self.trim(&policy).await.map_err(failed) })
    }
}

/// Lists are passed to SQLite as JSON: one statement for any length.
fn json<T: serde::Serialize>(rows: &[T]) -> String {
    serde_json::to_string(rows).unwrap_or_default()
}

fn numbers(numbers: &[i64]) -> String {
    numbers.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")
}

/// SQLite's errors name columns and constraints, never values.
fn failed(error: sqlx::Error) -> StoreError {
    // Busy, locked, interrupted and I/O errors are temporary. Others are permanent.
    let code = error.as_database_error().and_then(|said| said.code()).and_then(|code| code.parse::<u32>().ok());
    let text = format!("sqlite: {error}");
    match code.map(|code| code & 0xff) {
        None | Some(5 | 6 | 9 | 10) => StoreError::Away(text),
        Some(13) => StoreError::Full(text),
        Some(_) => StoreError::Useless(text),
    }
}
