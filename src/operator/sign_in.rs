//! Authentication: sign-in with a password or a provider, and sessions. The caller behind a token is in `callers`.
//!
//! A session lives in the store; the browser carries a short-lived JWT (RFC 7519, HS256) that names it. Each call looks the
//! session up, so that a sign-out, a new password or another role takes effect at once on every replica. While the store is
//! unavailable, recently seen sessions keep the scope `read` until their JWT expires.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation};
use keylatch_filters::contract::StoreError;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use super::Fault;
use super::access::Caller;
use super::accounts::{ExternalIdentity, now_ms};
use super::passwords::{BYTES_MAX, Passwords};
use crate::bindings::Store;
use crate::sql::accounts::{Account, Session, SignInCounter};
use crate::sql::audit::{Actor, AuditLine};
use crate::util::aead::Sealer;

/// Failed attempts for one account before it is locked.
const FREE_OF_ACCOUNT: i64 = 5;
/// Failed attempts from one address before it is locked; several users may share an address.
const FREE_OF_ADDRESS: i64 = 20;
/// Sessions cached for times when the store is unavailable.
const CACHED_SESSIONS_MAX: usize = 1000;
/// Audit target of failed sign-ins under a name without an account.
const NO_ACCOUNT: &str = "unknown";
/// Audit actor of failed sign-ins.
const ANONYMOUS: &str = "anonymous";
/// Maximum stored length of a `User-Agent`.
const AGENT_CHARS_MAX: usize = 200;
/// Issuer and audience of the JWTs.
const ISSUER: &str = "keylatch-admin";

/// Why authentication failed. It does not reveal whether an account exists.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The name or password is wrong, or the account is disabled.
    Wrong,
    /// Too many failed attempts; seconds until the next one is allowed.
    Locked(u64),
    /// The store is unavailable.
    Unavailable(String),
}

impl From<StoreError> for Refusal {
    fn from(error: StoreError) -> Self {
        Refusal::Unavailable(error.to_string())
    }
}

/// Why a password change or a provider sign-in failed.
#[derive(Clone, Debug)]
pub enum Declined {
    /// Authentication failed.
    Refused(Refusal),
    /// The operation failed.
    Fault(Fault),
}

impl From<Refusal> for Declined {
    fn from(refusal: Refusal) -> Self {
        Declined::Refused(refusal)
    }
}

impl From<Fault> for Declined {
    fn from(fault: Fault) -> Self {
        Declined::Fault(fault)
    }
}

fn seconds_until(ms: i64) -> u64 {
    u64::try_from((ms - now_ms()).max(1)).unwrap_or(1).div_ceil(1000)
}

/// A successful sign-in.
#[derive(Clone, Debug)]
pub struct SignedIn {
    /// The JWT.
    pub token: String,
    /// The lifetime of the JWT.
    pub expires_in: Duration,
    /// The account.
    pub account: Account,
}

/// The claims of a session's JWT.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Claims {
    iss: String,
    aud: String,
    pub(super) sub: String,
    pub(super) sid: String,
    iat: i64,
    exp: i64,
}

/// Authenticates people and scripts.
pub struct Authenticator {
    passwords: Passwords,
    encoding: EncodingKey,
    pub(super) decoding: DecodingKey,
    pub(super) validation: Validation,
    session_max: Duration,
    pub(super) token_ttl: Duration,
    /// Recently seen sessions, by id.
    pub(super) remembered: Mutex<HashMap<String, (Account, Instant)>>,
    sealer: Sealer,
}

/// The content of a browser cookie set after a sign-in. Failed attempts from such a browser count apart, so that
/// attempts of others cannot lock out the owner of the account.
#[derive(Serialize, Deserialize)]
struct Browser {
    account: String,
    id: String,
    until_ms: i64,
}

