//! What a live setting may be, as operators write it and stores keep it.

use std::time::Duration;

use serde::Serialize;
use serde_json::Value;
use utoipa::ToSchema;

/// What a setting may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// `true` or `false`
    Bool,
    /// A whole number.
    Count {
        /// The least.
        least: u64,
        /// The most.
        most: u64,
    },
    /// One of these words.
    Choice {
        /// The words.
        of: &'static [&'static str],
    },
    /// A duration as the file writes it: `15s`, `90days`.
    Duration {
        /// The shortest, in seconds.
        least_s: u64,
        /// The longest, in seconds.
        most_s: u64,
    },
}

/// A duration as it is stored.
pub fn time(value: &Value) -> Option<Duration> {
    humantime::parse_duration(value.as_str()?).ok()
}

impl Kind {
    /// From what somebody has typed.
    pub fn read(self, text: &str) -> Result<Value, String> {
        let value = match self {
            Kind::Bool => match text {
                "true" | "on" => Value::Bool(true),
                "false" | "off" => Value::Bool(false),
                _ => return Err(format!("`{text}` is neither `true` nor `false`")),
            },
            Kind::Count { .. } => text.parse::<u64>().map_err(|_| format!("`{text}` is not a whole number"))?.into(),
            Kind::Choice { .. } | Kind::Duration { .. } => text.into(),
        };
        self.check(&value).map(|()| value)
    }

    /// Whether a value can be set.
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
                _ => Err(format!("{value} is none of {}", of.join(", "))),
            },
            Kind::Duration { least_s, most_s } => match time(value) {
                Some(duration) if (least_s..=most_s).contains(&duration.as_secs()) => Ok(()),
                _ => Err(format!("{value} is not a duration between {} and {}", whole(least_s), whole(most_s))),
            },
        }
    }
}

/// Where a value comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Origin {
    /// Nobody has said anything.
    Default,
    /// The configuration file.
    File,
    /// Somebody has set it while it runs.
    Live,
}

/// A setting as operators see it.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct Shown {
    /// Its name.
    pub name: &'static str,
    /// What is in force.
    pub value: Value,
    /// Where that comes from.
    pub origin: Origin,
    /// What the file, or its default, says.
    pub file: Value,
    /// Who has set it, if somebody has.
    pub changed_by: Option<String>,
    /// When, as RFC 3339.
    pub changed_at: Option<String>,
    /// What it means.
    pub means: &'static str,
    /// What it may be.
    pub kind: Kind,
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_choice_is_one_of_its_words() {
        let kind = Kind::Choice { of: &["open", "closed"] };
        assert_eq!(kind.read("open"), Ok(json!("open")));
        assert!(kind.read("ajar").unwrap_err().contains("none of open, closed") && kind.check(&json!(true)).is_err());
    }

    #[test]
    fn what_can_be_set() {
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
