//! The values of live settings: types, validation, and encryption of secrets. Knows no setting's
//! name.

use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Serialize;
use serde_json::{Value, json};
use utoipa::ToSchema;

use crate::sql::settings::SHOWN;
use crate::util::aead::Sealer;

const SEALED: &str = "sealed";
const HIDDEN: &str = "••••••••";
const SECRET_BYTES_MAX: usize = 2048;

/// The type of a setting, with its bounds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// `true` or `false`.
    Bool,
    /// A whole number.
    Count {
        /// The minimum.
        least: u64,
        /// The maximum.
        most: u64,
    },
    /// One of these words.
    Choice {
        /// The words.
        of: &'static [&'static str],
    },
    /// Text that is stored encrypted and shown only in part.
    Secret {
        /// Whether it is a URL.
        url: bool,
    },
    /// A duration as in the file: `15s`, `90days`.
    Duration {
        /// The minimum, in seconds.
        least_s: u64,
        /// The maximum, in seconds.
        most_s: u64,
    },
}

/// A stored duration.
pub fn time(value: &Value) -> Option<Duration> {
    humantime::parse_duration(value.as_str()?).ok()
}

impl Kind {
    /// Parses and checks what an operator typed.
    pub fn read(self, text: &str) -> Result<Value, String> {
        let value = match self {
            Kind::Bool => match text {
                "true" | "on" => Value::Bool(true),
                "false" | "off" => Value::Bool(false),
                _ => return Err(format!("`{text}` is neither `true` nor `false`")),
            },
            Kind::Count { .. } => text.parse::<u64>().map_err(|_| format!("`{text}` is not a whole number"))?.into(),
            Kind::Choice { .. } | Kind::Duration { .. } | Kind::Secret { .. } => text.into(),
        };
        self.check(&value).map(|()| value)
    }

    /// Checks a value.
    pub fn check(self, value: &Value) -> Result<(), String> {
        let whole = |seconds: u64| humantime::format_duration(Duration::from_secs(seconds)).to_string();
        match self {
            Kind::Bool => value.as_bool().map(|_| ()).ok_or_else(|| format!("{value} is neither true nor false")),
            Kind::Count { least, most } => match value.as_u64() {
                Some(count) if (least..=most).contains(&count) => Ok(()),
                _ => Err(format!("{value} is not a whole number between {least} and {most}")),
            },
            Kind::Choice { of } => match value.as_str() {
                Some(word) if of.contains(&word) => Ok(()),
                _ => Err(format!("{value} is not one of {}", of.join(", "))),
            },
            Kind::Secret { url } => match value.as_str() {
                Some(text) if text.is_empty() || text.len() > SECRET_BYTES_MAX || text.chars().any(char::is_control) => {
                    Err(format!("must have 1 to {SECRET_BYTES_MAX} bytes, without control characters"))
                }
                // Whether internal targets are allowed depends on another setting.
                Some(text) if url => crate::util::outbound_url::target(text, true).map(|_| ()),
                Some(_) => Ok(()),
                None => Err("must be text".into()),
            },
            Kind::Duration { least_s, most_s } => match time(value) {
                Some(duration) if (least_s..=most_s).contains(&duration.as_secs()) => Ok(()),
                _ => Err(format!("{value} is not a duration between {} and {}", whole(least_s), whole(most_s))),
            },
        }
    }
}

impl Kind {
    /// The stored form of a value.
    pub fn stored(self, sealer: &Sealer, name: &str, value: &Value) -> Result<Value, String> {
        let (Kind::Secret { url }, Some(text)) = (self, value.as_str()) else { return Ok(value.clone()) };
        let host = || {
            crate::util::outbound_url::target(text, true)
                .ok()
                .map(|target| format!("{}://{}/…", target.scheme(), target.host_str().unwrap_or("")))
        };
        let shown = if url { host().unwrap_or_default() } else { HIDDEN.to_owned() };
        Ok(json!({ SHOWN: shown, SEALED: STANDARD.encode(sealer.seal(&purpose(name), text.as_bytes())?) }))
    }