/// Lifetime of the browser cookie.
pub const BROWSER_KNOWN: Duration = Duration::from_secs(90 * 86_400);
/// Sealing purpose of the browser cookie.
const BROWSER: &str = "browser";

impl Authenticator {
    /// `secret`: the key that signs JWTs and seals cookies, the same on every replica.
    pub fn new(secret: &[u8], session_max: Duration, token_ttl: Duration) -> Result<Self, String> {
        let mut validation = Validation::new(Algorithm::HS256);
        validation.set_issuer(&[ISSUER]);
        validation.set_audience(&[ISSUER]);
        validation.set_required_spec_claims(&["exp", "iss", "aud", "sub"]);
        validation.leeway = 0;
        Ok(Self {
            passwords: Passwords::new()?,
            encoding: EncodingKey::from_secret(secret),
            decoding: DecodingKey::from_secret(secret),
            validation,
            session_max,
            token_ttl,
            remembered: Mutex::default(),
            sealer: Sealer::new(secret)?,
        })
    }

    /// The password hasher.
    pub fn passwords(&self) -> &Passwords {
        &self.passwords
    }

    /// Opens a browser cookie, if it is for this account and has not expired.
    fn browser(&self, account: &str, cookie: Option<&str>) -> Option<Browser> {
        let plain = self.sealer.open(BROWSER, &URL_SAFE_NO_PAD.decode(cookie?).ok()?)?;
        serde_json::from_slice(&plain).ok().filter(|browser: &Browser| browser.account == account && browser.until_ms > now_ms())
    }

    /// Makes the browser cookie after a sign-in. A browser with a valid cookie keeps its id.
    pub fn remember_browser(&self, account: &str, cookie: Option<&str>) -> Result<String, String> {
        let id = self.browser(account, cookie).map_or_else(|| uuid::Uuid::now_v7().to_string(), |browser| browser.id);
        let until_ms = now_ms() + i64::try_from(BROWSER_KNOWN.as_millis()).unwrap_or(i64::MAX / 2);
        let plain = serde_json::to_vec(&Browser { account: account.to_owned(), id, until_ms }).map_err(|e| e.to_string())?;
        Ok(URL_SAFE_NO_PAD.encode(self.sealer.seal(BROWSER, &plain)?))
    }

    /// Signs in with a password. `cookie`: the browser cookie of an earlier sign-in.
    pub async fn sign_in(
        &self,
        store: &Store,
        name: &str,
        password: &str,
        from: IpAddr,
        agent: &str,
        cookie: Option<&str>,
    ) -> Result<SignedIn, Refusal> {
        // An invalid name is refused as late as a valid one.
        let name: String = name.to_lowercase().chars().take(64).collect();
        let mut guessed = guessed(&name, from);
        if let (Some(browser), Some(by_account)) = (self.browser(&name, cookie), guessed.first_mut()) {
            by_account.subject = format!("browser:{}", browser.id);
        }
        let (admin_store, now) = (store.admin_store(), now_ms());
        if let Some(until) = admin_store.count_attempt(&guessed, now).await? {
            // Not in the audit: attempts during a lock are unlimited.
            log_failure(None, from, "locked");
            return Err(Refusal::Locked(seconds_until(until)));
        }
        let account = admin_store.account(&name).await?;
        let exists = account.as_ref().map(|account| account.name.clone());
        let stored = account.as_ref().filter(|account| !account.disabled).and_then(|account| account.password.clone());
        let password = if password.len() > BYTES_MAX { "" } else { password };
        let right = self.passwords.verify(password, stored.as_deref()).await.map_err(|fault| Refusal::Unavailable(fault.to_string()))?;
        let Some(account) = account.filter(|_| right) else {
            record_failure(store, exists.as_deref(), from, "wrong").await;
            return Err(Refusal::Wrong);
        };
        self.begin(store, account, from, agent, &guessed).await
    }

