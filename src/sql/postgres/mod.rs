//! The authority in PostgreSQL 13 or later, for any number of processes. Look-ups and first uses go
//! through a few workers, each of which runs one statement for all that are queued: a cold key
//! under load is one query, and first uses share their commits.
//!
//! Everything runs on the runtime on which the store was opened: the proxy's own runtime may end
//! before the last row is written. Contains no cache.

mod alerts;
mod audit;
mod bindings;
mod connect;
mod intercepts;
mod listen;
mod lists;
mod manage;
mod migrate;
mod pools;
mod retention;
mod server;
mod session;
mod usage;

#[path = "../common/mod.rs"]
mod common;

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use ipnet::IpNet;

use keylatch_filters::contract::{Binding, BoxFuture, FirstUse, KeyId, StoreError};
use sqlx::{Executor, Postgres as Pg, Row};

use super::intercepts::Page;
use super::record::{BindingCursor, Change, Changed, Query, Record, RetentionPolicy, RetentionResult};
use bindings::{bind, read, roam, run_batch, settle, write};
use listen::Listening;
use pools::Pools;
use session::{Pool, Session};

use super::audit::{Actor, AuditEntry, AuditQuery};
use super::batch::Batch;
use super::batcher::Batcher;
use super::outbox::{Attempted, Delivery, KeyOverThreshold, Threshold};
use super::{Authority, Events, OnStoreEvent, ServerInfo};
use crate::config::Files;
use crate::config::model::Postgres as PostgresConfig;

// The contract of `common`.
type Db = Pg;
type Own = Postgres;
type DbPool = Pool;
type Connection = Session;
type Tx = Box<Session>;
/// The server's clock, in milliseconds since 1970.
const NOW_MS: &str = "(extract(epoch FROM clock_timestamp()) * 1000)::bigint";

async fn begin(own: &Own) -> Result<Tx, StoreError> {
    own.with(async |pool| pool.begin().await.map_err(failed)).await
}

/// The maximum number of requests in one statement.
const BATCH_MAX: usize = 512;
/// The time limit of batched writes: no request waits for them, and a batch may be large.
const WRITE_TIME_MAX: Duration = Duration::from_secs(5);
/// The time limit of operators' queries, which may read whole tables.
const OPERATOR_TIME_MAX: Duration = Duration::from_secs(120);
const READERS: usize = 3;
const WRITERS: usize = 2;

/// An open database.
pub struct Postgres {
    pools: Arc<Pools>,
    listening: Arc<Listening>,
    replica: Arc<str>,
    runtime: tokio::runtime::Handle,
    reads: Batcher<KeyId, Option<Binding>>,
    first_uses: Batcher<FirstUse, Binding>,
    settled: Batcher<(KeyId, i64, bool), bool>,
}

impl Postgres {
    /// Connects, and migrates the schema under a lock if `migrate` is set.
    pub async fn open(config: &PostgresConfig, files: &Files, migrate: bool) -> Result<Self, String> {
        let listens = config.listen_url.as_ref().map(|url| connect::servers(config, files, url, "listen_url")).transpose()?;
        let pools = connect::pools(config, files).await?;
        let listening = Listening::new(Arc::clone(&pools), listens.unwrap_or_default());
        if migrate {
            migrate::migrate(&pools).await?;
        }
        let timeout = config.timeout.0;
        let (reading, binding, settling) = (Arc::clone(&pools), Arc::clone(&pools), Arc::clone(&pools));
        let reads = Batcher::new(READERS, BATCH_MAX, timeout, move |ids: Vec<KeyId>| run_batch(Arc::clone(&reading), timeout, ids, read));
        let first_uses =
            Batcher::new(WRITERS, BATCH_MAX, timeout, move |uses: Vec<FirstUse>| run_batch(Arc::clone(&binding), timeout, uses, bind));
        // No request waits for these, and under load they may be late.
        let settled = Batcher::new(1, BATCH_MAX, 3 * WRITE_TIME_MAX, move |verdicts: Vec<_>| {
            run_batch(Arc::clone(&settling), WRITE_TIME_MAX, verdicts, settle)
        });
        let (replica, runtime) = (config.replica().into(), tokio::runtime::Handle::current());
        Ok(Self { pools, listening, replica, runtime, reads, first_uses, settled })
    }

