//! Signing in, and who somebody is afterwards.
//!
//! A session lives in the store; what a browser carries is a short-lived JWT (RFC 7519, HS256) that names it. Each call
//! looks the session up, so that a sign-out, a new password or another role counts at once on every replica. While the
//! store is away, whoever was seen since then may go on looking until his JWT has expired.

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
use super::access::{Caller, Role, Scope, Scopes};
use super::accounts::{Known, hashed, now_ms};
use super::passwords::{BYTES_MAX, Passwords};
use crate::bindings::Store;
use crate::sql::accounts::{Account, Session, SignInCounter};
use crate::sql::audit::{Actor, AuditLine};
use crate::util::aead::Sealer;

/// Wrong passwords for one account that cost nothing but their count.
const FREE_OF_ACCOUNT: i64 = 5;
/// Wrong passwords from one address: several people may sit behind it.
const FREE_OF_ADDRESS: i64 = 20;
/// Sessions that are remembered for when the store is away.
const REMEMBERED_MAX: usize = 1000;
/// Scripts of somebody who signs in through a provider are known for so long after he has done so, 30 days.
const ELSEWHERE_MS: i64 = 30 * 24 * 3600 * 1000;
/// The target of failed sign-ins under a name that no account has.
const NO_ACCOUNT: &str = "unknown";
/// The actor of failed sign-ins.
const ANONYMOUS: &str = "anonymous";
/// What is kept of a browser's name.
const AGENT_CHARS_MAX: usize = 200;
/// Who has issued our tokens, and for whom.
const ISSUER: &str = "keylatch-admin";

/// Why somebody is not let in. The same for names that there are and those that there are not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// Name or password is wrong, or the account is disabled.
    Wrong,
    /// Too many were wrong: not before so many seconds.
    Locked(u64),
    /// The store does not answer.
    Away(String),
}

impl From<StoreError> for Refusal {
    fn from(error: StoreError) -> Self {
        Refusal::Away(error.to_string())
    }
}

/// Why a password was not changed.
#[derive(Clone, Debug)]
pub enum Declined {
    /// As at the door.
    Refused(Refusal),
    /// What was said makes no sense.
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

/// Somebody who has signed in.
#[derive(Clone, Debug)]
pub struct SignedIn {
    /// The JWT.
    pub token: String,
    /// For how long it is good.
    pub expires_in: Duration,
    /// Who he is.
    pub account: Account,
}

#[derive(Debug, Serialize, Deserialize)]
struct Claims {
    iss: String,
    aud: String,
    sub: String,
    sid: String,
    iat: i64,
    exp: i64,
}

/// Lets people in.
pub struct Door {
    passwords: Passwords,
    encoding: EncodingKey,
    decoding: DecodingKey,
    validation: Validation,
    session_max: Duration,
    token_ttl: Duration,
    remembered: Mutex<HashMap<String, (Account, Instant)>>,
    sealer: Sealer,
}

/// A browser from which somebody has signed in to an account before: its wrong passwords count by themselves, so that
/// nobody else's lock its owner out.
#[derive(Serialize, Deserialize)]
struct Browser {
    account: String,
    id: String,
    until_ms: i64,
}

/// For so long a browser is remembered by what it holds.
pub const BROWSER_KNOWN: Duration = Duration::from_secs(90 * 86_400);
/// What opens as nothing but a browser's.
const BROWSER: &str = "browser";

impl Door {
    /// `secret`: under which JWTs are signed, the same on every replica.
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

    /// Passwords.
    pub fn passwords(&self) -> &Passwords {
        &self.passwords
    }

    /// What a browser holds that somebody has signed in from, if it is for this account.
    fn browser(&self, account: &str, held: Option<&str>) -> Option<Browser> {
        let plain = self.sealer.open(BROWSER, &URL_SAFE_NO_PAD.decode(held?).ok()?)?;
        serde_json::from_slice(&plain).ok().filter(|browser: &Browser| browser.account == account && browser.until_ms > now_ms())
    }

