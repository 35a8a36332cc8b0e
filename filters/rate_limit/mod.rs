//! # rate_limit
//!
//! Limits how often, exactly (GCRA), per key, client address, route, header or claim, or a combination of them.
//! Past the limit the client gets a 429 with `Retry-After`; every answer carries `RateLimit-Policy` and `RateLimit`
//! (IETF httpapi, draft-ietf-httpapi-ratelimit-headers). In `RateLimit`, `r` is how many requests are left, and `t`
//! after how many seconds there are more; after a refusal it is `Retry-After`.
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
//! Clients are counted by `ipv4_prefix` (32) and `ipv6_prefix` (64). Counts survive a reload; a new limit holds for the next request.
//!
//! With `window: calendar` a limit per minute, hour, day, week or month is used up and comes back when the next one
//! begins, in UTC or in `time_zone` (`Europe/Berlin`; the time zone database is a part of the program). `block_for` refuses whoever passed the limit for that long. `cost` is how much each request counts: a
//! number, or an expression that comes to one, such as `'request.path.startsWith("/v1/images") ? 5 : 1'` (the language is
//! that of `rules`); what comes to 0 is not counted, what comes to nothing or less than 0 counts 1. A limit with `chosen: true` counts only requests for which a rule has
//! chosen it by its name. One with `shadow: true` counts and refuses nobody; so does the whole filter.
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

use crate::contract::{
    Counters, Filter, Flow, Hooks, Invalid, Outcome, Problem, Reply, RequestCx, ResponseCx, Result, Site, StoreError, Trace,
};
pub use config::{Config, Cost, Limit, OnStoreFailure, Scope, Window};
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
    /// What came of each limit that was asked, in order.
    type State = Vec<Asked>;

    fn compile(config: Config, site: &mut Site<'_>) -> Result<Self, Invalid> {
        if config.and.len() >= LIMITS_MAX {
            return Err(Invalid::new(format!("at most {LIMITS_MAX} limits hold together")).at("and"));
        }
        let entries_max = config.entries_max.unwrap_or(ENTRIES_DEFAULT);
        if !(1000..=100_000_000).contains(&entries_max) {
            return Err(Invalid::new("must be between 1000 and 100000000").at("entries_max"));
        }
        let subjects = std::iter::once(&config.per).chain(config.and.iter().map(|limit| &limit.per));
        let prefixes = subject::Prefixes::for_subjects(config.ipv4_prefix, config.ipv6_prefix, subjects)?;
        let Config { name, per, limit, burst, window, time_zone, cost, block_for, chosen, .. } = config;
        let first = Limit { name, per, limit, burst, window, time_zone, cost, block_for, chosen, shadow: false };
        let together = config.scope == Scope::Shared;
        let mut policies = vec![Policy::compile(first, prefixes, entries_max, together, site)?];
        for (index, limit) in config.and.into_iter().enumerate() {
            let wrong = |e: Invalid| e.index(index).at("and");
            let policy = Policy::compile(limit, prefixes, entries_max, together, site).map_err(wrong)?;
            if policies.iter().any(|other| other.name == policy.name) {
                return Err(wrong(Invalid::new(format!("two limits are named `{}`; give one a `name`", policy.name))));
            }
            policies.push(policy);
        }
        if config.on_store_failure.is_some() && config.scope == Scope::Local {
            return Err(Invalid::new("goes with `scope: shared` only").at("on_store_failure"));
        }
        let on_store_failure = config.on_store_failure.unwrap_or_default();
        let shared = match config.scope {
            Scope::Shared => Some(site.counters().map_err(|invalid| invalid.at("scope"))?),
            Scope::Local => None,
        };
        Ok(Self {
            policies,
            shared,
            on_store_failure,
            openai_fields: config.openai_fields,
            store_failures: site.counter(
                "rate_limit_store_failures_total",
                "Requests whose shared counts could not be reached, by what was done.",
                ("outcome", on_store_failure.as_str()),
            ),
        })
    }

    async fn request(&self, cx: &mut RequestCx<'_>, asked: &mut Vec<Asked>) -> Result<Flow> {
        if cx.is_dry_run() {
            return Ok(self.foresee(cx).await);
        }
        let refused_by = match &self.shared {
            Some(shared) => match self.count_together(&**shared, cx).await {
                Ok(all) => {
                    *asked = all;
                    asked.iter().find(|one| self.refuses(one)).copied()
                }
                Err(_) => {
                    self.store_failures.inc();
                    match self.on_store_failure {
                        OnStoreFailure::Local => self.count(cx, asked),
                        OnStoreFailure::Allow => {
                            cx.facts.let_through(Self::NAME);
                            None
                        }
                        OnStoreFailure::Deny => return Ok(away().into()),
                    }
                }
            },
            None => self.count(cx, asked),
        };
        for (policy, Asked { outcome, .. }) in self.told(asked) {
            policy.tell(outcome.allowed, cx.shadow);
        }
        self.note(refused_by, asked, cx);
        self.trace(asked, cx);
        match refused_by.and_then(|one| Some((self.policies.get(one.policy)?, one.outcome))) {
            Some((policy, outcome)) => Ok(refusal(policy, outcome).into()),
            None => Ok(Flow::Continue),
        }
    }

    fn response(&self, cx: &mut ResponseCx<'_>, asked: &mut Vec<Asked>) -> Result<()> {
        // What refuses nobody is nobody's to pace himself by.
        let told = || self.told(asked).filter(|(policy, _)| !policy.shadow);
        for (policy, one) in told() {
            fields::ietf(cx.response, policy, one.outcome)?;
        }
        if self.openai_fields {
            let tightest = told().min_by_key(|(_, one)| (one.outcome.allowed, one.outcome.remaining));
            if let Some((policy, one)) = tightest {
                fields::openai(cx.response, policy, one.outcome)?;
            }
        }
        Ok(())
    }
}

