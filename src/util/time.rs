//! Conversion between `SystemTime` and milliseconds since 1970, which databases and interfaces use.
//! Reads no clock.

use std::time::{Duration, SystemTime};

/// Milliseconds since 1970.
pub fn millis(at: SystemTime) -> i64 {
    at.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| i64::try_from(since.as_millis()).unwrap_or(i64::MAX))
}

/// The time from milliseconds since 1970.
pub fn time(millis: i64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_millis(u64::try_from(millis).unwrap_or(0))
}
