//! Who may use the admin API, as stores keep it: accounts, who of them is signed in, their scripts' tokens, and sign-ins
//! that failed. What all of it means is `crate::service`'s to say.

use async_trait::async_trait;
use keylatch_filters::contract::StoreError;

use super::audit::{Actor, Line};

/// Somebody who may sign in. Times are milliseconds since 1970, here and below.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Account {
    /// In lower case.
    pub name: String,
    /// `viewer`, `operator` or `admin`.
    pub role: String,
    /// Argon2id, as PHC string; `None`: he signs in elsewhere.
    pub password: Option<String>,
    /// May not sign in.
    pub disabled: bool,
    /// Somebody else knows the password.
    pub must_change: bool,
    /// Grows with each change.
    pub version: i64,
    /// When it was made.
    pub created_ms: i64,
    /// When he signed in last.
    pub signed_in_ms: Option<i64>,
    /// Where he signs in, if he has no password here.
    pub elsewhere: Option<Elsewhere>,
}

/// Who somebody is at a provider.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Elsewhere {
    /// The provider's name.
    pub provider: String,
    /// The `sub` claim: the one name of his there that never changes hands.
    pub subject: String,
}

/// Somebody who is signed in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Session {
    /// A UUID.
    pub id: String,
    /// Whose.
    pub account: String,
    /// When he signed in.
    pub created_ms: i64,
    /// When he must again.
    pub expires_ms: i64,
    /// The address it began at.
    pub origin: String,
    /// The browser, as it calls itself.
    pub agent: String,
}

/// A script's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Token {
    /// A UUID.
    pub id: String,
    /// Whose script's.
    pub account: String,
    /// What it is called; no two of an account are called the same.
    pub name: String,
    /// What it may do, separated by spaces.
    pub scopes: String,
    /// Of the token.
    pub sha256: Vec<u8>,
    /// When it was made.
    pub created_ms: i64,
    /// Until when it is good.
    pub expires_ms: i64,
    /// When it was used last, to the minute.
    pub used_ms: Option<i64>,
}

/// Whether a change was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Made {
    /// Yes.
    Yes,
    /// There is nothing of this name.
    Missing,
    /// There is something of this name.
    Exists,
    /// Somebody else was faster: it is newer than the version that was said.
    Newer,
    /// Nobody would be left who may do everything and signs in with a password.
    LastAdmin,
}

/// How failed sign-ins are counted under one name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Guessed {
    /// `account:NAME`, `browser:ID` or `address:NETWORK`.
    pub subject: String,
    /// Failures that cost nothing but their count.
    pub free: i64,
}

/// The first failure past the free ones locks for this long, each further one twice as long.
pub const LOCKED_MS_MIN: i64 = 1000;
/// It never locks longer.
pub const LOCKED_MS_MAX: i64 = 15 * 60 * 1000;
/// After so long without a failure they are forgotten.
pub const FORGOTTEN_MS: i64 = 24 * 3600 * 1000;

/// Accounts and what belongs to them.
#[async_trait]
pub trait Accounts: Send + Sync {
    /// All, by name.
    async fn accounts(&self) -> Result<Vec<Account>, StoreError>;
    /// One.
    async fn account(&self, name: &str) -> Result<Option<Account>, StoreError>;
    /// Whoever signs in there under this name.
    async fn account_of(&self, elsewhere: &Elsewhere) -> Result<Option<Account>, StoreError>;
    /// Makes one; with `first` only if there is none at all.
    async fn make_account(&self, account: &Account, first: bool, actor: &Actor) -> Result<Made, StoreError>;
    /// Puts it in the place of the one in `expects`' version, and ends its sessions except `keeps`; a password that somebody else
    /// sets removes its tokens, too.
    async fn change_account(&self, account: &Account, expects: i64, keeps: Option<&str>, actor: &Actor) -> Result<Made, StoreError>;
    /// Removes it with all that belongs to it.
    async fn remove_account(&self, name: &str, expects: Option<i64>, actor: &Actor) -> Result<Made, StoreError>;
    /// Ends the sign-ins of somebody who may not come in any more, takes his tokens, and leaves him the least of roles.
    async fn turn_away(&self, name: &str, actor: &Actor) -> Result<(), StoreError>;
    /// Somebody has signed in, and nothing of what he counts as after `guessed`. False: his account was changed since this
    /// version was looked at.
    async fn begin_session(&self, session: &Session, version: i64, guessed: &[Guessed], actor: &Actor) -> Result<bool, StoreError>;
    /// Who is signed in, if he still is.
    async fn session(&self, id: &str, now_ms: i64) -> Result<Option<(Session, Account)>, StoreError>;
    /// Of one account, the latest first.
    async fn sessions(&self, account: &str, now_ms: i64) -> Result<Vec<Session>, StoreError>;
    /// Signs out. False: that is nobody's who is signed in.
    async fn end_session(&self, account: &str, id: &str, actor: &Actor) -> Result<bool, StoreError>;
    /// Of one account, or of all; by name.
    async fn tokens(&self, account: Option<&str>) -> Result<Vec<Token>, StoreError>;
    /// Makes one.
    async fn make_token(&self, token: &Token, actor: &Actor) -> Result<Made, StoreError>;
    /// Whose it is, and that it was used.
    async fn token(&self, sha256: &[u8], now_ms: i64) -> Result<Option<(Token, Account)>, StoreError>;
    /// Removes one. False: there is none.
    async fn remove_token(&self, account: &str, id: &str, actor: &Actor) -> Result<bool, StoreError>;
    /// Counts a try as failed before it is made, in one step under all its names. `Some`: it may not be made before then.
    async fn guess(&self, guessed: &[Guessed], now_ms: i64) -> Result<Option<i64>, StoreError>;
    /// The try was none of the failed ones: forgets one under the address, and all under other names.
    async fn forgive(&self, guessed: &[Guessed]) -> Result<(), StoreError>;
    /// Forgets all failures under an account's name.
    async fn unlock(&self, account: &str, actor: &Actor) -> Result<(), StoreError>;
}

/// Lines of the audit about what no row was changed for.
#[async_trait]
pub trait Notes: Send + Sync {
    /// Writes one.
    async fn note_down(&self, line: Line, actor: &Actor) -> Result<(), StoreError>;
}

/// For how long the failure of this number locks.
pub fn locked_ms(failures: i64, free: i64) -> i64 {
    match failures - free {
        ..=0 => 0,
        over => LOCKED_MS_MIN.saturating_mul(1_i64 << (over - 1).min(20)).min(LOCKED_MS_MAX),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_grows_to_an_end() {
        let waits: Vec<i64> = (1..=18).map(|failures| locked_ms(failures, 5) / 1000).collect();
        assert_eq!(waits, [0, 0, 0, 0, 0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 900, 900, 900]);
        assert_eq!(locked_ms(i64::MAX, 5), LOCKED_MS_MAX);
    }
}
