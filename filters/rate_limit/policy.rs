//! One limit: what it counts, how, and where in this process.

use std::sync::Arc;
use std::time::Duration;

use http::HeaderValue;
use jiff::tz::TimeZone;
use prometheus::IntCounter;

use super::calendar::{self, Unit, Windows};
use super::config::{Cost, Limit, Window};
use super::gcra;
use super::subject::{Prefixes, Subject, Things};
use crate::contract::{
    ActiveLimit, BoxFuture, CountedSubject, Counters, Hit, Invalid, LimitUsage, Measure, Now, Outcome, Quota, Rate, RequestCx,
    SelectedLimits, Site, StoreError, UsageSource, UsageTracker,
};
use crate::expression::{Expression, Scope, Type};
use crate::rules::word;

/// How it is counted, and where.
#[derive(Clone)]
enum Count {
    Rolling { quota: Quota, block: Duration, table: Arc<gcra::Table> },
    Calendar { most: u32, windows: Windows, table: Arc<calendar::Table> },
}

/// A compiled limit.
pub struct Policy {
    /// Its name.
    pub name: String,
    /// How many in its time.
    pub most: u32,
    rate: Rate,
    /// The member of `RateLimit-Policy`, which never changes.
    pub field: HeaderValue,
    /// Refuses nobody.
    pub shadow: bool,
    /// Its name among the counts that replicas share.
    shared_name: String,
    /// Where its filter stands.
    place: String,
    near: Arc<UsageTracker>,
    in_force: Arc<ActiveLimit>,
    subject: Subject,
    price: Price,
    /// Counts only where a rule has chosen it.
    chosen: bool,
    count: Count,
    allowed: IntCounter,
    refused: IntCounter,
    shadowed: IntCounter,
}

/// Under which name a request is counted in this process, and how much.
pub struct Slot {
    name: u128,
    cost: u32,
}

impl Count {
    /// How many there are at once, and whether they come back bit by bit.
    fn at_once(&self) -> (u32, bool) {
        match self {
            Count::Rolling { quota, .. } => (quota.burst(), true),
            Count::Calendar { most, .. } => (*most, false),
        }
    }

    /// For counting with other replicas.
    fn measure(&self, now: Now) -> Measure {
        match self {
            Count::Rolling { quota, block, .. } => Measure::Rolling { quota: *quota, block: *block },
            Count::Calendar { most, windows, .. } => {
                let (number, left) = windows.at(now.wall);
                Measure::Window { most: *most, number, left }
            }
        }
    }

    /// The name of something in this process.
    fn slot(&self, things: &Things) -> u128 {
        match self {
            Count::Rolling { table, .. } => table.slot(things),
            Count::Calendar { table, .. } => table.slot(things),
        }
    }
}

/// What somebody has used, here and where replicas count together.
struct Used {
    count: Count,
    slot: u128,
    /// His name there.
    shared: Option<(Arc<dyn Counters>, String)>,
}

impl Used {
    fn hit(&self, name: &str, now: Now) -> Hit {
        Hit { name: name.to_owned(), measure: self.count.measure(now), cost: 1, shadow: false }
    }
}

impl UsageSource for Used {
    fn current_usage(&self, now: Now) -> BoxFuture<'_, Option<LimitUsage>> {
        Box::pin(async move {
            let outcome = match (&self.shared, &self.count) {
                (Some((shared, name)), _) => shared.peek(&self.hit(name, now)).await.ok()?,
                (None, Count::Rolling { quota, table, .. }) => table.look(self.slot, *quota, now.instant),
                (None, Count::Calendar { most, windows, table }) => table.look(self.slot, *most, windows.at(now.wall)),
            };
            let (most, rolling) = self.count.at_once();
            Some(LimitUsage::from_outcome(&outcome, most, rolling))
        })
    }

    fn forget(&self) -> BoxFuture<'_, Result<(), StoreError>> {
        Box::pin(async move {
            match &self.count {
                Count::Rolling { table, .. } => table.forget(self.slot),
                Count::Calendar { table, .. } => table.forget(self.slot),
            }
            match &self.shared {
                // The window that it is now, whichever it was when he was noted.
                Some((shared, name)) => shared.forget(&self.hit(name, Now::read())).await,
                None => Ok(()),
            }
        })
    }
}

