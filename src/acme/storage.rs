//! The ACME state in the store, encrypted and shared by all replicas: the account, certificates and
//! back-offs. It calls no CA.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use instant_acme::AccountCredentials;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::WantedCertificate;
use crate::bindings::Store;
use crate::config::model::Acme as AcmeConfig;
use crate::util::aead::Sealer;
use crate::util::time::millis;

/// The lifetime of an account in the store.
const ACCOUNT_LIFETIME: Duration = Duration::from_secs(5 * 365 * 86_400);
/// The number of failures is kept for this long after the back-off has ended.
const FAILURES_KEPT: Duration = Duration::from_secs(86_400);

/// A certificate in the store.
#[derive(Clone, Serialize, Deserialize)]
pub struct StoredCertificate {
    /// Its chain, as PEM.
    pub chain: String,
    /// Its key, as PEM.
    pub key: String,
    /// Its `notAfter`, in seconds since 1970.
    pub not_after_s: i64,
    /// The names that it was ordered for.
    #[serde(default)]
    pub names: Vec<String>,
}

/// An account in the store.
#[derive(Serialize, Deserialize)]
pub struct StoredAccount {
    pub credentials: AccountCredentials,
    pub contact: Vec<String>,
}

#[derive(Serialize, Deserialize)]
struct Backoff {
    until_s: i64,
    failed: u32,
}

/// The store, and the encryption key.
pub struct AcmeStorage {
    store: Arc<Store>,
    sealer: Sealer,
}

fn now_s() -> i64 {
    millis(SystemTime::now()) / 1000
}

fn unavailable(error: impl std::fmt::Display) -> String {
    format!("the store is unavailable: {error}")
}

/// The name of an account in the store.
fn account(config: &AcmeConfig) -> String {
    match &config.external_account {
        Some(external) => format!("acme account {} {}", config.directory, external.key_id),
        None => format!("acme account {}", config.directory),
    }
}

fn for_name(directory: &str, name: &str) -> String {
    format!("acme name {directory} {name}")
}

impl AcmeStorage {
    /// `secret`: the encryption key is derived from it.
    pub fn new(store: Arc<Store>, secret: &[u8]) -> Result<Self, String> {
        Ok(Self { store, sealer: Sealer::new(secret)? })
    }

    /// `None`: there is none, or it was encrypted under another secret.
    async fn fetch<T: DeserializeOwned>(&self, name: &str) -> Result<Option<T>, String> {
        let sealed = self.store.admin_store().secret(name).await.map_err(unavailable)?;
        let plain = sealed.and_then(|sealed| self.sealer.open(name, &sealed));
        Ok(plain.and_then(|plain| serde_json::from_slice(&plain).ok()))
    }

    async fn keep(&self, name: &str, what: &impl Serialize, time: Duration) -> Result<(), String> {
        let plain = serde_json::to_vec(what).map_err(|e| e.to_string())?;
        let sealed = self.sealer.seal(name, &plain)?;
        self.store.admin_store().put_secret(name, &sealed, time).await.map_err(unavailable)
    }

    /// The certificate for exactly these names.
    pub async fn certificate(&self, wanted: &WantedCertificate) -> Result<Option<StoredCertificate>, String> {
        self.fetch(&wanted.storage_name()).await
    }

    /// The last certificate that includes this name, possibly with others.
    pub async fn for_name(&self, directory: &str, name: &str) -> Result<Option<StoredCertificate>, String> {
        self.fetch(&for_name(directory, name)).await
    }

    /// Stores a certificate until it expires.
    pub async fn store_certificate(&self, wanted: &WantedCertificate, kept: &StoredCertificate) -> Result<(), String> {
        let left = Duration::from_secs(u64::try_from(kept.not_after_s - now_s()).unwrap_or(0));
        for name in &wanted.names {
            self.keep(&for_name(&wanted.directory, name), kept, left).await?;
        }
        self.keep(&wanted.storage_name(), kept, left).await
    }

    /// The account at this CA.
    pub async fn account(&self, config: &AcmeConfig) -> Result<Option<StoredAccount>, String> {
        self.fetch(&account(config)).await
    }

    /// Stores the account at this CA.
    pub async fn store_account(&self, config: &AcmeConfig, kept: &StoredAccount) -> Result<(), String> {
        self.keep(&account(config), kept, ACCOUNT_LIFETIME).await
    }

    /// Whether the back-off of this name has not ended.
    pub async fn is_backing_off(&self, what: &str) -> Result<bool, String> {
        Ok(self.fetch::<Backoff>(what).await?.is_some_and(|backoff| backoff.until_s > now_s()))
    }

    /// Notes a failure, and starts the back-off `of` the number of failures before. Returns its
    /// length.
    pub async fn record_failure(&self, what: &str, delay: impl Fn(u32) -> Duration) -> Result<Duration, String> {
        let failed = self.fetch::<Backoff>(what).await?.map_or(0, |backoff| backoff.failed);
        let time = delay(failed);
        let until_s = now_s() + i64::try_from(time.as_secs()).unwrap_or(i64::MAX / 2);
        self.keep(what, &Backoff { until_s, failed: failed.saturating_add(1) }, time + FAILURES_KEPT).await?;
        Ok(time)
    }

    /// Notes a success: removes the back-off.
    pub async fn clear_backoff(&self, what: &str) {
        // If this fails, the back-off expires.
        let _ = self.store.admin_store().delete_secret(what).await;
    }
}
