//! Counts per calendar window in a time zone: second, minute, hour, day, week or month. It reads no clock: callers pass
//! the time.

use std::collections::HashMap;
use std::hash::Hash;
use std::time::{Duration, SystemTime};

use jiff::Timestamp;
use jiff::civil::{Date, Weekday};
use jiff::tz::TimeZone;
use parking_lot::Mutex;
use schemars::JsonSchema;
use serde::Deserialize;

use super::gcra::SlotSeeds;
use crate::contract::Outcome;

const DAY_S: u64 = 86_400;

/// The unit of a calendar window.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum CalendarUnit {
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

impl CalendarUnit {
    /// The name, in lower case.
    pub fn as_str(self) -> &'static str {
        match self {
            CalendarUnit::Second => "second",
            CalendarUnit::Minute => "minute",
            CalendarUnit::Hour => "hour",
            CalendarUnit::Day => "day",
            CalendarUnit::Week => "week",
            CalendarUnit::Month => "month",
        }
    }

    /// Its length in seconds. A month counts as 30 days.
    pub fn seconds(self) -> u64 {
        match self {
            CalendarUnit::Second => 1,
            CalendarUnit::Minute => 60,
            CalendarUnit::Hour => 3600,
            CalendarUnit::Day => DAY_S,
            CalendarUnit::Week => 7 * DAY_S,
            CalendarUnit::Month => 30 * DAY_S,
        }
    }

    /// The UTC window at a time: its number, which increases from window to window, and the time left in it.
    pub fn utc_window_at(self, now: SystemTime) -> (i64, Duration) {
        let since = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let seconds = since.as_secs();
        // 1970 began on a Thursday.
        let (offset, length) = match self {
            CalendarUnit::Week => (3 * DAY_S, self.seconds()),
            CalendarUnit::Month => {
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

/// The windows of one unit in one time zone.
#[derive(Clone, Debug)]
pub struct CalendarWindows {
    unit: CalendarUnit,
    /// `None`: UTC.
    zone: Option<TimeZone>,
}

impl CalendarWindows {
    /// The windows of a unit. Without a zone, UTC.
    pub fn new(unit: CalendarUnit, zone: Option<TimeZone>) -> Self {
        Self { unit, zone }
    }

    /// The unit.
    pub fn unit(&self) -> CalendarUnit {
        self.unit
    }

    /// The window at a time: its number, which increases from window to window, and the time left in it.
    pub fn window_at(&self, now: SystemTime) -> (i64, Duration) {
        // Times outside the range of the calendar library fall back to UTC windows.
        self.zone.as_ref().and_then(|zone| self.in_zone(now, zone)).unwrap_or_else(|| self.unit.utc_window_at(now))
    }

    fn in_zone(&self, now: SystemTime, zone: &TimeZone) -> Option<(i64, Duration)> {
        let time = Timestamp::try_from(now).ok()?.to_zoned_datetime(zone.clone());
        let date = time.date();
        let (number, next) = match self.unit {
            CalendarUnit::Second | CalendarUnit::Minute => return None,
            // Windows start at full hours of local time, even if the UTC offset has minutes. Whole hours of the offset are
            // ignored, so the hour that repeats when clocks go back is two windows.
            CalendarUnit::Hour => {
                let seconds = time.timestamp().as_second() + i64::from(time.offset().seconds()).rem_euclid(3600);
                let left = Duration::from_secs(u64::try_from(3600 - seconds.rem_euclid(3600)).ok()?);
                let fraction = Duration::from_nanos(u64::try_from(time.timestamp().subsec_nanosecond()).ok()?);
                return Some((seconds.div_euclid(3600), left.saturating_sub(fraction)));
            }
            CalendarUnit::Day => (days(date), date.tomorrow().ok()?),
            CalendarUnit::Week => {
                let since_monday = i64::from(date.weekday().to_monday_zero_offset());
                let monday = date.nth_weekday(1, Weekday::Monday).ok()?;
                ((days(date) - since_monday).div_euclid(7), monday)
            }
            CalendarUnit::Month => {
                let next = date.last_of_month().tomorrow().ok()?;
                (i64::from(date.year()) * 12 + i64::from(date.month()), next)
            }
        };
        let end = next.to_zoned_datetime(zone.clone()).ok()?.timestamp();
        Some((number, Duration::try_from(end.duration_since(time.timestamp())).ok()?))
    }
}

/// Days since 1970-01-01.
fn days(date: Date) -> i64 {
    date.duration_since(Date::constant(1970, 1, 1)).as_hours() / 24
}

/// The month of a day since 1970, counted from year 0, and the start of the next month in seconds since 1970. Proleptic
/// Gregorian calendar, after Howard Hinnant's `civil_from_days` and `days_from_civil`.
fn month(day: u64) -> (i64, u64) {
    const DAYS_TO_1970: u64 = 719_468;
    let shifted = day + DAYS_TO_1970;
    let (era, of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    // March is month 0, so that the leap day is the last day of the year.
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

/// How much of its window each subject has used, in bounded memory.
pub struct WindowTable {
    entries: Mutex<HashMap<u128, Entry>>,
    entries_max: usize,
    seeds: SlotSeeds,
}

impl WindowTable {
    /// An empty table for at most `entries_max` subjects. A full table evicts the subjects that have used the least.
    pub fn new(entries_max: usize) -> Self {
        Self { entries: Mutex::default(), entries_max, seeds: SlotSeeds::default() }
    }

    /// The slot in which a subject is counted.
    pub fn slot(&self, subject: &impl Hash) -> u128 {
        self.seeds.slot(subject)
    }

    /// Counts a hit of `cost`, if at most `most` are used with it.
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
        window_outcome(allowed, entry.used, most, window.1)
    }

    /// The outcome that one more hit would have. Counts nothing.
    pub fn peek(&self, slot: u128, most: u32, window: (i64, Duration)) -> Outcome {
        let used = self.entries.lock().get(&slot).filter(|entry| entry.window == window.0).map_or(0, |entry| entry.used);
        window_outcome(used < most, used, most, window.1)
    }

    /// Removes the subject's usage.
    pub fn forget(&self, slot: u128) {
        self.entries.lock().remove(&slot);
    }

    /// Reverts a hit of `cost`.
    pub fn refund(&self, slot: u128, cost: u32) {
        if let Some(entry) = self.entries.lock().get_mut(&slot) {
            entry.used = entry.used.saturating_sub(cost);
        }
    }
}

/// The outcome of a hit: `used` of `most` are used after it, and `left` is the time to the end of the window.
pub fn window_outcome(allowed: bool, used: u32, most: u32, left: Duration) -> Outcome {
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
    fn utc_windows_end_at_calendar_boundaries() {
        for (unit, now, end) in [
            (CalendarUnit::Minute, "2026-11-22T21:40:31Z", "2026-11-22T21:41:00Z"),
            (CalendarUnit::Hour, "2026-11-22T21:00:00Z", "2026-11-22T22:00:00Z"),
            (CalendarUnit::Day, "2026-11-22T21:40:31Z", "2026-11-23T00:00:00Z"),
            (CalendarUnit::Week, "2026-11-22T21:40:31Z", "2026-11-23T00:00:00Z"),
            (CalendarUnit::Week, "2026-11-23T00:00:00Z", "2026-11-30T00:00:00Z"),
            (CalendarUnit::Month, "2026-11-30T23:59:59Z", "2026-12-01T00:00:00Z"),
            (CalendarUnit::Month, "2026-12-01T00:00:00Z", "2027-01-01T00:00:00Z"),
            (CalendarUnit::Month, "2028-02-29T12:00:00Z", "2028-03-01T00:00:00Z"),
            (CalendarUnit::Month, "2100-02-28T12:00:00Z", "2100-03-01T00:00:00Z"),
            (CalendarUnit::Month, "2027-01-31T00:00:00Z", "2027-02-01T00:00:00Z"),
        ] {
            let (number, left) = unit.utc_window_at(at(now));
            assert_eq!(at(now) + left, at(end), "{unit:?} {now}");
            assert_eq!(unit.utc_window_at(at(end)).0, number + 1, "{unit:?} {now}");
            assert_eq!(unit.utc_window_at(at(end) - Duration::from_nanos(1)).0, number, "{unit:?} {now}");
        }
    }

    /// In Berlin, daylight saving time starts on 2026-03-29 and ends on 2026-10-25.
    #[test]
    fn zoned_windows_end_at_local_boundaries() {
        let berlin = TimeZone::get("Europe/Berlin").unwrap();
        let kolkata = TimeZone::get("Asia/Kolkata").unwrap();
        for (zone, unit, now, end) in [
            (&berlin, CalendarUnit::Day, "2026-11-29T21:40:31Z", "2026-11-29T23:00:00Z"),
            (&berlin, CalendarUnit::Day, "2026-07-01T21:59:59Z", "2026-07-01T22:00:00Z"),
            (&berlin, CalendarUnit::Day, "2026-03-28T23:00:00Z", "2026-03-29T22:00:00Z"),
            (&berlin, CalendarUnit::Day, "2026-10-24T22:00:00Z", "2026-10-25T23:00:00Z"),
            (&berlin, CalendarUnit::Week, "2026-11-29T22:59:59Z", "2026-11-29T23:00:00Z"),
            (&berlin, CalendarUnit::Week, "2026-11-29T23:00:00Z", "2026-12-06T23:00:00Z"),
            (&berlin, CalendarUnit::Month, "2026-11-30T22:59:59Z", "2026-11-30T23:00:00Z"),
            (&berlin, CalendarUnit::Month, "2026-12-31T23:00:00Z", "2027-01-31T23:00:00Z"),
            (&berlin, CalendarUnit::Hour, "2026-10-25T00:30:00Z", "2026-10-25T01:00:00Z"),
            (&kolkata, CalendarUnit::Hour, "2026-11-29T21:40:31Z", "2026-11-29T22:30:00Z"),
            (&kolkata, CalendarUnit::Day, "2026-11-29T21:40:31Z", "2026-11-30T18:30:00Z"),
            (&kolkata, CalendarUnit::Minute, "2026-11-29T21:40:31Z", "2026-11-29T21:41:00Z"),
        ] {
            let windows = CalendarWindows::new(unit, Some(zone.clone()));
            let (number, left) = windows.window_at(at(now));
            assert_eq!(at(now) + left, at(end), "{unit:?} {now}");
            assert!(windows.window_at(at(end)).0 > number, "{unit:?} {now}");
            assert_eq!(windows.window_at(at(end) - Duration::from_nanos(1)).0, number, "{unit:?} {now}");
        }
    }

    #[test]
    fn windows_reset_usage_and_memory_is_bounded() {
        let table = WindowTable::new(1000);
        let (now, next) = ((5, Duration::from_secs(9)), (6, Duration::from_secs(60)));
        assert_eq!((table.hit(1, 3, 2, now).remaining, table.hit(1, 3, 1, now).remaining), (1, 0));
        let refused = table.hit(1, 3, 1, now);
        assert!(!refused.allowed && refused.retry_in == Duration::from_secs(9));
        table.refund(1, 1);
        assert!(table.hit(1, 3, 1, now).allowed && table.hit(1, 3, 3, next).allowed);
        assert!(!table.peek(1, 3, next).allowed && table.peek(1, 3, (7, Duration::ZERO)).remaining == 3);
        for slot in 2..100_000 {
            table.hit(slot, 3, 1, next);
        }
        assert!(table.entries.lock().len() <= 1000);
        assert!(!table.hit(1, 3, 1, next).allowed, "the subject with the most usage is kept");
    }
}
