//! The configuration of `bearer`. It checks no tokens.

use schemars::JsonSchema;
use serde::Deserialize;

use super::forward_auth::ForwardAuthConfig;
use super::introspection::IntrospectionConfig;
use super::jwt::JwtConfig;
use super::static_tokens::StaticConfig;
use super::upstream::TellUpstream;
use crate::contract::{ByteSize, KEY_BYTES, KeySource};

/// The action if a token cannot be checked because a service is unavailable.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum OnFailure {
    /// Refuse the request with 503.
    #[default]
    Closed,
    /// Let the request pass without an identity.
    Open,
}

/// A mode: a way to check a token.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Mode {
    /// A list of tokens, as hashes.
    Static(StaticConfig),
    /// Signed tokens.
    Jwt(Box<JwtConfig>),
    /// Tokens that the authorization server checks (RFC 7662).
    Introspection(Box<IntrospectionConfig>),
    /// Tokens that an HTTP service checks.
    ForwardAuth(Box<ForwardAuthConfig>),
    /// Any token of the right form.
    WellFormed,
}

/// `bearer`
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct BearerConfig {
    /// The modes that check a token, tried in order; at least one.
    pub accept: Vec<Mode>,
    /// The places where a request can carry the token, as in `key_binding`. Default: `authorization`.
    #[serde(default = "default_from")]
    pub from: Vec<KeySource>,
    /// The maximum length of a token, 1 KiB to 32 KiB. `limits.header_bytes` applies as well. Default: `8KiB`.
    #[serde(default = "default_token_bytes")]
    pub token_bytes: ByteSize,
    /// The header fields that pass the identity to the upstream. Default: none.
    #[serde(default)]
    pub tell_upstream: TellUpstream,
    /// The realm named in `WWW-Authenticate`. Default: `api`.
    #[serde(default = "default_realm")]
    pub realm: String,
    /// The maximum number of cached tokens: for each `introspection` and `forward_auth` mode, and for all other modes
    /// together. Default: 10000.
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
/// The largest `cache_max`. A cached token takes about a kilobyte.
pub const CACHE_MAX: usize = 10_000_000;

fn default_cache_max() -> usize {
    10_000
}