/// What came of one limit that was asked.
#[derive(Clone, Copy, Debug)]
pub struct Asked {
    policy: usize,
    cost: u32,
    outcome: Outcome,
}

impl RateLimit {
    /// What would come of a request. Counts nothing.
    async fn foresee(&self, cx: &mut RequestCx<'_>) -> Flow {
        let mut asked = Vec::new();
        let costs: Vec<_> = self.costs(cx).collect();
        for (index, policy, cost) in costs {
            match policy.look(cost, self.shared.as_ref(), cx).await {
                Ok(outcome) => asked.push(Asked { policy: index, cost, outcome }),
                Err(_) if self.on_store_failure == OnStoreFailure::Deny => return away().into(),
                Err(_) => {
                    cx.facts.let_through(Self::NAME);
                    return Flow::Continue;
                }
            }
        }
        self.trace(&asked, cx);
        let refused_by = asked.iter().find(|one| self.refuses(one));
        match refused_by.and_then(|one| Some((self.policies.get(one.policy)?, one.outcome))) {
            Some((policy, outcome)) => refusal(policy, outcome).into(),
            None => Flow::Continue,
        }
    }

    fn trace(&self, asked: &[Asked], cx: &mut RequestCx<'_>) {
        if cx.facts.get::<Trace>().is_some() {
            let said: Vec<String> = self.told(asked).map(|(policy, one)| policy.says(one.cost, one.outcome, cx)).collect();
            cx.facts.get_mut::<Trace>().into_iter().for_each(|trace| trace.0.extend(said.iter().cloned()));
        }
    }

    fn refuses(&self, one: &Asked) -> bool {
        !one.outcome.allowed && self.policies.get(one.policy).is_some_and(|policy| !policy.shadow)
    }

    /// Each limit that was asked, with what came of it.
    fn told<'s>(&'s self, asked: &'s [Asked]) -> impl Iterator<Item = (&'s Policy, &'s Asked)> {
        asked.iter().filter_map(|one| Some((self.policies.get(one.policy)?, one)))
    }

    /// Lets operators see who is near or over a limit. What a refused request had used of the others it has got back.
    fn note(&self, refused_by: Option<Asked>, asked: &[Asked], cx: &RequestCx<'_>) {
        for (policy, one) in self.told(asked) {
            if refused_by.is_none() || !one.outcome.allowed {
                policy.note(&one.outcome, self.shared.as_ref(), cx);
            }
        }
    }

    /// The limits that this request counts on, and how much.
    fn costs<'s>(&'s self, cx: &'s RequestCx<'_>) -> impl Iterator<Item = (usize, &'s Policy, u32)> {
        let each = self.policies.iter().enumerate().map(|(index, policy)| (index, policy, policy.cost(cx)));
        each.filter(|(_, _, cost)| *cost > 0)
    }

    /// Counts with the other replicas.
    async fn count_together(&self, shared: &dyn Counters, cx: &RequestCx<'_>) -> Result<Vec<Asked>, StoreError> {
        let (places, hits): (Vec<(usize, u32)>, Vec<_>) =
            self.costs(cx).map(|(index, policy, cost)| ((index, cost), policy.hit(cost, cx))).unzip();
        if hits.is_empty() {
            return Ok(Vec::new());
        }
        let outcomes = shared.hit(hits).await?;
        Ok(places.into_iter().zip(outcomes).map(|((policy, cost), outcome)| Asked { policy, cost, outcome }).collect())
    }

    /// Counts in this process. The limit that refuses, if one does.
    fn count(&self, cx: &RequestCx<'_>, asked: &mut Vec<Asked>) -> Option<Asked> {
        asked.reserve_exact(self.policies.len());
        let mut slots: Vec<(&Policy, Slot)> = Vec::with_capacity(self.policies.len());
        for (index, policy, cost) in self.costs(cx) {
            let slot = policy.slot(cost, cx);
            let one = Asked { policy: index, cost, outcome: policy.count(&slot, cx) };
            asked.push(one);
            if self.refuses(&one) {
                slots.iter().for_each(|(policy, slot)| policy.refund(slot));
                return Some(one);
            }
            if one.outcome.allowed {
                slots.push((policy, slot));
            }
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
