//! What the filters that count requests share: the GCRA table, calendar windows, subjects with client prefixes, and the
//! options and refusal for counts that replicas share. It is not a filter and imports none.

pub mod calendar;
pub mod gcra;
pub mod ledger;
mod shared;
mod subject;

use std::time::Duration;

use crate::contract::Invalid;
pub use shared::{CountScope, CountsFailurePolicy, shared_counts_unavailable};
pub use subject::{ClientPrefixes, Subject, SubjectKind, SubjectKinds, SubjectPart, SubjectReader, client_network};

/// The time zone of this name.
pub fn time_zone(name: &str) -> Result<jiff::tz::TimeZone, Invalid> {
    jiff::tz::TimeZone::get(name).map_err(|_| Invalid::new(format!("unknown time zone `{name}`; use a name such as `Europe/Berlin`")))
}

/// A duration in whole seconds, rounded up: a header field has no fractions.
pub fn ceil_s(duration: Duration) -> u64 {
    duration.as_secs() + u64::from(duration.subsec_nanos() > 0)
}
