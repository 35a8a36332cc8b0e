//! Times, as answers have them.

use std::time::SystemTime;

use crate::util::time::time;

/// RFC 3339, in UTC, to the millisecond.
pub fn rfc3339(ms: i64) -> String {
    of(time(ms))
}

/// The same of a time.
pub fn of(at: SystemTime) -> String {
    humantime::format_rfc3339_millis(at).to_string()
}

/// Milliseconds since 1970 of a time in RFC 3339.
pub fn parse(field: &'static str, text: &str) -> Result<i64, super::problem::Problem> {
    let read = humantime::parse_rfc3339_weak(text).map(crate::util::time::millis);
    read.map_err(|_| super::problem::Problem::invalid(field, "this must be a time such as 2026-01-31T09:00:00Z"))
}
