//! A circuit breaker, which keeps an unresponsive store or service from adding its time limit to
//! every request. Retries nothing itself.

use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// The number of failures in a row that opens the breaker.
const FAILURES_MAX: u32 = 3;
/// The first pause. It doubles up to the longest one.
const PAUSE: Duration = Duration::from_millis(250);
const PAUSE_MAX: Duration = Duration::from_secs(2);

#[derive(Default)]
struct State {
    failures: u32,
    /// No call is made before this.
    open_until: Option<Instant>,
}

/// Counts failures in a row. While it is open, calls fail at once, except one after each pause.
#[derive(Default)]
pub struct Breaker(Mutex<State>);

impl Breaker {
    /// Makes the call; `None`: the breaker is open. `is_away` tells which errors count as failures.
    pub async fn run<T, E>(&self, call: impl Future<Output = Result<T, E>>, is_away: impl FnOnce(&E) -> bool) -> Option<Result<T, E>> {
        if !self.may_call(Instant::now()) {
            return None;
        }
        let answer = call.await;
        self.note(!answer.as_ref().is_err_and(is_away), Instant::now());
        Some(answer)
    }

    /// Whether the breaker is open.
    pub fn is_open(&self) -> bool {
        self.0.lock().open_until.is_some()
    }

    fn may_call(&self, now: Instant) -> bool {
        let mut state = self.0.lock();
        match state.open_until {
            Some(until) if now < until => false,
            // This call probes; the others fail until it succeeds.
            Some(_) => {
                state.open_until = Some(now + pause(state.failures));
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
                state.open_until = Some(now + pause(state.failures));
            }
        }
    }
}

fn pause(failures: u32) -> Duration {
    with_jitter(PAUSE.saturating_mul(1 << failures.saturating_sub(FAILURES_MAX).min(10)).min(PAUSE_MAX))
}

/// Shortens a pause by up to a quarter, so that replicas do not retry at the same moment.
pub fn with_jitter(pause: Duration) -> Duration {
    let mut byte = [0];
    // Without random numbers the pause is the full one.
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
            assert!(breaker.may_call(start));
            breaker.note(false, start);
        }
        assert!(breaker.is_open() && !breaker.may_call(start));
        let later = start + PAUSE;
        assert!(breaker.may_call(later), "one call probes");
        assert!(!breaker.may_call(later), "the others fail");
        breaker.note(true, later);
        assert!(!breaker.is_open() && breaker.may_call(later));
        (0..100).for_each(|_| breaker.note(false, later));
        assert!(breaker.may_call(later + PAUSE_MAX), "the pause has a maximum");
    }
}
