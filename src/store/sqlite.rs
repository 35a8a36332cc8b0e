//! Bindings in one SQLite file (WAL), for one process.
//!
//! First uses go through one writer, which commits all that wait in one transaction: each of them is on
//! the disk before its request goes on, and many at once share one flush.

use std::collections::HashMap;
use std::net::IpAddr;
use std::path::Path;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, SystemTime};

use ipnet::IpNet;
use keylatch_filters::contract::{Binding, BoxFuture, FirstUse, KeyId, StoreError};
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePool, SqlitePoolOptions, SqliteRow, SqliteSynchronous};
use sqlx::{Connection, Row, SqliteConnection};
use tokio::sync::{mpsc, oneshot};

use super::{Authority, Batch};

/// First uses that wait for the writer; past it, requests wait for a place.
const WAITING_MAX: usize = 4096;
/// First uses in one transaction.
const TOGETHER_MAX: usize = 512;
/// How long a statement waits for another process that holds the file.
const BUSY_MAX: Duration = Duration::from_secs(5);
const RETENTION: Duration = Duration::from_secs(90 * 86_400);
const TRIM_EVERY_MS: i64 = 3_600_000;

type Waiting = (FirstUse, oneshot::Sender<Result<Binding, StoreError>>);

/// An open file.
pub struct Sqlite {
    pool: SqlitePool,
    first_uses: mpsc::Sender<Waiting>,
    trimmed_ms: AtomicI64,
}

impl Sqlite {
    /// Opens the file, makes it and its folder if they are not there, and brings its schema up to date.
    pub async fn open(path: &Path) -> Result<Self, String> {
        let wrong = |what: &str, e: &dyn std::fmt::Display| format!("the database {} {what}: {e}", path.display());
        if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
            std::fs::create_dir_all(folder).map_err(|e| wrong("cannot get its folder", &e))?;
        }
        let options = SqliteConnectOptions::new()
            .filename(path)
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full)
            .busy_timeout(BUSY_MAX);
        let pool = SqlitePoolOptions::new().max_connections(4).acquire_timeout(BUSY_MAX).connect_with(options.clone()).await;
        let pool = pool.map_err(|e| wrong("cannot be opened", &e))?;
        sqlx::migrate!("./src/store/migrations/sqlite").run(&pool).await.map_err(|e| wrong("cannot be brought up to date", &e))?;
        let writer = SqliteConnection::connect_with(&options).await.map_err(|e| wrong("cannot be opened for writing", &e))?;
        let (first_uses, waiting) = mpsc::channel(WAITING_MAX);
        tokio::spawn(write_first_uses(writer, waiting));
        Ok(Self { pool, first_uses, trimmed_ms: AtomicI64::new(0) })
    }

    /// Whether no secret has claimed it yet.
    pub async fn is_new(&self) -> Result<bool, String> {
        self.fingerprint().await.map(|known| known.is_none())
    }

    async fn fingerprint(&self) -> Result<Option<String>, String> {
        sqlx::query_scalar("SELECT value FROM meta WHERE name = 'key_hmac'")
            .fetch_optional(&self.pool)
            .await
            .map_err(|e| format!("the database cannot be read: {e}"))
    }

    /// Ties the database to the secret with this fingerprint. Refused if it belongs to another.
    pub async fn claim(&self, fingerprint: &str) -> Result<(), String> {
        sqlx::query("INSERT INTO meta (name, value) VALUES ('key_hmac', ?) ON CONFLICT DO NOTHING")
            .bind(fingerprint)
            .execute(&self.pool)
            .await
            .map_err(|e| format!("the database cannot be written: {e}"))?;
        match self.fingerprint().await? {
            Some(known) if known == fingerprint => Ok(()),
            _ => Err("the database was made with another secrets.key_hmac: every key would look new and be bound again. \
                      Configure the secret it was made with, or begin anew with another database"
                .into()),
        }
    }

    async fn write_batch(&self, batch: &Batch) -> sqlx::Result<()> {
        let mut tx = self.pool.begin_with("BEGIN IMMEDIATE").await?;
        for (id, at) in &batch.used {
            sqlx::query("UPDATE bindings SET last_used_ms = max(last_used_ms, ?) WHERE key_id = ?")
                .bind(millis(*at))
                .bind(id.0.as_slice())
                .execute(&mut *tx)
                .await?;
        }
        for repeated in batch.intercepts.values() {
            let first = &repeated.first;
            sqlx::query(
                "INSERT INTO intercepts (key_id, hint, client, method, path, user_agent, route, banned, count, first_ms, last_ms)
                 VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            )
            .bind(first.id.0.as_slice())
            .bind(&first.hint)
            .bind(first.client.to_string())
            .bind(&first.method)
            .bind(&first.path)
            .bind(&first.user_agent)
            .bind(&first.route)
            .bind(first.banned)
            .bind(i64::try_from(repeated.count).unwrap_or(i64::MAX))
            .bind(millis(first.at))
            .bind(millis(repeated.last_at))
            .execute(&mut *tx)
            .await?;
        }
        let now_ms = millis(SystemTime::now());
        if now_ms - self.trimmed_ms.load(Ordering::Relaxed) > TRIM_EVERY_MS {
            let oldest = now_ms - i64::try_from(RETENTION.as_millis()).unwrap_or(i64::MAX);
            sqlx::query("DELETE FROM intercepts WHERE last_ms < ?").bind(oldest).execute(&mut *tx).await?;
            self.trimmed_ms.store(now_ms, Ordering::Relaxed);
        }
        tx.commit().await
    }
}

