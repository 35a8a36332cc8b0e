//! # rate_limit
//!
//! Limits how often, exactly (GCRA), per key, client address, route, header or claim, or a combination of them.
//! Past the limit the client gets a 429 with `Retry-After`; every answer carries `RateLimit-Policy` and `RateLimit`
//! (IETF httpapi, draft-ietf-httpapi-ratelimit-headers).
//!
//! ```yaml
//! rate_limit:
//!   per: key
//!   limit: 60/min
//!   burst: 20
//!   and:
//!     - {name: hourly, per: client, limit: 1000/h}
//!     - {name: quota, per: key, limit: 100000/month, window: calendar}
//!     - {name: shared-out, per: [client, key], limit: 60/min, block_for: 5m}
//! ```
//!
//! `burst` is how many may come at once; without it, all of the count. The limits of one item hold
//! together: a request that one of them refuses uses up nothing of the others.
//! A request without the key, header or claim that is counted is counted by its client address instead.
//! IPv6 clients are counted by their /64. Counts survive a reload; a new limit holds for the next request.
//!
//! With `window: calendar` a limit per minute, hour, day, week or month is used up and comes back when the next one
//! begins (UTC). `block_for` refuses whoever passed the limit for that long. `cost` is how much each request counts.
//! A limit with `shadow: true` counts and refuses nobody; so does the whole filter.
//!
//! With `scope: shared` replicas count together, in Redis, one round trip for all limits of the item: they let through
//! what one would. When Redis is away, `on_store_failure` says what then: each replica counts by itself (`local`),
//! requests pass (`allow`), or get 503 (`deny`).
//!
//! Memory is bounded by `entries_max` (about 50 bytes each): past it, those who have used least of
//! their limit are forgotten first.

pub mod calendar;
mod config;
mod fields;
pub mod gcra;
mod policy;
pub mod subject;

use std::sync::Arc;
use std::time::Duration;

use prometheus::IntCounter;

use crate::contract::{Counters, Filter, Flow, Hooks, Invalid, Outcome, Problem, Reply, RequestCx, ResponseCx, Result, Site};
pub use config::{Config, Limit, OnStoreFailure, Scope, Window};
use policy::{Policy, Slot};

const ENTRIES_DEFAULT: usize = 250_000;
const LIMITS_MAX: usize = 8;

/// The compiled filter.
pub struct RateLimit {
    policies: Vec<Policy>,
    /// Where replicas count together.
    shared: Option<Arc<dyn Counters>>,
    on_store_failure: OnStoreFailure,
    openai_fields: bool,
    store_failures: IntCounter,
}

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
        let Config { name, per, limit, burst, window, cost, block_for, .. } = config;
        let first = Limit { name, per, limit, burst, window, cost, block_for, shadow: false };
        let mut policies = vec![Policy::compile(first, entries_max, site)?];
        for (index, limit) in config.and.into_iter().enumerate() {
            let wrong = |e: Invalid| e.index(index).at("and");
            let policy = Policy::compile(limit, entries_max, site).map_err(wrong)?;
            if policies.iter().any(|other| other.name == policy.name) {
                return Err(wrong(Invalid::new(format!("two limits are named `{}`; give one a `name`", policy.name))));
            }
            policies.push(policy);
        }
        let shared = match config.scope {
            Scope::Shared => Some(site.counters().map_err(|invalid| invalid.at("scope"))?),
            Scope::Local => None,
        };
        Ok(Self {
            policies,
            shared,
            on_store_failure: config.on_store_failure,
            openai_fields: config.openai_fields,
            store_failures: site.counter(
                "rate_limit_store_failures_total",
                "Requests whose shared counts could not be reached, by what was done.",
                ("outcome", config.on_store_failure.as_str()),
            ),
        })
    }

    async fn request(&self, cx: &mut RequestCx<'_>, outcomes: &mut Vec<Outcome>) -> Result<Flow> {
        let refused_by = match &self.shared {
            Some(shared) => {
                let hits = self.policies.iter().map(|policy| policy.hit(cx)).collect();
                match (shared.hit(hits).await, self.on_store_failure) {
                    (Ok(all), _) => {
                        *outcomes = all;
                        self.policies.iter().zip(&*outcomes).position(|(policy, outcome)| !outcome.allowed && !policy.shadow)
                    }
                    (Err(_), failure) => {
                        self.store_failures.inc();
                        match failure {
                            OnStoreFailure::Local => self.count(cx, outcomes),
                            OnStoreFailure::Allow => {
                                cx.facts.let_through(Self::NAME);
                                None
                            }
                            OnStoreFailure::Deny => return Ok(away().into()),
                        }
                    }
                }
            }
            None => self.count(cx, outcomes),
        };
        for (policy, outcome) in self.policies.iter().zip(&*outcomes) {
            policy.tell(outcome.allowed);
        }
        match refused_by.and_then(|index| self.policies.get(index).zip(outcomes.get(index))) {
            Some((policy, outcome)) => Ok(refusal(policy, *outcome).into()),
            None => Ok(Flow::Continue),
        }
    }

    fn response(&self, cx: &mut ResponseCx<'_>, outcomes: &mut Vec<Outcome>) -> Result<()> {
        for (policy, outcome) in self.policies.iter().zip(&*outcomes) {
            fields::ietf(cx.response, policy, *outcome)?;
        }
        if self.openai_fields {
            let tightest = self.policies.iter().zip(&*outcomes).min_by_key(|(_, outcome)| (outcome.allowed, outcome.remaining));
            if let Some((policy, outcome)) = tightest {
                fields::openai(cx.response, policy, *outcome)?;
            }
        }
        Ok(())
    }
}

impl RateLimit {
    /// Counts in this process. The index of the limit that refuses, if one does.
    fn count(&self, cx: &RequestCx<'_>, outcomes: &mut Vec<Outcome>) -> Option<usize> {
        outcomes.reserve_exact(self.policies.len());
        let mut slots: Vec<Option<Slot>> = Vec::with_capacity(self.policies.len());
        for (index, policy) in self.policies.iter().enumerate() {
            let slot = policy.slot(cx);
            let outcome = policy.count(&slot, cx);
            outcomes.push(outcome);
            if !outcome.allowed && !policy.shadow {
                for (policy, slot) in self.policies.iter().zip(slots) {
                    slot.iter().for_each(|slot| policy.refund(slot));
                }
                return Some(index);
            }
            slots.push(outcome.allowed.then_some(slot));
        }
        None
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
    .header(http::header::RETRY_AFTER, http::HeaderValue::from(retry_after_s))
}

/// Shared counts cannot be reached, and nobody is to pass uncounted.
pub fn away() -> Reply {
    let message = "How often you may ask cannot be looked up at the moment. Try again in a second.";
    Reply::new(Problem::Unavailable, "limits_unavailable", "store", message)
        .header(http::header::RETRY_AFTER, http::HeaderValue::from_static("1"))
}

/// In whole seconds, rounded up: a header field has no fractions.
pub fn ceil_s(duration: Duration) -> u64 {
    duration.as_secs() + u64::from(duration.subsec_nanos() > 0)
}

#[cfg(test)]
mod tests;
