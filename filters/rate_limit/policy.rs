//! One limit: what it counts, how, and where in this process.

use std::sync::Arc;
use std::time::Duration;

use http::HeaderValue;
use prometheus::IntCounter;

use super::calendar::{self, Unit};
use super::config::{Limit, Window};
use super::gcra;
use super::subject::{Subject, Things};
use crate::contract::{Hit, Invalid, Measure, Outcome, Quota, RequestCx, Site};

/// How it is counted, and where.
enum Count {
    Rolling { quota: Quota, block: Duration, table: Arc<gcra::Table> },
    Calendar { most: u32, unit: Unit, table: Arc<calendar::Table> },
}

/// A compiled limit.
pub struct Policy {
    /// Its name.
    pub name: String,
    /// How many in its time.
    pub most: u32,
    /// The member of `RateLimit-Policy`, which never changes.
    pub field: HeaderValue,
    /// Refuses nobody.
    pub shadow: bool,
    /// Its name among the counts that replicas share.
    shared_name: String,
    subject: Subject,
    cost: u32,
    count: Count,
    allowed: IntCounter,
    refused: IntCounter,
}

/// Under which name a request is counted in this process.
pub struct Slot(u128);

impl Policy {
    pub fn compile(limit: Limit, entries_max: usize, site: &Site<'_>) -> Result<Self, Invalid> {
        let (subject, word) = Subject::compile(limit.per, &site.ports.hasher).map_err(|invalid| invalid.at("per"))?;
        let name = limit.name.unwrap_or(word);
        let fine = |b: u8| b.is_ascii_alphanumeric() || b"-_.".contains(&b);
        if name.is_empty() || name.len() > 64 || !name.bytes().all(fine) {
            return Err(Invalid::new(format!("`{name}` is not a name; use up to 64 letters, digits, `-`, `_` and `.`")).at("name"));
        }
        let (rate, key) = (limit.limit, format!("{} {name} {entries_max}", site.place));
        let burst = limit.burst.unwrap_or(rate.count);
        if burst == 0 {
            return Err(Invalid::new("0 would let nothing through; it must be at least 1").at("burst"));
        }
        if limit.cost == 0 || limit.cost > burst {
            return Err(Invalid::new(format!("must be between 1 and {burst}, which is all there is at once")).at("cost"));
        }
        let count = match limit.window {
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
                let units = [Unit::Minute, Unit::Hour, Unit::Day, Unit::Week, Unit::Month];
                let Some(unit) = units.into_iter().find(|unit| rate.period == Duration::from_secs(unit.seconds())) else {
                    return Err(Invalid::new("a calendar has minutes, hours, days, weeks and months: write `1000/day`, say").at("limit"));
                };
                Count::Calendar { most: rate.count, unit, table: site.keep(&key, || calendar::Table::new(entries_max)) }
            }
        };
        let window_s = rate.period.as_secs().max(1);
        let field = HeaderValue::from_str(&format!("\"{name}\";q={};w={window_s}", rate.count));
        let counter = |outcome| {
            let help = "Requests by limit and outcome; what another limit refused is counted where it was looked at.";
            let outcome = if limit.shadow && outcome == "refused" { "shadow" } else { outcome };
            site.counter_by("rate_limit_requests_total", help, &[("policy", &name), ("outcome", outcome)])
        };
        Ok(Self {
            most: rate.count,
            field: field.map_err(|e| Invalid::new(e.to_string()).at("name"))?,
            shadow: limit.shadow,
            shared_name: format!("{}:{name}", site.place),
            subject,
            cost: limit.cost,
            count,
            allowed: counter("allowed"),
            refused: counter("refused"),
            name,
        })
    }

    /// For counting with other replicas.
    pub fn hit(&self, cx: &RequestCx<'_>) -> Hit {
        let measure = match &self.count {
            Count::Rolling { quota, block, .. } => Measure::Rolling { quota: *quota, block: *block },
            Count::Calendar { most, unit, .. } => {
                let (number, left) = unit.at(cx.now.wall);
                Measure::Window { most: *most, number, left }
            }
        };
        Hit { name: format!("{}:{}", self.shared_name, self.subject.things(cx)), measure, cost: self.cost, shadow: self.shadow }
    }

    /// For counting in this process.
    pub fn slot(&self, cx: &RequestCx<'_>) -> Slot {
        let hash = |things: Things| match &self.count {
            Count::Rolling { table, .. } => table.slot(&things),
            Count::Calendar { table, .. } => table.slot(&things),
        };
        Slot(hash(self.subject.things(cx)))
    }

    /// Counts in this process.
    pub fn count(&self, slot: &Slot, cx: &RequestCx<'_>) -> Outcome {
        match &self.count {
            Count::Rolling { quota, block, table } => table.hit(slot.0, *quota, self.cost, *block, cx.now.instant),
            Count::Calendar { most, unit, table } => table.hit(slot.0, *most, self.cost, unit.at(cx.now.wall)),
        }
    }

    /// Takes it back.
    pub fn refund(&self, slot: &Slot) {
        match &self.count {
            Count::Rolling { quota, table, .. } => table.refund(slot.0, *quota, self.cost),
            Count::Calendar { table, .. } => table.refund(slot.0, self.cost),
        }
    }

    /// Counts what came of it.
    pub fn tell(&self, allowed: bool) {
        if allowed { self.allowed.inc() } else { self.refused.inc() }
    }
}
