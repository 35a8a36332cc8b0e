//! What requests consumed: accounts by minute, hour and day. Contains no SQL and reads no answer.

use keylatch_filters::contract::{UsageRecord, UsageSink};

/// The accounts of this process.
#[derive(Debug, Default)]
pub struct Accounts {}

impl UsageSink for Accounts {
    fn record(&self, _record: &UsageRecord) {}
}
