//! One compiled limit of `rate_limit`: its subject, its cost and its counts. It does not decide on a request as a whole.

use std::sync::Arc;
use std::time::Duration;

use http::HeaderValue;
use prometheus::IntCounter;

use super::config::{LimitConfig, RequestCost, WindowType};
use crate::contract::{
    ActiveLimit, BoxFuture, CountedSubject, Counters, Hit, Invalid, LimitUsage, Measure, Now, Outcome, Quota, Rate, RequestCx,
    SelectedLimits, Site, StoreError, UsageSource, UsageTracker, check_name,
};
use crate::expression::{Expression, Scope, Type};
use crate::limiting::calendar::{CalendarUnit, CalendarWindows, WindowTable};
use crate::limiting::gcra::GcraTable;
use crate::limiting::{ClientPrefixes, Subject, SubjectReader, ceil_s, time_zone};

/// The counting method with its table in this process.
#[derive(Clone)]
enum CountTable {
    Rolling { quota: Quota, block: Duration, table: Arc<GcraTable> },
    Calendar { most: u32, windows: CalendarWindows, table: Arc<WindowTable> },
}

/// A compiled limit.
pub struct LimitPolicy {
    /// The name in response fields, metrics and errors.
    pub name: String,
    /// The count of the rate: requests per period.
    pub most: u32,
    rate: Rate,
    /// The member of `RateLimit-Policy`. It is the same for all responses.
    pub field: HeaderValue,
    /// Counts without refusing.
    pub shadow: bool,
    /// The prefix of the names of its counts in Redis, the same on all replicas.
    shared_name: String,
    /// The path of its filter in the configuration.
    place: String,
    near: Arc<UsageTracker>,
    in_force: Arc<ActiveLimit>,
    subject: SubjectReader,
    cost: CompiledCost,
    /// Counts only requests for which a rule has chosen it.
    chosen: bool,
    count: CountTable,
    allowed: IntCounter,
    refused: IntCounter,
    shadowed: IntCounter,
}

/// The slot of a request in the table of this process, and its cost.
pub struct PolicySlot {
    slot: u128,
    cost: u32,
}

impl CountTable {
    /// The number of hits that may arrive at once, and whether they are restored continuously.
    fn capacity(&self) -> (u32, bool) {
        match self {
            CountTable::Rolling { quota, .. } => (quota.burst(), true),
            CountTable::Calendar { most, .. } => (*most, false),
        }
    }

    /// The counting method for shared counts.
    fn measure(&self, now: Now) -> Measure {
        match self {
            CountTable::Rolling { quota, block, .. } => Measure::Rolling { quota: *quota, block: *block },
            CountTable::Calendar { most, windows, .. } => {
                let (number, left) = windows.window_at(now.wall);
                Measure::Window { most: *most, number, left }
            }
        }
    }

    /// The slot of a subject in this process.
    fn slot(&self, subject: &Subject) -> u128 {
        match self {
            CountTable::Rolling { table, .. } => table.slot(subject),
            CountTable::Calendar { table, .. } => table.slot(subject),
        }
    }
}

/// The usage of one subject, in this process and in Redis.
struct SubjectUsage {
    count: CountTable,
    slot: u128,
    /// The shared counts and the subject's name in them; `None`: `scope: local`.
    shared: Option<(Arc<dyn Counters>, String)>,
}

impl SubjectUsage {
    fn hit(&self, name: &str, now: Now) -> Hit {
        Hit { name: name.to_owned(), measure: self.count.measure(now), cost: 1, shadow: false }
    }
}

impl UsageSource for SubjectUsage {
    fn current_usage(&self, now: Now) -> BoxFuture<'_, Option<LimitUsage>> {
        Box::pin(async move {
            let outcome = match (&self.shared, &self.count) {
                (Some((shared, name)), _) => shared.peek(&self.hit(name, now)).await.ok()?,
                (None, CountTable::Rolling { quota, table, .. }) => table.peek(self.slot, *quota, now.instant),
                (None, CountTable::Calendar { most, windows, table }) => table.peek(self.slot, *most, windows.window_at(now.wall)),
            };
            let (most, rolling) = self.count.capacity();
            Some(LimitUsage::from_outcome(&outcome, most, rolling))
        })
    }

    fn forget(&self) -> BoxFuture<'_, Result<(), StoreError>> {
        Box::pin(async move {
            match &self.count {
                CountTable::Rolling { table, .. } => table.forget(self.slot),
                CountTable::Calendar { table, .. } => table.forget(self.slot),
            }
            match &self.shared {
                // The current window, not the one in which the usage was recorded.
                Some((shared, name)) => shared.forget(&self.hit(name, Now::read())).await,
                None => Ok(()),
            }
        })
    }
}

/// The cost of a request.
enum CompiledCost {
    Fixed(u32),
    /// The expression and the burst, which is the largest cost. A failed evaluation costs 1.
    Expression(Expression, u32),
}

