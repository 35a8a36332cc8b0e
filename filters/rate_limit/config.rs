//! The options of `rate_limit`. Checks that concern several options are in `mod.rs` and `policy.rs`.

use std::fmt;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, de};

use crate::contract::{HumanDuration, Rate};
use crate::limiting::{CountScope, CountsFailurePolicy, SubjectKinds};

/// How the period of a limit is applied.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum WindowType {
    /// The quota is restored continuously (GCRA).
    #[default]
    Rolling,
    /// The whole quota is restored when the next second, minute, hour, day, week (Monday) or month begins in `time_zone`.
    Calendar,
}

/// The cost of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RequestCost {
    /// The same for all requests.
    Fixed(u32),
    /// The result of this expression.
    Expression(String),
}

impl Default for RequestCost {
    fn default() -> Self {
        RequestCost::Fixed(1)
    }
}

impl<'de> Deserialize<'de> for RequestCost {
    fn deserialize<D: Deserializer<'de>>(input: D) -> Result<Self, D::Error> {
        struct NumberOrText;
        impl de::Visitor<'_> for NumberOrText {
            type Value = RequestCost;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a whole number, or an expression that returns one")
            }
            fn visit_u64<E: de::Error>(self, number: u64) -> Result<RequestCost, E> {
                u32::try_from(number).map(RequestCost::Fixed).map_err(|_| E::custom("the number is too large"))
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<RequestCost, E> {
                Ok(RequestCost::Expression(text.to_owned()))
            }
        }
        input.deserialize_any(NumberOrText)
    }
}

impl JsonSchema for RequestCost {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "RequestCost".into()
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "anyOf": [{ "type": "integer", "minimum": 1 }, { "type": "string" }] })
    }
}

/// One limit of the list `and`.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct LimitConfig {
    /// The name in response fields and metrics. Default: the words of `per`, such as `client-key`.
    pub name: Option<String>,
    /// What requests are counted by. With several, each combination of values has its own count.
    pub per: SubjectKinds,
    /// The rate, such as `60/min`.
    pub limit: Rate,
    /// The number of requests that may arrive at once. Default: the count of `limit`. Not with `window: calendar`.
    pub burst: Option<u32>,
    /// How the period is applied. Default: `rolling`.
    #[serde(default)]
    pub window: WindowType,
    /// With `window: calendar`: the time zone of hours, days, weeks and months, such as `Europe/Berlin`. Default: UTC.
    pub time_zone: Option<String>,
    /// The cost of a request: a number, or an expression that returns one (see `rules`). Default: 1.
    #[serde(default)]
    pub cost: RequestCost,
    /// A refused subject stays refused for this time. Not with `window: calendar`. Default: no block.
    pub block_for: Option<HumanDuration>,
    /// Count only requests for which a rule has chosen this limit by name. Default: false.
    #[serde(default)]
    pub chosen: bool,
    /// Count without refusing. Default: false.
    #[serde(default)]
    pub shadow: bool,
}

/// `rate_limit`
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RateLimitConfig {
    /// The name in response fields and metrics. Default: the words of `per`, such as `client-key`.
    pub name: Option<String>,
    /// What requests are counted by. With several, each combination of values has its own count.
    pub per: SubjectKinds,
    /// The prefix by which IPv4 clients are grouped, in bits, 8 to 32. Default: 32.
    pub ipv4_prefix: Option<u8>,
    /// The prefix by which IPv6 clients are grouped, in bits, 16 to 128. Default: 64.
    pub ipv6_prefix: Option<u8>,
    /// The rate, such as `60/min`.
    pub limit: Rate,
    /// The number of requests that may arrive at once. Default: the count of `limit`. Not with `window: calendar`.
    pub burst: Option<u32>,
    /// How the period is applied. Default: `rolling`.
    #[serde(default)]
    pub window: WindowType,
    /// With `window: calendar`: the time zone of hours, days, weeks and months, such as `Europe/Berlin`. Default: UTC.
    pub time_zone: Option<String>,
    /// The cost of a request: a number, or an expression that returns one (see `rules`). Default: 1.
    #[serde(default)]
    pub cost: RequestCost,
    /// A refused subject stays refused for this time. Not with `window: calendar`. Default: no block.
    pub block_for: Option<HumanDuration>,
    /// Count only requests for which a rule has chosen this limit by name. Default: false.
    #[serde(default)]
    pub chosen: bool,
    /// Further limits that apply together with this one, at most 7. Default: none.
    #[serde(default)]
    pub and: Vec<LimitConfig>,
    /// Where requests are counted, including the limits in `and`. Default: `local`.
    #[serde(default)]
    pub scope: CountScope,
    /// With `scope: shared`: what happens to requests when Redis is unavailable. Default: `local`.
    pub on_store_failure: Option<CountsFailurePolicy>,
    /// Whether responses also carry OpenAI's `x-ratelimit-*-requests` for the tightest limit. Default: false.
    #[serde(default)]
    pub openai_fields: bool,
    /// The number of subjects (keys, clients, …) that each limit remembers, 1000 to 100000000. Default: 250000.
    pub entries_max: Option<usize>,
}
