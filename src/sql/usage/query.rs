//! Queries of usage, and their rows. Contains no SQL; `common` of each database executes them.

use jiff::tz::TimeZone;
use keylatch_filters::contract::{Cost, KeyId};
use serde::{Deserialize, Serialize};

use super::batch::UsageSums;

/// The length of the steps of a report, in the time zone of the query.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UsageStep {
    /// By hour.
    Hour,
    /// By day.
    Day,
    /// By week, from Monday on.
    Week,
    /// By month.
    Month,
}

/// A field by which usage is grouped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum UsageDimension {
    /// By API key.
    Key,
    /// By verified identity.
    Subject,
    /// By label of the key's binding. A key with two labels counts under each; keys without a label
    /// are left out.
    Label,
    /// By model.
    Model,
    /// By route.
    Route,
    /// By upstream.
    Upstream,
    /// By the first digit of the status.
    Status,
}

/// The order of a report. Rows with equal values are ordered by step and group.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum UsageSort {
    /// By cost. Amounts of different currencies are compared by their numbers.
    #[default]
    Cost,
    /// By input and output tokens.
    Tokens,
    /// By requests.
    Requests,
    /// By step, then by group.
    Time,
}

/// Restricts a report to rows with these values.
#[derive(Clone, Debug, Default)]
pub struct UsageFilter {
    /// Only this key.
    pub key: Option<KeyId>,
    /// Only this verified identity.
    pub subject: Option<String>,
    /// Only this model.
    pub model: Option<String>,
    /// Only this route.
    pub route: Option<String>,
    /// Only this upstream.
    pub upstream: Option<String>,
    /// Only keys with this label.
    pub label: Option<String>,
}

/// The current time, and since when the database has sums by minute and by hour.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct UsageHorizon {
    /// The current time, in seconds since 1970.
    pub now_s: i64,
    /// The start of the sums by minute, in seconds since 1970.
    pub minutes_since_s: i64,
    /// The start of the sums by hour, in seconds since 1970.
    pub hours_since_s: i64,
}

/// A query of usage.
///
/// The range is widened to whole minutes if it is at most three hours long and recent, else to whole
/// hours, and before [`UsageHorizon::hours_since_s`] to whole days (UTC).
#[derive(Clone, Debug)]
pub struct UsageQuery {
    /// The start, in seconds since 1970.
    pub from_s: i64,
    /// The end, exclusive.
    pub to_s: i64,
    /// One row for each step. `None`: for the whole range.
    pub step: Option<UsageStep>,
    /// The time zone of the steps.
    pub zone: TimeZone,
    /// The fields by which rows are grouped, at most [`GROUPS_MAX`].
    pub group: Vec<UsageDimension>,
    /// The filters.
    pub filter: UsageFilter,
    /// The order.
    pub sort: UsageSort,
    /// Whether the order is reversed.
    pub descending: bool,
    /// Only rows after this cursor.
    pub after: Option<UsageCursor>,
    /// The maximum number of rows, up to [`PAGE_ROWS_MAX`].
    pub limit: u32,
    /// What the database has.
    pub horizon: UsageHorizon,
}

/// The maximum number of fields by which rows are grouped.
pub const GROUPS_MAX: usize = 2;
/// The maximum number of rows of a page.
pub const PAGE_ROWS_MAX: u32 = 5000;

impl UsageQuery {
    /// The sums of a range, without step, group or filter, by cost, the largest first.
    pub fn new(from_s: i64, to_s: i64, horizon: UsageHorizon) -> Self {
        Self {
            from_s,
            to_s,
            step: None,
            zone: TimeZone::UTC,
            group: Vec::new(),
            filter: UsageFilter::default(),
            sort: UsageSort::Cost,
            descending: true,
            after: None,
            limit: 100,
            horizon,
        }
    }

    /// The maximum number of rows, within bounds.
    pub(crate) fn rows_max(&self) -> u32 {
        self.limit.clamp(1, PAGE_ROWS_MAX)
    }
}

/// A row of a report.
#[derive(Clone, Debug, PartialEq)]
pub struct UsageRow {
    /// The start of the step, in seconds since 1970; without steps, the start of the range.
    pub start_s: i64,
    /// The values of the fields in [`UsageQuery::group`]: keys in hex, statuses as one digit. Empty:
    /// none, such as a request without a key.
    pub group: Vec<String>,
    /// The sums. `cost_micros` adds up all currencies.
    pub sums: UsageSums,
    /// The cost in each currency.
    pub costs: Vec<Cost>,
}

/// A position in a report.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UsageCursor {
    /// The value that the report is sorted by.
    pub value: i64,
    /// The step.
    pub bucket: i64,
    /// The group, as in [`UsageRow::group`].
    pub group: Vec<String>,
}

/// The time to first token in one step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct UsageLatency {
    /// The start of the step, in seconds since 1970; without steps, the start of the range.
    pub start_s: i64,
    /// The number of requests with a first token.
    pub count: i64,
    /// The median, in milliseconds, interpolated within a bucket.
    pub p50_ms: f64,
    /// The 95th percentile, in milliseconds.
    pub p95_ms: f64,
}

/// A query of the request log. Rows are returned the latest first.
#[derive(Clone, Debug, Default)]
pub struct RequestQuery {
    /// The start, in milliseconds since 1970.
    pub from_ms: i64,
    /// The end, exclusive.
    pub to_ms: i64,
    /// The filters.
    pub filter: UsageFilter,
    /// Only rows after this cursor.
    pub after: Option<RequestCursor>,
    /// The maximum number of rows.
    pub limit: u32,
}

/// A position in the request log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RequestCursor {
    /// The time, in milliseconds since 1970.
    pub at_ms: i64,
    /// The id.
    pub id: String,
}
