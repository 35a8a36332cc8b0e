//! A binding as an operator sees it, and what he may change.

use std::net::IpAddr;
use std::time::{Duration, SystemTime};

use ipnet::IpNet;
use keylatch_filters::contract::{Binding, KeyId, Roaming, Rule, StoreError};
use serde::{Deserialize, Serialize};

/// A binding with everything the store knows of it.
#[derive(Clone, Debug, PartialEq)]
pub struct Record {
    /// What requests are judged by.
    pub binding: Binding,
    /// What people recognise the key by.
    pub hint: String,
    /// `first_use`, or whoever made it or set its rule by hand.
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
    /// The rule and what goes with it.
    pub rule: Option<Terms>,
    /// Whether the key is refused from everywhere.
    pub banned: Option<bool>,
    /// The note.
    pub note: Option<String>,
    /// All labels.
    pub labels: Option<Vec<String>>,
    /// Only if it is in this version.
    pub expects: Option<i64>,
    /// Make the binding if it is not there; if it is there, it is the maker's from now on, and no longer what a first use
    /// made. Needs a rule.
    pub make: Option<Make>,
}

/// What came of a change.
#[derive(Clone, Debug, PartialEq)]
pub enum Changed<T> {
    /// It was made.
    Done(T),
    /// There is nothing to change.
    Missing,
    /// Somebody else has changed it since the version that was expected: it is this one now.
    Newer(i64),
}

impl<T> Changed<T> {
    /// What it is now, if the change was made.
    pub fn done(self) -> Option<T> {
        match self {
            Changed::Done(done) => Some(done),
            Changed::Missing | Changed::Newer(_) => None,
        }
    }
}

/// How a binding is made by hand.
#[derive(Clone, Debug, PartialEq)]
pub struct Make {
    /// What people recognise the key by.
    pub hint: String,
    /// Who makes it.
    pub made_by: String,
    /// When it was made, where that is known to be long ago. It counts as used when it is written, all the same: whoever
    /// brings back what he saved does not want it archived at once.
    pub created_at: SystemTime,
}

impl Make {
    /// Now.
    pub fn now(hint: String, made_by: String) -> Self {
        Self { hint, made_by, created_at: SystemTime::now() }
    }
}

impl Change {
    /// Whose the binding is afterwards, where that changes.
    pub fn made_by(&self) -> Option<&str> {
        self.rule.as_ref()?;
        self.make.as_ref().map(|make| make.made_by.as_str())
    }
}

/// A rule with what goes with it.
#[derive(Clone, Debug, PartialEq)]
pub struct Terms {
    /// How the rest is meant.
    pub rule: Rule,
    /// The networks.
    pub networks: Vec<IpNet>,
    /// With the rule `roaming`, and only then.
    pub roaming: Option<Roaming>,
}

/// Which bindings, and in which order.
#[derive(Clone, Debug, Default)]
pub struct Query {
    /// Whose id begins with these digits, each 0 to 15.
    pub prefix: Vec<u8>,
    /// Whose hint ends so.
    pub hint: Option<String>,
    /// Whose networks hold this one, or stand within it. Those that admit everybody are not among them.
    pub network: Option<IpNet>,
    /// With this label.
    pub label: Option<String>,
    /// Banned or not.
    pub banned: Option<bool>,
    /// With this rule.
    pub rule: Option<Rule>,
    /// Made by him, or by `first_use`.
    pub made_by: Option<String>,
    /// The order.
    pub sort: Sort,
    /// The other way round.
    pub descending: bool,
    /// Those behind this one.
    pub after: Option<Mark>,
    /// At most so many.
    pub limit: u32,
}

impl Query {
    /// Whether something is wanted that no index knows: then only [`super::intercepts::EXAMINED_MAX`] rows are looked at.
    pub(super) fn searches(&self) -> bool {
        self.rule.is_some() || self.made_by.is_some() || self.banned == Some(false)
    }
}

/// Orders of bindings; ids decide where it leaves a choice.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Sort {
    /// By key id.
    #[default]
    Key,
    /// By last use.
    Used,
    /// By the time they were made.
    Created,
}

/// Where a binding stands in an order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mark {
    /// The time of the order, as the store counts it; 0 in that of ids.
    pub at: i64,
    /// The binding.
    #[serde(with = "super::intercepts::hex_id")]
    pub id: KeyId,
}

/// How many are counted at most.
pub const COUNTED_MAX: i64 = 10_000;

/// A word to find bindings by: 1 to 64 letters, digits and `-_.:/@`.
pub fn label(word: &str) -> Result<String, String> {
    let fine = (1..=64).contains(&word.len()) && word.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.:/@".contains(&byte));
    if looks_like_key(word) {
        return Err("a label must not look like an API key: it is shown in lists and addresses".to_owned());
    }
    if fine { Ok(word.to_owned()) } else { Err(format!("`{word}` is not a label; use up to 64 letters, digits and `-_.:/@`")) }
}

/// Whether a word may be a key: it has a prefix of keys and enough behind it, or a long part of letters and digits mixed.
fn looks_like_key(word: &str) -> bool {
    const PREFIXES: [&str; 7] = ["sk-", "sk_", "sess-", "AIza", "gsk_", "xai-", "eyJ"];
    const BEHIND_MIN: usize = 12;
    const PART_MIN: usize = 20;
    let prefixed = PREFIXES.iter().any(|prefix| word.strip_prefix(prefix).is_some_and(|rest| rest.len() >= BEHIND_MIN));
    let mixed = |part: &str| part.bytes().any(|byte| byte.is_ascii_digit()) && part.bytes().any(|byte| byte.is_ascii_alphabetic());
    prefixed || word.split(|c: char| !c.is_ascii_alphanumeric()).any(|part| part.len() >= PART_MIN && mixed(part))
}

