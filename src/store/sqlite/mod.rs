//! Bindings in one SQLite file (WAL), for one process; operators' commands may open it beside that. Or in memory, for
//! trials and tests.
//!
//! First uses go through one worker, which commits all that wait in one transaction: each of them is on
//! the disk before its request goes on, and many at once share one flush.

mod alerts;
mod audit;
mod connect;
mod intercepts;
mod lists;
mod manage;
mod text;

#[expect(clippy::duplicate_mod, reason = "it is compiled once for each database")]
#[path = "../both/accounts.rs"]
mod accounts;
#[expect(clippy::duplicate_mod, reason = "it is compiled once for each database")]
#[path = "../both/providers.rs"]
mod providers;
#[expect(clippy::duplicate_mod, reason = "it is compiled once for each database")]
#[path = "../both/questions.rs"]
mod questions;
#[expect(clippy::duplicate_mod, reason = "it is compiled once for each database")]
#[path = "../both/samples.rs"]
mod samples;
#[expect(clippy::duplicate_mod, reason = "it is compiled once for each database")]
#[path = "../both/settings.rs"]
mod settings;
#[expect(clippy::duplicate_mod, reason = "it is compiled once for each database")]
#[path = "../both/trim.rs"]
mod trim;
#[expect(clippy::duplicate_mod, reason = "it is compiled once for each database")]
#[path = "../both/vault.rs"]
mod vault;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use ipnet::IpNet;
use keylatch_filters::contract::{Binding, BoxFuture, FirstUse, KeyId, StoreError};
use sqlx::sqlite::{SqlitePool, SqliteRow};
use sqlx::{AssertSqlSafe, Row};

pub use connect::{alone, restoring};

use super::audit::{Actor, Asked, Entry};
use super::intercepts::Page;
use super::outbox::{Attempted, Delivery, Hot, Threshold};
use super::record::{Change, Changed, Mark, Query, Raw, Record, Tended, Tending, key_id, millis, roaming_columns, seen_ms, version_now};
use super::together::Together;
use super::{About, Authority, Batch, Events};

// What the statements that both databases understand are compiled with.
type Db = sqlx::Sqlite;
type Own = Sqlite;
type Connection = sqlx::SqliteConnection;
/// By its own clock, in milliseconds since 1970.
const NOW_MS: &str = "CAST(unixepoch('subsec') * 1000 AS INTEGER)";

async fn begin(own: &Own) -> Result<sqlx::Transaction<'static, Db>, StoreError> {
    own.pool.begin_with("BEGIN IMMEDIATE").await.map_err(failed)
}

/// First uses in one transaction.
const TOGETHER_MAX: usize = 512;
/// Past so many pages of 4 KiB a database in memory takes no new keys: a gigabyte, about four million of them.
const MEMORY_PAGES_MAX: i64 = 1 << 18;
/// How long a statement waits for another process that holds the file.
const BUSY_MAX: Duration = Duration::from_secs(5);

/// An open file.
pub struct Sqlite {
    pool: SqlitePool,
    reads: Together<KeyId, Option<Binding>>,
    first_uses: Together<FirstUse, Binding>,
    settled: Together<(KeyId, i64, bool), bool>,
}

impl Sqlite {
    /// Opens the file. With `makes`, it and its folder are made if they are not there, and its schema is brought up to
    /// date; without, they must be there and be so.
    pub async fn open(path: &Path, makes: bool) -> Result<Self, String> {
        Ok(Self::on(connect::pool(path, makes).await?, i64::MAX))
    }

    /// A database in memory: gone with the process.
    pub async fn in_memory() -> Result<Self, String> {
        Ok(Self::on(connect::in_memory().await?, MEMORY_PAGES_MAX))
    }

    fn on(pool: SqlitePool, pages_max: i64) -> Self {
        let (reading, uses, released) = (pool.clone(), pool.clone(), pool.clone());
        let reads = Together::new(2, TOGETHER_MAX, 2 * BUSY_MAX, move |ids| read(reading.clone(), ids));
        let first_uses = Together::new(1, TOGETHER_MAX, 2 * BUSY_MAX, move |all| bind(uses.clone(), pages_max, all));
        let settled = Together::new(1, TOGETHER_MAX, 2 * BUSY_MAX, move |all| settle(released.clone(), all));
        Self { pool, reads, first_uses, settled }
    }

    /// Works for an operator.
    async fn with<T>(&self, work: impl AsyncFnOnce(SqlitePool) -> Result<T, StoreError>) -> Result<T, StoreError> {
        work(self.pool.clone()).await
    }

