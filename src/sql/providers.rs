//! The store contract for OpenID Connect providers. Knows nothing of the settings' meaning;
//! `crate::operator::oidc` interprets them and encrypts the secrets.

use async_trait::async_trait;
use keylatch_filters::contract::StoreError;
use serde_json::Value;

use super::accounts::WriteOutcome;
use super::audit::Actor;

/// A provider.
#[derive(Clone, Debug, PartialEq)]
pub struct Provider {
    /// The provider's name.
    pub name: String,
    /// The settings, without the secret.
    pub settings: Value,
    /// The client secret, encrypted; `None`: a public client.
    pub secret: Option<Vec<u8>>,
    /// The version. It grows with each change.
    pub version: i64,
}

/// The precondition of a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expects {
    /// No precondition.
    Anything,
    /// No provider has this name.
    Nothing,
    /// The provider has this version.
    Version(i64),
}

/// The store of providers.
#[async_trait]
pub trait Providers: Send + Sync {
    /// Lists all providers by name.
    async fn providers(&self) -> Result<Vec<Provider>, StoreError>;
    /// Returns the provider of this name.
    async fn provider(&self, name: &str) -> Result<Option<Provider>, StoreError>;
    /// Writes the provider if the precondition holds, in a new version. Sessions stay.
    async fn put_provider(&self, provider: &Provider, expects: Expects, actor: &Actor) -> Result<WriteOutcome, StoreError>;
    /// Deletes the provider and the accounts that sign in through it.
    async fn remove_provider(&self, name: &str, expects: Option<i64>, actor: &Actor) -> Result<WriteOutcome, StoreError>;
}