    /// What a browser may hold from now on that has just signed in, the same as before if it holds something.
    pub fn remember_browser(&self, account: &str, held: Option<&str>) -> Result<String, String> {
        let id = self.browser(account, held).map_or_else(|| uuid::Uuid::now_v7().to_string(), |browser| browser.id);
        let until_ms = now_ms() + i64::try_from(BROWSER_KNOWN.as_millis()).unwrap_or(i64::MAX / 2);
        let plain = serde_json::to_vec(&Browser { account: account.to_owned(), id, until_ms }).map_err(|e| e.to_string())?;
        Ok(URL_SAFE_NO_PAD.encode(self.sealer.seal(BROWSER, &plain)?))
    }

    /// Lets somebody in who knows the password. `held`: what his browser was given when he signed in before.
    pub async fn sign_in(
        &self,
        store: &Store,
        name: &str,
        password: &str,
        from: IpAddr,
        agent: &str,
        held: Option<&str>,
    ) -> Result<SignedIn, Refusal> {
        // A name that cannot be one is refused as late as any other.
        let name: String = name.to_lowercase().chars().take(64).collect();
        let mut guessed = guessed(&name, from);
        if let (Some(browser), Some(by_account)) = (self.browser(&name, held), guessed.first_mut()) {
            by_account.subject = format!("browser:{}", browser.id);
        }
        let (admin_store, now) = (store.admin_store(), now_ms());
        if let Some(until) = admin_store.count_attempt(&guessed, now).await? {
            // Not in the audit: what is locked can be repeated without end.
            log_failure(None, from, "locked");
            return Err(Refusal::Locked(seconds_until(until)));
        }
        let account = admin_store.account(&name).await?;
        let exists = account.as_ref().map(|account| account.name.clone());
        let stored = account.as_ref().filter(|account| !account.disabled).and_then(|account| account.password.clone());
        let password = if password.len() > BYTES_MAX { "" } else { password };
        let right = self.passwords.is(password, stored.as_deref()).await.map_err(|fault| Refusal::Away(fault.to_string()))?;
        let Some(account) = account.filter(|_| right) else {
            note_failure(store, exists.as_deref(), from, "wrong").await;
            return Err(Refusal::Wrong);
        };
        self.begin(store, account, from, agent, &guessed).await
    }

    /// Lets somebody in who has shown elsewhere who he is. What he is may have changed there since: then his other sign-ins
    /// end.
    pub async fn sign_in_from(
        &self,
        store: &Store,
        known: &Known,
        from: IpAddr,
        agent: &str,
        guessed: &[SignInCounter],
    ) -> Result<SignedIn, Declined> {
        let admin_store = store.admin_store();
        let actor = Actor { who: known.name.clone(), origin: from.to_string() };
        let there = admin_store.account_by_identity(&known.elsewhere).await.map_err(Refusal::from)?;
        let role = match &known.role {
            Ok(role) => role.as_str().to_owned(),
            Err(why) => {
                // What he had while he was somebody goes.
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
                super::accounts::made(changed, &account.name)?;
                super::accounts::get(store, &account.name).await?
            }
            None => super::accounts::make_known(store, known, &role, &actor).await?,
        };
        Ok(self.begin(store, account, from, agent, guessed).await?)
    }

    /// Counts a try to come back from elsewhere before it is made: what anybody sends has a provider asked.
    pub async fn may_try(&self, store: &Store, from: IpAddr) -> Result<Vec<SignInCounter>, Refusal> {
        let guessed: Vec<SignInCounter> = guessed("", from).into_iter().filter(|guessed| guessed.subject.starts_with("address:")).collect();
        match store.admin_store().count_attempt(&guessed, now_ms()).await? {
            Some(until) => Err(Refusal::Locked(seconds_until(until))),
            None => Ok(guessed),
        }
    }

