//! The minimum rate of a request body. Only time spent waiting for the client counts: while the
//! upstream is slow, nothing is read and the clock stops. This module reads nothing and closes
//! nothing.

use std::time::Duration;

use tokio::time::Instant;

use crate::config::model::Limits;

/// The limit.
#[derive(Clone, Copy, Debug)]
pub struct BodyRate {
    /// Average bytes per second; 0: no limit.
    pub bytes_per_s: u64,
    /// The time that a body of any size may take.
    pub grace: Duration,
}

impl From<&Limits> for BodyRate {
    fn from(limits: &Limits) -> Self {
        Self { bytes_per_s: limits.body_min_rate.0, grace: limits.body_timeout.0 }
    }
}

/// The progress of one request body.
#[derive(Clone, Copy, Debug)]
pub struct BodyPace {
    rate: BodyRate,
    bytes: u64,
    waited: Duration,
    since: Option<Instant>,
}

impl BodyPace {
    /// A body of which nothing has arrived.
    pub fn new(rate: BodyRate) -> Self {
        Self { rate, bytes: 0, waited: Duration::ZERO, since: None }
    }

    /// Starts waiting for the client. Not before its first byte: the client may be waiting for `100
    /// Continue`.
    pub fn start_waiting(&mut self) {
        if self.rate.bytes_per_s > 0 && self.bytes > 0 && self.since.is_none() {
            self.since = Some(Instant::now());
        }
    }

    /// Notes that bytes have arrived.
    pub fn arrived(&mut self, bytes: usize) {
        self.bytes += bytes as u64;
        self.waited += self.since.take().map_or(Duration::ZERO, |since| since.elapsed());
    }

    /// When the body becomes too slow if nothing more arrives.
    pub fn deadline(&self) -> Option<Instant> {
        let earned = Duration::from_millis(self.bytes.saturating_mul(1000).checked_div(self.rate.bytes_per_s)?);
        Some(self.since? + self.rate.grace.saturating_add(earned).saturating_sub(self.waited))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RATE: BodyRate = BodyRate { bytes_per_s: 100, grace: Duration::from_secs(30) };

    /// Seconds until a body with this many bytes per interval becomes too slow.
    async fn lasts(rate: BodyRate, bytes: usize, every: Duration) -> Option<u64> {
        let began = Instant::now();
        let mut pace = BodyPace::new(rate);
        for _ in 0..10_000 {
            pace.arrived(bytes);
            pace.start_waiting();
            tokio::time::advance(every).await;
            if pace.deadline().is_some_and(|deadline| deadline <= Instant::now()) {
                return Some(began.elapsed().as_secs());
            }
        }
        None
    }

    #[tokio::test(start_paused = true)]
    async fn slow_bodies_time_out_and_others_do_not() {
        let second = Duration::from_secs(1);
        assert_eq!(lasts(RATE, 1, 5 * second).await, Some(35));
        assert_eq!(lasts(RATE, 50, second).await, Some(60));
        assert_eq!(lasts(RATE, 100, second).await, None);
        assert_eq!(lasts(BodyRate { bytes_per_s: 0, ..RATE }, 1, 5 * second).await, None);
    }

    #[tokio::test(start_paused = true)]
    async fn only_time_spent_waiting_counts() {
        let mut pace = BodyPace::new(RATE);
        pace.start_waiting();
        assert_eq!(pace.deadline(), None, "not before the first byte");
        pace.arrived(1);
        tokio::time::advance(Duration::from_secs(3600)).await;
        pace.start_waiting();
        assert_eq!(pace.deadline(), Some(Instant::now() + Duration::from_millis(30_010)));
    }
}
