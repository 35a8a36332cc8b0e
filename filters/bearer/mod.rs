//! # bearer
//!
//! Checks the bearer token of a request. The modes under `accept` are tried in order; the first that
//! takes the token decides. What comes out (the token's name, or the claims of a JWT) is there for
//! later filters, such as a `rate_limit` per claim.
//!
//! ```yaml
//! bearer:
//!   accept:
//!     - static:
//!         tokens:
//!           - {name: ci, sha256: 9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08}
//!     - jwt:
//!         issuer: https://id.example.com
//!         audiences: [model-api]
//!         algorithms: [HS256]
//!         key:
//!           secret: at-least-thirty-two-bytes-of-secret
//! ```
//!
//! - `static`: tokens known by their SHA-256 (`printf %s "$TOKEN" | sha256sum`). Tokens must be random
//!   and long, since a plain hash of a guessable one can be guessed.
//! - `jwt`: signed tokens (RFC 7519, checked as RFC 8725 says): the algorithm must be listed, `iss`, `aud`,
//!   `exp` and `nbf` must fit, and `jku`, `x5u` and `jwk` in a token are never followed. The key is a
//!   `secret` (HS), a `pem` (RS, PS, ES, EdDSA) or a `jwks` document.
//! - `well_formed`: any token of the right form, for upstreams that check it themselves.
//!
//! Refusals follow RFC 6750: 401 with `WWW-Authenticate: Bearer`, and `error="invalid_token"` when there
//! was one. Verified tokens are remembered until they expire, at most `cache_max` of them.

mod jwt;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::SystemTime;

use http::{HeaderMap, HeaderValue, header};
use prometheus::IntCounter;
use quick_cache::sync::Cache;
use schemars::JsonSchema;
use serde::Deserialize;
use sha2::{Digest, Sha256};

use crate::contract::{
    Filter, Flow, Hooks, Identity, Invalid, KeyReader, KeySource, Problem, Reply, RequestCx, Result, Site, header_value,
};
use jwt::{Jwt, JwtConfig};

/// A token known in advance.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct StaticToken {
    /// Who has it; becomes the subject.
    pub name: String,
    /// The SHA-256 of the token, 64 hex digits.
    pub sha256: String,
    /// After this moment it is refused (RFC 3339, UTC): `2027-01-31T00:00:00Z`.
    pub expires: Option<String>,
}

/// `static`
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct StaticConfig {
    /// The tokens.
    pub tokens: Vec<StaticToken>,
}

/// A way to check a token.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Mode {
    /// Tokens known by their hash.
    Static(StaticConfig),
    /// Signed tokens.
    Jwt(Box<JwtConfig>),
    /// Any token of the right form.
    WellFormed,
}

/// `bearer`
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The ways to check a token, tried in order; at least one.
    pub accept: Vec<Mode>,
    /// The header fields the token may stand in. Default: `authorization`.
    #[serde(default = "default_from")]
    pub from: Vec<KeySource>,
    /// The realm named in `WWW-Authenticate`. Default: `api`.
    #[serde(default = "default_realm")]
    pub realm: String,
    /// How many verified tokens are remembered. Default: 10000.
    #[serde(default = "default_cache_max")]
    pub cache_max: usize,
}

fn default_from() -> Vec<KeySource> {
    vec![KeySource::Authorization]
}
fn default_realm() -> String {
    "api".into()
}
fn default_cache_max() -> usize {
    10_000
}

/// Why a token is not accepted; the metric's words. Of several modes the last one's is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Rejected {
    Unknown,
    Malformed,
    Algorithm,
    Key,
    Signature,
    Expired,
    NotYet,
    Issuer,
    Audience,
    Claims,
}

impl Rejected {
    fn reason(self) -> &'static str {
        match self {
            Rejected::Unknown => "unknown_token",
            Rejected::Malformed => "malformed_token",
            Rejected::Algorithm => "algorithm",
            Rejected::Key => "no_key",
            Rejected::Signature => "signature",
            Rejected::Expired => "expired",
            Rejected::NotYet => "not_yet_valid",
            Rejected::Issuer => "issuer",
            Rejected::Audience => "audience",
            Rejected::Claims => "claims",
        }
    }
}

/// A token that was found valid.
#[derive(Clone)]
struct Verified {
    identity: Identity,
    /// Seconds since 1970 from which on it is not valid any more.
    expires_s: Option<u64>,
    /// Seconds since 1970 before which it is not valid.
    from_s: Option<u64>,
}

