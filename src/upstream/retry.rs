//! What was tried for one request, and whether it may be tried again. It sends nothing and chooses no server.

use std::time::Duration;

use pingora::{Error, ErrorType};

use super::Address;

/// Before the first further attempt at the same server; doubled from one to the next.
const BACKOFF: Duration = Duration::from_millis(25);

/// What was tried for one request.
#[derive(Default)]
pub struct Attempts {
    /// Servers to which no connection could be made.
    pub unreachable: Vec<Address>,
    /// Servers that did not process it, or ended before they answered.
    pub failed: Vec<Address>,
    /// Only a new connection will do: one that was kept turned out to be closed.
    pub new_connection: bool,
    /// What went wrong last.
    pub error: Option<ErrorType>,
    retries: usize,
}

impl Attempts {
    /// Takes one of the `most` retries, if there is one left.
    pub fn take(&mut self, most: usize) -> bool {
        let left = self.retries < most;
        self.retries += usize::from(left);
        left
    }

    /// Whether one of the `most` retries is left.
    pub fn has_left(&self, most: usize) -> bool {
        self.retries < most
    }

    /// How long to wait before this server is asked again.
    pub fn backoff(&self, server: &Address) -> Option<Duration> {
        let before = u32::try_from(self.failed.iter().filter(|one| *one == server).count()).unwrap_or(u32::MAX);
        (before > 0).then(|| BACKOFF * 2u32.saturating_pow(before - 1).min(64))
    }
}

/// Whether a server certainly has not processed the request (RFC 9113, section 8.7): it refused the stream, or ended the connection
/// with a GOAWAY that names a lower stream as the last one. Of `h2`, only streams above that one fail by the server's GOAWAY.
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
    fn the_same_server_is_asked_again_after_a_while() {
        let server = |port| Address::Inet(([127, 0, 0, 1], port).into());
        let mut attempts = Attempts::default();
        assert_eq!(attempts.backoff(&server(1)), None);
        attempts.failed.push(server(1));
        assert_eq!((attempts.backoff(&server(1)), attempts.backoff(&server(2))), (Some(BACKOFF), None));
        attempts.failed.push(server(1));
        assert_eq!(attempts.backoff(&server(1)), Some(BACKOFF * 2));
    }
}
