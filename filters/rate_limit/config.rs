//! What an operator may say of `rate_limit`.

use std::fmt;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, de};

use super::subject::Pers;
use crate::contract::{HumanDuration, Rate};

/// How a limit's time is meant.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Window {
    /// What was used comes back evenly (GCRA).
    #[default]
    Rolling,
    /// All of it comes back at the full minute, hour, at midnight, on Monday, on the first, in `time_zone`.
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

/// How much a request counts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Cost {
    /// Always as much.
    Fixed(u32),
    /// What this expression comes to.
    By(String),
}

impl Default for Cost {
    fn default() -> Self {
        Cost::Fixed(1)
    }
}

impl<'de> Deserialize<'de> for Cost {
    fn deserialize<D: Deserializer<'de>>(input: D) -> Result<Self, D::Error> {
        struct NumberOrText;
        impl de::Visitor<'_> for NumberOrText {
            type Value = Cost;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a whole number, or an expression that comes to one")
            }
            fn visit_u64<E: de::Error>(self, number: u64) -> Result<Cost, E> {
                u32::try_from(number).map(Cost::Fixed).map_err(|_| E::custom("the number is too large"))
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<Cost, E> {
                Ok(Cost::By(text.to_owned()))
            }
        }
        input.deserialize_any(NumberOrText)
    }
}

impl JsonSchema for Cost {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Cost".into()
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "anyOf": [{ "type": "integer", "minimum": 1 }, { "type": "string" }] })
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
    /// With `window: calendar`: the time zone of its hours, days, weeks and months, such as `Europe/Berlin`. Default: UTC.
    pub time_zone: Option<String>,
    /// How much each request counts: a number, or an expression that comes to one (see `rules`). Default: 1.
    #[serde(default)]
    pub cost: Cost,
    /// Whoever is refused once is refused for this long. Not with `window: calendar`. Default: not at all.
    pub block_for: Option<HumanDuration>,
    /// Counts only requests for which a rule has chosen it by its name. Default: false.
    #[serde(default)]
    pub chosen: bool,
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
    /// How much of an IPv4 client's address counts, in bits, 8 to 32. Default: 32.
    pub ipv4_prefix: Option<u8>,
    /// How much of an IPv6 client's address counts, in bits, 16 to 128. Default: 64.
    pub ipv6_prefix: Option<u8>,
    /// How often: `60/min`.
    pub limit: Rate,
    /// How many at once. Default: the count of `limit`. Not with `window: calendar`.
    pub burst: Option<u32>,
    /// How its time is meant. Default: `rolling`.
    #[serde(default)]
    pub window: Window,
    /// With `window: calendar`: the time zone of its hours, days, weeks and months, such as `Europe/Berlin`. Default: UTC.
    pub time_zone: Option<String>,
    /// How much each request counts: a number, or an expression that comes to one (see `rules`). Default: 1.
    #[serde(default)]
    pub cost: Cost,
    /// Whoever is refused once is refused for this long. Not with `window: calendar`. Default: not at all.
    pub block_for: Option<HumanDuration>,
    /// Counts only requests for which a rule has chosen it by its name. Default: false.
    #[serde(default)]
    pub chosen: bool,
    /// More limits that hold together with this one.
    #[serde(default)]
    pub and: Vec<Limit>,
    /// Where counts are kept, those of `and` too. Default: `local`.
    #[serde(default)]
    pub scope: Scope,
    /// With `scope: shared`: what to do when Redis is away. Default: `local`.
    pub on_store_failure: Option<OnStoreFailure>,
    /// Whether answers also carry OpenAI's `x-ratelimit-*-requests` of the tightest limit. Default: false.
    #[serde(default)]
    pub openai_fields: bool,
    /// How many keys, clients and so on are remembered, for each limit. Default: 250000.
    pub entries_max: Option<usize>,
}
