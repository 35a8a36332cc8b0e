//! What an operator may say of `rate_limit`.

use schemars::JsonSchema;
use serde::Deserialize;

use super::subject::Pers;
use crate::contract::{HumanDuration, Rate};

/// How a limit's time is meant.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Window {
    /// What was used comes back evenly (GCRA).
    #[default]
    Rolling,
    /// All of it comes back at the full minute, hour, at midnight, on Monday, on the first (UTC).
    Calendar,
}

/// Where counts are kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Scope {
    /// In this process.
    #[default]
    Local,
    /// In Redis, by all replicas together.
    Shared,
}

/// What to do when counts that are shared cannot be reached.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum OnStoreFailure {
    /// Count in this process alone.
    #[default]
    Local,
    /// Let pass, uncounted.
    Allow,
    /// 503.
    Deny,
}

impl OnStoreFailure {
    /// The word in metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            OnStoreFailure::Local => "local",
            OnStoreFailure::Allow => "allow",
            OnStoreFailure::Deny => "deny",
        }
    }
}

/// One limit.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Limit {
    /// Its name in header fields and metrics. Default: what it counts.
    pub name: Option<String>,
    /// What is counted; several are counted by their combination.
    pub per: Pers,
    /// How often: `60/min`.
    pub limit: Rate,
    /// How many at once. Default: the count of `limit`. Not with `window: calendar`.
    pub burst: Option<u32>,
    /// How its time is meant. Default: `rolling`.
    #[serde(default)]
    pub window: Window,
    /// How much each request counts. Default: 1.
    #[serde(default = "one")]
    pub cost: u32,
    /// Whoever is refused once is refused for this long. Not with `window: calendar`. Default: not at all.
    pub block_for: Option<HumanDuration>,
    /// Counts, and refuses nobody. Default: false.
    #[serde(default)]
    pub shadow: bool,
}

/// `rate_limit`
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Its name in header fields and metrics. Default: what it counts.
    pub name: Option<String>,
    /// What is counted; several are counted by their combination.
    pub per: Pers,
    /// How often: `60/min`.
    pub limit: Rate,
    /// How many at once. Default: the count of `limit`. Not with `window: calendar`.
    pub burst: Option<u32>,
    /// How its time is meant. Default: `rolling`.
    #[serde(default)]
    pub window: Window,
    /// How much each request counts. Default: 1.
    #[serde(default = "one")]
    pub cost: u32,
    /// Whoever is refused once is refused for this long. Not with `window: calendar`. Default: not at all.
    pub block_for: Option<HumanDuration>,
    /// More limits that hold together with this one.
    #[serde(default)]
    pub and: Vec<Limit>,
    /// Where counts are kept, those of `and` too. Default: `local`.
    #[serde(default)]
    pub scope: Scope,
    /// With `scope: shared`: what to do when Redis is away. Default: `local`.
    #[serde(default)]
    pub on_store_failure: OnStoreFailure,
    /// Whether answers also carry OpenAI's `x-ratelimit-*-requests` of the tightest limit. Default: false.
    #[serde(default)]
    pub openai_fields: bool,
    /// How many keys, clients and so on are remembered, for each limit. Default: 250000.
    pub entries_max: Option<usize>,
}

fn one() -> u32 {
    1
}
