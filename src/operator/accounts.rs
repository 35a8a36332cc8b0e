//! Operations on accounts and on their API tokens.
//! Sign-in itself is `super::sign_in`.

use std::time::SystemTime;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use sha2::{Digest, Sha256};

use super::Fault;
use super::access::{Caller, Role, Scope, Scopes};
use super::passwords::{self, Passwords};
use crate::bindings::Store;
use crate::sql::accounts::{Account, ProviderIdentity, Token, WriteOutcome};
use crate::sql::audit::Actor;
use crate::util::time::millis;
use keylatch_filters::contract::hex;

/// An identity that an OpenID Connect provider has confirmed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExternalIdentity {
    /// The provider and the subject there.
    pub elsewhere: ProviderIdentity,
    /// The account name to use here.
    pub name: String,
    /// The role here, or the reason why the identity gets none.
    pub role: Result<Role, String>,
}

/// Maximum lifetime of a token in days.
pub const TOKEN_DAYS_MAX: u32 = 366;
/// Maximum tokens of one account.
const TOKENS_MAX: usize = 50;
/// The name of the first account.
pub const FIRST: &str = "admin";
/// 192 bits, as 32 characters.
const PASSWORD_BYTES: usize = 24;

/// The current time in milliseconds since 1970.
pub fn now_ms() -> i64 {
    millis(SystemTime::now())
}

/// Checks an account name and returns it in lower case: 1 to 64 letters, digits and `-_.@`.
pub fn name(text: &str) -> Result<String, Fault> {
    let fine = (1..=64).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.@".contains(&byte));
    // `first_use` is the creator that bindings name when no account has made them.
    match fine && text.starts_with(|first: char| first.is_ascii_alphanumeric()) && !text.eq_ignore_ascii_case("first_use") {
        true => Ok(text.to_ascii_lowercase()),
        false => Err(Fault::invalid(
            "name",
            "an account name has 1 to 64 letters, digits and `-_.@`, and begins with a letter or digit; `first_use` is reserved",
        )),
    }
}

/// A random password.
pub fn random_password() -> Result<String, Fault> {
    random(PASSWORD_BYTES)
}

/// This number of random bytes, as base64url.
pub fn random(bytes: usize) -> Result<String, Fault> {
    let mut random = vec![0; bytes];
    getrandom::fill(&mut random).map_err(|e| Fault::Unavailable(format!("the system's random source failed: {e}")))?;
    Ok(URL_SAFE_NO_PAD.encode(random))
}

/// Turns the outcome of a change of this account into a result.
pub fn change_result(made: WriteOutcome, name: &str) -> Result<(), Fault> {
    match made {
        WriteOutcome::Done => Ok(()),
        WriteOutcome::Missing => Err(Fault::NotFound(format!("there is no account `{name}`"))),
        WriteOutcome::Exists => Err(Fault::Conflict(format!("an account `{name}` already exists"))),
        WriteOutcome::Newer => {
            Err(Fault::Conflict(format!("the account `{name}` was changed meanwhile; load the current version and try again")))
        }
        WriteOutcome::LastAdmin => {
            Err(Fault::Conflict("this is the last enabled admin account with a password; make another admin first".into()))
        }
    }
}

/// Creates the first account if none exists. Returns its password: the given one, or a random one that must be
/// changed. `None`: an account exists.
pub async fn create_first(store: &Store, passwords: &Passwords, given: Option<&str>) -> Result<Option<String>, Fault> {
    let admin_store = store.admin_store();
    if !admin_store.accounts().await?.is_empty() {
        return Ok(None);
    }
    let password = given.map_or_else(random_password, |given| passwords::check(given, FIRST).map(|()| given.to_owned()))?;
    let account = Account {
        name: FIRST.into(),
        role: Role::Admin.as_str().into(),
        password: Some(passwords.hash(&password).await?),
        disabled: false,
        must_change: given.is_none(),
        version: 1,
        created_ms: now_ms(),
        signed_in_ms: None,
        elsewhere: None,
    };
    let actor = Actor { who: "first start".into(), origin: "here".into() };
    // If several replicas start at once, only one of them creates it.
    Ok((admin_store.make_account(&account, true, &actor).await? == WriteOutcome::Done).then_some(password))
}

/// Creates an account with a temporary password.
pub async fn make(store: &Store, passwords: &Passwords, text: &str, role: Role, password: &str, actor: &Actor) -> Result<Account, Fault> {
    let name = name(text)?;
    passwords::check(password, &name)?;
    let account = Account {
        name: name.clone(),
        role: role.as_str().into(),
        password: Some(passwords.hash(password).await?),
        disabled: false,
        must_change: true,
        version: 1,
        created_ms: now_ms(),
        signed_in_ms: None,
        elsewhere: None,
    };
    change_result(store.admin_store().make_account(&account, false, actor).await?, &name)?;
    Ok(account)
}

