//! # bearer
//!
//! Verifies the bearer token of a request. The modes under `accept` are tried in order, and the
//! first one that accepts the token decides. The resulting identity (subject, scopes, claims) is
//! available to later filters, such as `rules` and a `rate_limit` per claim, and to the upstream
//! through `tell_upstream`.
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
//!         algorithms: [RS256, ES256]
//!         key: {discovery: https://id.example.com}
//!     - introspection:
//!         endpoint: https://old.example.com/introspect
//!         client_id: keylatch
//!         client_secret: a-secret-of-the-authorization-server
//!     - forward_auth:
//!         endpoint: {url: "http://127.0.0.1:9100/verify", allow_private: true, timeout: 500ms}
//!         take: [x-user-id]
//!   tell_upstream:
//!     subject: X-Auth-Subject
//!     claims: {team: X-Auth-Team}
//! ```
//!
//! ## Modes
//!
//! `static` accepts tokens from a list of SHA-256 hashes. `keylatch token new` makes a token.
//! Tokens must be long and random, because a plain hash of a guessable token can be reversed.
//!
//! `jwt` accepts signed tokens (RFC 7519), verified as RFC 8725 recommends:
//!
//! - The algorithm must be listed, and `iss`, `aud`, `exp` and `nbf` must match. `jku`, `x5u` and
//!   `jwk` in a token are ignored.
//! - The key is a `secret` (HS), a `pem` (RS, PS, ES, EdDSA, Ed25519), a `jwks` document, a
//!   `jwks_url`, or found by OpenID `discovery`.
//! - Published keys are refreshed in the background. A token with an unknown `kid` triggers a
//!   refresh, at most once per `refresh.unknown_kid`. While the issuer is unreachable, the last
//!   good key set stays in use for `refresh.max_age`.
//! - Add one item for each issuer. The `iss` of the token selects the item.
//!
//! `introspection` asks the authorization server (RFC 7662). Results are cached for `cache` and
//! `negative_cache`, never past `exp`. Concurrent requests with the same token share one call.
//!
//! `forward_auth` asks any HTTP service with a GET request:
//!
//! - 2xx accepts the token. 3xx and 4xx refuse it, except for 408 and 429.
//! - `send` and `tell` select what the service receives beside the token.
//! - `take` lists the fields of its response that the upstream receives.
//! - `refusal` selects whether a refusal shows the response of Keylatch or of the service.
//!
//! `well_formed` accepts any token of the right form, for upstreams that verify tokens themselves.
//!
//! ## Unreachable services
//!
//! If a mode cannot reach its service and no other mode accepts the token, the response is 503 with
//! `Retry-After`. With `on_failure: open` such a request passes without an identity instead. It is
//! counted in `keylatch_bearer_check_failures_total`, and listed under `let_through` in the access
//! log. A request passes only if both conditions hold:
//!
//! - The service is unavailable, which a client cannot cause: no connection, no response in time,
//!   or status 502 to 504.
//! - No other mode recognises the token and refuses it.
//!
//! Each service receives at most 64 concurrent calls. Further calls wait in a queue, for at most
//! the timeout of a call.
//!
//! ## Responses and caches
//!
//! Refusals follow RFC 6750: 401 with `WWW-Authenticate: Bearer`, and `error="invalid_token"` if
//! the request had a token.
//!
//! A verified signature is cached until the token expires or the keys of the issuer change, for at
//! most `cache_max` tokens. The cached results of services take at most 64 MiB for each mode.
//!
//! The filter verifies the token only. Other fields in which a client can send an API key go
//! upstream unchanged: add `key_binding` if the upstream reads API keys.
//!
//! In shadow mode the request is not changed: fields of the client with names from `tell_upstream`
//! and `take` go upstream.

mod check;
mod config;
mod forward_auth;
mod introspection;
mod jws;
mod jwt;
mod keys;
mod remote_keys;
mod signature;
mod static_tokens;
mod upstream;
mod verdict;
mod verdict_cache;

use std::sync::Arc;

use http::{HeaderName, HeaderValue, header};
use prometheus::IntCounter;
use quick_cache::sync::Cache;
use sha2::{Digest, Sha256};

use crate::contract::{
    Filter, Flow, Hooks, Invalid, KeyForm, KeyReader, KeySource, Problem, Reply, RequestCx, Result, Site, UnlistedQuery, UpstreamCx,
    header_value, key_bytes_bound,
};
use check::Check;
use config::CACHE_MAX;
pub use config::{BearerConfig, Mode, OnFailure};
pub use jws::signed_claims;
use jwt::{Jwt, Outcome};
pub use jwt::{has_audience, numeric_date};
pub use keys::{Alg, KeySet};
use upstream::UpstreamFields;
pub use verdict::Rejected;
use verdict::{Verdict, Verified};

/// A token with a verified signature, with the index of its mode and the generation of its keys.
#[derive(Clone)]
struct CachedToken {
    verified: Arc<Verified>,
    check: usize,
    generation: u64,
}

/// The decision of all modes together.
enum Decision {
    Accepted(Arc<Verified>),
    Rejected(Rejected),
    Refused(Box<Reply>),
    /// A service could not be asked. With the mode and the reason.
    Unavailable(Arc<str>),
    LetThrough,
}

