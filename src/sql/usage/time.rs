//! Which sums cover the range of a query (by minute, hour or day), and the steps of a report in a
//! time zone as an SQL expression. Reads no clock.

use jiff::tz::{Offset, TimeZone};
use jiff::{Timestamp, ToSpan, civil::Date};

use super::query::{UsageQuery, UsageStep};
use super::tables::{DAY_S, HOUR_S, MINUTE_S, RECENT_DAYS};

/// Up to this length a recent range is answered from sums by minute.
const MINUTES_RANGE_MAX_S: i64 = 3 * HOUR_S;
/// The longest range; an earlier start is moved.
const RANGE_MAX_S: i64 = 3700 * DAY_S;

/// Sums of one step length in a range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// The step length, in seconds.
    pub step_s: i64,
    /// The first start of a step.
    pub from_s: i64,
    /// The end, exclusive.
    pub to_s: i64,
}

fn floor(at_s: i64, step_s: i64) -> i64 {
    at_s - at_s.rem_euclid(step_s)
}

fn ceil(at_s: i64, step_s: i64) -> i64 {
    floor(at_s.saturating_add(step_s - 1), step_s)
}

/// The range of the query, within bounds that the arithmetic of dates can take.
fn range(query: &UsageQuery) -> (i64, i64) {
    let to_s = query.to_s.clamp(0, query.horizon.now_s.max(0) + 366 * DAY_S);
    (query.from_s.clamp(0, to_s).max(to_s - RANGE_MAX_S), to_s)
}

/// The sums that cover the range without overlap.
pub fn segments(query: &UsageQuery) -> Vec<Segment> {
    let (from_s, to_s) = range(query);
    let horizon = query.horizon;
    let of = |step_s: i64, from_s: i64, to_s: i64| Segment { step_s, from_s, to_s };
    if from_s >= to_s {
        return Vec::new();
    }
    if to_s - from_s <= MINUTES_RANGE_MAX_S && from_s >= horizon.minutes_since_s {
        return vec![of(MINUTE_S, floor(from_s, MINUTE_S), ceil(to_s, MINUTE_S))];
    }
    // Whole days in the middle need no hours, unless steps begin within a day of UTC.
    let needs_hours = match query.step {
        None => false,
        Some(UsageStep::Hour) => true,
        Some(UsageStep::Day | UsageStep::Week | UsageStep::Month) => {
            offsets(&query.zone, from_s, to_s).iter().any(|(_, offset)| *offset != 0)
        }
    };
    // Nothing is later than the current day, so its sums by day are those until now.
    let ends_now = to_s >= horizon.now_s || to_s < horizon.hours_since_s;
    let mut days_to = if ends_now { ceil(to_s, DAY_S) } else { floor(to_s, DAY_S) };
    let mut days_from = if from_s < horizon.hours_since_s { floor(from_s, DAY_S) } else { ceil(from_s, DAY_S) };
    if needs_hours {
        // Before the sums by hour begin, those by day are the best there is.
        days_to = days_to.min(ceil(horizon.hours_since_s, DAY_S));
    }
    if days_from >= days_to {
        (days_from, days_to) = (floor(from_s, HOUR_S), floor(from_s, HOUR_S));
    }
    let (first, last) = (floor(from_s, HOUR_S), ceil(to_s, HOUR_S));
    let all = [of(HOUR_S, first, days_from), of(DAY_S, days_from, days_to), of(HOUR_S, days_to, last)];
    all.into_iter().filter(|segment| segment.from_s < segment.to_s).collect()
}

/// The days (since 1970) of a range that the tables `usage_recent_…` cover, the end exclusive; an
/// end of `None` is now. They cover whole days (UTC) only.
pub fn recent_days(query: &UsageQuery) -> Option<(i64, Option<i64>)> {
    let [segment] = segments(query).try_into().ok()?;
    let Segment { step_s, from_s, to_s } = segment;
    let (from, to, today) = (from_s / DAY_S, to_s / DAY_S, query.horizon.now_s / DAY_S);
    // One day less than there are columns: the clock of another replica may be ahead.
    let is_recent = step_s == DAY_S && from > today - (RECENT_DAYS - 1);
    is_recent.then_some((from, Some(to).filter(|to| *to <= today)))
}

/// The offsets from UTC in a range, in seconds, each with the time at which it ends.
fn offsets(zone: &TimeZone, from_s: i64, to_s: i64) -> Vec<(i64, i64)> {
    let seconds = |offset: Offset| i64::from(offset.seconds());
    let Ok(start) = Timestamp::from_second(from_s) else { return vec![(to_s, 0)] };
    let mut current = seconds(zone.to_offset(start));
    let mut all = Vec::new();
    for transition in zone.following(start).take_while(|transition| transition.timestamp().as_second() < to_s) {
        let next = seconds(transition.offset());
        if next != current {
            all.push((transition.timestamp().as_second(), current));
            current = next;
        }
    }
    all.push((i64::MAX, current));
    all
}

/// The steps of a report.
pub struct Steps<'q> {
    step: UsageStep,
    zone: &'q TimeZone,
    range: (i64, i64),
}

/// The steps of the query, if it has any.
pub fn steps(query: &UsageQuery) -> Option<Steps<'_>> {
    query.step.map(|step| Steps { step, zone: &query.zone, range: range(query) })
}

