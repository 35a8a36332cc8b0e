//! What replicas keep together and nobody but them reads, and leases: who does a thing that one at a time should do.

use std::time::Duration;

use async_trait::async_trait;
use keylatch_filters::contract::StoreError;

/// Both.
#[async_trait]
pub trait Vault: Send + Sync {
    /// What is kept under this name, unless its time is over.
    async fn fetch(&self, name: &str) -> Result<Option<Vec<u8>>, StoreError>;
    /// All that is kept under names that begin like this, with their names.
    async fn fetch_all(&self, prefix: &str) -> Result<Vec<(String, Vec<u8>)>, StoreError>;
    /// Keeps nothing under this name any more.
    async fn forget(&self, name: &str) -> Result<(), StoreError>;
    /// Keeps something for so long, in the place of what was there.
    async fn keep(&self, name: &str, kept: &[u8], time: Duration) -> Result<(), StoreError>;
    /// Takes a lease, or holds it longer. False: somebody else has it.
    async fn lease(&self, name: &str, holder: &str, time: Duration) -> Result<bool, StoreError>;
    /// Gives a lease back.
    async fn let_go(&self, name: &str, holder: &str) -> Result<(), StoreError>;
}
