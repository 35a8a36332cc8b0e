//! # rate_limit
//!
//! Limits the rate of requests per key, client address, route, header or claim, or per combination of them. Counting is
//! exact (GCRA). A request over the limit gets 429 with `Retry-After`.
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
//! **Several limits.** The limits under `and` apply together with the first one. A request must be within all of them. A
//! request that one limit refuses uses nothing of the others.
//!
//! **Burst.** `burst` is the number of requests that may arrive at once. Default: the count of `limit`.
//!
//! **Subjects.** A request without the key, header or claim is counted by its client address instead. Client addresses
//! are grouped by `ipv4_prefix` (default 32) and `ipv6_prefix` (default 64). Counts survive a reload. A changed limit
//! applies to the next request.
//!
//! **Calendar windows.** With `window: calendar` the whole quota is restored when the next second, minute, hour, day, week
//! or month begins, in UTC or in `time_zone` (such as `Europe/Berlin`). The time zone database is part of the program.
//!
//! **Blocking.** With `block_for` a subject that exceeds the limit is refused for that time.
//!
//! **Cost.** `cost` is the amount that a request counts. It is a number or an expression that returns one, in the language
//! of `rules`: `'request.path.startsWith("/v1/images") ? 5 : 1'`. A request with cost 0 is not counted. A result above
//! the burst counts as the burst. If the expression fails or returns a negative number, the cost is 1.
//!
//! **Chosen limits.** A limit with `chosen: true` counts only requests for which a rule of `rules` names it (`limit`).
//!
//! **Shadow mode.** A limit with `shadow: true` counts and refuses no request. The whole filter can also be in shadow mode.
//!
//! **Replicas.** With `scope: shared` all replicas share their counts in Redis, with one round trip for all limits of the
//! filter. Together they admit as many requests as one replica would. If Redis is unavailable, `on_store_failure` decides:
//! each replica counts on its own (`local`), requests pass uncounted (`allow`), or requests get 503 (`deny`).
//!
//! **Response fields.** Every response carries `RateLimit-Policy` and `RateLimit`
//! (draft-ietf-httpapi-ratelimit-headers), except for limits in shadow mode. In `RateLimit`, `r` is the number of requests
//! left and `t` the seconds until more are available. After a refusal `t` equals `Retry-After`.
//!
//! **Memory.** Each limit remembers at most `entries_max` subjects, about 50 bytes each. Past that number, the subjects
//! that have used least of their limit are evicted first.

mod config;
mod fields;
mod policy;

use std::sync::Arc;

use prometheus::IntCounter;

use crate::contract::{
    Counters, Filter, Flow, Hooks, Invalid, Outcome, Problem, Reply, RequestCx, ResponseCx, Result, Site, StoreError, Trace,
};
use crate::limiting::{ClientPrefixes, CountScope, CountsFailurePolicy, ceil_s, shared_counts_unavailable};
pub use config::{LimitConfig, RateLimitConfig, RequestCost, WindowType};
use policy::{LimitPolicy, PolicySlot};

const ENTRIES_DEFAULT: usize = 250_000;
const LIMITS_MAX: usize = 8;

/// The compiled filter.
pub struct RateLimit {
    policies: Vec<LimitPolicy>,
    /// Counts shared with other replicas. `None`: `scope: local`.
    shared: Option<Arc<dyn Counters>>,
    on_store_failure: CountsFailurePolicy,
    openai_fields: bool,
    store_failures: IntCounter,
}

impl Filter for RateLimit {
    const NAME: &'static str = "rate_limit";
    const HOOKS: Hooks = Hooks { request: true, response: true, ..Hooks::NONE };
    const SOURCE: &'static str = include_str!("mod.rs");
    type Config = RateLimitConfig;
    /// The outcome of each limit that was checked, in order.
    type State = Vec<LimitOutcome>;

    fn reads_model(&self) -> bool {
        self.policies.iter().any(LimitPolicy::reads_model)
    }