    async fn write_batch(&self, batch: &Batch) -> sqlx::Result<()> {
        let mut tx = self.pool.begin_with("BEGIN IMMEDIATE").await?;
        if !batch.used.is_empty() {
            let used: Vec<_> = batch.used.iter().map(|(id, at)| (id.hex(), millis(*at))).collect();
            sqlx::query(
                "UPDATE bindings SET last_used_ms = max(last_used_ms, u.ms)
                 FROM (SELECT unhex(value ->> 0) AS id, value ->> 1 AS ms FROM json_each(?)) AS u WHERE key_id = u.id",
            )
            .bind(json(&used))
            .execute(&mut *tx)
            .await?;
        }
        if !batch.confirmed.is_empty() {
            let confirmed: Vec<_> = batch.confirmed.iter().map(|(id, version)| (id.hex(), *version)).collect();
            sqlx::query(CONFIRM).bind(json(&confirmed)).execute(&mut *tx).await?;
        }
        for repeated in batch.intercepts.values() {
            let first = &repeated.first;
            let first_ms = millis(first.at);
            sqlx::query(
                "INSERT INTO intercepts
                     (minute_ms, key_id, client, method, path, route, banned, hint, networks, user_agent, count, first_ms, last_ms)
                 VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
                 ON CONFLICT DO UPDATE SET count = count + excluded.count, last_ms = max(last_ms, excluded.last_ms)",
            )
            .bind(first_ms - first_ms % 60_000)
            .bind(first.id.0.as_slice())
            .bind(first.client.to_string())
            .bind(&first.method)
            .bind(&first.path)
            .bind(&first.route)
            .bind(first.banned)
            .bind(&first.hint)
            .bind(super::batch::networks(&first.networks))
            .bind(&first.user_agent)
            .bind(i64::try_from(repeated.count).unwrap_or(i64::MAX))
            .bind(first_ms)
            .bind(millis(repeated.last_at))
            .execute(&mut *tx)
            .await?;
        }
        tx.commit().await
    }

    async fn move_to(&self, id: KeyId, network: IpNet, at: SystemTime) -> Result<Option<Binding>, StoreError> {
        let mut tx = self.pool.begin_with("BEGIN IMMEDIATE").await.map_err(failed)?;
        let statement = format!("SELECT {JUDGED} FROM bindings WHERE key_id = ?");
        let row = sqlx::query(AssertSqlSafe(statement)).bind(id.0.as_slice()).fetch_optional(&mut *tx).await.map_err(failed)?;
        let Some(mut binding) = row.as_ref().map(judged).transpose()? else { return Ok(None) };
        if binding.roam(network, at) {
            binding.version = version_now(binding.version);
            sqlx::query("UPDATE bindings SET networks = ?, seen_ms = ?, version = ? WHERE key_id = ?")
                .bind(super::batch::networks(&binding.networks))
                .bind(numbers(&seen_ms(&binding)))
                .bind(binding.version)
                .bind(id.0.as_slice())
                .execute(&mut *tx)
                .await
                .map_err(failed)?;
            tx.commit().await.map_err(failed)?;
        }
        Ok(Some(binding))
    }
}

