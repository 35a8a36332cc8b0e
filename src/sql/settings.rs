//! Settings that operators have set apart from the file, as stores keep them. What they mean is `crate::settings`'s to say.

use std::time::SystemTime;

use async_trait::async_trait;
use keylatch_filters::contract::StoreError;
use serde_json::Value;

use super::audit::{Actor, Line};

/// One of them.
#[derive(Clone, Debug, PartialEq)]
pub struct Stored {
    /// Its name.
    pub name: String,
    /// What it is set to.
    pub value: Value,
    /// Who has set it, as in the audit.
    pub changed_by: String,
    /// When.
    pub changed_at: SystemTime,
}

/// All of them.
#[async_trait]
pub trait LiveSettings: Send + Sync {
    /// Those that are set, by name, and the version of all of them: it grows with each change.
    async fn settings(&self) -> Result<(Vec<Stored>, i64), StoreError>;
    /// Sets some, or (`None`) gives them back to the file, all or none, each with its line in the audit. False: they are not in
    /// the version that is expected.
    async fn set_settings(&self, changes: &[(String, Option<Value>)], expects: Option<i64>, actor: &Actor) -> Result<bool, StoreError>;
}

/// What may be read of a value that is kept encrypted.
fn readable(value: &Value) -> &Value {
    value.get(SHOWN).unwrap_or(value)
}

/// The field of an encrypted value that may be read.
pub const SHOWN: &str = "shown";

impl Line {
    /// Of a setting; nothing where nothing has changed.
    pub fn of_setting(name: &str, before: Option<&Value>, after: Option<&Value>) -> Option<Self> {
        let action = match (before, after) {
            (None, None) => return None,
            (Some(before), Some(after)) if before == after => return None,
            (_, Some(_)) => "setting.set",
            (Some(_), None) => "setting.reverted",
        };
        let json = |value: Option<&Value>| value.map(readable).map(Value::to_string);
        Some(Self { action, target: name.to_owned(), before: json(before), after: json(after) })
    }
}
