//! Milliseconds since 1970, as databases and interfaces have them.

use std::time::{Duration, SystemTime};

/// Milliseconds since 1970.
pub fn millis(at: SystemTime) -> i64 {
    at.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| i64::try_from(since.as_millis()).unwrap_or(i64::MAX))
}

/// The time that is so many milliseconds after 1970.
pub fn time(millis: i64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_millis(u64::try_from(millis).unwrap_or(0))
}