/// The windows of a calendar limit.
fn calendar_windows(rate: Rate, zone: Option<&str>) -> Result<CalendarWindows, Invalid> {
    use CalendarUnit::{Day, Hour, Minute, Month, Second, Week};
    let units = [Second, Minute, Hour, Day, Week, Month];
    let unit = units.into_iter().find(|unit| rate.period == Duration::from_secs(unit.seconds()));
    let message = "a calendar window is one second, minute, hour, day, week or month; write, for example, `1000/day`";
    let unit = unit.ok_or_else(|| Invalid::new(message).at("limit"))?;
    let zone = zone.map(time_zone).transpose().map_err(|invalid| invalid.at("time_zone"))?;
    Ok(CalendarWindows::new(unit, zone))
}

fn compiled_cost(cost: RequestCost, burst: u32, site: &Site<'_>) -> Result<CompiledCost, Invalid> {
    match cost {
        RequestCost::Fixed(cost) if (1..=burst).contains(&cost) => Ok(CompiledCost::Fixed(cost)),
        RequestCost::Fixed(_) => Err(Invalid::new(format!("must be between 1 and the burst, {burst}"))),
        RequestCost::Expression(source) => Ok(CompiledCost::Expression(Expression::compile(&source, &Type::Int, site.routes)?, burst)),
    }
}

impl LimitPolicy {
    /// Whether the cost depends on the model of the request.
    pub fn reads_model(&self) -> bool {
        matches!(&self.cost, CompiledCost::Expression(expression, _) if expression.reads_model())
    }

    pub fn compile(
        limit: LimitConfig,
        prefixes: ClientPrefixes,
        entries_max: usize,
        is_shared: bool,
        site: &Site<'_>,
    ) -> Result<Self, Invalid> {
        let identity = format!("{} {limit:?} {entries_max} {is_shared}", site.place);
        let (subject, default_name) =
            SubjectReader::compile(limit.per, prefixes, &site.ports.hasher).map_err(|invalid| invalid.at("per"))?;
        let name = limit.name.unwrap_or(default_name);
        check_name(&name, "name").map_err(|invalid| invalid.at("name"))?;
        if limit.chosen {
            site.offer_limit(&name);
        }
        let (rate, key) = (limit.limit, format!("{} {name} {entries_max}", site.place));
        let burst = limit.burst.unwrap_or(rate.count);
        if burst == 0 {
            return Err(Invalid::new("must be at least 1; 0 would refuse every request").at("burst"));
        }
        let cost = compiled_cost(limit.cost, burst, site).map_err(|invalid| invalid.at("cost"))?;
        let table_key = format!("{key} {}", limit.time_zone.as_deref().unwrap_or_default());
        let count = match limit.window {
            WindowType::Rolling if limit.time_zone.is_some() => {
                return Err(Invalid::new("requires `window: calendar`").at("time_zone"));
            }
            WindowType::Rolling => {
                let block = limit.block_for.map_or(Duration::ZERO, |block| block.0);
                let quota = Quota::new(rate.interval(), burst);
                CountTable::Rolling { quota, block, table: site.keep(&key, || GcraTable::new(entries_max)) }
            }
            WindowType::Calendar => {
                for (given, name) in [(limit.burst.is_some(), "burst"), (limit.block_for.is_some(), "block_for")] {
                    if given {
                        return Err(Invalid::new("requires `window: rolling`").at(name));
                    }
                }
                let windows = calendar_windows(rate, limit.time_zone.as_deref())?;
                CountTable::Calendar { most: rate.count, windows, table: site.keep(&table_key, || WindowTable::new(entries_max)) }
            }
        };
        let window_s = rate.period.as_secs().max(1);
        let field = HeaderValue::from_str(&format!("\"{name}\";q={};w={window_s}", rate.count));
        let counter = |outcome| {
            let help = "Requests by rate limit and outcome. A request that another limit refused counts on each limit that was checked.";
            site.counter_by("rate_limit_requests_total", help, &[("policy", &name), ("outcome", outcome)])
        };
        Ok(Self {
            most: rate.count,
            rate,
            field: field.map_err(|e| Invalid::new(e.to_string()).at("name"))?,
            shadow: limit.shadow,
            shared_name: format!("{}:{name}", site.place),
            place: site.place.clone(),
            near: Arc::clone(&site.ports.usage_tracker),
            in_force: site.keep(&identity, ActiveLimit::default),
            subject,
            cost,
            chosen: limit.chosen,
            count,
            allowed: counter("allowed"),
            refused: counter("refused"),
            shadowed: counter("shadow"),
            name,
        })
    }