    fn compile(config: RateLimitConfig, site: &mut Site<'_>) -> Result<Self, Invalid> {
        if config.and.len() >= LIMITS_MAX {
            return Err(Invalid::new(format!("a `rate_limit` filter has at most {LIMITS_MAX} limits; use a second filter")).at("and"));
        }
        let entries_max = config.entries_max.unwrap_or(ENTRIES_DEFAULT);
        if !(1000..=100_000_000).contains(&entries_max) {
            return Err(Invalid::new("must be between 1000 and 100000000").at("entries_max"));
        }
        let subjects = std::iter::once(&config.per).chain(config.and.iter().map(|limit| &limit.per));
        let prefixes = ClientPrefixes::for_subjects(config.ipv4_prefix, config.ipv6_prefix, subjects)?;
        let RateLimitConfig { name, per, limit, burst, window, time_zone, cost, block_for, chosen, .. } = config;
        let first = LimitConfig { name, per, limit, burst, window, time_zone, cost, block_for, chosen, shadow: false };
        let is_shared = config.scope == CountScope::Shared;
        let mut policies = vec![LimitPolicy::compile(first, prefixes, entries_max, is_shared, site)?];
        for (index, limit) in config.and.into_iter().enumerate() {
            let in_list = |e: Invalid| e.index(index).at("and");
            let policy = LimitPolicy::compile(limit, prefixes, entries_max, is_shared, site).map_err(in_list)?;
            if policies.iter().any(|other| other.name == policy.name) {
                return Err(in_list(Invalid::new(format!("two limits are named `{}`; set a different `name`", policy.name))));
            }
            policies.push(policy);
        }
        if config.on_store_failure.is_some() && config.scope == CountScope::Local {
            return Err(Invalid::new("requires `scope: shared`").at("on_store_failure"));
        }
        let on_store_failure = config.on_store_failure.unwrap_or_default();
        let shared = match config.scope {
            CountScope::Shared => Some(site.counters().map_err(|invalid| invalid.at("scope"))?),
            CountScope::Local => None,
        };
        Ok(Self {
            policies,
            shared,
            on_store_failure,
            openai_fields: config.openai_fields,
            store_failures: site.counter(
                "rate_limit_store_failures_total",
                "Requests for which the shared counts were unreachable, by the action taken.",
                ("outcome", on_store_failure.as_str()),
            ),
        })
    }

    async fn request(&self, cx: &mut RequestCx<'_>, outcomes: &mut Vec<LimitOutcome>) -> Result<Flow> {
        if cx.is_dry_run() {
            return Ok(self.dry_run(cx).await);
        }
        let refused_by = match &self.shared {
            Some(shared) => match self.count_shared(&**shared, cx).await {
                Ok(all) => {
                    *outcomes = all;
                    outcomes.iter().find(|one| self.refuses(one)).copied()
                }
                Err(_) => {
                    self.store_failures.inc();
                    match self.on_store_failure {
                        CountsFailurePolicy::Local => self.count_local(cx, outcomes),
                        CountsFailurePolicy::Allow => {
                            cx.facts.let_through(Self::NAME);
                            None
                        }
                        CountsFailurePolicy::Deny => return Ok(shared_counts_unavailable().into()),
                    }
                }
            },
            None => self.count_local(cx, outcomes),
        };
        for (policy, one) in self.with_policies(outcomes) {
            policy.count_outcome(one.outcome.allowed, cx.shadow);
        }
        self.record_usage(refused_by, outcomes, cx);
        self.trace(outcomes, cx);
        match refused_by.and_then(|one| Some((self.policies.get(one.policy)?, one.outcome))) {
            Some((policy, outcome)) => Ok(refusal(policy, outcome).into()),
            None => Ok(Flow::Continue),
        }
    }

    fn response(&self, cx: &mut ResponseCx<'_>, outcomes: &mut Vec<LimitOutcome>) -> Result<()> {
        // Clients must not pace themselves by a limit that refuses nothing.
        let enforced = || self.with_policies(outcomes).filter(|(policy, _)| !policy.shadow);
        for (policy, one) in enforced() {
            fields::ietf(cx.response, policy, one.outcome)?;
        }
        if self.openai_fields {
            let tightest = enforced().min_by_key(|(_, one)| (one.outcome.allowed, one.outcome.remaining));
            if let Some((policy, one)) = tightest {
                fields::openai(cx.response, policy, one.outcome)?;
            }
        }
        Ok(())
    }
}

/// The outcome of one limit for one request.
#[derive(Clone, Copy, Debug)]
pub struct LimitOutcome {
    /// Index into `RateLimit::policies`.
    policy: usize,
    cost: u32,
    outcome: Outcome,
}

