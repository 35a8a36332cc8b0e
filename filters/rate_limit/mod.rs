//! # rate_limit
//!
//! Limits how often, exactly (GCRA), per key, client address, route, header or claim. Past the limit
//! the client gets a 429 with `Retry-After`; every answer carries `RateLimit-Policy` and `RateLimit`
//! (IETF httpapi, draft-ietf-httpapi-ratelimit-headers).
//!
//! ```yaml
//! rate_limit:
//!   per: key
//!   limit: 60/min
//!   burst: 20
//!   and:
//!     - {name: hourly, per: client, limit: 1000/h}
//! ```
//!
//! `burst` is how many may come at once; without it, all of the count. The limits of one item hold
//! together: a request that one of them refuses uses up nothing of the others.
//! A request without the key, header or claim that is counted is counted by its client address instead.
//! IPv6 clients are counted by their /64. Counts survive a reload; a new limit holds for the next request.
//!
//! Memory is bounded by `entries_max` (about 50 bytes each): past it, those who have used least of
//! their limit are forgotten first.

pub mod gcra;

use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderName, HeaderValue, header};
use schemars::JsonSchema;
use serde::Deserialize;

use crate::contract::{
    Filter, Flow, Hooks, Identity, Invalid, Key, KeyHasher, KeyReader, Problem, Rate, Reply, RequestCx, ResponseCx, Result, Site, failure,
};
use gcra::{Outcome, Quota, Table};

/// What is counted.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Per {
    /// Each API key.
    Key,
    /// Each client address.
    Client,
    /// Each route: everybody together.
    Route,
    /// Each value of this header field.
    Header(String),
    /// Each value of this claim of a checked bearer.
    Claim(String),
}

/// One limit.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Limit {
    /// Its name in header fields and metrics. Default: what it counts.
    pub name: Option<String>,
    /// What is counted.
    pub per: Per,
    /// How often: `60/min`.
    pub limit: Rate,
    /// How many at once. Default: the count of `limit`.
    pub burst: Option<u32>,
}

/// `rate_limit`
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Its name in header fields and metrics. Default: what it counts.
    pub name: Option<String>,
    /// What is counted.
    pub per: Per,
    /// How often: `60/min`.
    pub limit: Rate,
    /// How many at once. Default: the count of `limit`.
    pub burst: Option<u32>,
    /// More limits that hold together with this one.
    #[serde(default)]
    pub and: Vec<Limit>,
    /// How many keys, clients and so on are remembered, for each limit. Default: 250000.
    pub entries_max: Option<usize>,
}

const ENTRIES_DEFAULT: usize = 250_000;
const LIMITS_MAX: usize = 8;

/// Where the thing counted is read from.
enum Subject {
    Key,
    Client,
    Route,
    Header(HeaderName),
    Claim(String),
}

struct Policy {
    name: String,
    subject: Subject,
    quota: Quota,
    table: Arc<Table>,
    /// The member of `RateLimit-Policy`, which never changes.
    field: HeaderValue,
}

/// The compiled filter.
pub struct RateLimit {
    policies: Vec<Policy>,
    reader: KeyReader,
    hasher: KeyHasher,
}

const POLICY: HeaderName = HeaderName::from_static("ratelimit-policy");
const LIMIT: HeaderName = HeaderName::from_static("ratelimit");

impl Filter for RateLimit {
    const NAME: &'static str = "rate_limit";
    const HOOKS: Hooks = Hooks { request: true, response: true, ..Hooks::NONE };
    const SOURCE: &'static str = include_str!("mod.rs");
    type Config = Config;
    /// What came of each policy that was asked, in order.
    type State = Vec<Outcome>;

    fn compile(config: Config, site: &mut Site<'_>) -> Result<Self, Invalid> {
        if config.and.len() >= LIMITS_MAX {
            return Err(Invalid::new(format!("at most {LIMITS_MAX} limits hold together")).at("and"));
        }
        let entries_max = config.entries_max.unwrap_or(ENTRIES_DEFAULT);
        if !(1000..=100_000_000).contains(&entries_max) {
            return Err(Invalid::new("must be between 1000 and 100000000").at("entries_max"));
        }
        let first = Limit { name: config.name, per: config.per, limit: config.limit, burst: config.burst };
        let mut policies = vec![Policy::compile(first, entries_max, site)?];
        for (index, limit) in config.and.into_iter().enumerate() {
            let wrong = |e: Invalid| e.index(index).at("and");
            let policy = Policy::compile(limit, entries_max, site).map_err(wrong)?;
            if policies.iter().any(|other| other.name == policy.name) {
                return Err(wrong(Invalid::new(format!("two limits are named `{}`; give one a `name`", policy.name))));
            }
            policies.push(policy);
        }
        Ok(Self { policies, reader: KeyReader::default(), hasher: site.ports.hasher.clone() })
    }

    async fn request(&self, cx: &mut RequestCx<'_>, outcomes: &mut Vec<Outcome>) -> Result<Flow> {
        outcomes.reserve_exact(self.policies.len());
        let mut slots = Vec::with_capacity(self.policies.len());
        for policy in &self.policies {
            let slot = self.slot(policy, cx);
            let outcome = policy.table.hit(slot, policy.quota, cx.now.instant);
            outcomes.push(outcome);
            if !outcome.allowed {
                for (policy, slot) in self.policies.iter().zip(slots) {
                    policy.table.refund(slot, policy.quota);
                }
                return Ok(refusal(policy, outcome).into());
            }
            slots.push(slot);
        }
        Ok(Flow::Continue)
    }

