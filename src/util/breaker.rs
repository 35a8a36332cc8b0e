//! Keeps a store or a service that does not answer from adding its time limit to every request.

use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// Failures in a row after which it is not asked for a while.
const FAILURES_MAX: u32 = 3;
/// The first while; it doubles up to the longest one.
const PAUSE: Duration = Duration::from_millis(250);
const PAUSE_MAX: Duration = Duration::from_secs(2);

#[derive(Default)]
struct State {
    failures: u32,
    /// Nobody asks before this.
    closed_until: Option<Instant>,
}

/// Counts failures in a row; past a few, questions fail at once, but for one every now and then.
#[derive(Default)]
pub struct Breaker(Mutex<State>);

impl Breaker {
    /// Asks, unless it is known to be away; `None` then. `is_away` tells the errors that say that it is.
    pub async fn run<T, E>(&self, ask: impl Future<Output = Result<T, E>>, is_away: impl FnOnce(&E) -> bool) -> Option<Result<T, E>> {
        if !self.may_ask(Instant::now()) {
            return None;
        }
        let answer = ask.await;
        self.note(!answer.as_ref().is_err_and(is_away), Instant::now());
        Some(answer)
    }

    /// Whether it is known to be away.
    pub fn is_open(&self) -> bool {
        self.0.lock().closed_until.is_some()
    }

    fn may_ask(&self, now: Instant) -> bool {
        let mut state = self.0.lock();
        match state.closed_until {
            Some(until) if now < until => false,
            // This one tries; the others wait for what comes of it.
            Some(_) => {
                state.closed_until = Some(now + pause(state.failures));
                true
            }
            None => true,
        }
    }

    fn note(&self, well: bool, now: Instant) {
        let mut state = self.0.lock();
        if well {
            *state = State::default();
        } else {
            state.failures = state.failures.saturating_add(1);
            if state.failures >= FAILURES_MAX {
                state.closed_until = Some(now + pause(state.failures));
            }
        }
    }
}

fn pause(failures: u32) -> Duration {
    up_to_a_quarter_less(PAUSE.saturating_mul(1 << failures.saturating_sub(FAILURES_MAX).min(10)).min(PAUSE_MAX))
}

/// So that replicas do not come back at the same moment.
pub fn up_to_a_quarter_less(pause: Duration) -> Duration {
    let mut byte = [0];
    // Without randomness the pause is merely the whole one.
    let _ = getrandom::fill(&mut byte);
    pause.mul_f64(1.0 - f64::from(byte[0]) / 1024.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn opens_after_a_few_failures_and_closes_with_a_success() {
        let (breaker, start) = (Breaker::default(), Instant::now());
        for _ in 0..FAILURES_MAX {
            assert!(breaker.may_ask(start));
            breaker.note(false, start);
        }
        assert!(breaker.is_open() && !breaker.may_ask(start));
        let later = start + PAUSE;
        assert!(breaker.may_ask(later), "one tries");
        assert!(!breaker.may_ask(later), "the others wait");
        breaker.note(true, later);
        assert!(!breaker.is_open() && breaker.may_ask(later));
        (0..100).for_each(|_| breaker.note(false, later));
        assert!(breaker.may_ask(later + PAUSE_MAX), "never longer than that");
    }
}
