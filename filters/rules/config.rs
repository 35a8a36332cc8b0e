//! The options of `rules`. Checks are in `mod.rs`.

use schemars::JsonSchema;
use serde::Deserialize;

/// A rule: a condition and exactly one action.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RuleConfig {
    /// The name in logs and metrics: up to 64 letters, digits, `-`, `_` and `.`.
    pub name: String,
    /// The condition, an expression. Default: true for every request.
    #[serde(rename = "if")]
    pub condition: Option<String>,
    /// Skip the rest of this list.
    pub allow: Option<AllowConfig>,
    /// Refuse the request.
    pub deny: Option<DenyConfig>,
    /// Set this tag on the request.
    pub tag: Option<String>,
    /// Count the request on the limit of this name, one with `chosen: true` in a later `rate_limit`.
    pub limit: Option<String>,
    /// Evaluate and count without applying the action. Default: false.
    #[serde(default)]
    pub shadow: bool,
}

/// The action `allow: {}`. It has no options.
#[derive(Clone, Copy, Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct AllowConfig {}

/// The response to a refused request.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct DenyConfig {
    /// The status, 400 to 499, or 503. Default: 403.
    #[serde(default = "default_status")]
    pub status: u16,
    /// The message to the client, at most 1000 bytes. Default: `This request is not allowed.`
    #[serde(default = "default_message")]
    pub message: String,
}

fn default_status() -> u16 {
    403
}
fn default_message() -> String {
    "This request is not allowed.".into()
}