/// How much a request counts.
enum Price {
    Fixed(u32),
    /// At most as much as there is at once; what comes to nothing is 1.
    By(Expression, u32),
}

/// The windows of a calendar limit.
fn windows(rate: Rate, zone: Option<&str>) -> Result<Windows, Invalid> {
    let units = [Unit::Second, Unit::Minute, Unit::Hour, Unit::Day, Unit::Week, Unit::Month];
    let unit = units.into_iter().find(|unit| rate.period == Duration::from_secs(unit.seconds()));
    let says = "a calendar has seconds, minutes, hours, days, weeks and months: write `1000/day`, say";
    let unit = unit.ok_or_else(|| Invalid::new(says).at("limit"))?;
    let named = |name: &str| {
        let says = || Invalid::new(format!("there is no time zone `{name}`; write a name such as `Europe/Berlin`")).at("time_zone");
        TimeZone::get(name).map_err(|_| says())
    };
    Ok(Windows::new(unit, zone.map(named).transpose()?))
}

impl Policy {
    pub fn compile(limit: Limit, prefixes: Prefixes, entries_max: usize, together: bool, site: &Site<'_>) -> Result<Self, Invalid> {
        let as_it_is = format!("{} {limit:?} {entries_max} {together}", site.place);
        let (subject, usual_name) = Subject::compile(limit.per, prefixes, &site.ports.hasher).map_err(|invalid| invalid.at("per"))?;
        let name = limit.name.unwrap_or(usual_name);
        word(&name, "name").map_err(|invalid| invalid.at("name"))?;
        if limit.chosen {
            site.offer_limit(&name);
        }
        let (rate, key) = (limit.limit, format!("{} {name} {entries_max}", site.place));
        let burst = limit.burst.unwrap_or(rate.count);
        if burst == 0 {
            return Err(Invalid::new("0 would let nothing through; it must be at least 1").at("burst"));
        }
        let price = match limit.cost {
            Cost::Fixed(cost) if (1..=burst).contains(&cost) => Price::Fixed(cost),
            Cost::Fixed(_) => return Err(Invalid::new(format!("must be between 1 and {burst}, which is all there is at once")).at("cost")),
            Cost::By(source) => {
                Price::By(Expression::compile(&source, &Type::Int, site.routes).map_err(|invalid| invalid.at("cost"))?, burst)
            }
        };
        let table = format!("{key} {}", limit.time_zone.as_deref().unwrap_or_default());
        let count = match limit.window {
            Window::Rolling if limit.time_zone.is_some() => {
                return Err(Invalid::new("goes with `window: calendar` only").at("time_zone"));
            }
            Window::Rolling => {
                let block = limit.block_for.map_or(Duration::ZERO, |block| block.0);
                let quota = Quota::new(rate.interval(), burst);
                Count::Rolling { quota, block, table: site.keep(&key, || gcra::Table::new(entries_max)) }
            }
            Window::Calendar => {
                for (given, name) in [(limit.burst.is_some(), "burst"), (limit.block_for.is_some(), "block_for")] {
                    if given {
                        return Err(Invalid::new("goes with `window: rolling` only").at(name));
                    }
                }
                let windows = windows(rate, limit.time_zone.as_deref())?;
                Count::Calendar { most: rate.count, windows, table: site.keep(&table, || calendar::Table::new(entries_max)) }
            }
        };
        let window_s = rate.period.as_secs().max(1);
        let field = HeaderValue::from_str(&format!("\"{name}\";q={};w={window_s}", rate.count));
        let counter = |outcome| {
            let help = "Requests by limit and outcome; what another limit refused is counted where it was looked at.";
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
            in_force: site.keep(&as_it_is, ActiveLimit::default),
            subject,
            price,
            chosen: limit.chosen,
            count,
            allowed: counter("allowed"),
            refused: counter("refused"),
            shadowed: counter("shadow"),
            name,
        })
    }

    /// How much this request counts; 0 where it does not.
    pub fn cost(&self, cx: &RequestCx<'_>) -> u32 {
        if self.chosen && !cx.facts.get::<SelectedLimits>().is_some_and(|chosen| chosen.0.iter().any(|name| **name == *self.name)) {
            return 0;
        }
        match &self.price {
            Price::Fixed(cost) => *cost,
            Price::By(expression, most) => match expression.number(&Scope::new(cx)) {
                // Less than nothing is no price: a length that is not announced is -1.
                Ok(..0) | Err(_) => 1,
                Ok(cost) => u32::try_from(cost).unwrap_or(u32::MAX).min(*most),
            },
        }
    }

    /// For counting with other replicas.
    pub fn hit(&self, cost: u32, cx: &RequestCx<'_>) -> Hit {
        let name = self.name_together(&self.subject.things(cx));
        Hit { name, measure: self.count.measure(cx.now), cost, shadow: self.shadow }
    }

    fn name_together(&self, things: &Things) -> String {
        format!("{}:{things}", self.shared_name)
    }

    /// For counting in this process.
    pub fn slot(&self, cost: u32, cx: &RequestCx<'_>) -> Slot {
        Slot { name: self.count.slot(&self.subject.things(cx)), cost }
    }

    /// Counts in this process.
    pub fn count(&self, slot: &Slot, cx: &RequestCx<'_>) -> Outcome {
        match &self.count {
            Count::Rolling { quota, block, table } => table.hit(slot.name, *quota, slot.cost, *block, cx.now.instant),
            Count::Calendar { most, windows, table } => table.hit(slot.name, *most, slot.cost, windows.at(cx.now.wall)),
        }
    }

    /// What would come of a request that counts `cost`, here or where replicas count together. Counts nothing.
    pub async fn look(&self, cost: u32, shared: Option<&Arc<dyn Counters>>, cx: &RequestCx<'_>) -> Result<Outcome, StoreError> {
        let slot = self.slot(cost, cx);
        let now = match (shared, &self.count) {
            (Some(shared), _) => shared.peek(&Hit { cost: 1, ..self.hit(cost, cx) }).await?,
            (None, Count::Rolling { quota, table, .. }) => table.look(slot.name, *quota, cx.now.instant),
            (None, Count::Calendar { most, windows, table }) => table.look(slot.name, *most, windows.at(cx.now.wall)),
        };
        let allowed = now.allowed && cost <= now.remaining;
        Ok(Outcome { allowed, remaining: if allowed { now.remaining - cost } else { 0 }, ..now })
    }

    /// Takes it back.
    pub fn refund(&self, slot: &Slot) {
        match &self.count {
            Count::Rolling { quota, table, .. } => table.refund(slot.name, *quota, slot.cost),
            Count::Calendar { table, .. } => table.refund(slot.name, slot.cost),
        }
    }

    /// Lets operators see who has used up much of it. `shared`: where it was counted, if not here.
    pub fn note(&self, outcome: &Outcome, shared: Option<&Arc<dyn Counters>>, cx: &RequestCx<'_>) {
        let (most, rolling) = self.count.at_once();
        let standing = LimitUsage { shadow: self.shadow || cx.shadow, ..LimitUsage::from_outcome(outcome, most, rolling) };
        if !standing.is_near() {
            return;
        }
        let things = self.subject.things(cx);
        self.near.note(&self.in_force, &things, standing, cx.now.instant, || {
            let shared = shared.map(|shared| (Arc::clone(shared), self.name_together(&things)));
            let about = CountedSubject { limit: self.name.clone(), place: self.place.clone(), shared: shared.is_some(), ..things.about() };
            (about, Arc::new(Used { slot: self.count.slot(&things), count: self.count.clone(), shared }))
        });
    }

    /// For whoever asks what limits a request meets.
    pub fn says(&self, cost: u32, outcome: Outcome, cx: &RequestCx<'_>) -> String {
        let subject = self.subject.things(cx);
        let came_to = match (outcome.allowed, self.shadow) {
            (true, _) => format!("{} left", outcome.remaining),
            (false, true) => "used up (shadow)".to_owned(),
            (false, false) => format!("used up, for another {}s", super::ceil_s(outcome.retry_in)),
        };
        format!("limit `{}`: {}, for {subject}; counts {cost}, {came_to}", self.name, self.rate)
    }

    /// Counts what came of it; `shadow`: whatever it is, it is not carried out.
    pub fn tell(&self, allowed: bool, shadow: bool) {
        match (allowed, self.shadow || shadow) {
            (true, _) => self.allowed.inc(),
            (false, true) => self.shadowed.inc(),
            (false, false) => self.refused.inc(),
        }
    }
}