    /// The cost of a request. 0: it is not counted.
    pub fn cost(&self, cx: &RequestCx<'_>) -> u32 {
        if self.chosen && !cx.facts.get::<SelectedLimits>().is_some_and(|chosen| chosen.0.iter().any(|name| **name == *self.name)) {
            return 0;
        }
        match &self.cost {
            CompiledCost::Fixed(cost) => *cost,
            CompiledCost::Expression(expression, most) => match expression.number(&Scope::new(cx)) {
                // A negative result is not a cost: `request.size` is -1 if no length is announced.
                Ok(..0) | Err(_) => 1,
                Ok(cost) => u32::try_from(cost).unwrap_or(u32::MAX).min(*most),
            },
        }
    }

    /// The hit for shared counts.
    pub fn hit(&self, cost: u32, cx: &RequestCx<'_>) -> Hit {
        let name = self.shared_subject_name(&self.subject.subject(cx));
        Hit { name, measure: self.count.measure(cx.now), cost, shadow: self.shadow }
    }

    fn shared_subject_name(&self, subject: &Subject) -> String {
        format!("{}:{subject}", self.shared_name)
    }

    /// The slot of a request in this process.
    pub fn slot(&self, cost: u32, cx: &RequestCx<'_>) -> PolicySlot {
        PolicySlot { slot: self.count.slot(&self.subject.subject(cx)), cost }
    }

    /// Counts a request in this process.
    pub fn count(&self, slot: &PolicySlot, cx: &RequestCx<'_>) -> Outcome {
        match &self.count {
            CountTable::Rolling { quota, block, table } => table.hit(slot.slot, *quota, slot.cost, *block, cx.now.instant),
            CountTable::Calendar { most, windows, table } => table.hit(slot.slot, *most, slot.cost, windows.window_at(cx.now.wall)),
        }
    }

    /// The outcome that a request of `cost` would have, by the shared counts if given. Counts nothing.
    pub async fn peek(&self, cost: u32, shared: Option<&Arc<dyn Counters>>, cx: &RequestCx<'_>) -> Result<Outcome, StoreError> {
        let slot = self.slot(cost, cx);
        let now = match (shared, &self.count) {
            (Some(shared), _) => shared.peek(&Hit { cost: 1, ..self.hit(cost, cx) }).await?,
            (None, CountTable::Rolling { quota, table, .. }) => table.peek(slot.slot, *quota, cx.now.instant),
            (None, CountTable::Calendar { most, windows, table }) => table.peek(slot.slot, *most, windows.window_at(cx.now.wall)),
        };
        let allowed = now.allowed && cost <= now.remaining;
        Ok(Outcome { allowed, remaining: if allowed { now.remaining - cost } else { 0 }, ..now })
    }

    /// Reverts a hit.
    pub fn refund(&self, slot: &PolicySlot) {
        match &self.count {
            CountTable::Rolling { quota, table, .. } => table.refund(slot.slot, *quota, slot.cost),
            CountTable::Calendar { table, .. } => table.refund(slot.slot, slot.cost),
        }
    }

    /// Reports the subject to operators if it is near or over the limit. `shared`: the counts, if not local.
    pub fn record_usage(&self, outcome: &Outcome, shared: Option<&Arc<dyn Counters>>, cx: &RequestCx<'_>) {
        let (most, rolling) = self.count.capacity();
        let standing = LimitUsage { shadow: self.shadow || cx.shadow, ..LimitUsage::from_outcome(outcome, most, rolling) };
        if !standing.is_near() {
            return;
        }
        let subject = self.subject.subject(cx);
        self.near.note(&self.in_force, &subject, standing, cx.now.instant, || {
            let shared = shared.map(|shared| (Arc::clone(shared), self.shared_subject_name(&subject)));
            let about = CountedSubject { limit: self.name.clone(), place: self.place.clone(), shared: shared.is_some(), ..subject.about() };
            (about, Arc::new(SubjectUsage { slot: self.count.slot(&subject), count: self.count.clone(), shared }))
        });
    }

    /// The line of an explanation (`keylatch explain`) for this limit.
    pub fn trace_line(&self, cost: u32, outcome: Outcome, cx: &RequestCx<'_>) -> String {
        let subject = self.subject.subject(cx);
        let result = match (outcome.allowed, self.shadow) {
            (true, _) => format!("{} left", outcome.remaining),
            (false, true) => "exceeded (shadow mode)".to_owned(),
            (false, false) => format!("exceeded, retry after {} s", ceil_s(outcome.retry_in)),
        };
        format!("limit `{}`: {}, for {subject}; cost {cost}, {result}", self.name, self.rate)
    }

    /// Counts an outcome in the metrics. `shadow`: the filter is in shadow mode.
    pub fn count_outcome(&self, allowed: bool, shadow: bool) {
        match (allowed, self.shadow || shadow) {
            (true, _) => self.allowed.inc(),
            (false, true) => self.shadowed.inc(),
            (false, false) => self.refused.inc(),
        }
    }
}