impl Authority for Sqlite {
    fn latch(&self, first: FirstUse) -> BoxFuture<'_, Result<Binding, StoreError>> {
        Box::pin(async move {
            let (tell, told) = oneshot::channel();
            let gone = |_| StoreError("the database's writer has ended".into());
            self.first_uses.send((first, tell)).await.map_err(|_| gone(()))?;
            told.await.map_err(|_| gone(()))?
        })
    }

    fn get(&self, id: KeyId) -> BoxFuture<'_, Result<Option<Binding>, StoreError>> {
        Box::pin(async move {
            let row = sqlx::query("SELECT rule, networks, banned, version FROM bindings WHERE key_id = ?")
                .bind(id.0.as_slice())
                .fetch_optional(&self.pool)
                .await
                .map_err(failed)?;
            row.map(|row| binding(id, &row)).transpose()
        })
    }

    fn write<'a>(&'a self, batch: &'a Batch) -> BoxFuture<'a, Result<(), StoreError>> {
        Box::pin(async move { self.write_batch(batch).await.map_err(failed) })
    }

    fn ping(&self) -> BoxFuture<'_, Result<(), StoreError>> {
        Box::pin(async move { sqlx::query("SELECT 1 FROM meta LIMIT 1").fetch_optional(&self.pool).await.map(|_| ()).map_err(failed) })
    }
}

/// Takes all first uses that wait, commits them together, and tells each what holds.
async fn write_first_uses(mut writer: SqliteConnection, mut waiting: mpsc::Receiver<Waiting>) {
    let mut together = Vec::with_capacity(TOGETHER_MAX);
    while waiting.recv_many(&mut together, TOGETHER_MAX).await > 0 {
        let outcome = commit(&mut writer, &together).await;
        for (first, tell) in together.drain(..) {
            let answer = match &outcome {
                Ok(rows) => rows.get(&first.id).cloned().unwrap_or_else(|| Err(StoreError("the row is gone".into()))),
                Err(error) => Err(error.clone()),
            };
            // Whoever asked may have left; the binding holds all the same.
            let _ = tell.send(answer);
        }
    }
}

type Rows = HashMap<KeyId, Result<Binding, StoreError>>;

async fn commit(writer: &mut SqliteConnection, together: &[Waiting]) -> Result<Rows, StoreError> {
    let mut rows = Rows::with_capacity(together.len());
    let mut tx = writer.begin_with("BEGIN IMMEDIATE").await.map_err(failed)?;
    for (first, _) in together {
        let at = millis(first.at);
        sqlx::query(
            "INSERT INTO bindings (key_id, hint, rule, networks, created_ms, last_used_ms) VALUES (?, ?, 'single', ?, ?, ?)
             ON CONFLICT DO NOTHING",
        )
        .bind(first.id.0.as_slice())
        .bind(&first.hint)
        .bind(first.network.to_string())
        .bind(at)
        .bind(at)
        .execute(&mut *tx)
        .await
        .map_err(failed)?;
        let row = sqlx::query("SELECT rule, networks, banned, version FROM bindings WHERE key_id = ?")
            .bind(first.id.0.as_slice())
            .fetch_one(&mut *tx)
            .await
            .map_err(failed)?;
        rows.insert(first.id, binding(first.id, &row));
    }
    tx.commit().await.map_err(failed)?;
    Ok(rows)
}

/// A row that makes no sense is an error, never a binding that admits somebody.
fn binding(id: KeyId, row: &SqliteRow) -> Result<Binding, StoreError> {
    let wrong = |what: &str| StoreError(format!("the binding {id} has {what} in the database"));
    let rule: String = row.try_get(0).map_err(failed)?;
    let networks: String = row.try_get(1).map_err(failed)?;
    let network = |text: &str| {
        let text = text.trim();
        text.parse::<IpNet>().or_else(|_| text.parse::<IpAddr>().map(IpNet::from)).map_err(|_| wrong("a malformed network"))
    };
    let networks = networks.split(',').filter(|text| !text.trim().is_empty()).map(network).collect::<Result<_, _>>()?;
    Ok(Binding {
        id,
        rule: rule.parse().map_err(|_| wrong("an unknown rule"))?,
        networks,
        banned: row.try_get(2).map_err(failed)?,
        version: row.try_get(3).map_err(failed)?,
    })
}

/// SQLite's errors name columns and constraints, never values.
fn failed(error: sqlx::Error) -> StoreError {
    StoreError(format!("sqlite: {error}"))
}

fn millis(at: SystemTime) -> i64 {
    at.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| i64::try_from(since.as_millis()).unwrap_or(i64::MAX))
}
