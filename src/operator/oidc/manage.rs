//! Providers as operators make them, and where their endpoints are.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::Mutex;

use super::Oidc;
use super::client::Endpoints;
use super::provider::{self, Settings};
use crate::bindings::Store;
use crate::operator::Fault;
use crate::operator::accounts::made;
use crate::sql::accounts::WriteOutcome;
use crate::sql::audit::Actor;
use crate::sql::providers::{Expects, Provider};

/// Where its endpoints are is asked for again after so long.
const DISCOVERED_FOR: Duration = Duration::from_secs(600);
/// A provider that has not answered is not asked again before.
const FAILED_FOR: Duration = Duration::from_secs(5);
/// Providers at most: each has a button.
const PROVIDERS_MAX: usize = 20;
const SECRET_BYTES_MAX: usize = 4096;

/// Where the endpoints of a provider are, or why nobody knows: asked for once, whoever waits for it.
#[derive(Default)]
pub struct Asked(Mutex<Option<Answer>>);

struct Answer {
    version: i64,
    at: Instant,
    said: Result<Arc<Endpoints>, Fault>,
}

impl Answer {
    fn holds(&self, version: i64) -> bool {
        self.version == version && self.at.elapsed() < if self.said.is_ok() { DISCOVERED_FOR } else { FAILED_FOR }
    }
}

fn purpose(name: &str) -> String {
    format!("client secret of {name}")
}

/// What is said of it.
pub fn settings(provider: &Provider) -> Result<Settings, Fault> {
    serde_json::from_value(provider.settings.clone()).map_err(|error| {
        let why = format!("what is stored of the provider `{}` makes no sense ({error}); remove it, and make it again", provider.name);
        Fault::Conflict(why)
    })
}

/// The provider of this name.
pub async fn get(store: &Store, name: &str) -> Result<Provider, Fault> {
    store.admin_store().provider(name).await?.ok_or_else(|| missing(name))
}

fn missing(name: &str) -> Fault {
    Fault::Missing(format!("there is no provider `{name}`"))
}

fn provider_made(outcome: WriteOutcome, name: &str) -> Result<(), Fault> {
    match outcome {
        WriteOutcome::Missing => Err(missing(name)),
        WriteOutcome::Exists => Err(Fault::Conflict(format!("there is a provider `{name}` already"))),
        WriteOutcome::Newer => Err(Fault::Conflict(format!("the provider `{name}` was changed meanwhile; look at it again"))),
        other => made(other, name),
    }
}

impl Oidc {
    /// Makes a provider, or puts it in the place of the one that is expected. A secret that is not said stays.
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
            Some(secret) => Some(self.sealer.seal(&purpose(name), secret.as_bytes()).map_err(Fault::Away)?),
        };
        if let Some(before) = &before {
            // Under another issuer the same subject is somebody else.
            if before.settings.get("issuer").and_then(serde_json::Value::as_str) != Some(&settings.issuer) {
                let why = "the issuer cannot be changed: accounts are of people it knows; remove the provider, or make another one";
                return Err(Fault::invalid("issuer", why));
            }
        } else if store.admin_store().providers().await?.len() >= PROVIDERS_MAX {
            return Err(Fault::Conflict(format!("there are {PROVIDERS_MAX} providers already; remove one first")));
        }
        let settings = serde_json::to_value(settings).map_err(|e| Fault::invalid("", e.to_string()))?;
        let provider = Provider { name: name.to_owned(), settings, secret, version: 0 };
        // What was read is what is changed: another one's secret does not come to stand beside these settings.
        let expects = match (expects, &before) {
            (Expects::Anything, Some(before)) => Expects::Version(before.version),
            (Expects::Anything, None) => Expects::Nothing,
            (said, _) => said,
        };
        provider_made(store.admin_store().put_provider(&provider, expects, actor).await?, name)?;
        get(store, name).await
    }

    /// Removes a provider with the accounts of those who sign in there.
    pub async fn remove(&self, store: &Store, name: &str, expects: Option<i64>, actor: &Actor) -> Result<(), Fault> {
        provider_made(store.admin_store().remove_provider(name, expects, actor).await?, name)
    }

    /// Asks a provider what would be asked when somebody signs in there; nobody can be let in while this fails.
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
        let why = "was encrypted under another secrets.admin (or key_hmac, where none is set); set it again";
        opened.map(Some).ok_or_else(|| Fault::Conflict(format!("the client secret of the provider `{}` {why}", provider.name)))
    }

    /// Where its endpoints are.
    pub(super) async fn endpoints(&self, provider: &Provider, settings: &Settings) -> Result<Arc<Endpoints>, Fault> {
        let asked = Arc::clone(self.asked.lock().entry(provider.name.clone()).or_default());
        let mut answer = asked.0.lock().await;
        if let Some(known) = answer.as_ref().filter(|answer| answer.holds(provider.version)) {
            return known.said.clone();
        }
        let said = match settings.check(&*self.outbound) {
            Ok(service) => Endpoints::discover(&*service, settings).await.map(Arc::new),
            Err(fault) => Err(fault),
        };
        *answer = Some(Answer { version: provider.version, at: Instant::now(), said: said.clone() });
        said
    }
}
