//! Where bindings and intercepts are kept. The only SQL of the project.
//!
//! [`Store`] puts a process cache, a breaker and batched writing before an [`Authority`]: [`postgres`],
//! [`sqlite`] or [`memory`]. The contract's tests run against all of them.

pub mod audit;
mod batch;
mod bindings;
mod cache;
mod counters;
mod leashes;
mod limits;
mod memory;
pub mod outbox;
mod postgres;
pub mod record;
mod redis;
pub mod row;
mod secret;
pub mod settings;
mod shared;
mod sqlite;
#[cfg(test)]
mod tests;
mod together;
mod unsettled;

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use ipnet::IpNet;

use keylatch_filters::contract::{Binding, BoxFuture, Counters, FirstUse, KeyHasher, KeyId, StoreError};
use prometheus::Registry;
use serde_json::Value;

use crate::config::Files;
use crate::config::model::{Secrets, Settings, Storage};
use audit::{Actor, Asked, Entry};
use batch::Batch;
pub use bindings::Store;
use outbox::{Attempted, Delivery, Hot, Threshold};
use record::{Change, Query, Record, Tended, Tending};
pub use redis::Redis;
use settings::Stored;

/// What other processes have done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum News {
    /// This binding was changed or removed, as of this version.
    Changed(KeyId, i64),
    /// A live setting was changed.
    Settings,
    /// Something may have happened that was not heard of.
    Lost,
}

/// Id, webhook and event of deliveries.
type Events = Vec<(String, String, String)>;

type OnChange = Arc<dyn Fn(News) + Send + Sync>;

/// What holds the truth. Every method may be called from anywhere, at any time.
trait Authority: Send + Sync + 'static {
    /// The row.
    fn get(&self, id: KeyId) -> BoxFuture<'_, Result<Option<Binding>, StoreError>>;
    /// Inserts if absent, in one step; answers with the row that is there then.
    fn latch(&self, first: FirstUse) -> BoxFuture<'_, Result<Binding, StoreError>>;
    /// Moves a row to another id, unless one is there; answers with the row there then. `None`: there is none.
    fn adopt(&self, id: KeyId, from: KeyId) -> BoxFuture<'_, Result<Option<Binding>, StoreError>>;
    /// See [`keylatch_filters::contract::Bindings::roam`].
    fn roam(&self, id: KeyId, network: IpNet, at: SystemTime) -> BoxFuture<'_, Result<Option<Binding>, StoreError>>;
    /// The upstream's word on the key of the row in this version: confirms it, or removes it unless it was
    /// confirmed. Words that come at once are carried out with the good ones first. Whether the row is there then.
    fn settle(&self, id: KeyId, version: i64, accepted: bool) -> BoxFuture<'_, Result<bool, StoreError>>;
    /// Writes what nobody waits for. On an error nothing of it was written.
    fn write<'a>(&'a self, batch: &'a Batch) -> BoxFuture<'a, Result<(), StoreError>>;
    /// Whether it answers.
    fn ping(&self) -> BoxFuture<'_, Result<(), StoreError>>;
    /// Rows for an operator.
    fn list(&self, query: Query) -> BoxFuture<'_, Result<Vec<Record>, StoreError>>;
    /// An operator's change, in a new version, with its line in the audit. `None`: no such row, and none was to be made.
    fn change(&self, id: KeyId, change: Change, actor: Actor) -> BoxFuture<'_, Result<Option<Record>, StoreError>>;
    /// Removes the row, with a line in the audit. False: there was none.
    fn remove(&self, id: KeyId, actor: Actor) -> BoxFuture<'_, Result<bool, StoreError>>;
    /// What is set apart from the file.
    fn settings(&self) -> BoxFuture<'_, Result<Vec<Stored>, StoreError>>;
    /// Sets one, or (`None`) gives it back to the file; with its line in the audit.
    fn set_setting(&self, name: String, value: Option<Value>, actor: Actor) -> BoxFuture<'_, Result<(), StoreError>>;
    /// The audit.
    fn audit(&self, asked: Asked) -> BoxFuture<'_, Result<Vec<Entry>, StoreError>>;
    /// Archives, sweeps and trims, if it is time. `None`: it is not, or another process did it.
    fn tend(&self, tending: Tending) -> BoxFuture<'_, Result<Option<Tended>, StoreError>>;
    /// Keys of which intercepts were written since then; not more than are looked at at once.
    fn intercepted_since(&self, at: SystemTime) -> BoxFuture<'_, Result<Vec<KeyId>, StoreError>>;
    /// Which of these keys are over the threshold, and nobody was alerted of them within its window.
    fn hot(&self, ids: Vec<KeyId>, threshold: Threshold) -> BoxFuture<'_, Result<Vec<Hot>, StoreError>>;
    /// Notes that somebody is alerted of the key, and what is to be sent: id, webhook and event of each. False:
    /// another process has done so within the window.
    fn raise(&self, id: KeyId, window: Duration, events: Events) -> BoxFuture<'_, Result<bool, StoreError>>;
    /// Takes deliveries that are due for these webhooks; nobody else does for the time of `lease`.
    fn due(&self, webhooks: Vec<String>, lease: Duration) -> BoxFuture<'_, Result<Vec<Delivery>, StoreError>>;
    /// What came of an attempt.
    fn attempted(&self, id: String, what: Attempted) -> BoxFuture<'_, Result<(), StoreError>>;
    /// Tells of what others do, from now on. Nobody else writes to what only this process has.
    fn watch(&self, _on_change: OnChange) {}
}

