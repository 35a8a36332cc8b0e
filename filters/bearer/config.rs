//! `bearer` as it is written.

use schemars::JsonSchema;
use serde::Deserialize;

use super::forward_auth::ForwardAuthConfig;
use super::introspection::IntrospectionConfig;
use super::jwt::JwtConfig;
use super::known::StaticConfig;
use super::upstream::TellUpstream;
use crate::contract::{ByteSize, KEY_BYTES, KeySource};

/// What becomes of a token that nobody can be asked about.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum OnFailure {
    /// 503.
    #[default]
    Closed,
    /// It passes, and nothing is known of whose it is.
    Open,
}

/// A way to check a token.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Mode {
    /// Tokens known by their hash.
    Static(StaticConfig),
    /// Signed tokens.
    Jwt(Box<JwtConfig>),
    /// Tokens that the authorization server is asked about.
    Introspection(Box<IntrospectionConfig>),
    /// Tokens that any service is asked about.
    ForwardAuth(Box<ForwardAuthConfig>),
    /// Any token of the right form.
    WellFormed,
}

/// `bearer`
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The ways to check a token, tried in order; at least one.
    pub accept: Vec<Mode>,
    /// Where the token may stand, as in `key_binding`. Default: `authorization`.
    #[serde(default = "default_from")]
    pub from: Vec<KeySource>,
    /// The longest token, 1 KiB to 32 KiB. `limits.header_bytes` bounds it as well. Default: `8KiB`.
    #[serde(default = "default_token_bytes")]
    pub token_bytes: ByteSize,
    /// What of the identity the upstream gets. Default: nothing.
    #[serde(default)]
    pub tell_upstream: TellUpstream,
    /// The realm named in `WWW-Authenticate`. Default: `api`.
    #[serde(default = "default_realm")]
    pub realm: String,
    /// How many tokens are remembered, by each mode that asks somebody and by all others together. Default: 10000.
    #[serde(default = "default_cache_max")]
    pub cache_max: usize,
}

fn default_from() -> Vec<KeySource> {
    vec![KeySource::Authorization]
}
fn default_token_bytes() -> ByteSize {
    ByteSize(KEY_BYTES as u64)
}
fn default_realm() -> String {
    "api".into()
}
/// A token in memory takes about a kilobyte.
pub const CACHE_MAX: usize = 10_000_000;

fn default_cache_max() -> usize {
    10_000
}
