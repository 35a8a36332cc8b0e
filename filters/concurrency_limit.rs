//! # concurrency_limit
//!
//! Limits the number of open requests and streams per key, client address, route, header or claim, or per combination of
//! them. A request over the limit gets 429 immediately; it is not queued.
//!
//! ```yaml
//! concurrency_limit:
//!   per: key
//!   most: 10
//!   scope: shared
//! ```
//!
//! **What counts.** A request is open from its header to the end of its response. A request without the key, header or
//! claim is counted by its client address instead. Client addresses are grouped by `ipv4_prefix` (default 32) and
//! `ipv6_prefix` (default 64).
//!
//! **Replicas.** With `scope: shared` all replicas share the count in Redis. The slots of a replica that has crashed are
//! released after 30 s. If Redis is unavailable, `on_store_failure` decides as in `rate_limit`: count per replica
//! (`local`), pass uncounted (`allow`), or 503 (`deny`).

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
    Result, Site, StoreError, Trace, UsageSource, UsageTracker, check_name,
};
use crate::limiting::{ClientPrefixes, CountScope, CountsFailurePolicy, Subject, SubjectKinds, SubjectReader, shared_counts_unavailable};

/// Operators see a refused subject for this time.
const REFUSAL_SHOWN: Duration = Duration::from_secs(10);

/// `concurrency_limit`
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ConcurrencyLimitConfig {
    /// What requests are counted by. With several, each combination of values has its own count.
    pub per: SubjectKinds,
    /// The prefix by which IPv4 clients are grouped, in bits, 8 to 32. Default: 32.
    pub ipv4_prefix: Option<u8>,
    /// The prefix by which IPv6 clients are grouped, in bits, 16 to 128. Default: 64.
    pub ipv6_prefix: Option<u8>,
    /// The maximum number of open requests per subject, at least 1.
    pub most: u32,
    /// Where requests are counted. Default: `local`.
    #[serde(default)]
    pub scope: CountScope,
    /// With `scope: shared`: what happens to requests when Redis is unavailable. Default: `local`.
    pub on_store_failure: Option<CountsFailurePolicy>,
    /// The name in metrics. Default: the words of `per`, such as `client-key`.
    pub name: Option<String>,
}

/// The open requests of each subject in this process. Subjects without open requests have no entry.
#[derive(Default)]
struct OpenRequests(Mutex<HashMap<Subject, u32>>);

impl OpenRequests {
    /// Takes a slot and returns it with the number of slots in use. `None`: all are in use.
    fn acquire(self: &Arc<Self>, subject: &Subject, most: u32) -> Option<(Lease, u32)> {
        let used = match self.0.lock().entry(subject.clone()) {
            Entry::Occupied(mut count) if *count.get() < most => {
                *count.get_mut() += 1;
                *count.get()
            }
            Entry::Occupied(_) => return None,
            Entry::Vacant(slot) => *slot.insert(1),
        };
        let (open, subject) = (Arc::clone(self), subject.clone());
        Some((Lease::new(move || open.release(subject)), used))
    }

    fn used(&self, subject: &Subject) -> u32 {
        self.0.lock().get(subject).copied().unwrap_or(0)
    }

    fn release(&self, subject: Subject) {
        if let Entry::Occupied(mut count) = self.0.lock().entry(subject) {
            *count.get_mut() -= 1;
            if *count.get() == 0 {
                count.remove();
            }
        }
    }
}

/// The compiled filter.
pub struct ConcurrencyLimit {
    subject: SubjectReader,
    most: u32,
    open: Arc<OpenRequests>,
    shared: Option<Arc<dyn Counters>>,
    shared_name: String,
    on_store_failure: CountsFailurePolicy,
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
    type Config = ConcurrencyLimitConfig;
    /// The slot of the request, released at the end of its response.
    type State = Option<Lease>;

    fn compile(config: ConcurrencyLimitConfig, site: &mut Site<'_>) -> Result<Self, Invalid> {
        if config.most == 0 {
            return Err(Invalid::new("must be at least 1; 0 would refuse every request").at("most"));
        }
        let identity = format!("{} {config:?}", site.place);
        let prefixes = ClientPrefixes::for_subjects(config.ipv4_prefix, config.ipv6_prefix, std::iter::once(&config.per))?;
        let (subject, default_name) =
            SubjectReader::compile(config.per, prefixes, &site.ports.hasher).map_err(|invalid| invalid.at("per"))?;
        let name = config.name.unwrap_or_else(|| default_name.clone());
        check_name(&name, "name").map_err(|invalid| invalid.at("name"))?;
        if config.on_store_failure.is_some() && config.scope == CountScope::Local {
            return Err(Invalid::new("requires `scope: shared`").at("on_store_failure"));
        }
        let on_store_failure = config.on_store_failure.unwrap_or_default();
        let counter = |outcome| {
            let help = "Requests by concurrency limit and outcome.";
            site.counter_by("concurrency_limit_requests_total", help, &[("policy", &name), ("outcome", outcome)])
        };
        let shared = match config.scope {
            CountScope::Shared => Some(site.counters().map_err(|invalid| invalid.at("scope"))?),
            CountScope::Local => None,
        };
        Ok(Self {
            subject,
            most: config.most,
            open: site.keep(&format!("{} {default_name}", site.place), OpenRequests::default),
            shared,
            shared_name: format!("{}:{default_name}", site.place),
            on_store_failure,
            allowed: counter("allowed"),
            refused: counter("refused"),
            shadowed: counter("shadow"),
            store_failures: site.counter(
                "concurrency_limit_store_failures_total",
                "Requests for which the shared counts were unreachable, by the action taken.",
                ("outcome", on_store_failure.as_str()),
            ),
            name,
            place: site.place.clone(),
            near: Arc::clone(&site.ports.usage_tracker),
            in_force: site.keep(&identity, ActiveLimit::default),
        })
    }