    /// Signs in an external identity. If its role has changed at the provider, its other sessions end.
    pub async fn sign_in_from(
        &self,
        store: &Store,
        identity: &ExternalIdentity,
        from: IpAddr,
        agent: &str,
        guessed: &[SignInCounter],
    ) -> Result<SignedIn, Declined> {
        let admin_store = store.admin_store();
        let actor = Actor { who: identity.name.clone(), origin: from.to_string() };
        let there = admin_store.account_by_identity(&identity.elsewhere).await.map_err(Refusal::from)?;
        let role = match &identity.role {
            Ok(role) => role.as_str().to_owned(),
            Err(why) => {
                // Without a role, the identity loses its sessions and tokens.
                if let Some(account) = there {
                    let actor = Actor { who: account.name.clone(), ..actor };
                    admin_store.revoke_access(&account.name, &actor).await.map_err(Refusal::from)?;
                }
                return Err(Fault::Forbidden(why.clone()).into());
            }
        };
        let account = match there {
            Some(account) if account.disabled => return Err(Fault::Forbidden(format!("the account `{}` is disabled", account.name)).into()),
            Some(account) if account.role == role => account,
            Some(account) => {
                let actor = Actor { who: account.name.clone(), ..actor };
                let changed = Account { role, ..account.clone() };
                let changed = admin_store.change_account(&changed, account.version, None, &actor).await.map_err(Refusal::from)?;
                super::accounts::change_result(changed, &account.name)?;
                super::accounts::get(store, &account.name).await?
            }
            None => super::accounts::make_external(store, identity, &role, &actor).await?,
        };
        Ok(self.begin(store, account, from, agent, guessed).await?)
    }

    /// Counts an attempt to finish a provider sign-in before it is made, since each one sends requests to the provider.
    pub async fn count_attempt(&self, store: &Store, from: IpAddr) -> Result<Vec<SignInCounter>, Refusal> {
        let guessed: Vec<SignInCounter> = guessed("", from).into_iter().filter(|guessed| guessed.subject.starts_with("address:")).collect();
        match store.admin_store().count_attempt(&guessed, now_ms()).await? {
            Some(until) => Err(Refusal::Locked(seconds_until(until))),
            None => Ok(guessed),
        }
    }

    /// Changes the caller's password and ends the caller's other sessions. A wrong current password counts as a failed
    /// sign-in.
    pub async fn choose_password(&self, store: &Store, caller: &Caller, old: &str, new: &str, from: IpAddr) -> Result<(), Declined> {
        let guessed = guessed(&caller.account, from);
        let admin_store = store.admin_store();
        if let Some(until) = admin_store.count_attempt(&guessed, now_ms()).await.map_err(Refusal::from)? {
            return Err(Refusal::Locked(seconds_until(until)).into());
        }
        let account = super::accounts::get(store, &caller.account).await?;
        if !self.passwords.verify(old, account.password.as_deref()).await? {
            return Err(Fault::invalid("current", "the current password is wrong").into());
        }
        admin_store.forgive_attempt(&guessed).await.map_err(Refusal::from)?;
        super::passwords::check(new, &account.name)?;
        if old == new {
            return Err(Fault::invalid("password", "the new password must differ from the current one").into());
        }
        let after = Account { password: Some(self.passwords.hash(new).await?), must_change: false, ..account.clone() };
        let changed = admin_store.change_account(&after, account.version, caller.session.as_deref(), &caller.actor).await;
        Ok(super::accounts::change_result(changed.map_err(Refusal::from)?, &account.name)?)
    }

