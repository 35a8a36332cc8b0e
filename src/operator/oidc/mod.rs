//! Signing in through a provider of OpenID Connect: the code flow (OpenID Connect Core 1.0, section 3.1) with PKCE
//! (RFC 7636), state and nonce.
//!
//! What must be remembered while somebody is away at the provider goes with his browser, sealed, in a cookie: any replica
//! can let him in, nobody else's browser can, and whoever begins and never comes back costs nothing. His role is what the
//! provider's claims make him at each sign-in.

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
use super::accounts::{Known, now_ms, random};
use crate::bindings::Store;
use crate::sql::accounts::Elsewhere;
use crate::util::aead::Sealer;
pub use manage::get;
use manage::settings;
use provider::find;

/// How long somebody may be away at the provider.
pub const AWAY: Duration = Duration::from_secs(600);
/// What opens nothing but a sign-in that is under way.
const PENDING: &str = "oidc sign-in";

/// Providers, and whoever is away at one.
pub struct Oidc {
    sealer: Sealer,
    outbound: Arc<dyn Outbound>,
    asked: Mutex<HashMap<String, Arc<manage::Asked>>>,
}

/// Somebody who is away at a provider.
#[derive(Serialize, Deserialize)]
struct Pending {
    provider: String,
    /// The provider's, which no other one ever has.
    version: i64,
    state: String,
    nonce: String,
    verifier: String,
    /// Where he comes back to.
    back: String,
    until_ms: i64,
}

/// What somebody comes back with.
#[derive(Debug)]
pub struct Back<'a> {
    /// The provider from which he comes, by the address he was sent back to.
    pub from: &'a str,
    /// What was sealed when he left.
    pub sealed: &'a str,
    /// The `state`.
    pub state: &'a str,
    /// The `code`.
    pub code: &'a str,
    /// The issuer, where the provider says so (RFC 9207).
    pub issuer: Option<&'a str>,
}

impl Oidc {
    /// `secret`: the admin API's.
    pub fn new(secret: &[u8], outbound: Arc<dyn Outbound>) -> Result<Self, String> {
        Ok(Self { sealer: Sealer::new(secret)?, outbound, asked: Mutex::default() })
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
            back: format!("{origin}/admin/ui/from/{name}"),
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
            return Err(changed(&provider.name));
        }
        let settings = settings(&provider)?;
        // Mix-up (RFC 9700, section 4.4): each provider sends back to an address of its own, and many say who they are.
        let another = || Fault::Forbidden("another provider has answered than the one that was asked".into());
        if back.from != provider.name || back.issuer.is_some_and(|issuer| issuer != settings.issuer) {
            return Err(another());
        }
        let endpoints = self.endpoints(&provider, &settings).await?;
        if endpoints.names_itself && back.issuer.is_none() {
            return Err(another());
        }
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
        let nobody =
            || format!("`{}` knows you as {name}, and nothing it says of you (`{}`) lets you in here", provider.name, settings.role_claim);
        let role = settings.role(&claims).ok_or_else(nobody);
        if get(store, &provider.name).await?.version != pending.version {
            return Err(changed(&provider.name));
        }
        let subject = claims.get("sub").and_then(serde_json::Value::as_str).unwrap_or_default().to_owned();
        Ok(Known { elsewhere: Elsewhere { provider: provider.name, subject }, name, role })
    }
}

fn changed(name: &str) -> Fault {
    Fault::Conflict(format!("the provider `{name}` was changed meanwhile; begin again"))
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
        assert!(crate::operator::accounts::name(&name_of("corp", "admin")).is_err(), "none that can be made by hand");
    }
}
