//! A binding as operators see it: the record, the changes they can make, and queries. Contains no
//! SQL; `postgres` and `sqlite` execute them.

use std::net::IpAddr;
use std::time::{Duration, SystemTime};

use crate::config::model::{Retention, Usage};
use crate::util::time::{millis, time};
use ipnet::IpNet;
use keylatch_filters::contract::{Binding, KeyId, Roaming, Rule, StoreError, is_label};
use serde::{Deserialize, Serialize};

/// A binding with its metadata.
#[derive(Clone, Debug, PartialEq)]
pub struct Record {
    /// The part that requests are judged by.
    pub binding: Binding,
    /// The key's hint.
    pub hint: String,
    /// `first_use`, or the operator who created the binding or set its rule.
    pub made_by: String,
    /// The operator's note.
    pub note: String,
    /// The creation time.
    pub created_at: SystemTime,
    /// The last use that has been written.
    pub last_used_at: SystemTime,
}

/// A change of a binding; `None` leaves a field as it is.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Change {
    /// The rule with its parameters.
    pub rule: Option<BindingTerms>,
    /// Whether the key is refused from everywhere.
    pub banned: Option<bool>,
    /// The note.
    pub note: Option<String>,
    /// The complete list of labels.
    pub labels: Option<Vec<String>>,
    /// The expected version. In another version nothing is changed.
    pub expects: Option<i64>,
    /// Creates the binding if it does not exist. An existing binding gets the creator of `make` in
    /// place of `first_use`. Needs a rule.
    pub make: Option<Creation>,
}

/// The outcome of a change.
#[derive(Clone, Debug, PartialEq)]
pub enum Changed<T> {
    /// The change was made.
    Done(T),
    /// The binding does not exist.
    Missing,
    /// The binding has this newer version: another operator changed it.
    Newer(i64),
}

impl<T> Changed<T> {
    /// The result, if the change was made.
    pub fn done(self) -> Option<T> {
        match self {
            Changed::Done(done) => Some(done),
            Changed::Missing | Changed::Newer(_) => None,
        }
    }
}

/// The metadata of a new binding.
#[derive(Clone, Debug, PartialEq)]
pub struct Creation {
    /// The key's hint.
    pub hint: String,
    /// The operator who creates it.
    pub made_by: String,
    /// The creation time; earlier for an import. The time of the last use is always now: otherwise
    /// retention would archive an imported binding at once.
    pub created_at: SystemTime,
}

impl Creation {
    /// With the current time.
    pub fn now(hint: String, made_by: String) -> Self {
        Self { hint, made_by, created_at: SystemTime::now() }
    }
}

impl Change {
    /// The new creator, if the change sets one.
    pub fn made_by(&self) -> Option<&str> {
        self.rule.as_ref()?;
        self.make.as_ref().map(|make| make.made_by.as_str())
    }
}

/// A rule with its parameters.
#[derive(Clone, Debug, PartialEq)]
pub struct BindingTerms {
    /// The rule.
    pub rule: Rule,
    /// The networks.
    pub networks: Vec<IpNet>,
    /// The limits of the rule `roaming`, and only of that rule.
    pub roaming: Option<Roaming>,
}

/// A query of bindings.
#[derive(Clone, Debug, Default)]
pub struct Query {
    /// Only key ids with these first hex digits, each 0 to 15.
    pub prefix: Vec<u8>,
    /// Only these key ids, unless empty.
    pub ids: Vec<KeyId>,
    /// Only hints with this ending.
    pub hint: Option<String>,
    /// Only bindings with a network that contains this one or is within it. Bindings of the rule
    /// `all` are not returned.
    pub network: Option<IpNet>,
    /// Only bindings with this label.
    pub label: Option<String>,
    /// Only banned bindings, or only others.
    pub banned: Option<bool>,
    /// Only this rule.
    pub rule: Option<Rule>,
    /// Only bindings of this operator, or of `first_use`.
    pub made_by: Option<String>,
    /// The order.
    pub sort: Sort,
    /// Whether the order is reversed.
    pub descending: bool,
    /// Only bindings after this cursor.
    pub after: Option<BindingCursor>,
    /// The maximum number of bindings.
    pub limit: u32,
}

impl Query {
    /// Whether the query has a filter without an index: then [`super::intercepts::EXAMINED_MAX`]
    /// rows are examined at most.
    pub(crate) fn searches(&self) -> bool {
        self.rule.is_some() || self.made_by.is_some() || self.banned == Some(false)
    }
}

/// The order of bindings. Equal times are ordered by key id.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Sort {
    /// By key id.
    #[default]
    Key,
    /// By last use.
    Used,
    /// By creation time.
    Created,
}