    /// Begins a session for an authenticated account.
    async fn begin(
        &self,
        store: &Store,
        account: Account,
        from: IpAddr,
        agent: &str,
        guessed: &[SignInCounter],
    ) -> Result<SignedIn, Refusal> {
        let now = now_ms();
        let session = Session {
            id: uuid::Uuid::now_v7().to_string(),
            account: account.name.clone(),
            created_ms: now,
            expires_ms: now + i64::try_from(self.session_max.as_millis()).unwrap_or(i64::MAX / 2),
            origin: from.to_string(),
            agent: agent.chars().filter(|c| !c.is_control()).take(AGENT_CHARS_MAX).collect(),
        };
        let actor = Actor { who: account.name.clone(), origin: from.to_string() };
        // Hashing takes time: if the password was changed meanwhile, the attempt fails.
        if !store.admin_store().begin_session(&session, account.version, guessed, &actor).await? {
            return Err(Refusal::Wrong);
        }
        self.remember(&session.id, &account);
        self.token(&session, account)
    }

    fn token(&self, session: &Session, account: Account) -> Result<SignedIn, Refusal> {
        let now_s = now_ms() / 1000;
        let left = Duration::from_secs(u64::try_from(session.expires_ms / 1000 - now_s).unwrap_or(0));
        let expires_in = self.token_ttl.min(left);
        let claims = Claims {
            iss: ISSUER.into(),
            aud: ISSUER.into(),
            sub: account.name.clone(),
            sid: session.id.clone(),
            iat: now_s,
            exp: now_s + i64::try_from(expires_in.as_secs()).unwrap_or(0),
        };
        let token = jsonwebtoken::encode(&Header::new(Algorithm::HS256), &claims, &self.encoding);
        Ok(SignedIn { token: token.map_err(|e| Refusal::Unavailable(format!("cannot sign the token: {e}")))?, expires_in, account })
    }

    /// A new JWT for an existing session.
    pub async fn renew(&self, store: &Store, session: &str) -> Result<SignedIn, Refusal> {
        let (session, account) = store.admin_store().session(session, now_ms()).await?.ok_or(Refusal::Wrong)?;
        self.token(&session, account)
    }

    pub(super) fn remember(&self, session: &str, account: &Account) {
        let mut remembered = self.remembered.lock();
        if remembered.len() >= CACHED_SESSIONS_MAX {
            remembered.retain(|_, (_, at)| at.elapsed() < self.token_ttl);
        }
        if remembered.len() < CACHED_SESSIONS_MAX {
            remembered.insert(session.to_owned(), (account.clone(), Instant::now()));
        }
    }
}

/// Logs a failed sign-in in the form that `config/fail2ban` reads. A name without an account is omitted: it may be a
/// password typed into the wrong field.
fn log_failure(account: Option<&str>, from: IpAddr, reason: &str) {
    tracing::warn!(client = %from, account = account.unwrap_or(NO_ACCOUNT), reason, "sign-in failed");
}

/// Records a failed sign-in in the log and the audit.
pub async fn record_failure(store: &Store, account: Option<&str>, from: IpAddr, reason: &str) {
    log_failure(account, from, reason);
    let target = account.unwrap_or(NO_ACCOUNT).to_owned();
    let after = Some(serde_json::json!({ "reason": reason }).to_string());
    let line = AuditLine { action: "session.refused", target, before: None, after };
    let actor = Actor { who: ANONYMOUS.to_owned(), origin: from.to_string() };
    if let Err(error) = store.admin_store().write_audit(line, &actor).await {
        tracing::warn!(%error, "cannot write a failed sign-in to the audit");
    }
}

/// The counters of failed attempts. An IPv6 /64 counts as one address, since a client owns all of it.
fn guessed(name: &str, from: IpAddr) -> Vec<SignInCounter> {
    let network = match from {
        IpAddr::V4(v4) => v4.to_string(),
        IpAddr::V6(v6) => {
            let [a, b, c, d, ..] = v6.segments();
            format!("{a:x}:{b:x}:{c:x}:{d:x}::/64")
        }
    };
    vec![
        SignInCounter { subject: format!("account:{name}"), free: FREE_OF_ACCOUNT },
        SignInCounter { subject: format!("address:{network}"), free: FREE_OF_ADDRESS },
    ]
}
