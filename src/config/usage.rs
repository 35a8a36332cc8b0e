//! The `usage` section of [`super::model`]. Counts nothing; `crate::usage` does.

use keylatch_filters::contract::{HumanDuration, Invalid};
use schemars::JsonSchema;
use serde::Deserialize;

/// What requests used: tokens, other units and cost, summed by minute, hour and day. Takes effect
/// with the next reload.
#[derive(Clone, Debug, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Usage {
    /// How often sums are written, 1s to 1min. A crash loses at most this period. Default: 5s.
    pub flush_every: HumanDuration,
    /// The maximum number of distinct model names of one process and day. Further ones are summed
    /// under `other`. Default: 500.
    pub models_max: usize,
    /// The ages after which sums are deleted.
    pub retention: UsageRetention,
    /// A log of each request, without its content. Default: none.
    pub requests: Option<UsageRequests>,
}

impl Default for Usage {
    fn default() -> Self {
        Self { flush_every: HumanDuration::secs(5), models_max: 500, retention: UsageRetention::default(), requests: None }
    }
}

const HOUR_S: u64 = 3600;
const DAY_S: u64 = 24 * HOUR_S;
/// The longest retention of sums, in seconds.
const RETENTION_MAX_S: u64 = 3660 * DAY_S;

/// The ages after which sums are deleted.
#[derive(Clone, Debug, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct UsageRetention {
    /// Sums by minute. Default: 2 days.
    pub minute: HumanDuration,
    /// Sums by hour. Reports in time zones other than UTC need them. Default: 35 days.
    pub hour: HumanDuration,
    /// Sums by day (UTC). Default: 400 days.
    pub day: HumanDuration,
}

impl Default for UsageRetention {
    fn default() -> Self {
        let days = |days: u64| HumanDuration::secs(days * DAY_S);
        Self { minute: days(2), hour: days(35), day: days(400) }
    }
}

/// The log of each request.
#[derive(Clone, Debug, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct UsageRequests {
    /// Requests are deleted after this. Default: 7 days.
    pub retention: HumanDuration,
}

impl Default for UsageRequests {
    fn default() -> Self {
        Self { retention: HumanDuration::secs(7 * DAY_S) }
    }
}

impl Usage {
    /// Values out of bounds.
    pub fn mistakes(&self) -> Vec<Invalid> {
        let mut wrong = Vec::new();
        let mut check = |ok: bool, path: &[&str], says: &str| {
            if !ok {
                wrong.push(path.iter().rev().fold(Invalid::new(says), |invalid, key| invalid.at(*key)).at("usage"));
            }
        };
        check((1000..=60_000).contains(&self.flush_every.0.as_millis()), &["flush_every"], "must be between 1s and 1min");
        check((1..=10_000).contains(&self.models_max), &["models_max"], "must be between 1 and 10000");
        for (key, age, least_s, says) in [
            ("minute", self.retention.minute, HOUR_S, "must be between 1h and 3660days"),
            ("hour", self.retention.hour, DAY_S, "must be between 1day and 3660days"),
            ("day", self.retention.day, DAY_S, "must be between 1day and 3660days"),
        ] {
            check((least_s..=RETENTION_MAX_S).contains(&age.0.as_secs()), &["retention", key], says);
        }
        if let Some(requests) = &self.requests {
            let fine = (HOUR_S..=RETENTION_MAX_S).contains(&requests.retention.0.as_secs());
            check(fine, &["requests", "retention"], "must be between 1h and 3660days");
        }
        wrong
    }
}