/// The compiled filter.
pub struct Bearer {
    checks: Vec<Check>,
    /// Set if the form of the token is the only check.
    anonymous: Option<Arc<Verified>>,
    reader: KeyReader,
    /// The sentence that tells a client how to send a token.
    instruction: String,
    upstream_fields: UpstreamFields,
    realm: String,
    cache: Cache<[u8; 32], CachedToken>,
    hits: IntCounter,
    misses: IntCounter,
    unchecked_closed: IntCounter,
    unchecked_open: IntCounter,
}

impl Filter for Bearer {
    const NAME: &'static str = "bearer";
    const HOOKS: Hooks = Hooks { request: true, upstream_request: true, ..Hooks::NONE };
    const SOURCE: &'static str = include_str!("mod.rs");
    type Config = BearerConfig;
    /// The verified token, for the upstream.
    type State = Option<Arc<Verified>>;

    fn compile(config: BearerConfig, site: &mut Site<'_>) -> Result<Self, Invalid> {
        if config.accept.is_empty() {
            let modes = "`static`, `jwt`, `introspection`, `forward_auth` or `well_formed`";
            return Err(Invalid::new(format!("name at least one mode: {modes}")).at("accept"));
        }
        if config.from.is_empty() {
            return Err(Invalid::new("name at least one source of the token").at("from"));
        }
        if config.realm.contains(['"', '\\']) || HeaderValue::from_str(&config.realm).is_err() {
            return Err(Invalid::new("must be plain text without quotes").at("realm"));
        }
        if !(1..=CACHE_MAX).contains(&config.cache_max) {
            return Err(Invalid::new(format!("must be between 1 and {CACHE_MAX}")).at("cache_max"));
        }
        let checks = config.accept.into_iter().enumerate();
        let checks = checks.map(|(index, mode)| Check::compile(mode, config.cache_max, site).map_err(|e| e.index(index).at("accept")));
        let checks: Vec<Check> = checks.collect::<Result<_, _>>()?;
        let taken: Vec<HeaderName> = checks.iter().flat_map(Check::takes).cloned().collect();
        let form_only = matches!(checks.as_slice(), [Check::WellFormed]);
        let looked_up =
            |result| site.counter("bearer_cache_requests_total", "Lookups in the cache of verified tokens, by result.", ("result", result));
        let unchecked = |outcome| {
            let help = "Requests with a token that could not be checked, by outcome.";
            site.counter("bearer_check_failures_total", help, ("outcome", outcome))
        };
        Ok(Self {
            anonymous: form_only.then(|| Arc::new(Verified::anonymous())),
            checks,
            reader: KeyReader::new(
                &config.from,
                key_bytes_bound(config.token_bytes).map_err(|invalid| invalid.at("token_bytes"))?,
                UnlistedQuery::Ignored,
                KeyForm::Exact,
            )
            .map_err(|invalid| invalid.at("from"))?,
            instruction: config.from.first().map(KeySource::instruction).unwrap_or_default().replace("YOUR_KEY", "YOUR_TOKEN"),
            upstream_fields: UpstreamFields::compile(&config.tell_upstream, taken).map_err(|e| e.at("tell_upstream"))?,
            realm: config.realm,
            cache: Cache::new(config.cache_max),
            hits: looked_up("hit"),
            misses: looked_up("miss"),
            unchecked_closed: unchecked("closed"),
            unchecked_open: unchecked("open"),
        })
    }

    async fn request(&self, cx: &mut RequestCx<'_>, verified_token: &mut Self::State) -> Result<Flow> {
        let token = match self.reader.read(cx.request) {
            Ok(Some(token)) => token,
            Ok(None) => return self.missing(),
            Err(error) => return self.malformed(error.reason()),
        };
        match self.decide(&token, cx).await {
            Decision::Accepted(verified) => {
                cx.facts.put(verified.identity.clone());
                *verified_token = Some(verified);
                Ok(Flow::Continue)
            }
            Decision::Rejected(rejected) => self.invalid(rejected),
            Decision::Refused(reply) => Ok(Flow::Respond(reply)),
            Decision::Unavailable(why) => Ok(unavailable(&why).into()),
            Decision::LetThrough => {
                cx.facts.let_through(Self::NAME);
                Ok(Flow::Continue)
            }
        }
    }

    fn upstream_request(&self, cx: &mut UpstreamCx<'_>, verified_token: &mut Self::State) -> Result<()> {
        self.upstream_fields.apply(cx.upstream, verified_token.as_deref())
    }
}

