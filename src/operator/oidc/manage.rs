//! Management of providers, and discovery of their endpoints with a short cache.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::Mutex;

use super::Oidc;
use super::client::Endpoints;
use super::provider::{self, Settings};
use crate::bindings::Store;
use crate::operator::Fault;
use crate::operator::accounts::change_result;
use crate::sql::accounts::WriteOutcome;
use crate::sql::audit::Actor;
use crate::sql::providers::{Expects, Provider};

/// How long discovered endpoints are cached.
const DISCOVERED_FOR: Duration = Duration::from_secs(600);
/// How long a failed discovery is cached.
const FAILED_FOR: Duration = Duration::from_secs(5);
/// Maximum number of providers; each has a button on the sign-in page.
const PROVIDERS_MAX: usize = 20;
const SECRET_BYTES_MAX: usize = 4096;

/// The discovery result of one provider. Concurrent callers wait for one request.
#[derive(Default)]
pub struct EndpointCache(Mutex<Option<CachedEndpoints>>);

struct CachedEndpoints {
    version: i64,
    at: Instant,
    result: Result<Arc<Endpoints>, Fault>,
}

impl CachedEndpoints {
    fn holds(&self, version: i64) -> bool {
        self.version == version && self.at.elapsed() < if self.result.is_ok() { DISCOVERED_FOR } else { FAILED_FOR }
    }
}

fn purpose(name: &str) -> String {
    format!("client secret of {name}")
}

/// Parses the stored settings of a provider.
pub fn settings(provider: &Provider) -> Result<Settings, Fault> {
    serde_json::from_value(provider.settings.clone()).map_err(|error| {
        let why = format!("the stored settings of the provider `{}` are invalid ({error}); remove it, and add it again", provider.name);
        Fault::Conflict(why)
    })
}

/// The provider with this name.
pub async fn get(store: &Store, name: &str) -> Result<Provider, Fault> {
    store.admin_store().provider(name).await?.ok_or_else(|| missing(name))
}

fn missing(name: &str) -> Fault {
    Fault::NotFound(format!("there is no provider `{name}`"))
}

fn provider_change_result(outcome: WriteOutcome, name: &str) -> Result<(), Fault> {
    match outcome {
        WriteOutcome::Missing => Err(missing(name)),
        WriteOutcome::Exists => Err(Fault::Conflict(format!("a provider `{name}` already exists"))),
        WriteOutcome::Newer => {
            Err(Fault::Conflict(format!("the provider `{name}` was changed meanwhile; load the current version and try again")))
        }
        other => change_result(other, name),
    }
}

impl Oidc {
    /// Creates a provider, or replaces the expected version. Without `secret` the stored secret is kept; an empty one
    /// removes it.
    pub async fn put(
        &self,
        store: &Store,
        name: &str,
        settings: &Settings,
        secret: Option<&str>,
        expects: Expects,
        actor: &Actor,
    ) -> Result<Provider, Fault> {
        let name = provider::name(name)?;
        settings.check(&*self.outbound)?;
        let before = store.admin_store().provider(name).await?;
        let secret = match secret {
            None => before.as_ref().and_then(|before| before.secret.clone()),
            Some("") => None,
            Some(secret) if secret.len() > SECRET_BYTES_MAX || secret.chars().any(char::is_control) => {
                return Err(Fault::invalid("client_secret", format!("at most {SECRET_BYTES_MAX} bytes, and no control characters")));
            }
            Some(secret) => Some(self.sealer.seal(&purpose(name), secret.as_bytes()).map_err(Fault::Unavailable)?),
        };
        if let Some(before) = &before {
            // Under another issuer, the same subject is another person.
            if before.settings.get("issuer").and_then(serde_json::Value::as_str) != Some(&settings.issuer) {
                let why = "the issuer cannot be changed, because accounts are tied to it; add another provider, or remove this one first";
                return Err(Fault::invalid("issuer", why));
            }
        } else if store.admin_store().providers().await?.len() >= PROVIDERS_MAX {
            return Err(Fault::Conflict(format!("at most {PROVIDERS_MAX} providers are allowed; remove one first")));
        }
        let settings = serde_json::to_value(settings).map_err(|e| Fault::invalid("", e.to_string()))?;
        let provider = Provider { name: name.to_owned(), settings, secret, version: 0 };
        // The change applies to the version that was read: a secret never ends up beside other settings.
        let expects = match (expects, &before) {
            (Expects::Anything, Some(before)) => Expects::Version(before.version),
            (Expects::Anything, None) => Expects::Nothing,
            (said, _) => said,
        };
        provider_change_result(store.admin_store().put_provider(&provider, expects, actor).await?, name)?;
        get(store, name).await
    }

    /// Removes a provider with the accounts that sign in through it.
    pub async fn remove(&self, store: &Store, name: &str, expects: Option<i64>, actor: &Actor) -> Result<(), Fault> {
        provider_change_result(store.admin_store().remove_provider(name, expects, actor).await?, name)
    }

    /// Checks the requests that a sign-in needs: discovery and keys. While this fails, no sign-in can succeed.
    pub async fn check(&self, store: &Store, name: &str) -> Result<(), Fault> {
        let provider = get(store, name).await?;
        let settings = settings(&provider)?;
        self.secret(&provider)?;
        let service = settings.check(&*self.outbound)?;
        Endpoints::discover(&*service, &settings).await?.keys().await.map(|_| ())
    }

    /// The client secret in clear.
    pub(super) fn secret(&self, provider: &Provider) -> Result<Option<String>, Fault> {
        let Some(sealed) = &provider.secret else { return Ok(None) };
        let opened = self.sealer.open(&purpose(&provider.name), sealed).and_then(|secret| String::from_utf8(secret).ok());
        let why = "was encrypted with another `secrets.admin` (or `key_hmac`, if that is not set); enter it again";
        opened.map(Some).ok_or_else(|| Fault::Conflict(format!("the client secret of the provider `{}` {why}", provider.name)))
    }

    /// The endpoints of a provider, cached.
    pub(super) async fn endpoints(&self, provider: &Provider, settings: &Settings) -> Result<Arc<Endpoints>, Fault> {
        let asked = Arc::clone(self.endpoint_cache.lock().entry(provider.name.clone()).or_default());
        let mut answer = asked.0.lock().await;
        if let Some(known) = answer.as_ref().filter(|answer| answer.holds(provider.version)) {
            return known.result.clone();
        }
        let result = match settings.check(&*self.outbound) {
            Ok(service) => Endpoints::discover(&*service, settings).await.map(Arc::new),
            Err(fault) => Err(fault),
        };
        *answer = Some(CachedEndpoints { version: provider.version, at: Instant::now(), result: result.clone() });
        result
    }
}
