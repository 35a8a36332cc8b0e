//! The store contract for admin access: accounts, sessions, API tokens and counters of failed
//! sign-ins. Contains no policy; `crate::operator` decides what roles, scopes and limits mean.

use async_trait::async_trait;
use keylatch_filters::contract::StoreError;

use super::audit::{Actor, AuditLine};

/// An account of the admin API. All times in this module are milliseconds since 1970.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Account {
    /// The name, in lower case.
    pub name: String,
    /// The role: `viewer`, `operator` or `admin`.
    pub role: String,
    /// The password hash (Argon2id, PHC string). `None`: the account signs in through a provider.
    pub password: Option<String>,
    /// Whether sign-in is disabled.
    pub disabled: bool,
    /// Whether the password must be changed at the next sign-in, because another operator set it.
    pub must_change: bool,
    /// The version. It grows with each change.
    pub version: i64,
    /// The creation time.
    pub created_ms: i64,
    /// The time of the last sign-in.
    pub signed_in_ms: Option<i64>,
    /// The identity at an OpenID Connect provider, if the account has no password.
    pub elsewhere: Option<ProviderIdentity>,
}

/// An identity at an OpenID Connect provider.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProviderIdentity {
    /// The provider's name.
    pub provider: String,
    /// The `sub` claim, the only identifier that a provider never reassigns.
    pub subject: String,
}

/// A signed-in session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Session {
    /// The session id, a UUID.
    pub id: String,
    /// The account's name.
    pub account: String,
    /// The time of the sign-in.
    pub created_ms: i64,
    /// The time at which the session expires.
    pub expires_ms: i64,
    /// The client address of the sign-in.
    pub origin: String,
    /// The browser's `User-Agent`.
    pub agent: String,
}

/// An API token of a script.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Token {
    /// The token id, a UUID.
    pub id: String,
    /// The name of the account that owns the token.
    pub account: String,
    /// The token's name, unique within the account.
    pub name: String,
    /// The scopes, separated by spaces.
    pub scopes: String,
    /// The SHA-256 hash of the token.
    pub sha256: Vec<u8>,
    /// The creation time.
    pub created_ms: i64,
    /// The expiry time.
    pub expires_ms: i64,
    /// The time of the last use, to the minute.
    pub used_ms: Option<i64>,
}

/// The outcome of a conditional write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WriteOutcome {
    /// The write was made.
    Done,
    /// No row has this name.
    Missing,
    /// A row has this name already.
    Exists,
    /// The row is newer than the expected version: another operator changed it.
    Newer,
    /// The write would remove the last enabled `admin` account that signs in with a password.
    LastAdmin,
}

/// A counter of failed sign-ins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SignInCounter {
    /// The counted subject: `account:NAME`, `browser:ID` or `address:NETWORK`.
    pub subject: String,
    /// The number of failures without a lock.
    pub free: i64,
}

/// The lock after the first failure past the free ones. Each further failure doubles it.
pub const LOCKED_MS_MIN: i64 = 1000;
/// The longest lock.
pub const LOCKED_MS_MAX: i64 = 15 * 60 * 1000;
/// The time without a failure after which a counter is deleted.
pub const FORGOTTEN_MS: i64 = 24 * 3600 * 1000;

/// The store of accounts, sessions, tokens and sign-in counters.
#[async_trait]
pub trait Accounts: Send + Sync {
    /// Lists all accounts by name.
    async fn accounts(&self) -> Result<Vec<Account>, StoreError>;
    /// Returns the account of this name.
    async fn account(&self, name: &str) -> Result<Option<Account>, StoreError>;
    /// Returns the account of this provider identity.
    async fn account_by_identity(&self, elsewhere: &ProviderIdentity) -> Result<Option<Account>, StoreError>;
    /// Creates an account. With `first`, only if there is no account at all.
    async fn make_account(&self, account: &Account, first: bool, actor: &Actor) -> Result<WriteOutcome, StoreError>;
    /// Replaces the account if its version is `expects`, and ends its sessions except `keeps`. A
    /// password that another operator sets also deletes the account's tokens.
    async fn change_account(&self, account: &Account, expects: i64, keeps: Option<&str>, actor: &Actor)
    -> Result<WriteOutcome, StoreError>;
    /// Deletes the account with its sessions and tokens.
    async fn remove_account(&self, name: &str, expects: Option<i64>, actor: &Actor) -> Result<WriteOutcome, StoreError>;
    /// Ends the sessions and deletes the tokens of an account that its provider no longer admits,
    /// and sets its role to `viewer`.
    async fn revoke_access(&self, name: &str, actor: &Actor) -> Result<(), StoreError>;
    /// Creates a session and resets the counters `counters`. False: the account changed after
    /// `version` was read.
    async fn begin_session(&self, session: &Session, version: i64, counters: &[SignInCounter], actor: &Actor) -> Result<bool, StoreError>;
    /// Returns an unexpired session with its account.
    async fn session(&self, id: &str, now_ms: i64) -> Result<Option<(Session, Account)>, StoreError>;
    /// Lists the sessions of an account, the latest first.
    async fn sessions(&self, account: &str, now_ms: i64) -> Result<Vec<Session>, StoreError>;
    /// Deletes a session. False: the account has no such session.
    async fn end_session(&self, account: &str, id: &str, actor: &Actor) -> Result<bool, StoreError>;
    /// Lists the tokens of one account, or of all, by name.
    async fn tokens(&self, account: Option<&str>) -> Result<Vec<Token>, StoreError>;
    /// Creates a token.
    async fn make_token(&self, token: &Token, actor: &Actor) -> Result<WriteOutcome, StoreError>;
    /// Returns the unexpired token with this hash and its account, and updates its last use.
    async fn token(&self, sha256: &[u8], now_ms: i64) -> Result<Option<(Token, Account)>, StoreError>;
    /// Deletes a token. False: the account has no such token.
    async fn remove_token(&self, account: &str, id: &str, actor: &Actor) -> Result<bool, StoreError>;
    /// Adds a failure to each counter, in one transaction, before the attempt is made.
    /// `Some(time)`: a subject is locked until then, nothing was added, and the attempt must not be made.
    async fn count_attempt(&self, counters: &[SignInCounter], now_ms: i64) -> Result<Option<i64>, StoreError>;
    /// After a successful attempt: removes one failure from the counter of an address, and all
    /// failures from the other counters.
    async fn forgive_attempt(&self, counters: &[SignInCounter]) -> Result<(), StoreError>;
    /// Deletes all failures of an account.
    async fn unlock(&self, account: &str, actor: &Actor) -> Result<(), StoreError>;
}

/// Audit entries for actions that change no row.
#[async_trait]
pub trait AuditLog: Send + Sync {
    /// Writes one entry.
    async fn write_audit(&self, line: AuditLine, actor: &Actor) -> Result<(), StoreError>;
}

/// The lock in milliseconds after this number of failures.
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
    fn the_lock_doubles_up_to_its_maximum() {
        let waits: Vec<i64> = (1..=18).map(|failures| locked_ms(failures, 5) / 1000).collect();
        assert_eq!(waits, [0, 0, 0, 0, 0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 900, 900, 900]);
        assert_eq!(locked_ms(i64::MAX, 5), LOCKED_MS_MAX);
    }
}
