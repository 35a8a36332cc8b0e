//! Signing in through a provider of OpenID Connect: the code flow (OpenID Connect Core 1.0, section 3.1) with PKCE
//! (RFC 7636), state and nonce.
//!
//! What must be remembered while somebody is away at the provider goes with his browser, sealed, in a cookie: any replica
//! can let him in, nobody else's browser can, and whoever begins and never comes back costs nothing. His role is what the
//! provider's claims make him at each sign-in.

mod id_token;
pub mod provider;
mod talk;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use keylatch_filters::contract::Outbound;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use subtle::ConstantTimeEq;

use super::Fault;
use super::access::Role;
use super::accounts::{made, now_ms, random};
use super::sealed::Sealer;
use crate::store::Store;
use crate::store::accounts::Elsewhere;
use crate::store::audit::Actor;
use crate::store::providers::Provider;
use provider::{Settings, find};
use talk::Endpoints;

/// How long somebody may be away at the provider.
pub const AWAY: Duration = Duration::from_secs(600);
/// Where its endpoints are is asked for again after so long.
const DISCOVERED_FOR: Duration = Duration::from_secs(600);
/// Providers at most: each has a button.
const PROVIDERS_MAX: usize = 20;
const SECRET_BYTES_MAX: usize = 4096;
/// What opens nothing but a sign-in that is under way.
const PENDING: &str = "oidc sign-in";

/// Where the endpoints of a provider in this version are, and since when that is known.
type Discovered = HashMap<String, (i64, Instant, Arc<Endpoints>)>;

/// Providers, and whoever is away at one.
pub struct Oidc {
    sealer: Sealer,
    outbound: Arc<dyn Outbound>,
    discovered: Mutex<Discovered>,
}

/// Somebody who is away at a provider.
#[derive(Serialize, Deserialize)]
struct Pending {
    provider: String,
    /// The provider's.
    version: i64,
    state: String,
    nonce: String,
    verifier: String,
    /// Where he comes back to.
    back: String,
    until_ms: i64,
}

/// Who has come back, by the provider's word.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Known {
    /// Who he is there.
    pub elsewhere: Elsewhere,
    /// What he is called.
    pub name: String,
    /// What he is here.
    pub role: Role,
}

/// What somebody comes back with.
#[derive(Debug)]
pub struct Back<'a> {
    /// What was sealed when he left.
    pub sealed: &'a str,
    /// The `state`.
    pub state: &'a str,
    /// The `code`.
    pub code: &'a str,
    /// The issuer, where the provider says so (RFC 9207).
    pub issuer: Option<&'a str>,
}

fn purpose(name: &str) -> String {
    format!("client secret of {name}")
}

fn settings(provider: &Provider) -> Result<Settings, Fault> {
    serde_json::from_value(provider.settings.clone()).map_err(|error| {
        Fault::Conflict(format!("what is stored of the provider `{}` makes no sense ({error}); set it again", provider.name))
    })
}

/// The provider of this name.
pub async fn get(store: &Store, name: &str) -> Result<Provider, Fault> {
    store.desk().provider(name).await?.ok_or_else(|| Fault::Missing(format!("there is no provider `{name}`")))
}

impl Oidc {
    /// `secret`: the admin API's.
    pub fn new(secret: &[u8], outbound: Arc<dyn Outbound>) -> Result<Self, String> {
        Ok(Self { sealer: Sealer::new(secret)?, outbound, discovered: Mutex::default() })
    }

