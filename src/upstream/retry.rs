//! The attempts of one request, and its remaining retries. It sends nothing and chooses no server.

use std::time::Duration;

use pingora::{Error, ErrorType};

use super::Address;

/// The back-off before the first retry on the same server; it doubles with each retry.
const BACKOFF: Duration = Duration::from_millis(25);

/// The attempts of one request.
#[derive(Default)]
pub struct Attempts {
    /// The servers that could not be connected.
    pub unreachable: Vec<Address>,
    /// The servers that did not process the request, or ended before a response.
    pub failed: Vec<Address>,
    /// The next attempt needs a new connection: a pooled one was closed.
    pub new_connection: bool,
    /// The last error.
    pub error: Option<ErrorType>,
    retries: usize,
}

impl Attempts {
    /// Takes one of the `most` retries. `false`: none is left.
    pub fn take(&mut self, most: usize) -> bool {
        let left = self.retries < most;
        self.retries += usize::from(left);
        left
    }

    /// Whether one of the `most` retries is left.
    pub fn has_left(&self, most: usize) -> bool {
        self.retries < most
    }

    /// The back-off before the next attempt on this server.
    pub fn backoff(&self, server: &Address) -> Option<Duration> {
        let before = u32::try_from(self.failed.iter().filter(|one| *one == server).count()).unwrap_or(u32::MAX);
        (before > 0).then(|| BACKOFF * 2u32.saturating_pow(before - 1).min(64))
    }
}

/// Whether the server certainly did not process the request (RFC 9113, section 8.7): it refused the
/// stream, or sent GOAWAY with a lower last stream. In `h2`, only streams above that one fail by
/// the server's GOAWAY.
pub fn is_unprocessed(error: &Error) -> bool {
    let Some(cause) = error.root_cause().downcast_ref::<h2::Error>() else { return false };
    cause.is_remote() && (cause.is_go_away() || (cause.is_reset() && cause.reason() == Some(h2::Reason::REFUSED_STREAM)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retries_are_counted_over_all_causes() {
        let mut attempts = Attempts::default();
        assert!(attempts.take(2) && attempts.take(2) && !attempts.take(2) && !attempts.has_left(2));
        assert!(!Attempts::default().take(0));
    }

    #[test]
    fn retries_on_the_same_server_back_off() {
        let server = |port| Address::Inet(([127, 0, 0, 1], port).into());
        let mut attempts = Attempts::default();
        assert_eq!(attempts.backoff(&server(1)), None);
        attempts.failed.push(server(1));
        assert_eq!((attempts.backoff(&server(1)), attempts.backoff(&server(2))), (Some(BACKOFF), None));
        attempts.failed.push(server(1));
        assert_eq!(attempts.backoff(&server(1)), Some(BACKOFF * 2));
    }
}
