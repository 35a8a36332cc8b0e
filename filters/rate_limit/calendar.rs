//! Counts by windows of the calendar in a time zone: this minute, this hour, today, this month.

use std::collections::HashMap;
use std::hash::Hash;
use std::time::{Duration, SystemTime};

use jiff::Timestamp;
use jiff::civil::{Date, Weekday};
use jiff::tz::TimeZone;
use parking_lot::Mutex;
use schemars::JsonSchema;
use serde::Deserialize;

use super::gcra::Seeds;
use crate::contract::Outcome;

const DAY_S: u64 = 86_400;

/// A window of the calendar.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Unit {
    /// From one full second to the next.
    Second,
    /// From one full minute to the next.
    Minute,
    /// From one full hour to the next.
    Hour,
    /// From midnight to midnight.
    Day,
    /// From Monday to Monday.
    Week,
    /// From the first to the first.
    Month,
}

impl Unit {
    /// How long it is, a month as 30 days.
    pub fn seconds(self) -> u64 {
        match self {
            Unit::Second => 1,
            Unit::Minute => 60,
            Unit::Hour => 3600,
            Unit::Day => DAY_S,
            Unit::Week => 7 * DAY_S,
            Unit::Month => 30 * DAY_S,
        }
    }

    /// The window at this time: a number that grows from one to the next, and how long it still lasts.
    pub fn at(self, now: SystemTime) -> (i64, Duration) {
        let since = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let seconds = since.as_secs();
        // 1970 began on a Thursday.
        let (offset, length) = match self {
            Unit::Week => (3 * DAY_S, self.seconds()),
            Unit::Month => {
                let (number, next_s) = month(seconds / DAY_S);
                return (number, Duration::from_secs(next_s).saturating_sub(since));
            }
            _ => (0, self.seconds()),
        };
        let number = (seconds + offset) / length;
        let end = Duration::from_secs((number + 1) * length - offset);
        (i64::try_from(number).unwrap_or(i64::MAX), end.saturating_sub(since))
    }
}

/// The windows of a calendar: how long they are, and where they begin.
#[derive(Clone, Debug)]
pub struct Windows {
    unit: Unit,
    /// `None`: UTC.
    zone: Option<TimeZone>,
}

impl Windows {
    /// Those of a unit. In UTC without a zone.
    pub fn new(unit: Unit, zone: Option<TimeZone>) -> Self {
        Self { unit, zone }
    }

    /// The window at this time: a number that grows from one to the next, and how long it still lasts.
    pub fn at(&self, now: SystemTime) -> (i64, Duration) {
        // A time outside the years of the calendar has the windows of UTC.
        self.zone.as_ref().and_then(|zone| self.in_zone(now, zone)).unwrap_or_else(|| self.unit.at(now))
    }

    fn in_zone(&self, now: SystemTime, zone: &TimeZone) -> Option<(i64, Duration)> {
        let time = Timestamp::try_from(now).ok()?.to_zoned_datetime(zone.clone());
        let date = time.date();
        let (number, next) = match self.unit {
            Unit::Second | Unit::Minute => return None,
            // An hour begins at a full hour of local time, also where the offset is not one. Whole hours of the offset do not
            // count: an hour that local time repeats in autumn is two windows.
            Unit::Hour => {
                let seconds = time.timestamp().as_second() + i64::from(time.offset().seconds()).rem_euclid(3600);
                let left = Duration::from_secs(u64::try_from(3600 - seconds.rem_euclid(3600)).ok()?);
                let fraction = Duration::from_nanos(u64::try_from(time.timestamp().subsec_nanosecond()).ok()?);
                return Some((seconds.div_euclid(3600), left.saturating_sub(fraction)));
            }
            Unit::Day => (days(date), date.tomorrow().ok()?),
            Unit::Week => {
                let since_monday = i64::from(date.weekday().to_monday_zero_offset());
                let monday = date.nth_weekday(1, Weekday::Monday).ok()?;
                ((days(date) - since_monday).div_euclid(7), monday)
            }
            Unit::Month => {
                let next = date.last_of_month().tomorrow().ok()?;
                (i64::from(date.year()) * 12 + i64::from(date.month()), next)
            }
        };
        let end = next.to_zoned_datetime(zone.clone()).ok()?.timestamp();
        Some((number, Duration::try_from(end.duration_since(time.timestamp())).ok()?))
    }
}

/// The days since 1970.
fn days(date: Date) -> i64 {
    date.duration_since(Date::constant(1970, 1, 1)).as_hours() / 24
}