    fn response(&self, cx: &mut ResponseCx<'_>, outcomes: &mut Vec<Outcome>) -> Result<()> {
        for (policy, outcome) in self.policies.iter().zip(outcomes) {
            let mut state = String::with_capacity(policy.name.len() + 32);
            let mut digits = itoa::Buffer::new();
            state.extend(["\"", &policy.name, "\";r=", digits.format(outcome.remaining)]);
            state.extend([";t=", digits.format(ceil_s(outcome.full_in))]);
            let state = HeaderValue::try_from(state).map_err(failure)?;
            cx.response.append_header(POLICY, policy.field.clone()).map_err(failure)?;
            cx.response.append_header(LIMIT, state).map_err(failure)?;
        }
        Ok(())
    }
}

impl RateLimit {
    /// Under which name this request is counted. The kinds are kept apart, so that no header value
    /// can be taken for an address.
    fn slot(&self, policy: &Policy, cx: &RequestCx<'_>) -> u128 {
        let client = || policy.table.slot(&("client", client_network(cx.client())));
        match &policy.subject {
            Subject::Client => client(),
            Subject::Route => policy.table.slot(&("route", cx.route)),
            Subject::Key => match cx.facts.get::<Key>() {
                Some(key) => policy.table.slot(&("key", key.id)),
                // No `key_binding` before this one.
                None => match self.reader.read(cx.headers()) {
                    Ok(Some(key)) => policy.table.slot(&("key", self.hasher.id(key))),
                    Ok(None) | Err(_) => client(),
                },
            },
            Subject::Header(name) => match cx.headers().get(name) {
                Some(value) => policy.table.slot(&("header", value.as_bytes())),
                None => client(),
            },
            Subject::Claim(name) => match cx.facts.get::<Identity>().and_then(|identity| identity.claims.get(name)) {
                Some(value) => policy.table.slot(&("claim", value.to_string())),
                None => client(),
            },
        }
    }
}

impl Policy {
    fn compile(limit: Limit, entries_max: usize, site: &Site<'_>) -> Result<Self, Invalid> {
        let (kind, subject) = match limit.per {
            Per::Key => ("key".to_owned(), Subject::Key),
            Per::Client => ("client".to_owned(), Subject::Client),
            Per::Route => ("route".to_owned(), Subject::Route),
            Per::Header(name) => {
                let parsed = name
                    .to_ascii_lowercase()
                    .parse()
                    .map_err(|_| Invalid::new(format!("`{name}` is not a header field's name")).at("header").at("per"))?;
                (name, Subject::Header(parsed))
            }
            Per::Claim(name) => (name.clone(), Subject::Claim(name)),
        };
        let name = limit.name.unwrap_or(kind);
        let word = |b: u8| b.is_ascii_alphanumeric() || b"-_.".contains(&b);
        if name.is_empty() || name.len() > 64 || !name.bytes().all(word) {
            return Err(Invalid::new(format!("`{name}` is not a name; use up to 64 letters, digits, `-`, `_` and `.`")).at("name"));
        }
        let burst = limit.burst.unwrap_or(limit.limit.count);
        if burst == 0 {
            return Err(Invalid::new("0 would let nothing through; it must be at least 1").at("burst"));
        }
        let window_s = limit.limit.period.as_secs().max(1);
        let field = HeaderValue::from_str(&format!("\"{name}\";q={};w={window_s}", limit.limit.count))
            .map_err(|e| Invalid::new(e.to_string()).at("name"))?;
        let key = format!("{} {name} {entries_max}", site.place);
        Ok(Self {
            name,
            subject,
            quota: Quota::new(limit.limit.interval(), burst),
            table: site.keep(&key, || Table::new(entries_max)),
            field,
        })
    }
}

fn refusal(policy: &Policy, outcome: Outcome) -> Reply {
    let retry_after_s = ceil_s(outcome.retry_in).max(1);
    Reply::new(
        Problem::RateLimited,
        "rate_limit_exceeded",
        "limit",
        format!("Rate limit `{}` reached. Try again in {retry_after_s}s.", policy.name),
    )
    .detail(format!("limit `{}`", policy.name))
    .header(header::RETRY_AFTER, HeaderValue::from(retry_after_s))
}

/// In whole seconds, rounded up: a header field has no fractions.
pub fn ceil_s(duration: Duration) -> u64 {
    duration.as_secs() + u64::from(duration.subsec_nanos() > 0)
}

/// What stands for a client in counts: an IPv4 address, or the /64 an IPv6 client has to itself, within
/// which it could otherwise take a new address for each request.
pub fn client_network(client: IpAddr) -> IpAddr {
    const HOST_BITS: u128 = u64::MAX as u128;
    match client {
        IpAddr::V4(_) => client,
        IpAddr::V6(v6) => IpAddr::V6(Ipv6Addr::from_bits(v6.to_bits() & !HOST_BITS)),
    }
}