enum Check {
    Static(HashMap<[u8; 32], Verified>),
    Jwt(Box<Jwt>),
    WellFormed,
}

/// The compiled filter.
pub struct Bearer {
    checks: Vec<Check>,
    /// Set where the form is all that is checked.
    anybody: Option<Arc<Verified>>,
    reader: KeyReader,
    realm: String,
    cache: Cache<[u8; 32], Arc<Verified>>,
    hits: IntCounter,
    misses: IntCounter,
}

impl Filter for Bearer {
    const NAME: &'static str = "bearer";
    const HOOKS: Hooks = Hooks::REQUEST;
    const SOURCE: &'static str = include_str!("mod.rs");
    type Config = Config;
    type State = ();

    fn compile(config: Config, site: &mut Site<'_>) -> Result<Self, Invalid> {
        if config.accept.is_empty() {
            return Err(Invalid::new("name at least one way to check a token: `static`, `jwt` or `well_formed`").at("accept"));
        }
        if config.from.is_empty() {
            return Err(Invalid::new("name at least one header field a token may stand in").at("from"));
        }
        if config.realm.contains(['"', '\\']) || HeaderValue::from_str(&config.realm).is_err() {
            return Err(Invalid::new("a realm is plain text without quotes").at("realm"));
        }
        let checks = config.accept.into_iter().enumerate();
        let checks = checks.map(|(index, mode)| Check::compile(mode, site).map_err(|e| e.index(index).at("accept")));
        let counter = |result| site.counter("bearer_cache_requests_total", "Look-ups of verified tokens, by result.", ("result", result));
        let checks: Vec<Check> = checks.collect::<Result<_, _>>()?;
        let form_only = matches!(checks.as_slice(), [Check::WellFormed]);
        Ok(Self {
            anybody: form_only.then(|| Arc::new(Verified::anybody())),
            checks,
            reader: KeyReader::new(&config.from),
            realm: config.realm,
            cache: Cache::new(config.cache_max.max(1)),
            hits: counter("hit"),
            misses: counter("miss"),
        })
    }

    async fn request(&self, cx: &mut RequestCx<'_>, (): &mut ()) -> Result<Flow> {
        let token = match self.reader.read(cx.headers()) {
            Ok(Some(token)) => token,
            Ok(None) => return self.missing(cx.headers()),
            Err(error) => return self.malformed(error.reason()),
        };
        match self.verify(token, cx.now.unix_s()) {
            Ok(verified) => {
                cx.facts.put(verified.identity.clone());
                Ok(Flow::Continue)
            }
            Err(rejected) => self.invalid(rejected),
        }
    }
}

impl Bearer {
    fn verify(&self, token: &str, now_s: u64) -> Result<Arc<Verified>, Rejected> {
        // A look at the form costs less than the hash by which a verified token is remembered.
        if let Some(anybody) = &self.anybody {
            return if is_token68(token) { Ok(Arc::clone(anybody)) } else { Err(Rejected::Malformed) };
        }
        let hash: [u8; 32] = Sha256::digest(token.as_bytes()).into();
        if let Some(known) = self.cache.get(&hash) {
            self.hits.inc();
            return known.in_time(now_s).map(|()| known);
        }
        self.misses.inc();
        let mut rejected = Rejected::Unknown;
        for check in &self.checks {
            let verified = match check {
                Check::Static(tokens) => tokens.get(&hash).cloned().ok_or(Rejected::Unknown),
                Check::Jwt(jwt) => jwt.verify(token),
                Check::WellFormed if is_token68(token) => {
                    Ok(Verified { identity: Identity { subject: None, claims: Arc::default() }, expires_s: None, from_s: None })
                }
                Check::WellFormed => Err(Rejected::Malformed),
            };
            match verified.and_then(|verified| verified.in_time(now_s).map(|()| verified)) {
                Ok(verified) => {
                    let verified = Arc::new(verified);
                    self.cache.insert(hash, Arc::clone(&verified));
                    return Ok(verified);
                }
                Err(why) => rejected = why,
            }
        }
        Err(rejected)
    }

    fn challenge(&self, more: &str) -> Result<HeaderValue> {
        header_value(&format!("Bearer realm=\"{}\"{more}", self.realm))
    }