impl Steps<'_> {
    /// The SQL expression of the step of a time in the column `at_s`. All parts are numbers.
    pub fn expression(&self, at_s: &str) -> String {
        let local = format!("({at_s} + {})", self.offset(at_s));
        match self.step {
            UsageStep::Hour => format!("({at_s} - {local} % {HOUR_S})"),
            UsageStep::Day => format!("({local} / {DAY_S})"),
            // 1970 began on a Thursday.
            UsageStep::Week => format!("(({local} / {DAY_S} + 3) / 7)"),
            UsageStep::Month => {
                let starts = self.months();
                let branches = starts.iter().zip(starts.iter().skip(1));
                let branches: String = branches.map(|(month, next)| format!(" WHEN {local} < {} THEN {month}", next * DAY_S)).collect();
                format!("(CASE{branches} ELSE {} END)", starts.last().copied().unwrap_or_default())
            }
        }
    }

    /// The shift of sums by day (UTC), so that each counts in the local day that it has most of.
    pub fn day_shift_s(&self) -> i64 {
        let shifts = self.step != UsageStep::Hour && offsets(self.zone, self.range.0, self.range.1).iter().any(|(_, offset)| *offset != 0);
        if shifts { DAY_S / 2 } else { 0 }
    }

    fn offset(&self, at_s: &str) -> String {
        let mut all = offsets(self.zone, self.range.0, self.range.1);
        let last = all.pop().map_or(0, |(_, offset)| offset);
        if all.is_empty() {
            return last.to_string();
        }
        let branches: String = all.iter().map(|(until_s, offset)| format!(" WHEN {at_s} < {until_s} THEN {offset}")).collect();
        format!("(CASE{branches} ELSE {last} END)")
    }

    /// The first day (since 1970) of each month in the range, and one more.
    fn months(&self) -> Vec<i64> {
        // A day more at both ends: no offset is longer.
        let (first, last) = (date(self.range.0 / DAY_S - 1), date(self.range.1 / DAY_S + 1));
        let mut month = first.first_of_month();
        let mut days = vec![day(month)];
        while month <= last {
            let Ok(next) = month.checked_add(1.month()) else { break };
            month = next;
            days.push(day(month));
        }
        days
    }

    /// The start of a step, in seconds since 1970.
    pub fn start_s(&self, bucket: i64) -> i64 {
        let first = match self.step {
            UsageStep::Hour => return bucket,
            UsageStep::Day | UsageStep::Month => bucket,
            UsageStep::Week => bucket * 7 - 3,
        };
        let start = date(first).to_zoned_datetime(self.zone.clone());
        start.map_or(first * DAY_S, |start| start.timestamp().as_second())
    }
}

fn epoch() -> Date {
    Date::constant(1970, 1, 1)
}

fn date(day: i64) -> Date {
    epoch().checked_add(day.days()).unwrap_or_else(|_| epoch())
}

fn day(date: Date) -> i64 {
    epoch().until(date).map_or(0, |span| span.get_days().into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sql::usage::UsageHorizon;

    fn query(from_s: i64, to_s: i64, now_s: i64) -> UsageQuery {
        UsageQuery::new(from_s, to_s, UsageHorizon { now_s, minutes_since_s: now_s - 2 * DAY_S, hours_since_s: now_s - 35 * DAY_S })
    }

    #[test]
    fn segments_cover_a_range_once() {
        let now_s = 20_000 * DAY_S + 5 * HOUR_S + 7;
        let of = |step_s: i64, from_s: i64, to_s: i64| Segment { step_s, from_s, to_s };
        let (today, yesterday) = (20_000 * DAY_S, 19_999 * DAY_S);
        assert_eq!(segments(&query(now_s - 3600, now_s, now_s)), [of(60, now_s - 3607, now_s - 7 + 60)]);
        assert_eq!(segments(&query(yesterday, today, now_s)), [of(DAY_S, yesterday, today)]);
        assert_eq!(segments(&query(yesterday, now_s, now_s)), [of(DAY_S, yesterday, today + DAY_S)]);
        let inner = query(yesterday - 3 * HOUR_S - 5, today - 2 * HOUR_S - 5, now_s);
        assert_eq!(segments(&inner), [of(HOUR_S, yesterday - 4 * HOUR_S, today - 2 * HOUR_S)]);
        let old = query(19_000 * DAY_S + 5, 19_002 * DAY_S + 5, now_s);
        assert_eq!(segments(&old), [of(DAY_S, 19_000 * DAY_S, 19_003 * DAY_S)]);
        let ends_now = query(now_s - 5 * DAY_S, now_s, now_s);
        let first = today - 5 * DAY_S + 5 * HOUR_S;
        assert_eq!(segments(&ends_now), [of(HOUR_S, first, today - 4 * DAY_S), of(DAY_S, today - 4 * DAY_S, today + DAY_S)]);
        assert_eq!(segments(&query(now_s, now_s, now_s)), []);
        assert_eq!(segments(&query(i64::MIN, i64::MAX, now_s)).len(), 1);
    }

    #[test]
    fn steps_follow_the_time_zone() {
        let zone = TimeZone::get("Europe/Berlin").unwrap();
        // Summer time ends on 2026-10-25 at 01:00 UTC.
        let from_s = 1_792_800_000 - 1_792_800_000 % DAY_S;
        let query = UsageQuery { step: Some(UsageStep::Day), zone, ..query(from_s, from_s + 9 * DAY_S, from_s + 20 * DAY_S) };
        let steps = steps(&query).unwrap();
        assert!(steps.expression("at_s").contains("CASE WHEN at_s < 1792890000 THEN 7200 ELSE 3600 END"), "{}", steps.expression("at_s"));
        let starts: Vec<i64> = (20_751..20_754).map(|day| steps.start_s(day)).collect();
        assert_eq!(starts.windows(2).map(|pair| pair[1] - pair[0]).collect::<Vec<_>>(), [25 * HOUR_S, DAY_S]);
        assert!(segments(&query).iter().all(|segment| segment.step_s == HOUR_S));
    }
}