    /// Checks a stored value: rows may have been written by another version, or by hand.
    pub fn check_stored(self, value: &Value) -> Result<(), String> {
        match self {
            Kind::Secret { .. } if value.get(SEALED).is_some_and(Value::is_string) && value.get(SHOWN).is_some_and(Value::is_string) => {
                Ok(())
            }
            Kind::Secret { .. } => Err("is not encrypted; set it again".into()),
            _ => self.check(value),
        }
    }

    /// The form of a stored value that operators see.
    pub fn shown(self, value: &Value) -> Value {
        match self {
            Kind::Secret { .. } => value.get(SHOWN).cloned().unwrap_or_default(),
            _ => value.clone(),
        }
    }
}

fn purpose(name: &str) -> String {
    format!("setting {name}")
}

/// Decrypts a stored secret; `None`: it was encrypted under another key.
pub fn open(sealer: &Sealer, name: &str, value: &Value) -> Option<String> {
    let sealed = STANDARD.decode(value.get(SEALED)?.as_str()?).ok()?;
    String::from_utf8(sealer.open(&purpose(name), &sealed)?).ok()
}

/// The origin of a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Origin {
    /// The default.
    Default,
    /// The configuration file.
    File,
    /// A live setting.
    Live,
}

/// A setting as operators see it.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct Shown {
    /// The name.
    pub name: &'static str,
    /// The value in effect.
    pub value: Value,
    /// The origin of the value.
    pub origin: Origin,
    /// The value from the file, or its default.
    pub file: Value,
    /// The operator who set it, for a live setting.
    pub changed_by: Option<String>,
    /// The time of the change, as RFC 3339.
    pub changed_at: Option<String>,
    /// The description.
    pub means: &'static str,
    /// The type.
    pub kind: Kind,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_kept_encrypted_and_only_its_host_is_shown() {
        let (kind, sealer) = (Kind::Secret { url: true }, Sealer::new(b"secret").unwrap());
        let value = kind.read("https://hooks.example.com/services/hunter2?x=hunter2").unwrap();
        let stored = kind.stored(&sealer, "a", &value).unwrap();
        assert!(!stored.to_string().contains("hunter2") && kind.check_stored(&stored).is_ok() && kind.check_stored(&value).is_err());
        assert_eq!(kind.shown(&stored), "https://hooks.example.com/…");
        assert_eq!(open(&sealer, "a", &stored).as_deref(), value.as_str());
        assert_eq!(open(&sealer, "b", &stored), None, "of another setting");
        assert_eq!(open(&Sealer::new(b"other").unwrap(), "a", &stored), None);
        for malformed in ["", "hooks.example.com", "file:/etc/passwd", "https://"] {
            assert!(kind.read(malformed).is_err(), "{malformed}");
        }
        let plain = Kind::Secret { url: false };
        assert_eq!(plain.shown(&plain.stored(&sealer, "a", &json!("hunter2")).unwrap()), HIDDEN);
    }

    #[test]
    fn a_choice_is_one_of_its_words() {
        let kind = Kind::Choice { of: &["open", "closed"] };
        assert_eq!(kind.read("open"), Ok(json!("open")));
        assert!(kind.read("ajar").unwrap_err().contains("not one of open, closed") && kind.check(&json!(true)).is_err());
    }

    #[test]
    fn bounds_of_values() {
        let (count, time) = (Kind::Count { least: 1, most: 10 }, Kind::Duration { least_s: 60, most_s: 3600 });
        assert_eq!(Kind::Bool.read("on"), Ok(json!(true)));
        assert_eq!(count.read("10"), Ok(json!(10)));
        assert_eq!(time.read("5m"), Ok(json!("5m")));
        for (kind, text) in
            [(Kind::Bool, "1"), (count, "0"), (count, "11"), (count, "-1"), (count, "1.5"), (time, "59s"), (time, "2h"), (time, "x")]
        {
            assert!(kind.read(text).is_err(), "{text}");
        }
        assert!(Kind::Bool.check(&json!("true")).is_err() && count.check(&json!("3")).is_err() && time.check(&json!(60)).is_err());
    }
}
