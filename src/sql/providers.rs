//! Providers of OpenID Connect through which people may sign in, as stores keep them. What their settings mean, and how
//! their secrets are kept, is `crate::operator::oidc`'s to say.

use async_trait::async_trait;
use keylatch_filters::contract::StoreError;
use serde_json::Value;

use super::accounts::Made;
use super::audit::Actor;

/// One of them.
#[derive(Clone, Debug, PartialEq)]
pub struct Provider {
    /// Its name.
    pub name: String,
    /// All but the secret.
    pub settings: Value,
    /// The client secret, encrypted; `None`: a public client.
    pub secret: Option<Vec<u8>>,
    /// Grows with each change.
    pub version: i64,
}

/// What must be there for a change to be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expects {
    /// Whatever is.
    Anything,
    /// Nothing of this name.
    Nothing,
    /// This version.
    Version(i64),
}

/// All of them.
#[async_trait]
pub trait Providers: Send + Sync {
    /// All, by name.
    async fn providers(&self) -> Result<Vec<Provider>, StoreError>;
    /// One.
    async fn provider(&self, name: &str) -> Result<Option<Provider>, StoreError>;
    /// Puts it in the place of what is expected, in a version that none has had. Ends no sign-in.
    async fn put_provider(&self, provider: &Provider, expects: Expects, actor: &Actor) -> Result<Made, StoreError>;
    /// Removes it with the accounts of those who sign in there.
    async fn remove_provider(&self, name: &str, expects: Option<i64>, actor: &Actor) -> Result<Made, StoreError>;
}
