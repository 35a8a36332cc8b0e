//! What is kept in the store, encrypted, for all replicas: the account, certificates, and when it is tried again.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use instant_acme::AccountCredentials;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::Wanted;
use crate::bindings::Store;
use crate::config::model::Acme as Config;
use crate::util::aead::Sealer;
use crate::util::time::millis;

/// An account lasts for as long as it is used.
const ACCOUNT_TIME: Duration = Duration::from_secs(5 * 365 * 86_400);
/// How often it has failed is known for so long after it may be tried again.
const PAUSE_KNOWN: Duration = Duration::from_secs(86_400);

/// A certificate as it is kept.
#[derive(Clone, Serialize, Deserialize)]
pub struct Kept {
    /// Its chain, as PEM.
    pub chain: String,
    /// Its key, as PEM.
    pub key: String,
    /// When it ends, in seconds since 1970.
    pub not_after_s: i64,
    /// The names it was had made for.
    #[serde(default)]
    pub names: Vec<String>,
}

/// An account as it is kept.
#[derive(Serialize, Deserialize)]
pub struct KeptAccount {
    pub credentials: AccountCredentials,
    pub contact: Vec<String>,
}

#[derive(Serialize, Deserialize)]
struct Pause {
    until_s: i64,
    failed: u32,
}

/// The store, and the key for it.
pub struct Shelf {
    store: Arc<Store>,
    sealer: Sealer,
}

fn now_s() -> i64 {
    millis(SystemTime::now()) / 1000
}

fn away(error: impl std::fmt::Display) -> String {
    format!("the store is away: {error}")
}

/// Under which name an account is kept.
fn account(config: &Config) -> String {
    match &config.external_account {
        Some(external) => format!("acme account {} {}", config.directory, external.key_id),
        None => format!("acme account {}", config.directory),
    }
}

fn of_name(directory: &str, name: &str) -> String {
    format!("acme name {directory} {name}")
}

impl Shelf {
    /// `secret`: from which the key follows.
    pub fn new(store: Arc<Store>, secret: &[u8]) -> Result<Self, String> {
        Ok(Self { store, sealer: Sealer::new(secret)? })
    }

    /// `None`: there is none, or it was sealed under another secret.
    async fn fetch<T: DeserializeOwned>(&self, name: &str) -> Result<Option<T>, String> {
        let sealed = self.store.admin_store().secret(name).await.map_err(away)?;
        let plain = sealed.and_then(|sealed| self.sealer.open(name, &sealed));
        Ok(plain.and_then(|plain| serde_json::from_slice(&plain).ok()))
    }

    async fn keep(&self, name: &str, what: &impl Serialize, time: Duration) -> Result<(), String> {
        let plain = serde_json::to_vec(what).map_err(|e| e.to_string())?;
        let sealed = self.sealer.seal(name, &plain)?;
        self.store.admin_store().put_secret(name, &sealed, time).await.map_err(away)
    }

    /// The certificate for just these names.
    pub async fn certificate(&self, wanted: &Wanted) -> Result<Option<Kept>, String> {
        self.fetch(&wanted.certificate()).await
    }

    /// The certificate that was made last for this name, and others perhaps.
    pub async fn of_name(&self, directory: &str, name: &str) -> Result<Option<Kept>, String> {
        self.fetch(&of_name(directory, name)).await
    }

    /// Keeps one until it ends.
    pub async fn keep_certificate(&self, wanted: &Wanted, kept: &Kept) -> Result<(), String> {
        let left = Duration::from_secs(u64::try_from(kept.not_after_s - now_s()).unwrap_or(0));
        for name in &wanted.names {
            self.keep(&of_name(&wanted.directory, name), kept, left).await?;
        }
        self.keep(&wanted.certificate(), kept, left).await
    }

    /// The account with this CA.
    pub async fn account(&self, config: &Config) -> Result<Option<KeptAccount>, String> {
        self.fetch(&account(config)).await
    }

    /// Keeps it.
    pub async fn keep_account(&self, config: &Config, kept: &KeptAccount) -> Result<(), String> {
        self.keep(&account(config), kept, ACCOUNT_TIME).await
    }

    /// Whether it is to be waited still until this is tried again. What is asked for in another way is another thing.
    pub async fn is_paused(&self, what: &str) -> Result<bool, String> {
        Ok(self.fetch::<Pause>(what).await?.is_some_and(|pause| pause.until_s > now_s()))
    }

    /// It has failed: until when it is waited, given how often it has.
    pub async fn pause(&self, what: &str, of: impl Fn(u32) -> Duration) -> Result<Duration, String> {
        let failed = self.fetch::<Pause>(what).await?.map_or(0, |pause| pause.failed);
        let time = of(failed);
        let until_s = now_s() + i64::try_from(time.as_secs()).unwrap_or(i64::MAX / 2);
        self.keep(what, &Pause { until_s, failed: failed.saturating_add(1) }, time + PAUSE_KNOWN).await?;
        Ok(time)
    }

    /// It has not failed any more.
    pub async fn go_on(&self, what: &str) {
        // It ends by itself.
        let _ = self.store.admin_store().delete_secret(what).await;
    }
}
