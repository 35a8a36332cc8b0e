//! The least rate at which a request's body has to arrive. Only time in which the client is waited for counts: while the
//! upstream makes the client wait, nothing is read and no time passes here.

use std::time::Duration;

use tokio::time::Instant;

use crate::config::model::Limits;

/// The limit.
#[derive(Clone, Copy, Debug)]
pub struct BodyRate {
    /// Bytes a second, on average; 0: no limit.
    pub bytes_per_s: u64,
    /// Time that a body may take however small it is.
    pub grace: Duration,
}

impl From<&Limits> for BodyRate {
    fn from(limits: &Limits) -> Self {
        Self { bytes_per_s: limits.body_min_rate.0, grace: limits.body_timeout.0 }
    }
}

/// One body as it arrives.
#[derive(Clone, Copy, Debug)]
pub struct BodyPace {
    rate: BodyRate,
    bytes: u64,
    waited: Duration,
    since: Option<Instant>,
}

impl BodyPace {
    /// Of a body of which nothing has arrived.
    pub fn new(rate: BodyRate) -> Self {
        Self { rate, bytes: 0, waited: Duration::ZERO, since: None }
    }

    /// The client is waited for. Before its first byte it is not: it may itself wait for a `100 Continue`.
    pub fn waits(&mut self) {
        if self.rate.bytes_per_s > 0 && self.bytes > 0 && self.since.is_none() {
            self.since = Some(Instant::now());
        }
    }

    /// So many bytes have arrived.
    pub fn arrived(&mut self, bytes: usize) {
        self.bytes += bytes as u64;
        self.waited += self.since.take().map_or(Duration::ZERO, |since| since.elapsed());
    }

    /// When the body is too slow if nothing more arrives.
    pub fn deadline(&self) -> Option<Instant> {
        let earned = Duration::from_millis(self.bytes.saturating_mul(1000).checked_div(self.rate.bytes_per_s)?);
        Some(self.since? + self.rate.grace.saturating_add(earned).saturating_sub(self.waited))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RATE: BodyRate = BodyRate { bytes_per_s: 100, grace: Duration::from_secs(30) };

    /// How long a body lasts of which so many bytes arrive so often.
    async fn lasts(rate: BodyRate, bytes: usize, every: Duration) -> Option<u64> {
        let began = Instant::now();
        let mut pace = BodyPace::new(rate);
        for _ in 0..10_000 {
            pace.arrived(bytes);
            pace.waits();
            tokio::time::advance(every).await;
            if pace.deadline().is_some_and(|deadline| deadline <= Instant::now()) {
                return Some(began.elapsed().as_secs());
            }
        }
        None
    }

    #[tokio::test(start_paused = true)]
    async fn slow_bodies_end_and_others_do_not() {
        let second = Duration::from_secs(1);
        assert_eq!(lasts(RATE, 1, 5 * second).await, Some(35));
        assert_eq!(lasts(RATE, 50, second).await, Some(60));
        assert_eq!(lasts(RATE, 100, second).await, None);
        assert_eq!(lasts(BodyRate { bytes_per_s: 0, ..RATE }, 1, 5 * second).await, None);
    }

    #[tokio::test(start_paused = true)]
    async fn time_in_which_nobody_reads_does_not_count() {
        let mut pace = BodyPace::new(RATE);
        pace.waits();
        assert_eq!(pace.deadline(), None, "not before the first byte");
        pace.arrived(1);
        tokio::time::advance(Duration::from_secs(3600)).await;
        pace.waits();
        assert_eq!(pace.deadline(), Some(Instant::now() + Duration::from_millis(30_010)));
    }
}
