//! # bearer
//!
//! Checks the bearer token of a request. The modes under `accept` are tried in order; the first that takes the token
//! decides. What comes out (subject, scopes, claims) is there for later filters, such as `rules` and a `rate_limit` per
//! claim, and for the upstream, if `tell_upstream` says so.
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
//! - `static`: tokens known by their SHA-256. `keylatch token new` makes one. Tokens must be random and long, since a
//!   plain hash of a guessable one can be guessed.
//! - `jwt`: signed tokens (RFC 7519, checked as RFC 8725 says): the algorithm must be listed, `iss`, `aud`,
//!   `exp` and `nbf` must fit, and `jku`, `x5u` and `jwk` in a token are never followed. The key is a `secret` (HS), a
//!   `pem` (RS, PS, ES, EdDSA, Ed25519), a `jwks` document, a `jwks_url`, or found by OpenID `discovery`. Published keys are
//!   refreshed in the background; a token with an unknown `kid` has them asked for at once, at most once within
//!   `refresh.unknown_kid`; while the issuer is away the last good set serves. One item for each issuer: the token's
//!   `iss` chooses.
//! - `introspection`: the authorization server is asked (RFC 7662). Its answers are remembered for `cache` and
//!   `negative_cache`, never past `exp`, and it is asked once where many requests want to know at once.
//! - `forward_auth`: any HTTP service is asked: 2xx is a yes, 3xx and 4xx (but 408 and 429) a no. `send` and `tell` say what it gets beside the
//!   token, `take` which fields of its answer the upstream gets, `refusal` whose words a no shows.
//! - `well_formed`: any token of the right form, for upstreams that check it themselves.
//!
//! Where somebody could not be asked and no other mode takes the token, the answer is a 503 with `Retry-After`. With
//! `on_failure: open` the request passes instead, without an identity, and is counted in `keylatch_bearer_unasked_total`
//! and marked in the access log (`let_through`); but only where nobody is there (no connection, no answer in time, 502 to
//! 504), which no token can bring about, and where no other mode knows the token and says no.
//! Only the token is checked. Other fields in which a client may send an API key go upstream as they are: put `key_binding` beside
//! this filter where the upstream reads keys.
//!
//! To one service 64 calls are under way at once; others wait for their turn, for as long as a call may take.
//!
//! In shadow mode nothing is changed: a client's own fields of the names under `tell_upstream` and `take` go upstream.
//!
//! Refusals follow RFC 6750: 401 with `WWW-Authenticate: Bearer`, and `error="invalid_token"` when there was one.
//! Verified signatures are remembered until the token expires or the issuer's keys change; at most `cache_max` of them.
//! What services have said takes at most 64 MiB for each mode.

mod config;
mod forward_auth;
mod introspection;
mod jws;
mod jwt;
mod keys;
mod known;
mod memo;
mod remote_keys;
mod signature;
mod upstream;
mod verdict;

use std::sync::Arc;

use http::{HeaderName, HeaderValue, header};
use prometheus::IntCounter;
use quick_cache::sync::Cache;
use sha2::{Digest, Sha256};

use crate::contract::{
    Filter, Flow, Hooks, Invalid, KeyForm, KeyReader, KeySource, Problem, Reply, RequestCx, Result, Site, UnlistedQuery, UpstreamCx,
    header_value, key_bytes_bound,
};
use config::CACHE_MAX;
pub use config::{Config, Mode, OnFailure};
use forward_auth::ForwardAuth;
use introspection::Introspection;
pub use jws::signed_claims;
use jwt::{Jwt, Outcome};
pub use jwt::{is_for, numeric_date};
pub use keys::{Alg, KeySet};
use known::Known;
use upstream::Told;
pub use verdict::Rejected;
use verdict::{Verdict, Verified};

enum Check {
    Static(Known),
    Jwt(Box<Jwt>),
    Introspection(Box<Introspection>),
    ForwardAuth(Box<ForwardAuth>),
    WellFormed,
}

/// A token that was verified here, by which mode, and under which generation of its keys.
#[derive(Clone)]
struct Remembered {
    verified: Arc<Verified>,
    check: usize,
    generation: u64,
}

/// What came of all modes together.
enum Decision {
    Accepted(Arc<Verified>),
    Rejected(Rejected),
    Refused(Box<Reply>),
    /// By which mode, and why it could not ask.
    Unasked(Arc<str>),
    LetThrough,
}

/// The compiled filter.
pub struct Bearer {
    checks: Vec<Check>,
    /// Set where the form is all that is checked.
    anybody: Option<Arc<Verified>>,
    reader: KeyReader,
    /// How a client sends a token.
    instruction: String,
    told: Told,
    realm: String,
    cache: Cache<[u8; 32], Remembered>,
    hits: IntCounter,
    misses: IntCounter,
    unasked_closed: IntCounter,
    unasked_open: IntCounter,
}

