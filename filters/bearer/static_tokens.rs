//! The mode `static`: tokens listed by their SHA-256. It stores no token text.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::SystemTime;

use schemars::JsonSchema;
use serde::Deserialize;

use super::verdict::Verified;
use crate::contract::{Identity, Invalid, unhex};

/// A static token.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct StaticToken {
    /// The name of the owner; becomes the subject.
    pub name: String,
    /// The SHA-256 of the token, as 64 hex digits.
    pub sha256: String,
    /// The expiry time (RFC 3339, UTC): `2027-01-31T00:00:00Z`. Default: none.
    pub expires: Option<String>,
    /// The scopes of the token, for rules. Default: none.
    #[serde(default)]
    pub scopes: Vec<String>,
}

/// `static`
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct StaticConfig {
    /// The tokens.
    pub tokens: Vec<StaticToken>,
}

/// Verified tokens by the hash of their text.
pub type StaticTokens = HashMap<[u8; 32], Verified>;

pub fn compile(config: StaticConfig) -> Result<StaticTokens, Invalid> {
    let wrong = |e: Invalid| e.at("tokens");
    if config.tokens.is_empty() {
        return Err(wrong(Invalid::new("list at least one token")));
    }
    let mut tokens = HashMap::new();
    for (index, token) in config.tokens.into_iter().enumerate() {
        let (hash, verified) = entry(token).map_err(|e| wrong(e.index(index)))?;
        if tokens.insert(hash, verified).is_some() {
            return Err(wrong(Invalid::new("this token is listed twice").at("sha256").index(index)));
        }
    }
    Ok(tokens)
}

fn entry(token: StaticToken) -> Result<([u8; 32], Verified), Invalid> {
    let hash = unhex(&token.sha256).ok_or_else(|| Invalid::new("not a SHA-256; write it as 64 hex digits").at("sha256"))?;
    let expires_s = match &token.expires {
        None => None,
        Some(text) => {
            let wrong = || Invalid::new(format!("`{text}` is not a timestamp; write it like `2027-01-31T00:00:00Z`")).at("expires");
            let moment = humantime::parse_rfc3339(text).map_err(|_| wrong())?;
            Some(moment.duration_since(SystemTime::UNIX_EPOCH).map_err(|_| wrong())?.as_secs())
        }
    };
    let mut claims = serde_json::Map::new();
    if !token.scopes.is_empty() {
        claims.insert("scopes".into(), token.scopes.into());
    }
    let identity = Identity { subject: Some(token.name), claims: Arc::new(claims) };
    Ok((hash, Verified { expires_s, ..Verified::new(identity) }))
}