    /// RFC 6750, section 3.1: no error code when nothing was sent.
    fn missing(&self, headers: &HeaderMap) -> Result<Flow> {
        let reason = if headers.contains_key(header::AUTHORIZATION) { "other_scheme" } else { "missing_token" };
        let message = "No bearer token was sent. Send it as `Authorization: Bearer YOUR_TOKEN`.";
        let reply = Reply::new(Problem::Unauthenticated, "missing_token", reason, message);
        Ok(reply.header(header::WWW_AUTHENTICATE, self.challenge("")?).into())
    }

    fn malformed(&self, reason: &'static str) -> Result<Flow> {
        let reply =
            Reply::new(Problem::BadRequest, "invalid_request", reason, "The request does not carry exactly one well-formed bearer token.");
        Ok(reply.header(header::WWW_AUTHENTICATE, self.challenge(", error=\"invalid_request\"")?).into())
    }

    fn invalid(&self, rejected: Rejected) -> Result<Flow> {
        let description = match rejected {
            Rejected::Expired => "the token has expired",
            Rejected::NotYet => "the token is not valid yet",
            // What exactly was wrong would help whoever tries to forge one.
            _ => "the token is not valid",
        };
        let reply = Reply::new(Problem::Unauthenticated, "invalid_token", rejected.reason(), format!("Access refused: {description}."));
        let challenge = format!(", error=\"invalid_token\", error_description=\"{description}\"");
        Ok(reply.header(header::WWW_AUTHENTICATE, self.challenge(&challenge)?).into())
    }
}

impl Verified {
    /// Whoever has a token of the right form.
    fn anybody() -> Self {
        Self { identity: Identity { subject: None, claims: Arc::default() }, expires_s: None, from_s: None }
    }

    fn in_time(&self, now_s: u64) -> Result<(), Rejected> {
        if self.expires_s.is_some_and(|end| now_s >= end) {
            return Err(Rejected::Expired);
        }
        if self.from_s.is_some_and(|start| now_s < start) {
            return Err(Rejected::NotYet);
        }
        Ok(())
    }
}

/// `b64token` of RFC 6750, section 2.1.
fn is_token68(token: &str) -> bool {
    let body = token.trim_end_matches('=');
    !body.is_empty() && body.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._~+/".contains(&b))
}

impl Check {
    fn compile(mode: Mode, site: &Site<'_>) -> Result<Self, Invalid> {
        match mode {
            Mode::WellFormed => Ok(Check::WellFormed),
            Mode::Jwt(config) => Ok(Check::Jwt(Box::new(Jwt::compile(*config, site).map_err(|e| e.at("jwt"))?))),
            Mode::Static(config) => {
                let wrong = |e: Invalid| e.at("tokens").at("static");
                if config.tokens.is_empty() {
                    return Err(wrong(Invalid::new("list at least one token")));
                }
                let mut tokens = HashMap::new();
                for (index, token) in config.tokens.into_iter().enumerate() {
                    let (hash, verified) = known(token).map_err(|e| wrong(e.index(index)))?;
                    if tokens.insert(hash, verified).is_some() {
                        return Err(wrong(Invalid::new("this token is listed already").at("sha256").index(index)));
                    }
                }
                Ok(Check::Static(tokens))
            }
        }
    }
}

fn known(token: StaticToken) -> Result<([u8; 32], Verified), Invalid> {
    let hash = unhex(&token.sha256).ok_or_else(|| Invalid::new("not a SHA-256: write its 64 hex digits").at("sha256"))?;
    let expires_s = match &token.expires {
        None => None,
        Some(text) => {
            let wrong = || Invalid::new(format!("`{text}` is not a time; write it like `2027-01-31T00:00:00Z`")).at("expires");
            let moment = humantime::parse_rfc3339(text).map_err(|_| wrong())?;
            Some(moment.duration_since(SystemTime::UNIX_EPOCH).map_err(|_| wrong())?.as_secs())
        }
    };
    let identity = Identity { subject: Some(token.name), claims: Arc::default() };
    Ok((hash, Verified { identity, expires_s, from_s: None }))
}

fn unhex(text: &str) -> Option<[u8; 32]> {
    let mut bytes = [0; 32];
    if text.len() != 64 || !text.is_ascii() {
        return None;
    }
    for (index, byte) in bytes.iter_mut().enumerate() {
        *byte = u8::from_str_radix(text.get(index * 2..index * 2 + 2)?, 16).ok()?;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests;
