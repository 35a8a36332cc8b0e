//! The text form of a binding, for import and export files, command output and the audit log.
//! Validation belongs to the commands that read it.

use serde::{Deserialize, Serialize};

use super::record::Record;

/// A binding as text. In an imported file, an absent field is left as it is.
#[derive(Clone, Debug, Serialize, Deserialize, Default)]
#[serde(default, deny_unknown_fields)]
#[expect(missing_docs, reason = "the fields are those of Record")]
pub struct Row {
    pub key_id: String,
    /// Import only: the key itself, from the table of another gateway.
    #[serde(skip_serializing)]
    pub key: String,
    pub hint: String,
    pub rule: String,
    pub networks: Vec<String>,
    pub networks_max: Option<u8>,
    pub window: Option<String>,
    pub banned: Option<bool>,
    pub confirmed: Option<bool>,
    pub made_by: String,
    pub note: Option<String>,
    pub labels: Option<Vec<String>>,
    pub created: String,
    pub last_used: String,
}

impl From<&Record> for Row {
    fn from(record: &Record) -> Self {
        let binding = &record.binding;
        Row {
            key_id: binding.id.hex(),
            key: String::new(),
            hint: record.hint.clone(),
            rule: binding.rule.as_str().into(),
            networks: binding.networks.iter().map(ToString::to_string).collect(),
            networks_max: binding.roaming.map(|roaming| roaming.networks_max),
            window: binding.roaming.map(|roaming| humantime::format_duration(roaming.window).to_string()),
            banned: Some(binding.banned),
            confirmed: Some(binding.confirmed),
            made_by: record.made_by.clone(),
            note: Some(record.note.clone()),
            labels: Some(binding.labels.clone()),
            created: humantime::format_rfc3339_seconds(record.created_at).to_string(),
            last_used: humantime::format_rfc3339_seconds(record.last_used_at).to_string(),
        }
    }
}
