//! The caller behind a JWT of a session or an API token.

use std::net::IpAddr;

use super::access::{Caller, Role, Scope, Scopes};
use super::accounts::{now_ms, token_hash};
use super::sign_in::{Authenticator, Claims, Refusal};
use crate::bindings::Store;
use crate::sql::audit::Actor;

/// How long API tokens of a provider account stay valid after its last sign-in: 30 days.
const PROVIDER_SIGN_IN_AGE_MAX_MS: i64 = 30 * 24 * 3600 * 1000;

impl Authenticator {
    /// The caller behind a JWT or an API token.
    pub async fn caller(&self, store: &Store, token: &str, from: IpAddr) -> Result<Caller, Refusal> {
        match token.starts_with("kla_") {
            true => script(store, token, from).await,
            false => self.person(store, token, from).await,
        }
    }

    async fn person(&self, store: &Store, token: &str, from: IpAddr) -> Result<Caller, Refusal> {
        let read = jsonwebtoken::decode::<Claims>(token, &self.decoding, &self.validation).map_err(|_| Refusal::Wrong)?;
        let session = read.claims.sid;
        let (account, scopes) = match store.admin_store().session(&session, now_ms()).await {
            Ok(Some((_, account))) => {
                self.remember(&session, &account);
                let scopes = Role::stored(&account.role).scopes();
                (account, scopes)
            }
            Ok(None) => {
                self.remembered.lock().remove(&session);
                return Err(Refusal::Wrong);
            }
            Err(error) => {
                let remembered = self.remembered.lock().get(&session).filter(|(_, at)| at.elapsed() < self.token_ttl).cloned();
                (remembered.ok_or(error)?.0, Scopes::from_list(&[Scope::Read]))
            }
        };
        if account.name != read.claims.sub {
            return Err(Refusal::Wrong);
        }
        let scopes = if account.must_change { Scopes::default() } else { scopes };
        let actor = Actor { who: account.name.clone(), origin: from.to_string() };
        let role = Role::stored(&account.role);
        Ok(Caller { account: account.name, role, scopes, session: Some(session), must_change: account.must_change, actor })
    }
}

/// The caller behind an API token. Its scopes never exceed the role of the account.
async fn script(store: &Store, token: &str, from: IpAddr) -> Result<Caller, Refusal> {
    let (token, account) = store.admin_store().token(&token_hash(token), now_ms()).await?.ok_or(Refusal::Wrong)?;
    // A provider does not report departures; a long time without a sign-in counts as one.
    let has_left = account.elsewhere.is_some() && account.signed_in_ms.is_none_or(|at| at + PROVIDER_SIGN_IN_AGE_MAX_MS < now_ms());
    if account.must_change || has_left {
        return Err(Refusal::Wrong);
    }
    let role = Role::stored(&account.role);
    let actor = Actor { who: format!("{}/{}", account.name, token.name), origin: from.to_string() };
    Ok(Caller {
        account: account.name,
        role,
        scopes: Scopes::stored(&token.scopes).and(role.scopes()),
        session: None,
        must_change: false,
        actor,
    })
}
