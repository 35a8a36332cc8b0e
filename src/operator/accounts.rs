//! Accounts, and the tokens of their scripts.

use std::time::SystemTime;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use sha2::{Digest, Sha256};

use super::Fault;
use super::access::{Caller, Role, Scope, Scopes};
use super::passwords::{self, Passwords};
use crate::bindings::Store;
use crate::sql::accounts::{Account, Elsewhere, Token, WriteOutcome};
use crate::sql::audit::Actor;
use crate::util::time::millis;
use keylatch_filters::contract::hex;

/// Who has come back, by the provider's word.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Known {
    /// Who he is there.
    pub elsewhere: Elsewhere,
    /// What he is called.
    pub name: String,
    /// What he is here; or why he is nobody.
    pub role: Result<Role, String>,
}

/// Days that a token is good for at most.
pub const TOKEN_DAYS_MAX: u32 = 366;
/// Tokens of one account.
const TOKENS_MAX: usize = 50;
/// The name of the first account.
pub const FIRST: &str = "admin";
/// 192 bits, as 32 characters that can be typed.
const PASSWORD_BYTES: usize = 24;

/// Now, as stores count it.
pub fn now_ms() -> i64 {
    millis(SystemTime::now())
}

/// The one form of a name: 1 to 64 letters, digits and `-_.@`, in lower case.
pub fn name(text: &str) -> Result<String, Fault> {
    let fine = (1..=64).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.@".contains(&byte));
    // What bindings say of whoever made them must not mean two things.
    match fine && text.starts_with(|first: char| first.is_ascii_alphanumeric()) && !text.eq_ignore_ascii_case("first_use") {
        true => Ok(text.to_ascii_lowercase()),
        false => {
            Err(Fault::invalid("name", "a name begins with a letter or digit and has 1 to 64 of them and of `-_.@`; `first_use` is taken"))
        }
    }
}

/// A password nobody guesses.
pub fn random_password() -> Result<String, Fault> {
    random(PASSWORD_BYTES)
}

/// So many random bytes, as base64url.
pub fn random(bytes: usize) -> Result<String, Fault> {
    let mut random = vec![0; bytes];
    getrandom::fill(&mut random).map_err(|e| Fault::Away(format!("the system has no randomness: {e}")))?;
    Ok(URL_SAFE_NO_PAD.encode(random))
}

/// What came of a change of the account of this name.
pub fn made(made: WriteOutcome, name: &str) -> Result<(), Fault> {
    match made {
        WriteOutcome::Done => Ok(()),
        WriteOutcome::Missing => Err(Fault::Missing(format!("there is no account `{name}`"))),
        WriteOutcome::Exists => Err(Fault::Conflict(format!("there is an account `{name}` already"))),
        WriteOutcome::Newer => Err(Fault::Conflict(format!("the account `{name}` was changed meanwhile; look at it again"))),
        WriteOutcome::LastAdmin => {
            Err(Fault::Conflict("nobody would be left who may do everything and signs in with a password; make another admin first".into()))
        }
    }
}

/// Makes the first account, if there is none at all. Its password, if it was made: the one that was given, or one that
/// must be changed.
pub async fn make_first(store: &Store, passwords: &Passwords, given: Option<&str>) -> Result<Option<String>, Fault> {
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
    // Of several replicas that start at once one makes it.
    Ok((admin_store.make_account(&account, true, &actor).await? == WriteOutcome::Done).then_some(password))
}

/// Makes an account, with a password that somebody else knows.
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
    made(store.admin_store().make_account(&account, false, actor).await?, &name)?;
    Ok(account)
}