/// A position in a list of bindings.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BindingCursor {
    /// The time that the list is sorted by, as the store counts it; 0 in the order of key ids.
    pub at: i64,
    /// The key id.
    #[serde(with = "super::intercepts::hex_id")]
    pub id: KeyId,
}

/// The maximum number of rows that are counted.
pub const COUNTED_MAX: i64 = 10_000;

/// Checks a label: 1 to 64 letters, digits and `-_.:/@`.
pub fn label(word: &str) -> Result<String, String> {
    if looks_like_key(word) {
        return Err("a label must not look like an API key: it is shown in lists and addresses".to_owned());
    }
    if is_label(word) { Ok(word.to_owned()) } else { Err(format!("`{word}` is not a label; use up to 64 letters, digits and `-_.:/@`")) }
}

/// Whether a word may be an API key: a known prefix with enough characters after it, or a long part
/// that mixes letters and digits.
fn looks_like_key(word: &str) -> bool {
    const PREFIXES: [&str; 7] = ["sk-", "sk_", "sess-", "AIza", "gsk_", "xai-", "eyJ"];
    const BEHIND_MIN: usize = 12;
    const PART_MIN: usize = 20;
    let prefixed = PREFIXES.iter().any(|prefix| word.strip_prefix(prefix).is_some_and(|rest| rest.len() >= BEHIND_MIN));
    let mixed = |part: &str| part.bytes().any(|byte| byte.is_ascii_digit()) && part.bytes().any(|byte| byte.is_ascii_alphabetic());
    prefixed || word.split(|c: char| !c.is_ascii_alphanumeric()).any(|part| part.len() >= PART_MIN && mixed(part))
}

/// Checks the labels of one binding, at most 32.
pub fn labels(words: &[String]) -> Result<Vec<String>, String> {
    if words.len() > 32 {
        return Err(format!("{} labels are too many; a binding has at most 32", words.len()));
    }
    words.iter().map(|word| label(word)).collect()
}

/// The ages after which rows are archived or deleted.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RetentionPolicy {
    /// The shortest period between two runs, over all replicas.
    pub every: Duration,
    /// Bindings unused for this long are archived.
    pub archive_after: Duration,
    /// Unconfirmed bindings are deleted this long after their creation.
    pub unconfirmed: Duration,
    /// Intercepts are deleted after this.
    pub intercepts: Duration,
    /// Bindings are deleted this long after they were archived.
    pub archive: Duration,
    /// Audit entries are deleted after this.
    pub audit: Duration,
    /// Sums of usage and logged requests are deleted after these.
    pub usage: UsageRetention,
}

/// The ages after which usage is deleted.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct UsageRetention {
    /// Sums by minute.
    pub minute: Duration,
    /// Sums by hour.
    pub hour: Duration,
    /// Sums by day.
    pub day: Duration,
    /// Logged requests.
    pub requests: Duration,
}

impl From<&Usage> for UsageRetention {
    fn from(usage: &Usage) -> Self {
        // Without the log, requests that were logged before still go.
        let requests = usage.requests.clone().unwrap_or_default().retention.0;
        Self { minute: usage.retention.minute.0, hour: usage.retention.hour.0, day: usage.retention.day.0, requests }
    }
}

impl RetentionPolicy {
    /// The ages of these sections.
    pub fn new(retention: &Retention, usage: &Usage) -> Self {
        Self {
            every: retention.every.0,
            archive_after: retention.archive_after.0,
            unconfirmed: retention.unconfirmed.0,
            intercepts: retention.intercepts.0,
            archive: retention.archive.0,
            audit: retention.audit.0,
            usage: usage.into(),
        }
    }
}

/// The numbers of archived and deleted rows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RetentionResult {
    /// Bindings archived.
    pub archived: u64,
    /// Unconfirmed bindings deleted.
    pub unconfirmed: u64,
    /// Intercepts, archived bindings, alerts, deliveries, audit entries and usage deleted.
    pub trimmed: u64,
}

/// A new version: microseconds since 1970, or the previous version plus one.
pub fn version_now(before: i64) -> i64 {
    let micros = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_micros());
    i64::try_from(micros).unwrap_or(i64::MAX).max(before.saturating_add(1))
}

/// The value of `made_by` for bindings of a first use.
pub(super) const FIRST_USE: &str = "first_use";

