//! Opening what is configured, and the secret that goes with it.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use keylatch_filters::contract::KeyHasher;
use prometheus::Registry;

use super::{Store, secret};
use crate::config::Files;
use crate::config::model::{Secrets, Settings, Sqlite, Storage};
use crate::redis::Redis;
use crate::redis::cache::Shared;
use crate::sql::{Authority, postgres, sqlite};

/// A database goes with one secret.
const OTHER_SECRET: &str = "the database was made with another secrets.key_hmac, or another secrets.key_form: every key would look new and be bound again. \
    Configure the secret it was made with, or begin anew with another database";

/// Whether the configured secret, if there is one, can be read and is good enough.
pub fn check(secrets: &Secrets, files: &Files) -> Result<(), String> {
    let key_hmac = secret::configured(secrets, files)?;
    secret::admin(&key_hmac.unwrap_or_default(), secrets, files)?;
    secret::previous_fingerprints(secrets, files).map(|_| ())
}

/// An open store and the secret that goes with it.
pub struct Opened {
    /// The bindings.
    pub store: Arc<Store>,
    /// Turns keys into key ids.
    pub hasher: KeyHasher,
    /// Signs what the admin API hands out.
    pub admin_secret: Vec<u8>,
}

/// What a store is opened for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// Serving: the schema is brought up to date, and the database goes with the secret from then on.
    Serve,
    /// A command of an operator's, which changes neither.
    Command,
}

/// What the kinds of storage differ in.
struct Base {
    authority: Arc<dyn Authority>,
    secret: String,
    shared: Option<Arc<Shared>>,
    cache_max: usize,
    stale_grace: Duration,
    flush_every: Duration,
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
                "secrets.key_hmac is needed with storage.postgres: every replica must have the same. \
                 `openssl rand -hex 32` makes a good one",
            )?;
            let authority = Arc::new(postgres::Postgres::open(config, files, serves).await?);
            let (cache_max, stale_grace, flush_every) = (config.cache_max, config.stale_grace.0, config.flush_every.0);
            let cache_ttl = settings.redis.as_ref().map(|redis| redis.cache_ttl.0);
            let shared = redis.zip(cache_ttl).map(|(redis, ttl)| Shared::new(redis, ttl, stale_grace));
            Base { authority, secret, shared, cache_max, stale_grace, flush_every }
        }
    };
    let admin_secret = secret::admin(&base.secret, secrets, files)?;
    let hasher = secret::hasher(&base.secret, secrets, files)?;
    belongs(&*base.authority, secret::fingerprint(&hasher), &secret::previous_fingerprints(secrets, files)?, serves).await?;
    let store = Store::new(base.authority, base.shared, base.cache_max, base.stale_grace, metrics);
    if let Some(redis) = reported {
        let _ = store.redis.set(redis);
    }
    if serves {
        store.follow();
        super::health::watch(&store).await;
    }
    store.flush_every(base.flush_every);
    Ok(Opened { store, hasher, admin_secret })
}

/// An empty database must not take the place of one that an earlier version has made in its working directory.
fn not_left_behind(config: &Sqlite) -> Result<(), String> {
    let Some(former) = config.former_path() else { return Ok(()) };
    Err(format!(
        "storage.sqlite.path is relative to the configuration file: {} is not there, and {} is, in the working directory. \
         Move it (with the files beside it whose names begin alike), or write its absolute path",
        config.path,
        std::path::absolute(former).unwrap_or_else(|_| former.to_owned()).display()
    ))
}

/// Refused where the database goes with another secret than this and those before it. With `claims` it goes with this
/// one from then on.
async fn belongs(authority: &dyn Authority, fingerprint: String, previous: &[String], claims: bool) -> Result<(), String> {
    let fits = |owner: &str| if owner == fingerprint || previous.iter().any(|known| known == owner) { Ok(()) } else { Err(OTHER_SECRET) };
    let owner = authority.owner().await?;
    owner.as_deref().map_or(Ok(()), fits)?;
    if !claims || owner.as_ref() == Some(&fingerprint) {
        return Ok(());
    }
    if owner.is_some() {
        tracing::info!("the database goes with the new secrets.key_hmac from now on");
    }
    authority.own(fingerprint.clone(), owner).await?;
    // Of two that claimed it at once one was first.
    authority.owner().await?.as_deref().map_or(Ok(()), fits).map_err(str::to_owned)
}

/// Opens the Redis that is configured, if one is. Commands need none: they change the authority, which tells the replicas.
pub async fn open_redis(settings: &Settings, files: &Files, metrics: &Registry) -> Result<Option<Arc<Redis>>, String> {
    match &settings.redis {
        Some(config) => Redis::open(config, files, metrics).await.map(Some),
        None => Ok(None),
    }
}

/// Brings the schema up to date.
pub async fn migrate(storage: &Storage, files: &Files) -> Result<(), String> {
    match storage {
        Storage::Memory => Err("storage is memory, which has no schema".into()),
        Storage::Sqlite(config) => {
            not_left_behind(config)?;
            sqlite::Sqlite::open(Path::new(&config.path), true).await.map(|_| ())
        }
        Storage::Postgres(config) => postgres::Postgres::open(config, files, true).await.map(|_| ()),
    }
}
