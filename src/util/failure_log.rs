//! Limits the log lines of a failure that repeats. Writes no log itself; the caller does.

use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// The shortest period between two lines about one failure.
const REPEATED_AFTER: Duration = Duration::from_secs(60);

/// One kind of failure: its first line comes at once, the next ones at most once a minute.
#[derive(Default)]
pub struct FailureLog(Mutex<Option<Failing>>);

struct Failing {
    logged_at: Instant,
    /// The number of failures since the last success.
    failures: u64,
}

impl FailureLog {
    /// Records a failure. `Some`: log it, with the number of failures since the last success.
    pub fn failed(&self, now: Instant) -> Option<u64> {
        let mut state = self.0.lock();
        let Some(failing) = state.as_mut() else {
            *state = Some(Failing { logged_at: now, failures: 1 });
            return Some(1);
        };
        failing.failures += 1;
        if now.saturating_duration_since(failing.logged_at) < REPEATED_AFTER {
            return None;
        }
        failing.logged_at = now;
        Some(failing.failures)
    }

    /// Records a success. `Some`: it is the first one after this number of failures; log it.
    pub fn succeeded(&self) -> Option<u64> {
        self.0.lock().take().map(|failing| failing.failures)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repeats_are_logged_once_a_minute() {
        let (log, start) = (FailureLog::default(), Instant::now());
        assert_eq!(log.succeeded(), None);
        assert_eq!(log.failed(start), Some(1));
        assert_eq!(log.failed(start + Duration::from_secs(1)), None);
        assert_eq!(log.failed(start + REPEATED_AFTER), Some(3));
        assert_eq!(log.failed(start + REPEATED_AFTER), None);
        assert_eq!((log.succeeded(), log.succeeded()), (Some(4), None));
        assert_eq!(log.failed(start + REPEATED_AFTER), Some(1), "a new failure is logged at once");
    }
}