impl RateLimit {
    /// The decision on a request without counting it.
    async fn dry_run(&self, cx: &mut RequestCx<'_>) -> Flow {
        let mut outcomes = Vec::new();
        let costs: Vec<_> = self.costs(cx).collect();
        for (index, policy, cost) in costs {
            match policy.peek(cost, self.shared.as_ref(), cx).await {
                Ok(outcome) => outcomes.push(LimitOutcome { policy: index, cost, outcome }),
                Err(_) if self.on_store_failure == CountsFailurePolicy::Deny => return shared_counts_unavailable().into(),
                Err(_) => {
                    cx.facts.let_through(Self::NAME);
                    return Flow::Continue;
                }
            }
        }
        self.trace(&outcomes, cx);
        let refused_by = outcomes.iter().find(|one| self.refuses(one));
        match refused_by.and_then(|one| Some((self.policies.get(one.policy)?, one.outcome))) {
            Some((policy, outcome)) => refusal(policy, outcome).into(),
            None => Flow::Continue,
        }
    }

    fn trace(&self, outcomes: &[LimitOutcome], cx: &mut RequestCx<'_>) {
        if cx.facts.get::<Trace>().is_some() {
            let lines: Vec<String> =
                self.with_policies(outcomes).map(|(policy, one)| policy.trace_line(one.cost, one.outcome, cx)).collect();
            cx.facts.get_mut::<Trace>().into_iter().for_each(|trace| trace.0.extend(lines.iter().cloned()));
        }
    }

    fn refuses(&self, one: &LimitOutcome) -> bool {
        !one.outcome.allowed && self.policies.get(one.policy).is_some_and(|policy| !policy.shadow)
    }

    /// Each outcome with its limit.
    fn with_policies<'s>(&'s self, outcomes: &'s [LimitOutcome]) -> impl Iterator<Item = (&'s LimitPolicy, &'s LimitOutcome)> {
        outcomes.iter().filter_map(|one| Some((self.policies.get(one.policy)?, one)))
    }

    /// Reports subjects near or over a limit to operators. Limits that admitted a refused request are skipped: their
    /// usage was refunded.
    fn record_usage(&self, refused_by: Option<LimitOutcome>, outcomes: &[LimitOutcome], cx: &RequestCx<'_>) {
        for (policy, one) in self.with_policies(outcomes) {
            if refused_by.is_none() || !one.outcome.allowed {
                policy.record_usage(&one.outcome, self.shared.as_ref(), cx);
            }
        }
    }

    /// The limits that count this request: index, limit and cost.
    fn costs<'s>(&'s self, cx: &'s RequestCx<'_>) -> impl Iterator<Item = (usize, &'s LimitPolicy, u32)> {
        let each = self.policies.iter().enumerate().map(|(index, policy)| (index, policy, policy.cost(cx)));
        each.filter(|(_, _, cost)| *cost > 0)
    }

    /// Counts a request on all limits in Redis, in one step.
    async fn count_shared(&self, shared: &dyn Counters, cx: &RequestCx<'_>) -> Result<Vec<LimitOutcome>, StoreError> {
        let (places, hits): (Vec<(usize, u32)>, Vec<_>) =
            self.costs(cx).map(|(index, policy, cost)| ((index, cost), policy.hit(cost, cx))).unzip();
        if hits.is_empty() {
            return Ok(Vec::new());
        }
        let outcomes = shared.hit(hits).await?;
        Ok(places.into_iter().zip(outcomes).map(|((policy, cost), outcome)| LimitOutcome { policy, cost, outcome }).collect())
    }

    /// Counts a request in this process and returns the outcome that refuses it, if any. A refused request is refunded on
    /// the limits before.
    fn count_local(&self, cx: &RequestCx<'_>, outcomes: &mut Vec<LimitOutcome>) -> Option<LimitOutcome> {
        outcomes.reserve_exact(self.policies.len());
        let mut slots: Vec<(&LimitPolicy, PolicySlot)> = Vec::with_capacity(self.policies.len());
        for (index, policy, cost) in self.costs(cx) {
            let slot = policy.slot(cost, cx);
            let one = LimitOutcome { policy: index, cost, outcome: policy.count(&slot, cx) };
            outcomes.push(one);
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

fn refusal(policy: &LimitPolicy, outcome: Outcome) -> Reply {
    let retry_after_s = ceil_s(outcome.retry_in).max(1);
    Reply::new(
        Problem::RateLimited,
        "rate_limit_exceeded",
        "limit",
        format!("Rate limit `{}` exceeded. Retry after {retry_after_s} s.", policy.name),
    )
    .detail(format!("limit `{}`", policy.name))
    .header(http::header::RETRY_AFTER, http::HeaderValue::from(retry_after_s))
}

#[cfg(test)]
mod tests;
