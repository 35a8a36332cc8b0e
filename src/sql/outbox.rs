//! Types of the alert store: keys over the threshold, and the outbox of events for webhooks.
//! Contains no delivery; `alerts` sends.

use std::time::{Duration, SystemTime};

use keylatch_filters::contract::Intercept;

/// A key over the threshold without an alert within the window.
#[derive(Clone, Debug, PartialEq)]
pub struct KeyOverThreshold {
    /// The intercepts within the window, to the minute.
    pub intercepts: u64,
    /// The number of them in shadow mode.
    pub shadow: u64,
    /// The number of distinct client addresses.
    pub clients: u64,
    /// The latest intercept.
    pub last: Intercept,
    /// The replica that refused it; empty with a single replica.
    pub replica: String,
}

/// The number of intercepts of one key that raises an alert.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Threshold {
    /// The number of intercepts.
    pub count: u64,
    /// The window in which they count.
    pub window: Duration,
    /// Whether intercepts in shadow mode count.
    pub shadow: bool,
}

/// An event for one webhook.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Delivery {
    /// The event's id, the same at each attempt.
    pub id: String,
    /// The webhook's name.
    pub webhook: String,
    /// The event, as JSON.
    pub event: String,
    /// The number of attempts, this one included.
    pub attempts: u32,
    /// The time of the alert.
    pub raised_at: SystemTime,
}

/// The result of a delivery attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attempted {
    /// The event was delivered, or cannot be delivered. It is deleted.
    Done,
    /// The event is sent again after this time.
    Again(Duration),
}

/// The maximum number of deliveries leased at once.
pub const AT_ONCE: i64 = 16;
/// The maximum number of keys that are checked again after a start.
pub const LOOKED_BACK_MAX: i64 = 10_000;
/// Events older than this are deleted.
pub const AGE_MAX: Duration = Duration::from_secs(2 * 86_400);
