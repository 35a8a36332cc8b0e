//! Settings that operators have set apart from the file, as stores keep them. What they mean is `crate::live`'s to say.

use std::time::SystemTime;

use serde_json::Value;

use super::audit::Line;

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

impl Line {
    /// Of a setting; nothing where nothing has changed.
    pub fn of_setting(name: &str, before: Option<&Value>, after: Option<&Value>) -> Option<Self> {
        let action = match (before, after) {
            (None, None) => return None,
            (Some(before), Some(after)) if before == after => return None,
            (_, Some(_)) => "setting.set",
            (Some(_), None) => "setting.reverted",
        };
        let json = |value: Option<&Value>| value.map(Value::to_string);
        Some(Self { action, target: name.to_owned(), before: json(before), after: json(after) })
    }
}
