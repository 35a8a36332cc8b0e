//! What an operator may say of `rules`.

use schemars::JsonSchema;
use serde::Deserialize;

/// What is done where a rule is true. Exactly one.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Rule {
    /// Its name in logs and metrics; up to 64 letters, digits, `-`, `_` and `.`.
    pub name: String,
    /// The expression. Without one, the rule is true of every request.
    #[serde(rename = "if")]
    pub condition: Option<String>,
    /// The rest of this list does not matter.
    pub allow: Option<Allow>,
    /// The request is refused.
    pub deny: Option<Deny>,
    /// This label is put on the request.
    pub tag: Option<String>,
    /// The limit of this name, one with `chosen: true` in a `rate_limit` behind, counts the request.
    pub limit: Option<String>,
    /// Decides and counts, and does nothing. Default: false.
    #[serde(default)]
    pub shadow: bool,
}

/// `allow: {}`
#[derive(Clone, Copy, Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Allow {}

/// What the client of a refused request gets.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Deny {
    /// The status, 400 to 499, or 503. Default: 403.
    #[serde(default = "forbidden")]
    pub status: u16,
    /// The message. Default: one that says nothing of the rule.
    #[serde(default = "refused")]
    pub message: String,
}

fn forbidden() -> u16 {
    403
}
fn refused() -> String {
    "This request is not allowed.".into()
}