/// The month that a day since 1970 is in, counted from year 0, and when the next one begins in seconds since 1970. By
/// the proleptic Gregorian calendar, as Howard Hinnant's `civil_from_days` and `days_from_civil` work it out.
fn month(day: u64) -> (i64, u64) {
    const DAYS_TO_1970: u64 = 719_468;
    let shifted = day + DAYS_TO_1970;
    let (era, of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    // March is 0: leap days come at the end.
    let month = (5 * of_year + 2) / 153;
    let number = (era * 400 + year_of_era) * 12 + month;
    let next = number + 1;
    let (next_year, next_month) = (next / 12, next % 12);
    let days =
        next_year / 400 * 146_097 + (next_year % 400) * 365 + (next_year % 400) / 4 - (next_year % 400) / 100 + (153 * next_month + 2) / 5;
    (i64::try_from(number).unwrap_or(i64::MAX), (days - DAYS_TO_1970) * DAY_S)
}

struct Entry {
    window: i64,
    used: u32,
}

/// How much of its window each thing has used, in bounded memory.
pub struct Table {
    entries: Mutex<HashMap<u128, Entry>>,
    entries_max: usize,
    seeds: Seeds,
}

impl Table {
    /// At most `entries_max` things are remembered; past it, those that have used least are forgotten first.
    pub fn new(entries_max: usize) -> Self {
        Self { entries: Mutex::default(), entries_max, seeds: Seeds::default() }
    }

    /// The name under which a thing is counted.
    pub fn slot(&self, thing: &impl Hash) -> u128 {
        self.seeds.slot(thing)
    }

    /// Hits, counting `cost`.
    pub fn hit(&self, slot: u128, most: u32, cost: u32, window: (i64, Duration)) -> Outcome {
        let mut entries = self.entries.lock();
        if entries.len() >= self.entries_max && !entries.contains_key(&slot) {
            make_room(&mut entries, window.0);
        }
        let entry = entries.entry(slot).or_insert(Entry { window: window.0, used: 0 });
        if entry.window != window.0 {
            *entry = Entry { window: window.0, used: 0 };
        }
        let used = entry.used.saturating_add(cost);
        let allowed = used <= most;
        if allowed {
            entry.used = used;
        }
        outcome(allowed, entry.used, most, window.1)
    }

    /// How it stands with a thing: whether one more would be allowed.
    pub fn look(&self, slot: u128, most: u32, window: (i64, Duration)) -> Outcome {
        let used = self.entries.lock().get(&slot).filter(|entry| entry.window == window.0).map_or(0, |entry| entry.used);
        outcome(used < most, used, most, window.1)
    }

    /// Forgets what was used.
    pub fn forget(&self, slot: u128) {
        self.entries.lock().remove(&slot);
    }

    /// Takes a hit back.
    pub fn refund(&self, slot: u128, cost: u32) {
        if let Some(entry) = self.entries.lock().get_mut(&slot) {
            entry.used = entry.used.saturating_sub(cost);
        }
    }
}

/// What is to be said of a hit after which so much is used.
pub fn outcome(allowed: bool, used: u32, most: u32, left: Duration) -> Outcome {
    let remaining = if allowed { most.saturating_sub(used) } else { 0 };
    Outcome { allowed, remaining, full_in: left, more_in: left, retry_in: if allowed { Duration::ZERO } else { left } }
}

fn make_room(entries: &mut HashMap<u128, Entry>, window: i64) {
    let wanted = entries.len() - entries.len() / 8;
    entries.retain(|_, entry| entry.window == window);
    if entries.len() > wanted {
        let mut used: Vec<u32> = entries.values().map(|entry| entry.used).collect();
        let drop_count = entries.len() - wanted;
        let pivot = *used.select_nth_unstable(drop_count - 1).1;
        let mut left_to_drop = drop_count;
        entries.retain(|_, entry| {
            let keep = entry.used > pivot || left_to_drop == 0;
            left_to_drop -= usize::from(!keep);
            keep
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> SystemTime {
        humantime::parse_rfc3339(text).unwrap()
    }

    #[test]
    fn windows_end_where_the_calendar_says() {
        for (unit, now, end) in [
            (Unit::Minute, "2026-11-22T21:40:31Z", "2026-11-22T21:41:00Z"),
            (Unit::Hour, "2026-11-22T21:00:00Z", "2026-11-22T22:00:00Z"),
            (Unit::Day, "2026-11-22T21:40:31Z", "2026-11-23T00:00:00Z"),
            (Unit::Week, "2026-11-22T21:40:31Z", "2026-11-23T00:00:00Z"),
            (Unit::Week, "2026-11-23T00:00:00Z", "2026-11-30T00:00:00Z"),
            (Unit::Month, "2026-11-30T23:59:59Z", "2026-12-01T00:00:00Z"),
            (Unit::Month, "2026-12-01T00:00:00Z", "2027-01-01T00:00:00Z"),
            (Unit::Month, "2028-02-29T12:00:00Z", "2028-03-01T00:00:00Z"),
            (Unit::Month, "2100-02-28T12:00:00Z", "2100-03-01T00:00:00Z"),
            (Unit::Month, "2027-01-31T00:00:00Z", "2027-02-01T00:00:00Z"),
        ] {
            let (number, left) = unit.at(at(now));
            assert_eq!(at(now) + left, at(end), "{unit:?} {now}");
            assert_eq!(unit.at(at(end)).0, number + 1, "{unit:?} {now}");
            assert_eq!(unit.at(at(end) - Duration::from_nanos(1)).0, number, "{unit:?} {now}");
        }
    }

    /// The clock is put forward on 2026-03-29 and back on 2026-10-25 in Berlin.
    #[test]
    fn windows_of_a_zone_end_by_its_own_clock() {
        let berlin = TimeZone::get("Europe/Berlin").unwrap();
        let kolkata = TimeZone::get("Asia/Kolkata").unwrap();
        for (zone, unit, now, end) in [
            (&berlin, Unit::Day, "2026-11-29T21:40:31Z", "2026-11-29T23:00:00Z"),
            (&berlin, Unit::Day, "2026-07-01T21:59:59Z", "2026-07-01T22:00:00Z"),
            (&berlin, Unit::Day, "2026-03-28T23:00:00Z", "2026-03-29T22:00:00Z"),
            (&berlin, Unit::Day, "2026-10-24T22:00:00Z", "2026-10-25T23:00:00Z"),
            (&berlin, Unit::Week, "2026-11-29T22:59:59Z", "2026-11-29T23:00:00Z"),
            (&berlin, Unit::Week, "2026-11-29T23:00:00Z", "2026-12-06T23:00:00Z"),
            (&berlin, Unit::Month, "2026-11-30T22:59:59Z", "2026-11-30T23:00:00Z"),
            (&berlin, Unit::Month, "2026-12-31T23:00:00Z", "2027-01-31T23:00:00Z"),
            (&berlin, Unit::Hour, "2026-10-25T00:30:00Z", "2026-10-25T01:00:00Z"),
            (&kolkata, Unit::Hour, "2026-11-29T21:40:31Z", "2026-11-29T22:30:00Z"),
            (&kolkata, Unit::Day, "2026-11-29T21:40:31Z", "2026-11-30T18:30:00Z"),
            (&kolkata, Unit::Minute, "2026-11-29T21:40:31Z", "2026-11-29T21:41:00Z"),
        ] {
            let windows = Windows::new(unit, Some(zone.clone()));
            let (number, left) = windows.at(at(now));
            assert_eq!(at(now) + left, at(end), "{unit:?} {now}");
            assert!(windows.at(at(end)).0 > number, "{unit:?} {now}");
            assert_eq!(windows.at(at(end) - Duration::from_nanos(1)).0, number, "{unit:?} {now}");
        }
    }

    #[test]
    fn each_window_begins_anew_and_memory_is_bounded() {
        let table = Table::new(1000);
        let (now, next) = ((5, Duration::from_secs(9)), (6, Duration::from_secs(60)));
        assert_eq!((table.hit(1, 3, 2, now).remaining, table.hit(1, 3, 1, now).remaining), (1, 0));
        let refused = table.hit(1, 3, 1, now);
        assert!(!refused.allowed && refused.retry_in == Duration::from_secs(9));
        table.refund(1, 1);
        assert!(table.hit(1, 3, 1, now).allowed && table.hit(1, 3, 3, next).allowed);
        assert!(!table.look(1, 3, next).allowed && table.look(1, 3, (7, Duration::ZERO)).remaining == 3);
        for thing in 2..100_000 {
            table.hit(thing, 3, 1, next);
        }
        assert!(table.entries.lock().len() <= 1000);
        assert!(!table.hit(1, 3, 1, next).allowed, "who has used most is remembered");
    }
}