    async fn request(&self, cx: &mut RequestCx<'_>, slot: &mut Self::State) -> Result<Flow> {
        let subject = self.subject.subject(cx);
        let acquired = match &self.shared {
            Some(shared) => match (shared.lease(format!("{}:{subject}", self.shared_name), self.most).await, self.on_store_failure) {
                // Redis does not return the number in use, so only refusals are reported to operators.
                (Ok(lease), _) => lease.map(|lease| (lease, 0)),
                (Err(_), failure) => {
                    self.store_failures.inc();
                    match failure {
                        CountsFailurePolicy::Local => self.open.acquire(&subject, self.most),
                        CountsFailurePolicy::Allow => {
                            cx.facts.let_through(Self::NAME);
                            return Ok(Flow::Continue);
                        }
                        CountsFailurePolicy::Deny => return Ok(shared_counts_unavailable().into()),
                    }
                }
            },
            None => self.open.acquire(&subject, self.most),
        };
        if cx.is_dry_run() {
            return Ok(self.decide(acquired.is_some(), cx));
        }
        self.record_usage(&subject, acquired.as_ref().map(|(_, used)| *used), cx);
        *slot = acquired.map(|(lease, _)| lease);
        match (slot.is_some(), cx.shadow) {
            (true, _) => self.allowed.inc(),
            (false, true) => self.shadowed.inc(),
            (false, false) => self.refused.inc(),
        }
        Ok(self.decide(slot.is_some(), cx))
    }
}

impl ConcurrencyLimit {
    fn decide(&self, is_allowed: bool, cx: &mut RequestCx<'_>) -> Flow {
        let result = if is_allowed { "a slot is free" } else { "exceeded" };
        if let Some(trace) = cx.facts.get_mut::<Trace>() {
            trace.0.push(format!("limit `{}`: {} open requests, {result}", self.name, self.most));
        }
        if is_allowed { Flow::Continue } else { refusal(self.most).detail(format!("limit `{}`", self.name)).into() }
    }

    /// Reports the subject to operators if it is near or over the limit.
    fn record_usage(&self, subject: &Subject, used: Option<u32>, cx: &RequestCx<'_>) {
        let (over, most) = (used.is_none(), self.most);
        let retry_in = if over { REFUSAL_SHOWN } else { Duration::ZERO };
        let usage =
            LimitUsage { used: used.unwrap_or(most), most, over, shadow: cx.shadow, rolling: false, full_in: REFUSAL_SHOWN, retry_in };
        if !usage.is_near() {
            return;
        }
        self.near.note(&self.in_force, subject, usage, cx.now.instant, || {
            let about =
                CountedSubject { limit: self.name.clone(), place: self.place.clone(), shared: self.shared.is_some(), ..subject.about() };
            let open = self.shared.is_none().then(|| (Arc::clone(&self.open), subject.clone(), self.most));
            (about, Arc::new(OpenRequestsUsage(open)))
        });
    }
}

/// The open requests of one subject; `None` with `scope: shared`. An operator cannot reset them, because they are open.
struct OpenRequestsUsage(Option<(Arc<OpenRequests>, Subject, u32)>);

impl UsageSource for OpenRequestsUsage {
    fn current_usage(&self, _: Now) -> BoxFuture<'_, Option<LimitUsage>> {
        Box::pin(async move {
            let (open, subject, most) = self.0.as_ref()?;
            let used = open.used(subject);
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
    let message = format!("Too many concurrent requests: the limit is {most}. Retry when one of them has finished.");
    Reply::new(Problem::RateLimited, "concurrency_limit_exceeded", "limit", message)
        .header(header::RETRY_AFTER, HeaderValue::from_static("1"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limiting::SubjectPart;

    #[test]
    fn released_slots_can_be_taken_again_and_leave_no_entry() {
        let open = Arc::new(OpenRequests::default());
        let route = |name: &str| Subject::One(SubjectPart::Route(name.into()));
        let (one, two) = (open.acquire(&route("a"), 2), open.acquire(&route("a"), 2));
        assert_eq!((one.as_ref().map(|one| one.1), two.as_ref().map(|two| two.1)), (Some(1), Some(2)));
        assert!(open.acquire(&route("a"), 2).is_none());
        assert!(open.acquire(&route("b"), 2).is_some());
        drop(one);
        assert!(open.acquire(&route("a"), 2).is_some());
        drop(two);
        assert!(open.0.lock().is_empty());
    }
}