impl Filter for Bearer {
    const NAME: &'static str = "bearer";
    const HOOKS: Hooks = Hooks { request: true, upstream_request: true, ..Hooks::NONE };
    const SOURCE: &'static str = include_str!("mod.rs");
    type Config = Config;
    /// Who it is, for the upstream.
    type State = Option<Arc<Verified>>;

    fn compile(config: Config, site: &mut Site<'_>) -> Result<Self, Invalid> {
        if config.accept.is_empty() {
            let modes = "`static`, `jwt`, `introspection`, `forward_auth` or `well_formed`";
            return Err(Invalid::new(format!("name at least one way to check a token: {modes}")).at("accept"));
        }
        if config.from.is_empty() {
            return Err(Invalid::new("name at least one place a token may stand in").at("from"));
        }
        if config.realm.contains(['"', '\\']) || HeaderValue::from_str(&config.realm).is_err() {
            return Err(Invalid::new("a realm is plain text without quotes").at("realm"));
        }
        if !(1..=CACHE_MAX).contains(&config.cache_max) {
            return Err(Invalid::new(format!("must be between 1 and {CACHE_MAX}")).at("cache_max"));
        }
        let checks = config.accept.into_iter().enumerate();
        let checks = checks.map(|(index, mode)| Check::compile(mode, config.cache_max, site).map_err(|e| e.index(index).at("accept")));
        let checks: Vec<Check> = checks.collect::<Result<_, _>>()?;
        let taken: Vec<HeaderName> = checks.iter().flat_map(Check::takes).cloned().collect();
        let form_only = matches!(checks.as_slice(), [Check::WellFormed]);
        let looked_up = |result| site.counter("bearer_cache_requests_total", "Look-ups of verified tokens, by result.", ("result", result));
        let unasked = |outcome| {
            let help = "Requests of whose token nobody could be asked, by what was done.";
            site.counter("bearer_unasked_total", help, ("outcome", outcome))
        };
        Ok(Self {
            anybody: form_only.then(|| Arc::new(Verified::somebody())),
            checks,
            reader: KeyReader::new(
                &config.from,
                key_bytes_bound(config.token_bytes).map_err(|invalid| invalid.at("token_bytes"))?,
                UnlistedQuery::Ignored,
                KeyForm::Exact,
            )
            .map_err(|invalid| invalid.at("from"))?,
            instruction: config.from.first().map(KeySource::instruction).unwrap_or_default().replace("YOUR_KEY", "YOUR_TOKEN"),
            told: Told::compile(&config.tell_upstream, taken).map_err(|e| e.at("tell_upstream"))?,
            realm: config.realm,
            cache: Cache::new(config.cache_max),
            hits: looked_up("hit"),
            misses: looked_up("miss"),
            unasked_closed: unasked("closed"),
            unasked_open: unasked("open"),
        })
    }

    async fn request(&self, cx: &mut RequestCx<'_>, who: &mut Self::State) -> Result<Flow> {
        let token = match self.reader.read(cx.request) {
            Ok(Some(token)) => token,
            Ok(None) => return self.missing(),
            Err(error) => return self.malformed(error.reason()),
        };
        match self.decide(&token, cx).await {
            Decision::Accepted(verified) => {
                cx.facts.put(verified.identity.clone());
                *who = Some(verified);
                Ok(Flow::Continue)
            }
            Decision::Rejected(rejected) => self.invalid(rejected),
            Decision::Refused(reply) => Ok(Flow::Respond(reply)),
            Decision::Unasked(why) => Ok(unavailable(&why).into()),
            Decision::LetThrough => {
                cx.facts.let_through(Self::NAME);
                Ok(Flow::Continue)
            }
        }
    }

    fn upstream_request(&self, cx: &mut UpstreamCx<'_>, who: &mut Self::State) -> Result<()> {
        self.told.apply(cx.upstream, who.as_deref())
    }
}

impl Bearer {
    async fn decide(&self, token: &str, cx: &RequestCx<'_>) -> Decision {
        // A look at the form costs less than the hash by which a verified token is remembered.
        if let Some(anybody) = &self.anybody {
            return if is_token68(token) { Decision::Accepted(Arc::clone(anybody)) } else { Decision::Rejected(Rejected::Malformed) };
        }
        let hash: [u8; 32] = Sha256::digest(token.as_bytes()).into();
        let (mut rejected, mut refused, mut unasked, mut open) = (Rejected::Unknown, None, None, false);
        for (index, check) in self.checks.iter().enumerate() {
            match self.ask(index, check, token, hash, cx).await {
                Verdict::Accepted(verified) => return Decision::Accepted(verified),
                Verdict::Rejected(why) => rejected = rejected.max(why),
                Verdict::Refused(reply) => refused = Some(reply),
                Verdict::Unclear(why) => unasked = Some(why),
                Verdict::Away(why) => {
                    unasked = Some(why);
                    open |= check.fails_open();
                }
            }
        }
        match (unasked, refused) {
            (None, Some(reply)) => Decision::Refused(reply),
            (None, None) => Decision::Rejected(rejected),
            // Who is away cannot make up for somebody's no.
            (Some(_), Some(reply)) if open => Decision::Refused(reply),
            (Some(_), None) if open && rejected.is_definite() => Decision::Rejected(rejected),
            (Some(_), None) if open => {
                self.unasked_open.inc();
                Decision::LetThrough
            }
            (Some(why), _) => {
                self.unasked_closed.inc();
                Decision::Unasked(why)
            }
        }
    }

