//! What operators have changed, and who they were.

use std::time::SystemTime;

use keylatch_filters::contract::KeyId;
use serde::Serialize;
use serde_json::Value;

use super::record::Record;
use super::row::Row;

/// Who changes something.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Actor {
    /// `command:NAME` for a user of this machine.
    pub who: String,
    /// The machine or the address it comes from.
    pub origin: String,
}

/// One change.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Entry {
    /// Grows with time.
    pub id: i64,
    /// When, as RFC 3339.
    #[serde(serialize_with = "rfc3339")]
    pub at: SystemTime,
    /// Who, as in [`Actor`].
    pub actor: String,
    /// From where.
    pub origin: String,
    /// `binding.made`, `binding.changed` or `binding.removed`.
    pub action: String,
    /// What was changed: the whole key id of a binding.
    pub target: String,
    /// How it was.
    pub before: Option<Value>,
    /// How it is since.
    pub after: Option<Value>,
}

/// Which changes, the latest first.
#[derive(Clone, Debug, Default)]
pub struct Asked {
    /// Those before this one.
    pub before: Option<i64>,
    /// Of this thing.
    pub target: Option<String>,
    /// By him.
    pub actor: Option<String>,
    /// Of this kind, or of those that begin with it and a dot.
    pub action: Option<String>,
    /// Without what is about who may sign in.
    pub without_accounts: bool,
    /// At most so many.
    pub limit: u32,
}

fn rfc3339<S: serde::Serializer>(at: &SystemTime, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&humantime::format_rfc3339_seconds(*at))
}

/// What is to be written of a change of a binding.
pub struct Line {
    /// The action.
    pub action: &'static str,
    /// The key id.
    pub target: String,
    /// As JSON.
    pub before: Option<String>,
    /// As JSON.
    pub after: Option<String>,
}

impl Line {
    /// Of a binding.
    pub fn of(id: KeyId, before: Option<&Record>, after: Option<&Record>) -> Self {
        let json = |record: Option<&Record>| serde_json::to_string(&Row::from(record?)).ok();
        let action = match (before, after) {
            (None, _) => "binding.made",
            (Some(_), Some(_)) => "binding.changed",
            (Some(_), None) => "binding.removed",
        };
        Self { action, target: id.hex(), before: json(before), after: json(after) }
    }
}
