//! # concurrency_limit
//!
//! Limits how many requests or streams are open at once, per key, client address, route, header or claim, or a
//! combination of them. One more gets a 429 at once; nothing waits.
//!
//! ```yaml
//! concurrency_limit:
//!   per: key
//!   most: 10
//!   scope: shared
//! ```
//!
//! A request counts from its header to the end of its answer. With `scope: shared` replicas count together, in Redis,
//! where a place that a replica held when it died is free again after 30 s; `on_store_failure` is as for `rate_limit`.
//! A request without the key, header or claim that is counted is counted by its client address instead. Clients are
//! counted by `ipv4_prefix` (32) and `ipv6_prefix` (64).

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderValue, header};
use parking_lot::Mutex;
use prometheus::IntCounter;
use schemars::JsonSchema;
use serde::Deserialize;

use crate::contract::{
    ActiveLimit, BoxFuture, CountedSubject, Counters, Filter, Flow, Hooks, Invalid, Lease, LimitUsage, Now, Problem, Reply, RequestCx,
    Result, Site, StoreError, Trace, UsageSource, UsageTracker,
};
use crate::rate_limit::subject::{Pers, Prefixes, Subject, Things};
use crate::rate_limit::{OnStoreFailure, Scope};
use crate::rules::word;

/// For so long operators are told that somebody was refused.
const TOLD: Duration = Duration::from_secs(10);

/// `concurrency_limit`
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// What is counted; several are counted by their combination.
    pub per: Pers,
    /// How much of an IPv4 client's address counts, in bits, 8 to 32. Default: 32.
    pub ipv4_prefix: Option<u8>,
    /// How much of an IPv6 client's address counts, in bits, 16 to 128. Default: 64.
    pub ipv6_prefix: Option<u8>,
    /// How many at once, at least 1.
    pub most: u32,
    /// Where it is counted. Default: `local`.
    #[serde(default)]
    pub scope: Scope,
    /// With `scope: shared`: what to do when Redis is away. Default: `local`.
    pub on_store_failure: Option<OnStoreFailure>,
    /// Its name in metrics. Default: what it counts.
    pub name: Option<String>,
}

/// How many of each thing are open in this process. It holds what is open and nothing else.
#[derive(Default)]
struct Open(Mutex<HashMap<Things, u32>>);

impl Open {
    /// The place, and how many are taken with it.
    fn take(self: &Arc<Self>, things: &Things, most: u32) -> Option<(Lease, u32)> {
        let taken = match self.0.lock().entry(things.clone()) {
            Entry::Occupied(mut count) if *count.get() < most => {
                *count.get_mut() += 1;
                *count.get()
            }
            Entry::Occupied(_) => return None,
            Entry::Vacant(slot) => *slot.insert(1),
        };
        let (open, things) = (Arc::clone(self), things.clone());
        Some((Lease::new(move || open.release(things)), taken))
    }

    fn count(&self, things: &Things) -> u32 {
        self.0.lock().get(things).copied().unwrap_or(0)
    }

    fn release(&self, things: Things) {
        if let Entry::Occupied(mut count) = self.0.lock().entry(things) {
            *count.get_mut() -= 1;
            if *count.get() == 0 {
                count.remove();
            }
        }
    }
}

/// The compiled filter.
pub struct ConcurrencyLimit {
    subject: Subject,
    most: u32,
    open: Arc<Open>,
    shared: Option<Arc<dyn Counters>>,
    shared_name: String,
    on_store_failure: OnStoreFailure,
    store_failures: IntCounter,
    allowed: IntCounter,
    refused: IntCounter,
    shadowed: IntCounter,
    name: String,
    place: String,
    near: Arc<UsageTracker>,
    in_force: Arc<ActiveLimit>,
}

impl Filter for ConcurrencyLimit {
    const NAME: &'static str = "concurrency_limit";
    const HOOKS: Hooks = Hooks::REQUEST;
    const SOURCE: &'static str = include_str!("concurrency_limit.rs");
    type Config = Config;
    /// The place, until the exchange is over.
    type State = Option<Lease>;

    fn compile(config: Config, site: &mut Site<'_>) -> Result<Self, Invalid> {
        if config.most == 0 {
            return Err(Invalid::new("0 would let nothing through; it must be at least 1").at("most"));
        }
        let as_it_is = format!("{} {config:?}", site.place);
        let prefixes = Prefixes::for_subjects(config.ipv4_prefix, config.ipv6_prefix, std::iter::once(&config.per))?;
        let (subject, counts) = Subject::compile(config.per, prefixes, &site.ports.hasher).map_err(|invalid| invalid.at("per"))?;
        let name = config.name.unwrap_or_else(|| counts.clone());
        word(&name, "name").map_err(|invalid| invalid.at("name"))?;
        if config.on_store_failure.is_some() && config.scope == Scope::Local {
            return Err(Invalid::new("goes with `scope: shared` only").at("on_store_failure"));
        }
        let on_store_failure = config.on_store_failure.unwrap_or_default();
        let counter = |outcome| {
            let help = "Requests by limit of open ones and outcome.";
            site.counter_by("concurrency_limit_requests_total", help, &[("policy", &name), ("outcome", outcome)])
        };
        let shared = match config.scope {
            Scope::Shared => Some(site.counters().map_err(|invalid| invalid.at("scope"))?),
            Scope::Local => None,
        };
        Ok(Self {
            subject,
            most: config.most,
            open: site.keep(&format!("{} {counts}", site.place), Open::default),
            shared,
            shared_name: format!("{}:{counts}", site.place),
            on_store_failure,
            allowed: counter("allowed"),
            refused: counter("refused"),
            shadowed: counter("shadow"),
            store_failures: site.counter(
                "concurrency_limit_store_failures_total",
                "Requests whose open ones could not be counted by all replicas together, by what was done.",
                ("outcome", on_store_failure.as_str()),
            ),
            name,
            place: site.place.clone(),
            near: Arc::clone(&site.ports.usage_tracker),
            in_force: site.keep(&as_it_is, ActiveLimit::default),
        })
    }