    /// Asks one mode. A signature that was verified is remembered; who asks somebody remembers the answers himself.
    async fn ask(&self, index: usize, check: &Check, token: &str, hash: [u8; 32], cx: &RequestCx<'_>) -> Verdict {
        let now_s = cx.now.unix_s();
        match check {
            // What cannot be a bearer token is nobody's to be asked about.
            Check::Introspection(_) | Check::ForwardAuth(_) | Check::WellFormed if !is_token68(token) => {
                Verdict::Rejected(Rejected::Malformed)
            }
            Check::Introspection(introspection) => introspection.verify(token, hash, now_s).await,
            Check::ForwardAuth(service) => service.verify(token, cx).await,
            Check::WellFormed => Verdict::from(Ok(Verified::somebody())),
            Check::Static(tokens) => {
                let known = tokens.get(&hash).ok_or(Rejected::Unknown);
                known.and_then(|known| known.in_time(now_s).map(|()| known.clone())).into()
            }
            Check::Jwt(jwt) => self.verify(index, jwt, token, hash, cx).await,
        }
    }

    async fn verify(&self, index: usize, jwt: &Jwt, token: &str, hash: [u8; 32], cx: &RequestCx<'_>) -> Verdict {
        let now_s = cx.now.unix_s();
        if let Some(known) = self.cache.get(&hash).filter(|known| known.check == index && jwt.holds(known.generation, cx.now.instant)) {
            self.hits.inc();
            return known.verified.in_time(now_s).map_or_else(Verdict::Rejected, |()| Verdict::Accepted(known.verified));
        }
        self.misses.inc();
        // Before it is verified: under keys that change meanwhile it is verified once more.
        let generation = jwt.generation(cx.now.instant);
        let verified = match jwt.verify(token, cx.now.instant).await {
            Outcome::Verified(verified) => verified,
            Outcome::Rejected(rejected) => return Verdict::Rejected(rejected),
            Outcome::NoKeys => return Verdict::Away("jwt: the issuer's keys could not be had yet".into()),
            // An attacker who blocks the issuer must not open the filter.
            Outcome::OldKeys => return Verdict::Unclear("jwt: the issuer's last keys are older than refresh.max_age".into()),
        };
        if let Err(rejected) = verified.in_time(now_s) {
            return Verdict::Rejected(rejected);
        }
        let verified = Arc::new(verified);
        self.cache.insert(hash, Remembered { verified: Arc::clone(&verified), check: index, generation });
        Verdict::Accepted(verified)
    }

    fn challenge(&self, more: &str) -> Result<HeaderValue> {
        header_value(&format!("Bearer realm=\"{}\"{more}", self.realm))
    }

    /// RFC 6750, section 3.1: no error code when nothing was sent.
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
            // What exactly was wrong would help whoever tries to forge one.
            _ => "the token is not valid",
        };
        let reply = Reply::new(Problem::Unauthenticated, "invalid_token", rejected.reason(), format!("Access refused: {description}."));
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
    let message = "The token could not be checked right now. Try again shortly.";
    Reply::new(Problem::Unavailable, "authentication_unavailable", "unasked", message)
        .header(header::RETRY_AFTER, HeaderValue::from_static("1"))
        .detail(why)
}

impl Check {
    fn compile(mode: Mode, cache_max: usize, site: &Site<'_>) -> Result<Self, Invalid> {
        Ok(match mode {
            Mode::WellFormed => Check::WellFormed,
            Mode::Static(config) => Check::Static(known::compile(config).map_err(|e| e.at("static"))?),
            Mode::Jwt(config) => Check::Jwt(Box::new(Jwt::compile(*config, site).map_err(|e| e.at("jwt"))?)),
            Mode::Introspection(config) => {
                let compiled = Introspection::compile(*config, cache_max, site);
                Check::Introspection(Box::new(compiled.map_err(|e| e.at("introspection"))?))
            }
            Mode::ForwardAuth(config) => {
                Check::ForwardAuth(Box::new(ForwardAuth::compile(*config, cache_max, site).map_err(|e| e.at("forward_auth"))?))
            }
        })
    }

    fn fails_open(&self) -> bool {
        match self {
            Check::Jwt(jwt) => jwt.fails_open(),
            Check::Introspection(introspection) => introspection.fails_open(),
            Check::ForwardAuth(service) => service.fails_open(),
            Check::Static(_) | Check::WellFormed => false,
        }
    }

    /// Fields of the upstream's request that only this mode may set.
    fn takes(&self) -> &[HeaderName] {
        match self {
            Check::ForwardAuth(service) => service.takes(),
            _ => &[],
        }
    }
}

#[cfg(test)]
mod tests;
