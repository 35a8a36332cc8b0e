//! The store contract for secrets that replicas share, and for leases that elect one replica for a
//! task. Does not encrypt; the callers do.

use std::time::Duration;

use async_trait::async_trait;
use keylatch_filters::contract::StoreError;

/// Shared secrets and leases.
#[async_trait]
pub trait SharedSecrets: Send + Sync {
    /// Returns the secret of this name, unless it has expired.
    async fn secret(&self, name: &str) -> Result<Option<Vec<u8>>, StoreError>;
    /// Returns all unexpired secrets with this prefix, with their names.
    async fn secrets(&self, prefix: &str) -> Result<Vec<(String, Vec<u8>)>, StoreError>;
    /// Deletes the secret of this name.
    async fn delete_secret(&self, name: &str) -> Result<(), StoreError>;
    /// Writes a secret that expires after `time`, in place of an earlier one.
    async fn put_secret(&self, name: &str, secret: &[u8], time: Duration) -> Result<(), StoreError>;
    /// Takes or extends a lease. False: another holder has it.
    async fn take_lease(&self, name: &str, holder: &str, time: Duration) -> Result<bool, StoreError>;
    /// Releases a lease.
    async fn release_lease(&self, name: &str, holder: &str) -> Result<(), StoreError>;
}
