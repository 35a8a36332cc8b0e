//! The audit log: which operator changed what, and when. Contains only the types; `postgres` and
//! `sqlite` write and read the table.

use std::time::SystemTime;

use keylatch_filters::contract::KeyId;
use serde::Serialize;
use serde_json::Value;

use super::record::Record;
use super::row::Row;

/// The operator who makes a change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Actor {
    /// The account's name, or `command:NAME` for a user of this machine.
    pub who: String,
    /// The host name or client address.
    pub origin: String,
}

/// One audit entry.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct AuditEntry {
    /// The entry's number. It grows with time.
    pub id: i64,
    /// The time of the change, as RFC 3339.
    #[serde(serialize_with = "rfc3339")]
    pub at: SystemTime,
    /// The operator; see [`Actor`].
    pub actor: String,
    /// The operator's host name or client address.
    pub origin: String,
    /// The action, such as `binding.made`, `binding.changed` or `binding.removed`.
    pub action: String,
    /// The changed object. For a binding, the whole key id.
    pub target: String,
    /// The state before the change.
    pub before: Option<Value>,
    /// The state after the change.
    pub after: Option<Value>,
}

/// A query of the audit log. Entries are returned the latest first.
#[derive(Clone, Debug, Default)]
pub struct AuditQuery {
    /// Only entries before this number.
    pub before: Option<i64>,
    /// Only entries of this target.
    pub target: Option<String>,
    /// Only entries of this operator.
    pub actor: Option<String>,
    /// Only this action, or actions that begin with it and a dot.
    pub action: Option<String>,
    /// Without entries about accounts, sessions, tokens and providers.
    pub without_accounts: bool,
    /// The maximum number of entries.
    pub limit: u32,
}

fn rfc3339<S: serde::Serializer>(at: &SystemTime, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&humantime::format_rfc3339_seconds(*at))
}

/// A new audit entry, before it has a number and a time.
pub struct AuditLine {
    /// The action.
    pub action: &'static str,
    /// The changed object. For a binding, the whole key id.
    pub target: String,
    /// The state before the change, as JSON.
    pub before: Option<String>,
    /// The state after the change, as JSON.
    pub after: Option<String>,
}

impl AuditLine {
    /// The entry for a change of a binding.
    pub fn binding_changed(id: KeyId, before: Option<&Record>, after: Option<&Record>) -> Self {
        let json = |record: Option<&Record>| serde_json::to_string(&Row::from(record?)).ok();
        let action = match (before, after) {
            (None, _) => "binding.made",
            (Some(_), Some(_)) => "binding.changed",
            (Some(_), None) => "binding.removed",
        };
        Self { action, target: id.hex(), before: json(before), after: json(after) }
    }
}