/// Makes the account of somebody who has shown elsewhere who he is. Somebody else may be called the same there.
pub async fn make_known(store: &Store, known: &Known, role: &str, actor: &Actor) -> Result<Account, Fault> {
    let digits = hex(&Sha256::digest(&known.elsewhere.subject)[..4]);
    for name in [known.name.clone(), format!("{}-{digits}", known.name)] {
        let account = Account {
            name: name.clone(),
            role: role.into(),
            password: None,
            disabled: false,
            must_change: false,
            version: 1,
            created_ms: now_ms(),
            signed_in_ms: None,
            elsewhere: Some(known.elsewhere.clone()),
        };
        match store.admin_store().make_account(&account, false, &Actor { who: name.clone(), ..actor.clone() }).await? {
            WriteOutcome::Exists => {
                // He may just have come through another door.
                if let Some(account) = store.admin_store().account_by_identity(&known.elsewhere).await? {
                    return Ok(account);
                }
            }
            outcome => return made(outcome, &name).map(|()| account),
        }
    }
    Err(Fault::Conflict(format!("there is an account `{}` of somebody else's already", known.name)))
}

/// The account of this name.
pub async fn get(store: &Store, name: &str) -> Result<Account, Fault> {
    let missing = || Fault::Missing(format!("there is no account `{name}`"));
    store.admin_store().account(&name.to_ascii_lowercase()).await?.ok_or_else(missing)
}

/// What is to change of an account.
#[derive(Clone, Debug, Default)]
pub struct Change {
    /// What he is.
    pub role: Option<Role>,
    /// Whether he may not sign in.
    pub disabled: Option<bool>,
    /// A password that somebody else knows.
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
        let why =
            format!("`{name}` signs in through `{}`, which says who and what he is; it can only be disabled here", elsewhere.provider);
        return Err(Fault::Conflict(why));
    }
    let mut after = before.clone();
    after.role = change.role.map_or(after.role, |role| role.as_str().to_owned());
    after.disabled = change.disabled.unwrap_or(after.disabled);
    if let Some(password) = &change.password {
        passwords::check(password, &after.name)?;
        (after.password, after.must_change) = (Some(passwords.hash(password).await?), true);
    }
    made(store.admin_store().change_account(&after, expects.unwrap_or(before.version), None, actor).await?, name)?;
    get(store, name).await
}

/// Makes a token of the caller's; it may do no more than he. The token itself is known to nobody afterwards.
pub async fn make_token(store: &Store, caller: &Caller, text: &str, scopes: &[Scope], days: u32) -> Result<(Token, String), Fault> {
    let fine = (1..=64).contains(&text.chars().count()) && !text.chars().any(char::is_control);
    if !fine {
        return Err(Fault::invalid("name", "a token's name has 1 to 64 characters"));
    }
    if scopes.is_empty() {
        return Err(Fault::invalid("scopes", "a token needs at least one scope"));
    }
    if let Some(scope) = scopes.iter().find(|scope| !caller.scopes.has(**scope)) {
        return Err(Fault::Forbidden(format!("you may not give what you do not have: `{}`", scope.as_str())));
    }
    if !(1..=TOKEN_DAYS_MAX).contains(&days) {
        return Err(Fault::invalid("days", format!("a token is good for 1 to {TOKEN_DAYS_MAX} days")));
    }
    let admin_store = store.admin_store();
    if admin_store.tokens(Some(&caller.account)).await?.len() >= TOKENS_MAX {
        return Err(Fault::Conflict(format!("an account has at most {TOKENS_MAX} tokens; remove one first")));
    }
    // A prefix of its own lets scanners of leaked secrets find it.
    let secret = format!("kla_{}", random(32)?);
    let words: Vec<&str> = Scopes::of(scopes).list().into_iter().map(Scope::as_str).collect();
    let now = now_ms();
    let token = Token {
        id: uuid::Uuid::now_v7().to_string(),
        account: caller.account.clone(),
        name: text.into(),
        scopes: words.join(" "),
        sha256: hashed(&secret),
        created_ms: now,
        expires_ms: now + i64::from(days) * 24 * 3600 * 1000,
        used_ms: None,
    };
    match admin_store.make_token(&token, &caller.actor).await? {
        WriteOutcome::Done => Ok((token, secret)),
        _ => Err(Fault::Conflict(format!("there is a token `{text}` already"))),
    }
}

/// What is stored of a token.
pub fn hashed(token: &str) -> Vec<u8> {
    Sha256::digest(token.as_bytes()).to_vec()
}