impl Bearer {
    async fn decide(&self, token: &str, cx: &RequestCx<'_>) -> Decision {
        // Checking the form costs less than the hash of a cache lookup.
        if let Some(anonymous) = &self.anonymous {
            return if is_token68(token) { Decision::Accepted(Arc::clone(anonymous)) } else { Decision::Rejected(Rejected::Malformed) };
        }
        let hash: [u8; 32] = Sha256::digest(token.as_bytes()).into();
        let (mut rejected, mut refused, mut unchecked, mut open) = (Rejected::Unknown, None, None, false);
        for (index, check) in self.checks.iter().enumerate() {
            match self.check(index, check, token, hash, cx).await {
                Verdict::Accepted(verified) => return Decision::Accepted(verified),
                Verdict::Rejected(why) => rejected = rejected.max(why),
                Verdict::Refused(reply) => refused = Some(reply),
                Verdict::Unclear(why) => unchecked = Some(why),
                Verdict::Away(why) => {
                    unchecked = Some(why);
                    open |= check.fails_open();
                }
            }
        }
        match (unchecked, refused) {
            (None, Some(reply)) => Decision::Refused(reply),
            (None, None) => Decision::Rejected(rejected),
            // `on_failure: open` does not override a refusal by another mode.
            (Some(_), Some(reply)) if open => Decision::Refused(reply),
            (Some(_), None) if open && rejected.is_definite() => Decision::Rejected(rejected),
            (Some(_), None) if open => {
                self.unchecked_open.inc();
                Decision::LetThrough
            }
            (Some(why), _) => {
                self.unchecked_closed.inc();
                Decision::Unavailable(why)
            }
        }
    }

    /// Checks the token with one mode. Verified signatures are cached here; `introspection` and `forward_auth` have their own cache.
    async fn check(&self, index: usize, check: &Check, token: &str, hash: [u8; 32], cx: &RequestCx<'_>) -> Verdict {
        let now_s = cx.now.unix_s();
        match check {
            // A malformed token is refused without a call.
            Check::Introspection(_) | Check::ForwardAuth(_) | Check::WellFormed if !is_token68(token) => {
                Verdict::Rejected(Rejected::Malformed)
            }
            Check::Introspection(introspection) => introspection.verify(token, hash, now_s).await,
            Check::ForwardAuth(service) => service.verify(token, cx).await,
            Check::WellFormed => Verdict::from(Ok(Verified::anonymous())),
            Check::Static(tokens) => {
                let found = tokens.get(&hash).ok_or(Rejected::Unknown);
                found.and_then(|verified| verified.check_time(now_s).map(|()| verified.clone())).into()
            }
            Check::Jwt(jwt) => self.verify(index, jwt, token, hash, cx).await,
        }
    }

    async fn verify(&self, index: usize, jwt: &Jwt, token: &str, hash: [u8; 32], cx: &RequestCx<'_>) -> Verdict {
        let now_s = cx.now.unix_s();
        if let Some(cached) =
            self.cache.get(&hash).filter(|cached| cached.check == index && jwt.is_current_generation(cached.generation, cx.now.instant))
        {
            self.hits.inc();
            return cached.verified.check_time(now_s).map_or_else(Verdict::Rejected, |()| Verdict::Accepted(cached.verified));
        }
        self.misses.inc();
        // Read before the verification: if the keys change meanwhile, the next request verifies the token again.
        let generation = jwt.generation(cx.now.instant);
        let verified = match jwt.verify(token, cx.now.instant).await {
            Outcome::Verified(verified) => verified,
            Outcome::Rejected(rejected) => return Verdict::Rejected(rejected),
            Outcome::NoKeys => return Verdict::Away("jwt: the keys of the issuer were never fetched".into()),
            // Blocking the connection to the issuer must not open the filter.
            Outcome::OldKeys => return Verdict::Unclear("jwt: the last keys of the issuer are older than refresh.max_age".into()),
        };
        if let Err(rejected) = verified.check_time(now_s) {
            return Verdict::Rejected(rejected);
        }
        let verified = Arc::new(verified);
        self.cache.insert(hash, CachedToken { verified: Arc::clone(&verified), check: index, generation });
        Verdict::Accepted(verified)
    }

    fn challenge(&self, more: &str) -> Result<HeaderValue> {
        header_value(&format!("Bearer realm=\"{}\"{more}", self.realm))
    }

    /// No error code if the request has no token (RFC 6750, section 3.1).
    fn missing(&self) -> Result<Flow> {
        let message = format!("No bearer token was sent. {}", self.instruction);
        let reply = Reply::new(Problem::Unauthenticated, "missing_token", "missing_token", message);
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
            // Details would help an attacker to forge a token.
            _ => "the token is not valid",
        };
        let reply = Reply::new(Problem::Unauthenticated, "invalid_token", rejected.reason(), format!("Access denied: {description}."));
        let challenge = format!(", error=\"invalid_token\", error_description=\"{description}\"");
        Ok(reply.header(header::WWW_AUTHENTICATE, self.challenge(&challenge)?).into())
    }
}

/// `b64token` of RFC 6750, section 2.1.
fn is_token68(token: &str) -> bool {
    let body = token.trim_end_matches('=');
    !body.is_empty() && body.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._~+/".contains(&b))
}

fn unavailable(why: &str) -> Reply {
    let message = "The token cannot be checked at the moment. Retry in 1 s.";
    Reply::new(Problem::Unavailable, "authentication_unavailable", "unchecked", message)
        .header(header::RETRY_AFTER, HeaderValue::from_static("1"))
        .detail(why)
}

#[cfg(test)]
mod tests;