    /// Makes a provider, or puts it in the place of the one in `expects`' version. A secret that is not said stays.
    pub async fn put(
        &self,
        store: &Store,
        name: &str,
        settings: &Settings,
        secret: Option<&str>,
        expects: Option<i64>,
        actor: &Actor,
    ) -> Result<Provider, Fault> {
        let name = provider::name(name)?;
        settings.check(&*self.outbound)?;
        let before = store.desk().provider(name).await?;
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
        } else if store.desk().providers().await?.len() >= PROVIDERS_MAX {
            return Err(Fault::Conflict(format!("there are {PROVIDERS_MAX} providers already; remove one first")));
        }
        let settings = serde_json::to_value(settings).map_err(|e| Fault::invalid("", e.to_string()))?;
        let provider = Provider { name: name.to_owned(), settings, secret, version: 0 };
        let expects = before.map(|before| expects.unwrap_or(before.version));
        provider_made(store.desk().put_provider(&provider, expects, actor).await?, name)?;
        get(store, name).await
    }

    /// Removes a provider with the accounts of those who sign in there.
    pub async fn remove(&self, store: &Store, name: &str, expects: Option<i64>, actor: &Actor) -> Result<(), Fault> {
        provider_made(store.desk().remove_provider(name, expects, actor).await?, name)
    }

    /// Asks a provider what would be asked when somebody signs in there; nobody can be let in while this fails.
    pub async fn check(&self, store: &Store, name: &str) -> Result<(), Fault> {
        let provider = get(store, name).await?;
        let settings = settings(&provider)?;
        self.secret(&provider)?;
        let service = settings.check(&*self.outbound)?;
        Endpoints::discover(&*service, &settings).await?.keys().await.map(|_| ())
    }

    fn secret(&self, provider: &Provider) -> Result<Option<String>, Fault> {
        let Some(sealed) = &provider.secret else { return Ok(None) };
        let opened = self.sealer.open(&purpose(&provider.name), sealed).and_then(|secret| String::from_utf8(secret).ok());
        let why = "was encrypted under another secrets.admin (or key_hmac, where none is set); set it again";
        opened.map(Some).ok_or_else(|| Fault::Conflict(format!("the client secret of the provider `{}` {why}", provider.name)))
    }

    async fn endpoints(&self, provider: &Provider, settings: &Settings) -> Result<Arc<Endpoints>, Fault> {
        let known = self.discovered.lock().get(&provider.name).cloned();
        if let Some((version, at, endpoints)) = known
            && version == provider.version
            && at.elapsed() < DISCOVERED_FOR
        {
            return Ok(endpoints);
        }
        let service = settings.check(&*self.outbound)?;
        let endpoints = Arc::new(Endpoints::discover(&*service, settings).await?);
        let entry = (provider.version, Instant::now(), Arc::clone(&endpoints));
        self.discovered.lock().insert(provider.name.clone(), entry);
        Ok(endpoints)
    }

    /// Sends somebody to a provider. Where to, and what his browser must bring back. `origin`: where the console is, as his
    /// browser says.
    pub async fn begin(&self, store: &Store, name: &str, origin: &str) -> Result<(String, String), Fault> {
        let provider = get(store, name).await?;
        let settings = settings(&provider)?;
        let endpoints = self.endpoints(&provider, &settings).await?;
        let pending = Pending {
            provider: provider.name,
            version: provider.version,
            state: random(32)?,
            nonce: random(32)?,
            verifier: random(48)?,
            back: format!("{origin}/admin/ui/"),
            until_ms: now_ms() + i64::try_from(AWAY.as_millis()).unwrap_or(i64::MAX / 2),
        };
        let there = endpoints.way_there(&settings, &pending.back, &pending.state, &pending.nonce, &pending.verifier);
        let plain = serde_json::to_vec(&pending).map_err(|e| Fault::Away(e.to_string()))?;
        Ok((there, URL_SAFE_NO_PAD.encode(self.sealer.seal(PENDING, &plain).map_err(Fault::Away)?)))
    }

    /// Whose sign-in this is, if it is one that this browser has begun: nothing is asked of a provider otherwise.
    fn pending(&self, back: &Back<'_>) -> Result<Pending, Fault> {
        let began = Fault::Forbidden("this sign-in was not begun in this browser, or too long ago; begin it again".into());
        let sealed = URL_SAFE_NO_PAD.decode(back.sealed).unwrap_or_default();
        let pending = self.sealer.open(PENDING, &sealed).and_then(|plain| serde_json::from_slice::<Pending>(&plain).ok());
        match pending {
            Some(pending) if pending.until_ms > now_ms() && bool::from(pending.state.as_bytes().ct_eq(back.state.as_bytes())) => {
                Ok(pending)
            }
            _ => Err(began),
        }
    }

    /// Who has come back.
    pub async fn finish(&self, store: &Store, back: &Back<'_>) -> Result<Known, Fault> {
        let pending = self.pending(back)?;
        let provider = get(store, &pending.provider).await?;
        if provider.version != pending.version {
            return Err(Fault::Conflict(format!("the provider `{}` was changed meanwhile; begin again", provider.name)));
        }
        let settings = settings(&provider)?;
        if back.issuer.is_some_and(|issuer| issuer != settings.issuer) {
            return Err(Fault::Forbidden("another provider has answered than the one that was asked".into()));
        }
        let endpoints = self.endpoints(&provider, &settings).await?;
        let secret = self.secret(&provider)?;
        let tokens = endpoints.tokens(&settings, secret.as_deref(), &pending.back, back.code, &pending.verifier).await?;
        let mut claims = id_token::claims(&tokens.id_token, &endpoints.keys().await?, &settings, &pending.nonce)?;
        if find(&claims, &settings.role_claim).is_none()
            && let Some(token) = &tokens.access_token
            && let Some(more) = endpoints.userinfo(token).await?
        {
            // It may be of somebody else, and then it is of no use (section 5.3.2).
            if more.get("sub") != claims.get("sub") {
                return Err(Fault::Elsewhere("the provider's userinfo is of somebody else than its ID token".into()));
            }
            more.into_iter().for_each(|(name, value)| {
                claims.entry(name).or_insert(value);
            });
        }
        let name = name_of(&provider.name, settings.called(&claims));
        let Some(role) = settings.role(&claims) else {
            let why =
                format!("`{}` knows you as {name}, and nothing it says of you (`{}`) lets you in here", provider.name, settings.role_claim);
            return Err(Fault::Forbidden(why));
        };
        let subject = claims.get("sub").and_then(serde_json::Value::as_str).unwrap_or_default().to_owned();
        Ok(Known { elsewhere: Elsewhere { provider: provider.name, subject }, name, role })
    }
}

fn provider_made(outcome: crate::store::accounts::Made, name: &str) -> Result<(), Fault> {
    made(outcome, name).map_err(|fault| match fault {
        Fault::Missing(_) => Fault::Missing(format!("there is no provider `{name}`")),
        Fault::Conflict(why) => Fault::Conflict(why.replacen("account", "provider", 1)),
        other => other,
    })
}

/// A name that no account with a password can have, and nobody of another provider.
fn name_of(provider: &str, called: &str) -> String {
    let clean: String = called
        .to_ascii_lowercase()
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() || "-_.@".contains(c) { c } else { '_' })
        .take(64)
        .collect();
    format!("{provider}:{clean}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_nobody_elses() {
        assert_eq!(name_of("corp", "Ann.Lee@Example.com"), "corp:ann.lee@example.com");
        assert_eq!(name_of("corp", "admin/../x\u{0}ü"), "corp:admin_.._x__");
        assert!(super::super::accounts::name(&name_of("corp", "admin")).is_err(), "none that can be made by hand");
    }
}