    async fn request(&self, cx: &mut RequestCx<'_>, place: &mut Self::State) -> Result<Flow> {
        let things = self.subject.things(cx);
        let taken = match &self.shared {
            Some(shared) => match (shared.lease(format!("{}:{things}", self.shared_name), self.most).await, self.on_store_failure) {
                // How many there are elsewhere is not told, so nobody is near there, only over.
                (Ok(taken), _) => taken.map(|lease| (lease, 0)),
                (Err(_), failure) => {
                    self.store_failures.inc();
                    match failure {
                        OnStoreFailure::Local => self.open.take(&things, self.most),
                        OnStoreFailure::Allow => {
                            cx.facts.let_through(Self::NAME);
                            return Ok(Flow::Continue);
                        }
                        OnStoreFailure::Deny => return Ok(crate::rate_limit::away().into()),
                    }
                }
            },
            None => self.open.take(&things, self.most),
        };
        if cx.is_dry_run() {
            return Ok(self.reply(taken.is_some(), cx));
        }
        self.note(&things, taken.as_ref().map(|(_, used)| *used), cx);
        *place = taken.map(|(lease, _)| lease);
        match (place.is_some(), cx.shadow) {
            (true, _) => self.allowed.inc(),
            (false, true) => self.shadowed.inc(),
            (false, false) => self.refused.inc(),
        }
        Ok(self.reply(place.is_some(), cx))
    }
}

impl ConcurrencyLimit {
    fn reply(&self, has_room: bool, cx: &mut RequestCx<'_>) -> Flow {
        let says = if has_room { "there is room" } else { "there is none" };
        if let Some(trace) = cx.facts.get_mut::<Trace>() {
            trace.0.push(format!("limit `{}`: {} open at once; {says}", self.name, self.most));
        }
        if has_room { Flow::Continue } else { refusal(self.most).detail(format!("limit `{}`", self.name)).into() }
    }

    /// Lets operators see who is near or at the limit.
    fn note(&self, things: &Things, used: Option<u32>, cx: &RequestCx<'_>) {
        let (over, most) = (used.is_none(), self.most);
        let retry_in = if over { TOLD } else { Duration::ZERO };
        let standing = LimitUsage { used: used.unwrap_or(most), most, over, shadow: cx.shadow, rolling: false, full_in: TOLD, retry_in };
        if !standing.is_near() {
            return;
        }
        self.near.note(&self.in_force, things, standing, cx.now.instant, || {
            let about =
                CountedSubject { limit: self.name.clone(), place: self.place.clone(), shared: self.shared.is_some(), ..things.about() };
            let open = self.shared.is_none().then(|| (Arc::clone(&self.open), things.clone(), self.most));
            (about, Arc::new(Places(open)))
        });
    }
}

/// Open requests: counted here, if replicas do not count them together. They are open, and cannot be forgotten.
struct Places(Option<(Arc<Open>, Things, u32)>);

impl UsageSource for Places {
    fn current_usage(&self, _: Now) -> BoxFuture<'_, Option<LimitUsage>> {
        Box::pin(async move {
            let (open, things, most) = self.0.as_ref()?;
            let used = open.count(things);
            Some(LimitUsage {
                used,
                most: *most,
                over: false,
                shadow: false,
                rolling: false,
                full_in: Duration::ZERO,
                retry_in: Duration::ZERO,
            })
        })
    }

    fn can_forget(&self) -> bool {
        false
    }

    fn forget(&self) -> BoxFuture<'_, Result<(), StoreError>> {
        Box::pin(async { Ok(()) })
    }
}

fn refusal(most: u32) -> Reply {
    let message = format!("Too many requests at once: {most} are open already. Try again when one of them has ended.");
    Reply::new(Problem::RateLimited, "concurrency_limit_exceeded", "limit", message)
        .header(header::RETRY_AFTER, HeaderValue::from_static("1"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rate_limit::subject::Thing;

    #[test]
    fn places_come_back_and_nothing_is_remembered() {
        let open = Arc::new(Open::default());
        let thing = |name: &str| Things::One(Thing::Route(name.into()));
        let (one, two) = (open.take(&thing("a"), 2), open.take(&thing("a"), 2));
        assert_eq!((one.as_ref().map(|one| one.1), two.as_ref().map(|two| two.1)), (Some(1), Some(2)));
        assert!(open.take(&thing("a"), 2).is_none());
        assert!(open.take(&thing("b"), 2).is_some());
        drop(one);
        assert!(open.take(&thing("a"), 2).is_some());
        drop(two);
        assert!(open.0.lock().is_empty());
    }
}