/// Creates the account of an external identity. If its name is taken, a suffix of the subject's hash is added.
pub async fn make_external(store: &Store, identity: &ExternalIdentity, role: &str, actor: &Actor) -> Result<Account, Fault> {
    let digits = hex(&Sha256::digest(&identity.elsewhere.subject)[..4]);
    for name in [identity.name.clone(), format!("{}-{digits}", identity.name)] {
        let account = Account {
            name: name.clone(),
            role: role.into(),
            password: None,
            disabled: false,
            must_change: false,
            version: 1,
            created_ms: now_ms(),
            signed_in_ms: None,
            elsewhere: Some(identity.elsewhere.clone()),
        };
        match store.admin_store().make_account(&account, false, &Actor { who: name.clone(), ..actor.clone() }).await? {
            WriteOutcome::Exists => {
                // A concurrent sign-in on another replica may have created it.
                if let Some(account) = store.admin_store().account_by_identity(&identity.elsewhere).await? {
                    return Ok(account);
                }
            }
            outcome => return change_result(outcome, &name).map(|()| account),
        }
    }
    Err(Fault::Conflict(format!("the account name `{}` already belongs to another identity", identity.name)))
}

/// The account with this name.
pub async fn get(store: &Store, name: &str) -> Result<Account, Fault> {
    let missing = || Fault::NotFound(format!("there is no account `{name}`"));
    store.admin_store().account(&name.to_ascii_lowercase()).await?.ok_or_else(missing)
}

/// A change of an account; `None` keeps the value.
#[derive(Clone, Debug, Default)]
pub struct Change {
    /// The role.
    pub role: Option<Role>,
    /// Whether sign-in is disabled.
    pub disabled: Option<bool>,
    /// A temporary password, which must be changed at the next sign-in.
    pub password: Option<String>,
}

/// Changes an account, which ends all its sessions.
pub async fn change(
    store: &Store,
    passwords: &Passwords,
    name: &str,
    change: &Change,
    expects: Option<i64>,
    actor: &Actor,
) -> Result<Account, Fault> {
    let before = get(store, name).await?;
    if let Some(elsewhere) = before.elsewhere.as_ref().filter(|_| change.password.is_some() || change.role.is_some()) {
        let why = format!(
            "the role and password of `{name}` come from the provider `{}`; here the account can only be disabled",
            elsewhere.provider
        );
        return Err(Fault::Conflict(why));
    }
    let mut after = before.clone();
    after.role = change.role.map_or(after.role, |role| role.as_str().to_owned());
    after.disabled = change.disabled.unwrap_or(after.disabled);
    if let Some(password) = &change.password {
        passwords::check(password, &after.name)?;
        (after.password, after.must_change) = (Some(passwords.hash(password).await?), true);
    }
    change_result(store.admin_store().change_account(&after, expects.unwrap_or(before.version), None, actor).await?, name)?;
    get(store, name).await
}

/// Creates a token with at most the caller's scopes. Only its hash is stored: the returned secret cannot be read again.
pub async fn make_token(store: &Store, caller: &Caller, text: &str, scopes: &[Scope], days: u32) -> Result<(Token, String), Fault> {
    let fine = (1..=64).contains(&text.chars().count()) && !text.chars().any(char::is_control);
    if !fine {
        return Err(Fault::invalid("name", "a token name has 1 to 64 characters"));
    }
    if scopes.is_empty() {
        return Err(Fault::invalid("scopes", "a token requires at least one scope"));
    }
    if let Some(scope) = scopes.iter().find(|scope| !caller.scopes.has(**scope)) {
        return Err(Fault::Forbidden(format!("you do not have the scope `{}`, so you cannot grant it", scope.as_str())));
    }
    if !(1..=TOKEN_DAYS_MAX).contains(&days) {
        return Err(Fault::invalid("days", format!("a token is valid for 1 to {TOKEN_DAYS_MAX} days")));
    }
    let admin_store = store.admin_store();
    if admin_store.tokens(Some(&caller.account)).await?.len() >= TOKENS_MAX {
        return Err(Fault::Conflict(format!("an account can have at most {TOKENS_MAX} tokens; remove one first")));
    }
    // The prefix lets secret scanners detect leaked tokens.
    let secret = format!("kla_{}", random(32)?);
    let words: Vec<&str> = Scopes::from_list(scopes).list().into_iter().map(Scope::as_str).collect();
    let now = now_ms();
    let token = Token {
        id: uuid::Uuid::now_v7().to_string(),
        account: caller.account.clone(),
        name: text.into(),
        scopes: words.join(" "),
        sha256: token_hash(&secret),
        created_ms: now,
        expires_ms: now + i64::from(days) * 24 * 3600 * 1000,
        used_ms: None,
    };
    match admin_store.make_token(&token, &caller.actor).await? {
        WriteOutcome::Done => Ok((token, secret)),
        _ => Err(Fault::Conflict(format!("a token `{text}` already exists"))),
    }
}

/// The stored hash of a token.
pub fn token_hash(token: &str) -> Vec<u8> {
    Sha256::digest(token.as_bytes()).to_vec()
}
