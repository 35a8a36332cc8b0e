//! Times in requests and responses: RFC 3339.

use std::time::SystemTime;

use crate::util::time::time;

/// RFC 3339, in UTC, to the millisecond.
pub fn rfc3339(ms: i64) -> String {
    format_time(time(ms))
}

/// The same for a [`SystemTime`].
pub fn format_time(at: SystemTime) -> String {
    humantime::format_rfc3339_millis(at).to_string()
}

/// Parses RFC 3339 into milliseconds since 1970.
pub fn parse(field: &'static str, text: &str) -> Result<i64, super::problem::Problem> {
    let read = humantime::parse_rfc3339_weak(text).map(crate::util::time::millis);
    read.map_err(|_| super::problem::Problem::invalid(field, "must be a time such as 2026-01-31T09:00:00Z"))
}
