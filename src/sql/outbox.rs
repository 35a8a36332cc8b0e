//! Alerts as a store keeps them: keys with too many intercepts, and events to deliver to webhooks.

use std::time::{Duration, SystemTime};

use keylatch_filters::contract::Intercept;

/// A key over the threshold of which nobody was alerted within the window.
#[derive(Clone, Debug, PartialEq)]
pub struct Hot {
    /// Intercepts within the window, give or take a minute.
    pub intercepts: u64,
    /// How many of them were in shadow mode.
    pub shadow: u64,
    /// Different client addresses among them.
    pub clients: u64,
    /// The latest of them.
    pub last: Intercept,
    /// The replica that refused it, where there are several.
    pub replica: String,
}

/// From how many intercepts of one key on somebody is to know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Threshold {
    /// So many.
    pub count: u64,
    /// Within this time.
    pub window: Duration,
    /// Whether intercepts in shadow mode count, too.
    pub shadow: bool,
}

/// An event for one webhook.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Delivery {
    /// The same at every attempt.
    pub id: String,
    /// The webhook's name.
    pub webhook: String,
    /// The event, as JSON.
    pub event: String,
    /// How often it was tried, this time included.
    pub attempts: u32,
    /// When it was raised.
    pub raised_at: SystemTime,
}

/// What came of an attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attempted {
    /// It has arrived, or never will: it goes.
    Done,
    /// It is tried again after this time.
    Again(Duration),
}

/// Deliveries that are taken at once.
pub const AT_ONCE: i64 = 16;
/// Keys that are looked at once more, where it is not known whether somebody has.
pub const LOOKED_BACK_MAX: i64 = 10_000;
/// Events older than this are gone, whoever they are for.
pub const AGE_MAX: Duration = Duration::from_secs(2 * 86_400);