    /// Runs an operator's query.
    async fn with<T>(&self, work: impl AsyncFnOnce(Pool) -> Result<T, StoreError>) -> Result<T, StoreError> {
        self.pools.run_for(OPERATOR_TIME_MAX, work).await
    }

    /// Runs work for a request on the store's own runtime: a connection lives no longer than the
    /// runtime on which it was made.
    async fn on_own_runtime<T: Send + 'static>(
        &self,
        work: impl Future<Output = Result<T, StoreError>> + Send + 'static,
    ) -> Result<T, StoreError> {
        self.runtime.spawn(work).await.unwrap_or_else(|_| Err(StoreError::Away("the store is closed".into())))
    }
}

impl Authority for Postgres {
    fn get(&self, id: KeyId) -> BoxFuture<'_, Result<Option<Binding>, StoreError>> {
        Box::pin(self.reads.submit(id))
    }

    fn bind_first_use(&self, first: FirstUse) -> BoxFuture<'_, Result<Binding, StoreError>> {
        Box::pin(self.first_uses.submit(first))
    }

    fn adopt(&self, id: KeyId, from: KeyId) -> BoxFuture<'_, Result<Option<Binding>, StoreError>> {
        Box::pin(async move {
            let moved = sqlx::query(
                "UPDATE bindings SET key_id = $1, version = keylatch_version(version)
                 WHERE key_id = $2 AND NOT EXISTS (SELECT 1 FROM bindings WHERE key_id = $1)",
            );
            let pools = Arc::clone(&self.pools);
            let update =
                async move { pools.run(async move |pool| moved.bind(id.0).bind(from.0).execute(&pool).await.map_err(failed)).await };
            self.on_own_runtime(update).await?;
            self.get(id).await
        })
    }

    fn roam(&self, id: KeyId, network: IpNet, at: SystemTime) -> BoxFuture<'_, Result<Option<Binding>, StoreError>> {
        let pools = Arc::clone(&self.pools);
        Box::pin(self.on_own_runtime(async move { pools.run(async move |pool| roam(&pool, id, network, at).await).await }))
    }

    fn settle(&self, id: KeyId, version: i64, accepted: bool) -> BoxFuture<'_, Result<bool, StoreError>> {
        Box::pin(self.settled.submit((id, version, accepted)))
    }

    fn write<'a>(&'a self, batch: &'a Batch) -> BoxFuture<'a, Result<(), StoreError>> {
        Box::pin(self.pools.run_for(WRITE_TIME_MAX, async |pool| write(&pool, &self.replica, batch).await.map_err(failed)))
    }

    fn owner(&self) -> BoxFuture<'_, Result<Option<String>, String>> {
        Box::pin(async { connect::owner(&self.pools).await })
    }

    fn own(&self, fingerprint: String, before: Option<String>) -> BoxFuture<'_, Result<(), String>> {
        Box::pin(async move { connect::own(&self.pools, &fingerprint, before.as_deref()).await })
    }

    fn server_info(&self) -> BoxFuture<'_, Result<ServerInfo, StoreError>> {
        Box::pin(self.pools.run(async |pool| {
            let query = sqlx::query("SELECT current_setting('server_version'), current_setting('server_version_num')::bigint, now_ms FROM (SELECT (extract(epoch FROM clock_timestamp()) * 1000)::bigint AS now_ms) AS clock");
            let row = query.fetch_one(&pool).await.map_err(failed)?;
            let (version, number): (String, i64) = (row.try_get(0).map_err(failed)?, row.try_get(1).map_err(failed)?);
            let major = u32::try_from(number / 10_000).unwrap_or_default();
            Ok(ServerInfo { version: format!("PostgreSQL {version}"), major, now_ms: row.try_get(2).map_err(failed)? })
        }))
    }

    fn ping(&self) -> BoxFuture<'_, Result<(), StoreError>> {
        Box::pin(self.pools.run(async |pool| pool.execute("SELECT 1").await.map(|_| ()).map_err(failed)))
    }

    fn try_write(&self) -> BoxFuture<'_, Result<(), StoreError>> {
        Box::pin(self.pools.run(bindings::try_write))
    }

    fn notifications_work(&self) -> BoxFuture<'_, Result<(), String>> {
        Box::pin(async { self.listening.test().await.map_err(|error| error.to_string()) })
    }

    fn list(&self, query: Query) -> BoxFuture<'_, Result<Page<Record, BindingCursor>, StoreError>> {
        Box::pin(self.pools.run_for(OPERATOR_TIME_MAX, async move |pool| lists::list(&pool, query).await))
    }

    fn count(&self, query: Query) -> BoxFuture<'_, Result<Option<u64>, StoreError>> {
        Box::pin(self.pools.run_for(OPERATOR_TIME_MAX, async move |pool| lists::count(&pool, query).await))
    }

    fn change(&self, id: KeyId, change: Change, actor: Actor) -> BoxFuture<'_, Result<Changed<Record>, StoreError>> {
        Box::pin(self.pools.run_for(OPERATOR_TIME_MAX, async move |pool| manage::change(&pool, id, change, &actor).await))
    }

    fn remove(&self, id: KeyId, expects: Option<i64>, actor: Actor) -> BoxFuture<'_, Result<Changed<()>, StoreError>> {
        Box::pin(self.pools.run_for(OPERATOR_TIME_MAX, async move |pool| manage::remove(&pool, id, expects, &actor).await))
    }

    fn audit(&self, query: AuditQuery) -> BoxFuture<'_, Result<Vec<AuditEntry>, StoreError>> {
        Box::pin(self.pools.run_for(OPERATOR_TIME_MAX, async move |pool| audit::list(&pool, query).await))
    }

    fn apply_retention(&self, policy: RetentionPolicy) -> BoxFuture<'_, Result<Option<RetentionResult>, StoreError>> {
        Box::pin(self.pools.run_for(OPERATOR_TIME_MAX, async move |pool| retention::apply(&pool, &policy).await.map_err(failed)))
    }

    fn admin_store(&self) -> &dyn super::AdminStore {
        self
    }

    fn intercepted_since(&self, at: SystemTime) -> BoxFuture<'_, Result<Vec<KeyId>, StoreError>> {
        Box::pin(self.pools.run_for(WRITE_TIME_MAX, async move |pool| alerts::intercepted_since(&pool, at).await))
    }

    fn keys_over_threshold(&self, ids: Vec<KeyId>, threshold: Threshold) -> BoxFuture<'_, Result<Vec<KeyOverThreshold>, StoreError>> {
        Box::pin(self.pools.run_for(WRITE_TIME_MAX, async move |pool| alerts::keys_over_threshold(&pool, &ids, threshold).await))
    }

    fn record_alert(&self, id: KeyId, window: Duration, events: Events) -> BoxFuture<'_, Result<bool, StoreError>> {
        Box::pin(self.pools.run_for(WRITE_TIME_MAX, async move |pool| alerts::raise(&pool, id, window, &events).await))
    }

    fn lease_deliveries(&self, webhooks: Vec<String>, lease: Duration) -> BoxFuture<'_, Result<Vec<Delivery>, StoreError>> {
        Box::pin(self.pools.run_for(WRITE_TIME_MAX, async move |pool| alerts::due(&pool, &webhooks, lease).await))
    }

    fn attempted(&self, id: String, what: Attempted) -> BoxFuture<'_, Result<(), StoreError>> {
        Box::pin(self.pools.run_for(WRITE_TIME_MAX, async move |pool| alerts::attempted(&pool, &id, what).await))
    }

    fn watch(&self, on_event: OnStoreEvent) {
        tokio::spawn(Arc::clone(&self.listening).follow(on_event));
    }
}

/// PostgreSQL's message may name columns and constraints. Values are in its detail, which is left
/// out.
fn failed(error: sqlx::Error) -> StoreError {
    let Some(said) = error.as_database_error() else { return StoreError::Away(format!("postgres: {error}")) };
    let code = said.code().unwrap_or_default();
    let text = format!("postgres: {} ({code})", said.message());
    // Temporary: connections (08), resources (53), a cancelled statement or a stopping server (57),
    // a demoted server (25006), a deadlock (40), a lock that is held too long (55P03). A retry may
    // succeed, possibly on another server.
    if code == "53100" {
        return StoreError::Full(text);
    }
    let is_temporary = ["08", "25006", "40", "53", "55P03", "57"].iter().any(|class| code.starts_with(class));
    if is_temporary { StoreError::Away(text) } else { StoreError::Useless(text) }
}
