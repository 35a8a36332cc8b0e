//! Sign-in through an OpenID Connect provider: the code flow (OpenID Connect Core 1.0, section 3.1) with PKCE
//! (RFC 7636), state and nonce.
//!
//! The state of a pending sign-in is sealed in a cookie of the browser: any replica can finish it, no other browser can,
//! and an abandoned one costs nothing. The provider's claims decide the role at each sign-in.
//!
//! It stands on `jsonwebtoken` and the outbound client, which bounds responses and can refuse private addresses. The crate
//! `openidconnect` verifies tokens with crates of its own, beside those that `bearer` uses.

mod client;
mod id_token;
mod manage;
pub mod provider;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use keylatch_filters::contract::Outbound;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use subtle::ConstantTimeEq;

use super::Fault;
use super::accounts::{ExternalIdentity, now_ms, random};
use crate::bindings::Store;
use crate::sql::accounts::ProviderIdentity;
use crate::util::aead::Sealer;
pub use manage::get;
use manage::settings;
use provider::find;

/// Time limit for a sign-in at the provider.
pub const SIGN_IN_TIME_MAX: Duration = Duration::from_secs(600);
/// Sealing purpose of a pending sign-in.
const PENDING: &str = "oidc sign-in";

/// Sign-in through providers.
pub struct Oidc {
    sealer: Sealer,
    outbound: Arc<dyn Outbound>,
    endpoint_cache: Mutex<HashMap<String, Arc<manage::EndpointCache>>>,
}

/// A sign-in that has been redirected to a provider.
#[derive(Serialize, Deserialize)]
struct Pending {
    provider: String,
    /// The version of the provider, never used twice.
    version: i64,
    state: String,
    nonce: String,
    verifier: String,
    /// The redirect URI.
    back: String,
    until_ms: i64,
}

/// The parameters of a redirect back from a provider.
#[derive(Debug)]
pub struct Callback<'a> {
    /// The provider named by the redirect URI.
    pub from: &'a str,
    /// The sealed pending sign-in.
    pub sealed: &'a str,
    /// The `state`.
    pub state: &'a str,
    /// The `code`.
    pub code: &'a str,
    /// The `iss` parameter, if the provider sends it (RFC 9207).
    pub issuer: Option<&'a str>,
}

impl Oidc {
    /// `secret`: the secret of the admin API.
    pub fn new(secret: &[u8], outbound: Arc<dyn Outbound>) -> Result<Self, String> {
        Ok(Self { sealer: Sealer::new(secret)?, outbound, endpoint_cache: Mutex::default() })
    }

    /// Begins a sign-in: the provider's URL, and the sealed state for the cookie. `origin`: the console's origin according to
    /// the browser.
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
            back: format!("{origin}/admin/ui/from/{name}"),
            until_ms: now_ms() + i64::try_from(SIGN_IN_TIME_MAX.as_millis()).unwrap_or(i64::MAX / 2),
        };
        let there = endpoints.authorization_url(&settings, &pending.back, &pending.state, &pending.nonce, &pending.verifier);
        let plain = serde_json::to_vec(&pending).map_err(|e| Fault::Unavailable(e.to_string()))?;
        Ok((there, URL_SAFE_NO_PAD.encode(self.sealer.seal(PENDING, &plain).map_err(Fault::Unavailable)?)))
    }

    /// The pending sign-in, if this browser has begun it. Otherwise no request is sent to the provider.
    fn pending(&self, callback: &Callback<'_>) -> Result<Pending, Fault> {
        let began = Fault::Forbidden("this sign-in was not started in this browser, or has expired; sign in again".into());
        let sealed = URL_SAFE_NO_PAD.decode(callback.sealed).unwrap_or_default();
        let pending = self.sealer.open(PENDING, &sealed).and_then(|plain| serde_json::from_slice::<Pending>(&plain).ok());
        match pending {
            Some(pending) if pending.until_ms > now_ms() && bool::from(pending.state.as_bytes().ct_eq(callback.state.as_bytes())) => {
                Ok(pending)
            }
            _ => Err(began),
        }
    }

    /// Finishes a sign-in: the confirmed identity.
    pub async fn finish(&self, store: &Store, callback: &Callback<'_>) -> Result<ExternalIdentity, Fault> {
        let pending = self.pending(callback)?;
        let provider = get(store, &pending.provider).await?;
        if provider.version != pending.version {
            return Err(changed(&provider.name));
        }
        let settings = settings(&provider)?;
        // Mix-up (RFC 9700, section 4.4): each provider has its own redirect URI, and many send `iss`.
        let another = || Fault::Forbidden("the answer comes from another provider than the one chosen; sign in again".into());
        if callback.from != provider.name || callback.issuer.is_some_and(|issuer| issuer != settings.issuer) {
            return Err(another());
        }
        let endpoints = self.endpoints(&provider, &settings).await?;
        if endpoints.sends_issuer && callback.issuer.is_none() {
            return Err(another());
        }
        let secret = self.secret(&provider)?;
        let tokens = endpoints.tokens(&settings, secret.as_deref(), &pending.back, callback.code, &pending.verifier).await?;
        let mut claims = id_token::claims(&tokens.id_token, &endpoints.keys().await?, &settings, &pending.nonce)?;
        if find(&claims, &settings.role_claim).is_none()
            && let Some(token) = &tokens.access_token
            && let Some(more) = endpoints.userinfo(token).await?
        {
            // Userinfo of another subject must not be used (section 5.3.2).
            if more.get("sub") != claims.get("sub") {
                return Err(Fault::External("the provider's userinfo belongs to another subject than its ID token".into()));
            }
            more.into_iter().for_each(|(name, value)| {
                claims.entry(name).or_insert(value);
            });
        }
        let name = name_of(&provider.name, settings.display_name(&claims));
        let no_role = || {
            format!("`{}` knows you as {name}, but no value of its claim `{}` grants you a role here", provider.name, settings.role_claim)
        };
        let role = settings.role(&claims).ok_or_else(no_role);
        if get(store, &provider.name).await?.version != pending.version {
            return Err(changed(&provider.name));
        }
        let subject = claims.get("sub").and_then(serde_json::Value::as_str).unwrap_or_default().to_owned();
        Ok(ExternalIdentity { elsewhere: ProviderIdentity { provider: provider.name, subject }, name, role })
    }
}

fn changed(name: &str) -> Fault {
    Fault::Conflict(format!("the provider `{name}` was changed meanwhile; sign in again"))
}

/// The account name of an external identity. The provider's prefix keeps it apart from accounts with a password and
/// from other providers.
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
    fn account_names_are_unique_per_provider() {
        assert_eq!(name_of("corp", "Ann.Lee@Example.com"), "corp:ann.lee@example.com");
        assert_eq!(name_of("corp", "admin/../x\u{0}ü"), "corp:admin_.._x__");
        assert!(crate::operator::accounts::name(&name_of("corp", "admin")).is_err(), "cannot be the name of a local account");
    }
}
