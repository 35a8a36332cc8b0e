//! Opens the configured store and checks that it belongs to the configured secret. Contains no
//! request path.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use keylatch_filters::contract::KeyHasher;
use prometheus::Registry;

use super::{Store, secret};
use crate::config::Files;
use crate::config::model::{Secrets, Settings, Sqlite, Storage};
use crate::redis::Redis;
use crate::redis::cache::SharedCache;
use crate::sql::{Authority, postgres, sqlite};

/// A database belongs to one secret.
const OTHER_SECRET: &str = "the database was created with another secrets.key_hmac or secrets.key_form: every key would look new and be bound again. \
    Configure the secret that it was created with, or use a new database";

/// Checks that the configured secrets can be read and are long enough.
pub fn check(secrets: &Secrets, files: &Files) -> Result<(), String> {
    let key_hmac = secret::configured(secrets, files)?;
    secret::admin(&key_hmac.unwrap_or_default(), secrets, files)?;
    secret::previous_fingerprints(secrets, files).map(|_| ())
}

/// An open store with its secret.
pub struct Opened {
    /// The bindings.
    pub store: Arc<Store>,
    /// The store below them, for parts that need no bindings.
    pub authority: Arc<dyn Authority>,
    /// Hashes keys to key ids.
    pub hasher: KeyHasher,
    /// The secret of the admin API, which signs its tokens.
    pub admin_secret: Vec<u8>,
}

/// The purpose of opening a store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// Serving: the schema is migrated, and the database belongs to the secret from then on.
    Serve,
    /// An operator's command, which changes neither.
    Command,
}

/// What differs by the kind of storage.
struct Base {
    authority: Arc<dyn Authority>,
    secret: String,
    shared: Option<Arc<SharedCache>>,
    cache_max: usize,
    stale_grace: Duration,
    flush_every: Duration,
}

/// Opens the configured store. Errors say what to do.
pub async fn open(
    settings: &Settings,
    files: &Files,
    metrics: &Registry,
    purpose: Purpose,
    redis: Option<Arc<Redis>>,
) -> Result<Opened, String> {
    let secrets = &settings.secrets;
    let configured = secret::configured(secrets, files)?;
    let serves = purpose == Purpose::Serve;
    let reported = redis.clone();
    let base = match &settings.storage {
        Storage::Memory => Base {
            authority: Arc::new(sqlite::Sqlite::in_memory().await?),
            secret: configured.map_or_else(secret::fresh, Ok)?,
            shared: None,
            cache_max: 100_000,
            stale_grace: Duration::ZERO,
            flush_every: Duration::from_secs(1),
        },
        Storage::Sqlite(config) => {
            let path = Path::new(&config.path);
            not_left_behind(config)?;
            let authority = Arc::new(sqlite::Sqlite::open(path, serves).await?);
            let secret = match configured {
                Some(secret) => secret,
                None => secret::beside(path, authority.owner().await?.is_none())?,
            };
            let (cache_max, stale_grace, flush_every) = (config.cache_max, config.stale_grace.0, config.flush_every.0);
            Base { authority, secret, shared: None, cache_max, stale_grace, flush_every }
        }
        Storage::Postgres(config) => {
            let secret = configured.ok_or(
                "secrets.key_hmac is required with storage.postgres: every replica needs the same secret. \
                 Create one with `openssl rand -hex 32`",
            )?;
            let authority = Arc::new(postgres::Postgres::open(config, files, serves).await?);
            let (cache_max, stale_grace, flush_every) = (config.cache_max, config.stale_grace.0, config.flush_every.0);
            let cache_ttl = settings.redis.as_ref().map(|redis| redis.cache_ttl.0);
            let shared = redis.zip(cache_ttl).map(|(redis, ttl)| SharedCache::new(redis, ttl, stale_grace));
            Base { authority, secret, shared, cache_max, stale_grace, flush_every }
        }
    };
    let admin_secret = secret::admin(&base.secret, secrets, files)?;
    let hasher = secret::hasher(&base.secret, secrets, files)?;
    belongs(&*base.authority, secret::fingerprint(&hasher), &secret::previous_fingerprints(secrets, files)?, serves).await?;
    let authority = base.authority;
    let store = Store::new(Arc::clone(&authority), base.shared, base.cache_max, base.stale_grace, metrics);
    if let Some(redis) = reported {
        let _ = store.redis.set(redis);
    }
    if serves {
        store.follow();
        super::health::watch(&store).await;
    }
    store.flush_every(base.flush_every);
    Ok(Opened { store, authority, hasher, admin_secret })
}

/// Refuses to create an empty database where an earlier version left one in the working directory.
fn not_left_behind(config: &Sqlite) -> Result<(), String> {
    let Some(former) = config.former_path() else { return Ok(()) };
    Err(format!(
        "storage.sqlite.path is relative to the configuration file: {} does not exist, but {} in the working directory does. \
         Move it with the files beside it that have the same prefix, or configure its absolute path",
        config.path,
        std::path::absolute(former).unwrap_or_else(|_| former.to_owned()).display()
    ))
}

/// Refuses a database that belongs to another secret than this one and the previous ones. With
/// `claims`, the database belongs to this one from then on.
async fn belongs(authority: &dyn Authority, fingerprint: String, previous: &[String], claims: bool) -> Result<(), String> {
    let fits = |owner: &str| if owner == fingerprint || previous.iter().any(|known| known == owner) { Ok(()) } else { Err(OTHER_SECRET) };
    let owner = authority.owner().await?;
    owner.as_deref().map_or(Ok(()), fits)?;
    if !claims || owner.as_ref() == Some(&fingerprint) {
        return Ok(());
    }
    if owner.is_some() {
        tracing::info!("the database belongs to the new secrets.key_hmac from now on");
    }
    authority.own(fingerprint.clone(), owner).await?;
    // Of two processes that claim it at once, one wins.
    authority.owner().await?.as_deref().map_or(Ok(()), fits).map_err(str::to_owned)
}

/// Opens the configured Redis, if there is one. Commands do not need it: the authority notifies the
/// replicas of their changes.
pub async fn open_redis(settings: &Settings, files: &Files, metrics: &Registry) -> Result<Option<Arc<Redis>>, String> {
    match &settings.redis {
        Some(config) => Redis::open(config, files, metrics).await.map(Some),
        None => Ok(None),
    }
}

/// Migrates the schema.
pub async fn migrate(storage: &Storage, files: &Files) -> Result<(), String> {
    match storage {
        Storage::Memory => Err("storage is `memory`, which has no schema to migrate".into()),
        Storage::Sqlite(config) => {
            not_left_behind(config)?;
            sqlite::Sqlite::open(Path::new(&config.path), true).await.map(|_| ())
        }
        Storage::Postgres(config) => postgres::Postgres::open(config, files, true).await.map(|_| ()),
    }
}
