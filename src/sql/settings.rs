//! The store contract for live settings. Knows no setting's meaning; `crate::settings` defines
//! them.

use std::time::SystemTime;

use async_trait::async_trait;
use keylatch_filters::contract::StoreError;
use serde_json::Value;

use super::audit::{Actor, AuditLine};

/// A stored setting.
#[derive(Clone, Debug, PartialEq)]
pub struct Stored {
    /// The setting's name.
    pub name: String,
    /// The value.
    pub value: Value,
    /// The operator who set it, as in the audit log.
    pub changed_by: String,
    /// The time of the change.
    pub changed_at: SystemTime,
}

/// The store of live settings.
#[async_trait]
pub trait SettingsStore: Send + Sync {
    /// Lists the stored settings by name, with the version of the set. The version grows with each
    /// change.
    async fn settings(&self) -> Result<(Vec<Stored>, i64), StoreError>;
    /// Sets settings, or removes them (`None`) so that the file applies; all or none, each with an
    /// audit entry. False: the set does not have the expected version.
    async fn set_settings(&self, changes: &[(String, Option<Value>)], expects: Option<i64>, actor: &Actor) -> Result<bool, StoreError>;
}

/// The readable part of an encrypted value.
fn readable(value: &Value) -> &Value {
    value.get(SHOWN).unwrap_or(value)
}

/// The field with the readable part of an encrypted value.
pub const SHOWN: &str = "shown";

impl AuditLine {
    /// The entry for a change of a setting; `None` if the value is the same.
    pub fn setting_changed(name: &str, before: Option<&Value>, after: Option<&Value>) -> Option<Self> {
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