/// Labels of one binding, at most 32.
pub fn labels(words: &[String]) -> Result<Vec<String>, String> {
    if words.len() > 32 {
        return Err(format!("{} labels are too many; a binding has at most 32", words.len()));
    }
    words.iter().map(|word| label(word)).collect()
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
    /// Lines of the audit go after this.
    pub audit: Duration,
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

/// The word in `made_by` for bindings that a first use has made.
pub(super) const FIRST_USE: &str = "first_use";

/// What a row says, not checked yet.
pub(super) struct Raw {
    pub(super) id: Vec<u8>,
    pub(super) rule: String,
    pub(super) networks: Vec<String>,
    pub(super) banned: bool,
    pub(super) confirmed: bool,
    pub(super) version: i64,
    pub(super) networks_max: Option<i64>,
    pub(super) window_s: Option<i64>,
    pub(super) seen_ms: Vec<i64>,
    pub(super) by_first_use: bool,
}

impl Raw {
    /// A row that makes no sense is an error, never a binding that admits somebody.
    pub(super) fn checked(self) -> Result<Binding, StoreError> {
        let id = key_id(&self.id)?;
        let wrong = |what: &str| StoreError::Useless(format!("the binding {id} has {what} in the database"));
        let rule = self.rule.parse().map_err(|_| wrong("an unknown rule"))?;
        let networks = parsed_networks(id, &self.networks)?;
        let number = |value: Option<i64>| value.and_then(|value| u64::try_from(value).ok()).filter(|value| *value > 0);
        let roaming = match (rule, number(self.networks_max), number(self.window_s)) {
            (Rule::Roaming, Some(most), Some(window_s)) => {
                Some(Roaming { networks_max: u8::try_from(most).unwrap_or(u8::MAX), window: Duration::from_secs(window_s) })
            }
            (Rule::Roaming, _, _) => return Err(wrong("the rule roaming without its terms")),
            _ => None,
        };
        // A network without a time, set by hand, counts as never used.
        let seen =
            roaming.map(|_| networks.iter().enumerate().map(|(index, _)| time(self.seen_ms.get(index).copied().unwrap_or(0))).collect());
        let (banned, confirmed, version, by_first_use) = (self.banned, self.confirmed, self.version, self.by_first_use);
        Ok(Binding { id, rule, networks, roaming, seen: seen.unwrap_or_default(), banned, by_first_use, confirmed, version })
    }
}

/// Networks as a row of this key says them.
pub(super) fn parsed_networks(id: KeyId, texts: &[String]) -> Result<Vec<IpNet>, StoreError> {
    let network = |text: &str| text.parse::<IpNet>().or_else(|_| text.parse::<IpAddr>().map(IpNet::from));
    let texts = texts.iter().map(|text| text.trim()).filter(|text| !text.is_empty());
    let malformed = |_| StoreError::Useless(format!("the binding {id} has a malformed network in the database"));
    texts.map(|text| network(text).map_err(malformed)).collect()
}

/// Roaming's columns: most networks, window in seconds.
pub fn roaming_columns(roaming: Option<Roaming>) -> (Option<i64>, Option<i64>) {
    let window_s = |roaming: Roaming| i64::try_from(roaming.window.as_secs()).unwrap_or(i64::MAX);
    (roaming.map(|roaming| roaming.networks_max.into()), roaming.map(window_s))
}

/// When each network was used, in milliseconds since 1970.
pub fn seen_ms(binding: &Binding) -> Vec<i64> {
    binding.seen.iter().map(|at| millis(*at)).collect()
}

/// The id in a row.
pub(super) fn key_id(bytes: &[u8]) -> Result<KeyId, StoreError> {
    bytes.try_into().map(KeyId).map_err(|_| StoreError::Away(format!("a binding in the database has a key id of {} bytes", bytes.len())))
}

/// The first and the last id that begin with the digits `prefix`, each 0 to 15.
pub fn range(prefix: &[u8]) -> ([u8; 32], [u8; 32]) {
    let (mut low, mut high) = ([0; 32], [0xff; 32]);
    for (index, digit) in prefix.iter().enumerate().take(64) {
        let (shift, mask) = if index % 2 == 0 { (4, 0x0f) } else { (0, 0xf0) };
        low[index / 2] = (low[index / 2] & mask) | (digit << shift);
        high[index / 2] = (high[index / 2] & mask) | (digit << shift);
    }
    (low, high)
}

/// All networks that hold the whole of `net`, as text.
pub fn holders(net: IpNet) -> Vec<String> {
    let holder = |length| IpNet::new(net.addr(), length).ok().map(|holder| holder.trunc().to_string());
    (0..=net.prefix_len()).filter_map(holder).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_not_keys() {
        for fine in ["team-a", "ann@example.com", "sk-team", "proj/2026-11/internal", "customer-4711-production-europe"] {
            assert!(label(fine).is_ok(), "{fine}");
        }
        for key in [
            "sk-abcdefghijklmnop",
            "sk-proj-Zm9vYmFy-12345678",
            "AIzaSyA1234567890abc",
            "0123456789abcdef0123456789abcdef",
            "gsk_abcdefghijkl",
        ] {
            assert!(label(key).is_err_and(|why| !why.contains(key)), "{key}");
        }
    }

    #[test]
    fn those_that_hold_it() {
        let holders = holders("192.0.2.128/25".parse().unwrap());
        assert_eq!((holders.len(), holders[0].as_str(), holders[24].as_str()), (26, "0.0.0.0/0", "192.0.2.0/24"));
        assert_eq!(holders[25], "192.0.2.128/25");
    }
}
