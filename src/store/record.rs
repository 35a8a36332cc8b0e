//! A binding as an operator sees it, and what he may change.

use std::net::IpAddr;
use std::time::{Duration, SystemTime};

use ipnet::IpNet;
use keylatch_filters::contract::{Binding, KeyId, Rule, StoreError};

/// A binding with everything the store knows of it.
#[derive(Clone, Debug, PartialEq)]
pub struct Record {
    /// What requests are judged by.
    pub binding: Binding,
    /// What people recognise the key by.
    pub hint: String,
    /// `first_use`, or who else made it.
    pub made_by: String,
    /// What somebody wrote about it.
    pub note: String,
    /// Words to find it by.
    pub labels: Vec<String>,
    /// When it was made.
    pub created_at: SystemTime,
    /// When it was used last, as far as is written.
    pub last_used_at: SystemTime,
}

/// What to change; `None` leaves a thing as it is.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Change {
    /// The rule and its networks, which go together.
    pub rule: Option<(Rule, Vec<IpNet>)>,
    /// Whether the key is refused from everywhere.
    pub banned: Option<bool>,
    /// The note.
    pub note: Option<String>,
    /// All labels.
    pub labels: Option<Vec<String>>,
    /// Make the binding if it is not there, with this hint and maker. Needs a rule.
    pub make: Option<(String, String)>,
}

/// Which bindings, in the order of their key ids.
#[derive(Clone, Debug, Default)]
pub struct Query {
    /// Those behind this one.
    pub after: Option<KeyId>,
    /// Whose id begins with these bytes.
    pub prefix: Vec<u8>,
    /// That admit this address.
    pub address: Option<IpAddr>,
    /// With this label.
    pub label: Option<String>,
    /// Banned or not.
    pub banned: Option<bool>,
    /// At most so many.
    pub limit: u32,
}

/// A word to find bindings by: 1 to 64 letters, digits and `-_.:/@`.
pub fn label(word: &str) -> Result<String, String> {
    let fine = (1..=64).contains(&word.len()) && word.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.:/@".contains(&byte));
    if fine { Ok(word.to_owned()) } else { Err(format!("`{word}` is not a label; use up to 64 letters, digits and `-_.:/@`")) }
}

/// When rows go.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Tending {
    /// Not more often than this, whoever does it.
    pub every: Duration,
    /// Bindings unused for this long go to the archive.
    pub archive_after: Duration,
    /// Bindings that were never confirmed go after this.
    pub unconfirmed: Duration,
    /// Intercepts go after this.
    pub intercepts: Duration,
    /// Archived bindings go after this.
    pub archive: Duration,
}

/// What went.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tended {
    /// Bindings archived.
    pub archived: u64,
    /// Bindings that were never confirmed.
    pub unconfirmed: u64,
    /// Rows of intercepts and of the archive.
    pub trimmed: u64,
}

/// Milliseconds since 1970.
pub fn millis(at: SystemTime) -> i64 {
    at.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| i64::try_from(since.as_millis()).unwrap_or(i64::MAX))
}

/// The time that is so many milliseconds after 1970.
pub fn time(millis: i64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_millis(u64::try_from(millis).unwrap_or(0))
}

/// A version: microseconds since 1970, or one more than the version before.
pub fn version_now(before: i64) -> i64 {
    let micros = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_micros());
    i64::try_from(micros).unwrap_or(i64::MAX).max(before.saturating_add(1))
}

/// What a row says, checked: one that makes no sense is an error, never a binding that admits somebody.
pub fn binding<'a>(
    id: KeyId,
    rule: &str,
    networks: impl Iterator<Item = &'a str>,
    banned: bool,
    confirmed: bool,
    version: i64,
) -> Result<Binding, StoreError> {
    let wrong = |what: &str| StoreError(format!("the binding {id} has {what} in the database"));
    let network = |text: &str| {
        let text = text.trim();
        text.parse::<IpNet>().or_else(|_| text.parse::<IpAddr>().map(IpNet::from)).map_err(|_| wrong("a malformed network"))
    };
    Ok(Binding {
        id,
        rule: rule.parse().map_err(|_| wrong("an unknown rule"))?,
        networks: networks.filter(|text| !text.trim().is_empty()).map(network).collect::<Result<_, _>>()?,
        banned,
        confirmed,
        version,
    })
}

/// The id in a row.
pub fn key_id(bytes: &[u8]) -> Result<KeyId, StoreError> {
    bytes.try_into().map(KeyId).map_err(|_| StoreError(format!("a binding in the database has a key id of {} bytes", bytes.len())))
}

/// The first and the last id that begin with `prefix`.
pub fn range(prefix: &[u8]) -> ([u8; 32], [u8; 32]) {
    let (mut low, mut high) = ([0; 32], [0xff; 32]);
    for (index, byte) in prefix.iter().enumerate().take(32) {
        (low[index], high[index]) = (*byte, *byte);
    }
    (low, high)
}
