//! Where bindings and intercepts are kept. The only SQL of the project.
//!
//! [`Embedded`] puts a process cache and batched writing before an [`Authority`]: [`sqlite`] or
//! [`memory`]. The contract's tests at the end run against both.

mod batch;
mod cache;
mod embedded;
mod memory;
mod secret;
mod sqlite;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use keylatch_filters::contract::{Binding, BoxFuture, FirstUse, KeyHasher, KeyId, StoreError};
use prometheus::Registry;

use crate::config::Files;
use crate::config::model::{Secrets, Storage};
use batch::Batch;
pub use embedded::Embedded;

/// What holds the truth. Every method may be called from anywhere, at any time.
trait Authority: Send + Sync + 'static {
    /// Inserts if absent, in one step; answers with the row that is there then.
    fn latch(&self, first: FirstUse) -> BoxFuture<'_, Result<Binding, StoreError>>;
    /// The row.
    fn get(&self, id: KeyId) -> BoxFuture<'_, Result<Option<Binding>, StoreError>>;
    /// Writes what nobody waits for. On an error nothing of it was written.
    fn write<'a>(&'a self, batch: &'a Batch) -> BoxFuture<'a, Result<(), StoreError>>;
    /// Whether it answers.
    fn ping(&self) -> BoxFuture<'_, Result<(), StoreError>>;
}

/// Whether the configured secret, if there is one, can be read and is good enough.
pub fn check(secrets: &Secrets, files: &Files) -> Result<(), String> {
    secret::configured(secrets, files).map(|_| ())
}

/// An open store and the secret that goes with it.
pub struct Opened {
    /// The bindings.
    pub store: Arc<Embedded>,
    /// Turns keys into key ids.
    pub hasher: KeyHasher,
}

/// Opens what is configured. Errors say what to do.
pub async fn open(storage: &Storage, secrets: &Secrets, files: &Files, metrics: &Registry) -> Result<Opened, String> {
    match storage {
        Storage::Memory => {
            let secret = match secret::configured(secrets, files)? {
                Some(secret) => secret,
                None => secret::fresh()?,
            };
            let store = Embedded::new(Arc::new(memory::Memory::default()), 100_000, metrics);
            Ok(Opened { store, hasher: KeyHasher::new(secret.as_bytes()) })
        }
        Storage::Sqlite(config) => {
            let path = std::path::Path::new(&config.path);
            let database = sqlite::Sqlite::open(path).await?;
            let secret = match secret::configured(secrets, files)? {
                Some(secret) => secret,
                None => secret::beside(path, database.is_new().await?)?,
            };
            let hasher = KeyHasher::new(secret.as_bytes());
            database.claim(&secret::fingerprint(&hasher)).await?;
            let store = Embedded::new(Arc::new(database), config.cache_max, metrics);
            store.flush_every(config.flush_every.0);
            Ok(Opened { store, hasher })
        }
    }
}