impl Authority for Sqlite {
    fn get(&self, id: KeyId) -> BoxFuture<'_, Result<Option<Binding>, StoreError>> {
        Box::pin(self.reads.ask(id))
    }

    fn latch(&self, first: FirstUse) -> BoxFuture<'_, Result<Binding, StoreError>> {
        Box::pin(self.first_uses.ask(first))
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
        Box::pin(self.move_to(id, network, at))
    }

    fn settle(&self, id: KeyId, version: i64, accepted: bool) -> BoxFuture<'_, Result<bool, StoreError>> {
        Box::pin(self.settled.ask((id, version, accepted)))
    }

    fn write<'a>(&'a self, batch: &'a Batch) -> BoxFuture<'a, Result<(), StoreError>> {
        Box::pin(async move { self.write_batch(batch).await.map_err(failed) })
    }

    fn owner(&self) -> BoxFuture<'_, Result<Option<String>, String>> {
        Box::pin(connect::owner(&self.pool))
    }

    fn own(&self, fingerprint: String, before: Option<String>) -> BoxFuture<'_, Result<(), String>> {
        Box::pin(async move { connect::own(&self.pool, &fingerprint, before.as_deref()).await })
    }

    fn about(&self) -> BoxFuture<'_, Result<About, StoreError>> {
        Box::pin(async move {
            let version: String = sqlx::query_scalar("SELECT sqlite_version()").fetch_one(&self.pool).await.map_err(failed)?;
            // It has this machine's.
            Ok(About { version: format!("SQLite {version}"), major: 3, now_ms: millis(SystemTime::now()) })
        })
    }

    fn copy(&self, to: PathBuf) -> BoxFuture<'_, Result<(), String>> {
        Box::pin(async move {
            let path = to.to_str().ok_or("the path is not UTF-8")?;
            // One transaction sees it all as of one moment; those who write go on.
            let copied = sqlx::query("VACUUM INTO ?").bind(path).execute(&self.pool).await;
            copied.map(|_| ()).map_err(|e| format!("{}: {e}", to.display()))
        })
    }

    fn ping(&self) -> BoxFuture<'_, Result<(), StoreError>> {
        Box::pin(async move { sqlx::query("SELECT 1 FROM meta LIMIT 1").fetch_optional(&self.pool).await.map(|_| ()).map_err(failed) })
    }

    fn list(&self, query: Query) -> BoxFuture<'_, Result<Page<Record, Mark>, StoreError>> {
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

    fn audit(&self, asked: Asked) -> BoxFuture<'_, Result<Vec<Entry>, StoreError>> {
        Box::pin(audit::list(&self.pool, asked))
    }

    fn desk(&self) -> &dyn super::Desk {
        self
    }

    fn intercepted_since(&self, at: SystemTime) -> BoxFuture<'_, Result<Vec<KeyId>, StoreError>> {
        Box::pin(self.keys_intercepted_since(at))
    }

    fn hot(&self, ids: Vec<KeyId>, threshold: Threshold) -> BoxFuture<'_, Result<Vec<Hot>, StoreError>> {
        Box::pin(async move { self.hot_keys(&ids, threshold).await })
    }

    fn raise(&self, id: KeyId, window: Duration, events: Events) -> BoxFuture<'_, Result<bool, StoreError>> {
        Box::pin(async move { self.raise_alert(id, window, &events).await })
    }

    fn due(&self, webhooks: Vec<String>, lease: Duration) -> BoxFuture<'_, Result<Vec<Delivery>, StoreError>> {
        Box::pin(async move { self.take_due(&webhooks, lease).await })
    }

    fn attempted(&self, id: String, what: Attempted) -> BoxFuture<'_, Result<(), StoreError>> {
        Box::pin(async move { self.note_attempt(&id, what).await })
    }

    fn tend(&self, tending: Tending) -> BoxFuture<'_, Result<Option<Tended>, StoreError>> {
        Box::pin(async move { self.trim(&tending).await.map_err(failed) })
    }
}

/// The columns that requests are judged by.
const JUDGED: &str = "key_id, rule, networks, banned, confirmed, version, networks_max, window_s, seen_ms";

fn judged(row: &SqliteRow) -> Result<Binding, StoreError> {
    let list = |index: usize| row.try_get::<String, _>(index).map(|text| text.split(',').map(str::to_owned).collect::<Vec<_>>());
    let read = || -> sqlx::Result<Raw> {
        Ok(Raw {
            id: row.try_get(0)?,
            rule: row.try_get(1)?,
            networks: list(2)?,
            banned: row.try_get(3)?,
            confirmed: row.try_get(4)?,
            version: row.try_get(5)?,
            networks_max: row.try_get(6)?,
            window_s: row.try_get(7)?,
            seen_ms: list(8)?.iter().map(|number| number.parse().unwrap_or(0)).collect(),
        })
    };
    read().map_err(failed)?.checked()
}

type Rows = HashMap<KeyId, Result<Binding, StoreError>>;

fn by_id(rows: &[SqliteRow]) -> Result<Rows, StoreError> {
    let id = |row: &SqliteRow| key_id(row.try_get::<&[u8], _>(0).map_err(failed)?);
    rows.iter().map(|row| Ok((id(row)?, judged(row)))).collect()
}

async fn rows_of<'e>(executor: impl sqlx::SqliteExecutor<'e>, ids: &[KeyId]) -> Result<Rows, StoreError> {
    let ids: Vec<_> = ids.iter().map(KeyId::hex).collect();
    let statement = format!("SELECT {JUDGED} FROM bindings WHERE key_id IN (SELECT unhex(value) FROM json_each(?))");
    by_id(&sqlx::query(AssertSqlSafe(statement)).bind(json(&ids)).fetch_all(executor).await.map_err(failed)?)
}

async fn read(pool: SqlitePool, ids: Vec<KeyId>) -> Vec<Result<Option<Binding>, StoreError>> {
    match rows_of(&pool, &ids).await {
        Ok(rows) => ids.iter().map(|id| rows.get(id).cloned().transpose()).collect(),
        Err(error) => ids.iter().map(|_| Err(error.clone())).collect(),
    }
}

/// Takes all first uses that wait, commits them together, and tells each what holds.
async fn bind(pool: SqlitePool, pages_max: i64, uses: Vec<FirstUse>) -> Vec<Result<Binding, StoreError>> {
    match commit(&pool, pages_max, &uses).await {
        Ok(rows) => uses
            .iter()
            .map(|first| rows.get(&first.id).cloned().unwrap_or_else(|| Err(StoreError::Useless("the row is gone".into()))))
            .collect(),
        Err(error) => uses.iter().map(|_| Err(error.clone())).collect(),
    }
}