/// The columns of a binding, not validated yet.
pub(crate) struct BindingRow {
    pub(crate) id: Vec<u8>,
    pub(crate) rule: String,
    pub(crate) networks: Vec<String>,
    pub(crate) banned: bool,
    pub(crate) confirmed: bool,
    pub(crate) version: i64,
    pub(crate) networks_max: Option<i64>,
    pub(crate) window_s: Option<i64>,
    pub(crate) seen_ms: Vec<i64>,
    pub(crate) by_first_use: bool,
    pub(crate) labels: Vec<String>,
}

impl BindingRow {
    /// Validates the row. A malformed row is an error, never a binding that admits a client.
    pub(crate) fn checked(self) -> Result<Binding, StoreError> {
        let id = key_id(&self.id)?;
        let wrong = |what: &str| StoreError::Useless(format!("the binding {id} has {what} in the database"));
        let rule = self.rule.parse().map_err(|_| wrong("an unknown rule"))?;
        let networks = parsed_networks(id, &self.networks)?;
        let number = |value: Option<i64>| value.and_then(|value| u64::try_from(value).ok()).filter(|value| *value > 0);
        let roaming = match (rule, number(self.networks_max), number(self.window_s)) {
            (Rule::Roaming, Some(most), Some(window_s)) => {
                Some(Roaming { networks_max: u8::try_from(most).unwrap_or(u8::MAX), window: Duration::from_secs(window_s) })
            }
            (Rule::Roaming, _, _) => return Err(wrong("the rule roaming without networks_max or window_s")),
            _ => None,
        };
        // A network without a time, set by hand, counts as never used.
        let seen =
            roaming.map(|_| networks.iter().enumerate().map(|(index, _)| time(self.seen_ms.get(index).copied().unwrap_or(0))).collect());
        let (banned, confirmed, version, by_first_use) = (self.banned, self.confirmed, self.version, self.by_first_use);
        let (seen, labels) = (seen.unwrap_or_default(), self.labels);
        Ok(Binding { id, rule, networks, roaming, seen, banned, labels, by_first_use, confirmed, version })
    }
}

/// Parses the networks of a row.
pub(crate) fn parsed_networks(id: KeyId, texts: &[String]) -> Result<Vec<IpNet>, StoreError> {
    let network = |text: &str| text.parse::<IpNet>().or_else(|_| text.parse::<IpAddr>().map(IpNet::from));
    let texts = texts.iter().map(|text| text.trim()).filter(|text| !text.is_empty());
    let malformed = |_| StoreError::Useless(format!("the binding {id} has a malformed network in the database"));
    texts.map(|text| network(text).map_err(malformed)).collect()
}

/// The columns `networks_max` and `window_s`.
pub fn roaming_columns(roaming: Option<Roaming>) -> (Option<i64>, Option<i64>) {
    let window_s = |roaming: Roaming| i64::try_from(roaming.window.as_secs()).unwrap_or(i64::MAX);
    (roaming.map(|roaming| roaming.networks_max.into()), roaming.map(window_s))
}

/// The last use of each network, in milliseconds since 1970.
pub fn seen_ms(binding: &Binding) -> Vec<i64> {
    binding.seen.iter().map(|at| millis(*at)).collect()
}

/// Parses the key id of a row.
pub(crate) fn key_id(bytes: &[u8]) -> Result<KeyId, StoreError> {
    bytes.try_into().map(KeyId).map_err(|_| StoreError::Away(format!("a binding in the database has a key id of {} bytes", bytes.len())))
}

/// The first and the last key id with these first hex digits, each 0 to 15.
pub fn range(prefix: &[u8]) -> ([u8; 32], [u8; 32]) {
    let (mut low, mut high) = ([0; 32], [0xff; 32]);
    for (index, digit) in prefix.iter().enumerate().take(64) {
        let (shift, mask) = if index % 2 == 0 { (4, 0x0f) } else { (0, 0xf0) };
        low[index / 2] = (low[index / 2] & mask) | (digit << shift);
        high[index / 2] = (high[index / 2] & mask) | (digit << shift);
    }
    (low, high)
}

/// All networks that contain `net`, as text.
pub fn holders(net: IpNet) -> Vec<String> {
    let holder = |length| IpNet::new(net.addr(), length).ok().map(|holder| holder.trunc().to_string());
    (0..=net.prefix_len()).filter_map(holder).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_that_look_like_keys_are_refused() {
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
    fn holders_are_all_containing_networks() {
        let holders = holders("192.0.2.128/25".parse().unwrap());
        assert_eq!((holders.len(), holders[0].as_str(), holders[24].as_str()), (26, "0.0.0.0/0", "192.0.2.0/24"));
        assert_eq!(holders[25], "192.0.2.128/25");
    }
}
