//! Parsing, formatting and parts of timestamps and durations. It reads no clock.

use jiff::tz::{Offset, TimeZone};
use jiff::{SignedDuration, Timestamp, ZonedDateTime};

use super::fuel::EvalError;
use super::value::Value;

/// The start of the year 1, in seconds since 1970. The upper limit is that of [`Timestamp`], a day before the year 10000.
const SECOND_MIN: i64 = -62_135_596_800;
/// About 10000 years, which exceeds the difference of any two timestamps.
const SPAN_SECONDS_MAX: u64 = 315_576_000_000;

/// A part of a timestamp or of a duration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    Year,
    Month,
    /// From 0.
    DayOfMonth,
    /// From 1.
    Date,
    DayOfWeek,
    DayOfYear,
    Hours,
    Minutes,
    Seconds,
    Milliseconds,
}

/// A timestamp in the range of CEL.
pub fn point<'v>(time: Option<Timestamp>) -> Result<Value<'v>, EvalError> {
    let known = |time: &Timestamp| time.as_nanosecond() >= i128::from(SECOND_MIN) * 1_000_000_000;
    time.filter(known).map(Value::Timestamp).ok_or(EvalError::Range)
}

/// A duration in the range of CEL.
pub fn span<'v>(span: Option<SignedDuration>) -> Result<Value<'v>, EvalError> {
    span.filter(|span| span.as_secs().unsigned_abs() <= SPAN_SECONDS_MAX).map(Value::Duration).ok_or(EvalError::Range)
}

/// Parses RFC 3339 strictly: `2026-11-29T21:30:00Z`, optionally with a fraction and another offset.
pub fn read_timestamp(text: &str) -> Result<Value<'static>, EvalError> {
    let bytes = text.as_bytes();
    let digits = |range: std::ops::Range<usize>| bytes.get(range).is_some_and(|part| part.iter().all(u8::is_ascii_digit));
    let marks = [(4, b'-'), (7, b'-'), (10, b'T'), (13, b':'), (16, b':')];
    let shaped =
        marks.iter().all(|(at, mark)| bytes.get(*at) == Some(mark)) && [0..4, 5..7, 8..10, 11..13, 14..16, 17..19].into_iter().all(digits);
    let rest = text.get(19..).filter(|_| shaped).ok_or(EvalError::Type)?;
    let zone = rest.strip_prefix('.').map_or(rest, |fraction| fraction.trim_start_matches(|c: char| c.is_ascii_digit()));
    if zone != "Z" && !(zone.len() == 6 && zone.starts_with(['+', '-']) && zone.as_bytes().get(3) == Some(&b':')) {
        return Err(EvalError::Type);
    }
    point(Some(text.parse().map_err(|_| EvalError::Type)?))
}

/// Parses decimal numbers with the units h, m, s, ms, us and ns, such as `1h30m` or `-1.5s`.
pub fn read_duration(text: &str) -> Result<Value<'static>, EvalError> {
    const UNITS: [(&str, i128); 7] =
        [("ms", 1_000_000), ("us", 1000), ("µs", 1000), ("ns", 1), ("h", 3_600_000_000_000), ("m", 60_000_000_000), ("s", 1_000_000_000)];
    let (negative, mut rest) = text.strip_prefix('-').map_or((false, text.strip_prefix('+').unwrap_or(text)), |rest| (true, rest));
    if rest == "0" {
        return span(Some(SignedDuration::ZERO));
    }
    let mut nanos = 0_i128;
    if rest.is_empty() || rest.len() > 128 {
        return Err(EvalError::Type);
    }
    while !rest.is_empty() {
        let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.').ok_or(EvalError::Type)?;
        let (number, unit) = rest.split_at(end);
        let (name, size) = UNITS.into_iter().find(|(name, _)| unit.starts_with(name)).ok_or(EvalError::Type)?;
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if whole.len() + fraction.len() == 0 || whole.len() > 18 || fraction.contains('.') {
            return Err(EvalError::Type);
        }
        let digits: String = fraction.chars().take(15).collect();
        let part = |digits: &str| if digits.is_empty() { Ok(0) } else { digits.parse::<i128>().map_err(|_| EvalError::Type) };
        let scale = u32::try_from(digits.len()).map_or(1, |count| 10_i128.pow(count));
        nanos += part(whole)? * size + part(&digits)? * size / scale;
        rest = unit.get(name.len()..).unwrap_or_default();
    }
    let nanos = if negative { -nanos } else { nanos };
    let seconds = i64::try_from(nanos / 1_000_000_000).map_err(|_| EvalError::Range)?;
    span(Some(SignedDuration::new(seconds, i32::try_from(nanos % 1_000_000_000).map_err(|_| EvalError::Range)?)))
}