async fn commit(pool: &SqlitePool, pages_max: i64, uses: &[FirstUse]) -> Result<Rows, StoreError> {
    let rows: Vec<_> = uses
        .iter()
        .map(|first| {
            let (networks_max, window_s) = roaming_columns(first.roaming);
            (first.id.hex(), &first.hint, first.network.to_string(), first.confirmed, millis(first.at), networks_max, window_s)
        })
        .collect();
    let mut tx = pool.begin_with("BEGIN IMMEDIATE").await.map_err(failed)?;
    let pages: i64 = sqlx::query_scalar("PRAGMA page_count").fetch_one(&mut *tx).await.map_err(failed)?;
    if pages > pages_max {
        return Err(StoreError::Useless("memory takes no more bindings; use a file".into()));
    }
    // `WHERE true`: without it the parser takes ON CONFLICT for a join's condition.
    let statement = format!(
        "INSERT INTO bindings
             (key_id, hint, rule, networks, networks_max, window_s, seen_ms, confirmed, version, made_by, created_ms, last_used_ms)
         SELECT unhex(value ->> 0), value ->> 1, iif(value ->> 5 IS NULL, 'single', 'roaming'), value ->> 2, value ->> 5, value ->> 6,
             iif(value ->> 5 IS NULL, '', value ->> 4), value ->> 3, $2, 'first_use', value ->> 4, value ->> 4
         FROM json_each($1) WHERE true ON CONFLICT DO NOTHING RETURNING {JUDGED}"
    );
    let made = sqlx::query(AssertSqlSafe(statement)).bind(json(&rows)).bind(version_now(0)).fetch_all(&mut *tx).await.map_err(failed)?;
    let mut rows = by_id(&made)?;
    let taken: Vec<KeyId> = uses.iter().map(|first| first.id).filter(|id| !rows.contains_key(id)).collect();
    if !taken.is_empty() {
        rows.extend(rows_of(&mut *tx, &taken).await?);
    }
    tx.commit().await.map_err(failed)?;
    Ok(rows)
}

const CONFIRM: &str =
    "UPDATE bindings SET confirmed = 1 FROM (SELECT unhex(value ->> 0) AS id, value ->> 1 AS version FROM json_each(?)) AS c
    WHERE NOT confirmed AND key_id = c.id AND bindings.version = c.version";

async fn settle(pool: SqlitePool, words: Vec<(KeyId, i64, bool)>) -> Vec<Result<bool, StoreError>> {
    match settle_all(&pool, &words).await {
        Ok(rows) => words.iter().map(|(id, _, _)| Ok(rows.contains_key(id))).collect(),
        Err(error) => words.iter().map(|_| Err(error.clone())).collect(),
    }
}

async fn settle_all(pool: &SqlitePool, words: &[(KeyId, i64, bool)]) -> Result<Rows, StoreError> {
    let of = |wanted: bool| {
        let rows: Vec<_> = words.iter().filter(|word| word.2 == wanted).map(|(id, version, _)| (id.hex(), *version)).collect();
        json(&rows)
    };
    let mut tx = pool.begin_with("BEGIN IMMEDIATE").await.map_err(failed)?;
    sqlx::query(CONFIRM).bind(of(true)).execute(&mut *tx).await.map_err(failed)?;
    sqlx::query(
        "DELETE FROM bindings WHERE NOT confirmed AND (key_id, version) IN (SELECT unhex(value ->> 0), value ->> 1 FROM json_each(?))",
    )
    .bind(of(false))
    .execute(&mut *tx)
    .await
    .map_err(failed)?;
    let ids: Vec<KeyId> = words.iter().map(|(id, _, _)| *id).collect();
    let rows = rows_of(&mut *tx, &ids).await?;
    tx.commit().await.map_err(failed)?;
    Ok(rows)
}

/// Lists go to SQLite as JSON: one statement, however many.
fn json<T: serde::Serialize>(rows: &[T]) -> String {
    serde_json::to_string(rows).unwrap_or_default()
}

fn numbers(numbers: &[i64]) -> String {
    numbers.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")
}

/// SQLite's errors name columns and constraints, never values.
fn failed(error: sqlx::Error) -> StoreError {
    // Busy, locked, interrupted: in a moment it may go. The rest of what a database says it says again.
    let code = error.as_database_error().and_then(|said| said.code()).and_then(|code| code.parse::<u32>().ok());
    let text = format!("sqlite: {error}");
    match code.map(|code| code & 0xff) {
        None | Some(5 | 6 | 9 | 10) => StoreError::Away(text),
        Some(_) => StoreError::Useless(text),
    }
}