/// A database goes with one secret.
const OTHER_SECRET: &str = "the database was made with another secrets.key_hmac, or another secrets.key_form: every key would look new and be bound again. \
    Configure the secret it was made with, or begin anew with another database";

/// Whether the configured secret, if there is one, can be read and is good enough.
pub fn check(secrets: &Secrets, files: &Files) -> Result<(), String> {
    secret::configured(secrets, files)?;
    secret::previous_fingerprints(secrets, files).map(|_| ())
}

/// An open store and the secret that goes with it.
pub struct Opened {
    /// The bindings.
    pub store: Arc<Store>,
    /// Turns keys into key ids.
    pub hasher: KeyHasher,
}

pub use secret::fresh as fresh_secret;

/// What a store is opened for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// Serving: the schema is brought up to date, and the database goes with the secret from then on.
    Serve,
    /// A command of an operator's, which changes neither.
    Command,
}

/// Opens what is configured. Errors say what to do.
pub async fn open(
    settings: &Settings,
    files: &Files,
    metrics: &Registry,
    purpose: Purpose,
    redis: Option<Arc<Redis>>,
) -> Result<Opened, String> {
    let secrets = &settings.secrets;
    match &settings.storage {
        Storage::Memory => {
            let secret = match secret::configured(secrets, files)? {
                Some(secret) => secret,
                None => secret::fresh()?,
            };
            let store = Store::new(Arc::new(memory::Memory::default()), None, 100_000, Duration::ZERO, metrics);
            store.flush_every(Duration::from_secs(1));
            Ok(Opened { store, hasher: secret::hasher(&secret, secrets, files)? })
        }
        Storage::Sqlite(config) => {
            let path = std::path::Path::new(&config.path);
            let serves = purpose == Purpose::Serve;
            let database = sqlite::Sqlite::open(path, serves).await?;
            let secret = match secret::configured(secrets, files)? {
                Some(secret) => secret,
                None => secret::beside(path, database.is_new().await?)?,
            };
            let hasher = secret::hasher(&secret, secrets, files)?;
            let (fingerprint, previous) = (secret::fingerprint(&hasher), secret::previous_fingerprints(secrets, files)?);
            if serves {
                database.claim(&fingerprint, &previous).await?;
            } else {
                database.belongs(&fingerprint, &previous).await?;
            }
            let store = Store::new(Arc::new(database), None, config.cache_max, config.stale_grace.0, metrics);
            store.flush_every(config.flush_every.0);
            Ok(Opened { store, hasher })
        }
        Storage::Postgres(config) => {
            let Some(secret) = secret::configured(secrets, files)? else {
                return Err("secrets.key_hmac is needed with storage.postgres: every replica must have the same. \
                     `openssl rand -hex 32` makes a good one"
                    .into());
            };
            let hasher = secret::hasher(&secret, secrets, files)?;
            let serves = purpose == Purpose::Serve;
            let database = postgres::Postgres::open(config, files, serves).await?;
            let (fingerprint, previous) = (secret::fingerprint(&hasher), secret::previous_fingerprints(secrets, files)?);
            if serves {
                database.claim(&fingerprint, &previous).await?;
            } else {
                database.belongs(&fingerprint, &previous).await?;
            }
            let cache_ttl = settings.redis.as_ref().map(|redis| redis.cache_ttl.0);
            let shared = redis.zip(cache_ttl).map(|(redis, ttl)| shared::Shared::new(redis, ttl, config.stale_grace.0));
            let store = Store::new(Arc::new(database), shared, config.cache_max, config.stale_grace.0, metrics);
            store.flush_every(config.flush_every.0);
            Ok(Opened { store, hasher })
        }
    }
}

/// Opens the Redis that is configured, if one is. Commands need none: they change the authority, which tells the replicas.
pub async fn open_redis(settings: &Settings, files: &Files, metrics: &Registry) -> Result<Option<Arc<Redis>>, String> {
    match &settings.redis {
        Some(config) => Redis::open(config, files, metrics).await.map(Some),
        None => Ok(None),
    }
}

/// Counts that replicas share, in a Redis.
pub fn counters(redis: &Arc<Redis>) -> Arc<dyn Counters> {
    limits::Shared::new(Arc::clone(redis))
}

/// Brings the schema up to date.
pub async fn migrate(storage: &Storage, files: &Files) -> Result<(), String> {
    match storage {
        Storage::Memory => Err("storage is memory, which has no schema".into()),
        Storage::Sqlite(config) => sqlite::Sqlite::open(std::path::Path::new(&config.path), true).await.map(|_| ()),
        Storage::Postgres(config) => postgres::Postgres::open(config, files, true).await.map(|_| ()),
    }
}