/// Formats a duration in decimal seconds, such as `5400s` or `-1.5s`.
pub fn write_duration(span: SignedDuration) -> String {
    let sign = if span.is_negative() { "-" } else { "" };
    let (seconds, nanos) = (span.as_secs().unsigned_abs(), span.subsec_nanos().unsigned_abs());
    let fraction = format!("{nanos:09}");
    match fraction.trim_end_matches('0') {
        "" => format!("{sign}{seconds}s"),
        fraction => format!("{sign}{seconds}.{fraction}s"),
    }
}

/// A time zone by its name in the database or by an offset such as `+05:30`.
pub fn zone(name: &str) -> Result<TimeZone, EvalError> {
    if name.is_empty() || name == "UTC" {
        return Ok(TimeZone::UTC);
    }
    let (sign, offset) = name.strip_prefix('-').map_or((1, name.strip_prefix('+').unwrap_or(name)), |rest| (-1, rest));
    if let Some((hours, minutes)) = offset.split_once(':') {
        let number = |text: &str| {
            Some(text).filter(|text| text.len() == 2 && text.bytes().all(|b| b.is_ascii_digit())).and_then(|text| text.parse::<i32>().ok())
        };
        let (hours, minutes) = number(hours).zip(number(minutes)).filter(|(_, minutes)| *minutes < 60).ok_or(EvalError::Type)?;
        return Offset::from_seconds(sign * (hours * 3600 + minutes * 60)).map(TimeZone::fixed).map_err(|_| EvalError::Type);
    }
    TimeZone::get(name).map_err(|_| EvalError::Type)
}

/// A part of a timestamp in a time zone, or of a duration.
pub fn part(part: Part, of: &Value<'_>, zone_name: Option<&str>) -> Result<i64, EvalError> {
    match (of, zone_name) {
        (Value::Timestamp(time), name) => Ok(part_of_time(part, &time.to_zoned_datetime(zone(name.unwrap_or_default())?))),
        (Value::Duration(span), None) => match part {
            Part::Hours => Ok(span.as_secs() / 3600),
            Part::Minutes => Ok(span.as_secs() / 60),
            Part::Seconds => Ok(span.as_secs()),
            Part::Milliseconds => Ok(i64::from(span.subsec_millis())),
            _ => Err(EvalError::Type),
        },
        _ => Err(EvalError::Type),
    }
}

fn part_of_time(part: Part, time: &ZonedDateTime) -> i64 {
    match part {
        Part::Year => i64::from(time.year()),
        Part::Month => i64::from(time.month()) - 1,
        Part::DayOfMonth => i64::from(time.day()) - 1,
        Part::Date => i64::from(time.day()),
        Part::DayOfWeek => i64::from(time.weekday().to_sunday_zero_offset()),
        Part::DayOfYear => i64::from(time.day_of_year()) - 1,
        Part::Hours => i64::from(time.hour()),
        Part::Minutes => i64::from(time.minute()),
        Part::Seconds => i64::from(time.second()),
        Part::Milliseconds => i64::from(time.millisecond()),
    }
}