    /// Chooses a password of one's own, which ends one's other sessions. Guessing the old one counts as at the door.
    pub async fn choose_password(&self, store: &Store, caller: &Caller, old: &str, new: &str, from: IpAddr) -> Result<(), Declined> {
        let guessed = guessed(&caller.account, from);
        let admin_store = store.admin_store();
        if let Some(until) = admin_store.count_attempt(&guessed, now_ms()).await.map_err(Refusal::from)? {
            return Err(Refusal::Locked(seconds_until(until)).into());
        }
        let account = super::accounts::get(store, &caller.account).await?;
        if !self.passwords.is(old, account.password.as_deref()).await? {
            return Err(Fault::invalid("current", "that is not the password you have now").into());
        }
        admin_store.forgive_attempt(&guessed).await.map_err(Refusal::from)?;
        super::passwords::check(new, &account.name)?;
        if old == new {
            return Err(Fault::invalid("password", "that is the password you have now").into());
        }
        let after = Account { password: Some(self.passwords.hash(new).await?), must_change: false, ..account.clone() };
        let changed = admin_store.change_account(&after, account.version, caller.session.as_deref(), &caller.actor).await;
        Ok(super::accounts::made(changed.map_err(Refusal::from)?, &account.name)?)
    }

    /// Begins a session of somebody who has shown who he is.
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
        // Hashing takes a while: a password that was changed meanwhile is a wrong one.
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
        Ok(SignedIn { token: token.map_err(|e| Refusal::Away(format!("no token can be signed: {e}")))?, expires_in, account })
    }

    /// A fresh JWT for whoever is signed in.
    pub async fn renew(&self, store: &Store, session: &str) -> Result<SignedIn, Refusal> {
        let (session, account) = store.admin_store().session(session, now_ms()).await?.ok_or(Refusal::Wrong)?;
        self.token(&session, account)
    }

    /// Who carries this token.
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
                (remembered.ok_or(error)?.0, Scopes::of(&[Scope::Read]))
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

    fn remember(&self, session: &str, account: &Account) {
        let mut remembered = self.remembered.lock();
        if remembered.len() >= REMEMBERED_MAX {
            remembered.retain(|_, (_, at)| at.elapsed() < self.token_ttl);
        }
        if remembered.len() < REMEMBERED_MAX {
            remembered.insert(session.to_owned(), (account.clone(), Instant::now()));
        }
    }
}

/// A failed sign-in in the log, as `config/fail2ban` reads it. A name without an account is left out: it may be a password that
/// was typed into the wrong field.
fn log_failure(account: Option<&str>, from: IpAddr, reason: &str) {
    tracing::warn!(client = %from, account = account.unwrap_or(NO_ACCOUNT), reason, "sign-in failed");
}

/// A failed sign-in in the log and in the audit.
pub async fn note_failure(store: &Store, account: Option<&str>, from: IpAddr, reason: &str) {
    log_failure(account, from, reason);
    let target = account.unwrap_or(NO_ACCOUNT).to_owned();
    let after = Some(serde_json::json!({ "reason": reason }).to_string());
    let line = AuditLine { action: "session.refused", target, before: None, after };
    let actor = Actor { who: ANONYMOUS.to_owned(), origin: from.to_string() };
    if let Err(error) = store.admin_store().write_audit(line, &actor).await {
        tracing::warn!(%error, "a failed sign-in could not be written to the audit");
    }
}

/// A script may do what its token says, and never more than whoever has made it.
async fn script(store: &Store, token: &str, from: IpAddr) -> Result<Caller, Refusal> {
    let (token, account) = store.admin_store().token(&hashed(token), now_ms()).await?.ok_or(Refusal::Wrong)?;
    // Nobody tells when somebody leaves who signs in elsewhere: that he has not come for long says so.
    let left = account.elsewhere.is_some() && account.signed_in_ms.is_none_or(|at| at + ELSEWHERE_MS < now_ms());
    if account.must_change || left {
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

/// The names under which failures count. Of IPv6 a whole /64 is one address: so much has everybody.
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
