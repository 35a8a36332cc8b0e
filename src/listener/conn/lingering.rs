//! Lingering close (RFC 9112, section 9.6): closes the write side first, then reads and discards
//! what the client still sends, because a TCP reset would destroy a response that the client has
//! not read. Every wait has a limit. On HTTP/2 the rest of a request body is discarded for each
//! stream. A reset of the stream would be simpler, but some clients then drop the response, although
//! RFC 9113, section 8.1, forbids that.

use std::future::poll_fn;
use std::io;
use std::ops::ControlFlow;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use futures::FutureExt;
use pingora::protocols::Stream;
use pingora::protocols::http::ServerSession as HttpSession;
use tokio::io::{AsyncRead, AsyncWriteExt, ReadBuf};
use tokio::time::{Instant, timeout_at};

use crate::config::model::Limits;

/// The size of one read.
const PIECE_BYTES: usize = 16 * 1024;

/// The limits of a lingering close.
#[derive(Clone, Copy, Debug)]
pub struct LingeringLimits {
    /// The total time.
    pub time: Duration,
    /// The time without a byte from the client.
    pub timeout: Duration,
    /// The most bytes that are discarded.
    pub bytes: u64,
}

/// A connection that is being closed.
#[derive(Debug)]
pub struct ClosingStream {
    /// Its stream, still open.
    pub stream: Stream,
    /// The last response, if it has not been written yet.
    pub response: Vec<u8>,
    /// The client has sent bytes that were not read.
    pub unread: bool,
}

/// How a lingering close ended; a label of a metric.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lingered {
    /// The client closed the connection.
    Closed,
    /// The client sent nothing for `lingering_timeout`.
    Timeout,
    /// `lingering_time` has passed.
    Time,
    /// The client sent more than `lingering_bytes`.
    Bytes,
}

impl From<&Limits> for LingeringLimits {
    fn from(limits: &Limits) -> Self {
        Self { time: limits.lingering_time.0, timeout: limits.lingering_timeout.0, bytes: limits.lingering_bytes.0 }
    }
}

impl Lingered {
    /// All outcomes.
    pub const ALL: [Self; 4] = [Self::Closed, Self::Timeout, Self::Time, Self::Bytes];

    /// The value of the label.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::Timeout => "lingering_timeout",
            Self::Time => "lingering_time",
            Self::Bytes => "lingering_bytes",
        }
    }
}

/// Closes the connection. `None`: nothing was outstanding, so it did not linger.
pub async fn close(mut closing: ClosingStream, limits: LingeringLimits) -> Option<Lingered> {
    // As in nginx's `lingering_close on`: after a complete request it lingers only if more bytes
    // have already arrived.
    if !closing.unread && !matches!(discard(&mut closing.stream).now_or_never(), Some(Ok(1..))) {
        return None;
    }
    let end = Instant::now() + limits.time;
    match timeout_at(end, finish(&mut closing)).await {
        Ok(Ok(())) => {}
        Ok(Err(_)) => return Some(Lingered::Closed),
        Err(_) => return Some(Lingered::Time),
    }
    let mut budget = Budget { limits, end, discarded: 0 };
    loop {
        if let ControlFlow::Break(lingered) = budget.read(async { discard(&mut closing.stream).await.ok() }).await {
            return Some(lingered);
        }
    }
}

/// Reads and discards the rest of a request body on HTTP/2, after the response has ended.
pub async fn discard_body(session: &mut HttpSession, limits: LingeringLimits) -> Lingered {
    let mut budget = Budget { limits, end: Instant::now() + limits.time, discarded: 0 };
    loop {
        let read = async { session.read_request_body().await.ok().flatten().map(|bytes| bytes.len().max(1)) };
        if let ControlFlow::Break(lingered) = budget.read(read).await {
            return lingered;
        }
    }
}

/// The remaining limits.
struct Budget {
    limits: LingeringLimits,
    end: Instant,
    discarded: u64,
}

impl Budget {
    /// Reads once. `None` and 0 are the end.
    async fn read(&mut self, read: impl Future<Output = Option<usize>>) -> ControlFlow<Lingered> {
        let until = self.end.min(Instant::now() + self.limits.timeout);
        match timeout_at(until, read).await {
            Ok(Some(bytes @ 1..)) => self.discarded += bytes as u64,
            Ok(_) => return ControlFlow::Break(Lingered::Closed),
            Err(_) if until == self.end => return ControlFlow::Break(Lingered::Time),
            Err(_) => return ControlFlow::Break(Lingered::Timeout),
        }
        if self.discarded > self.limits.bytes { ControlFlow::Break(Lingered::Bytes) } else { ControlFlow::Continue(()) }
    }
}

/// Writes the rest of the response and closes the write side: TLS by `close_notify`, then TCP.
async fn finish(closing: &mut ClosingStream) -> io::Result<()> {
    closing.stream.write_all(&closing.response).await?;
    closing.stream.flush().await?;
    // Pingora may have closed it already; a second shutdown may fail.
    let _ = AsyncWriteExt::shutdown(&mut closing.stream).await;
    Ok(())
}

/// Reads once, and returns the number of bytes. The buffer stays out of the future, which would be
/// large.
async fn discard(stream: &mut Stream) -> io::Result<usize> {
    let read = |cx: &mut Context<'_>| -> Poll<io::Result<usize>> {
        let mut piece = [0; PIECE_BYTES];
        let mut buf = ReadBuf::new(&mut piece);
        Pin::new(&mut *stream).poll_read(cx, &mut buf).map_ok(|()| buf.filled().len())
    };
    poll_fn(read).await
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, DuplexStream};

    use super::*;

    const LIMITS: LingeringLimits = LingeringLimits { time: Duration::from_secs(30), timeout: Duration::from_secs(5), bytes: 100_000 };

    fn closing(unread: bool) -> (DuplexStream, ClosingStream) {
        let (client, stream) = tokio::io::duplex(64 * 1024);
        (client, ClosingStream { stream: Box::new(stream), response: b"HTTP/1.1 408".to_vec(), unread })
    }

    fn paused() -> tokio::runtime::Runtime {
        tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap()
    }

    #[test]
    fn nothing_outstanding_closes_at_once() {
        paused().block_on(async {
            let (_client, closing) = closing(false);
            let began = Instant::now();
            assert_eq!(close(closing, LIMITS).await, None);
            assert_eq!(began.elapsed(), Duration::ZERO);
        });
    }

    #[test]
    fn unread_bytes_make_the_close_linger() {
        paused().block_on(async {
            let (mut client, closing) = closing(false);
            client.write_all(b"GET").await.unwrap();
            assert_eq!(close(closing, LIMITS).await, Some(Lingered::Timeout));
        });
    }

    #[test]
    fn the_response_is_written_and_the_client_closes() {
        paused().block_on(async {
            let (mut client, closing) = closing(true);
            let closed = tokio::spawn(close(closing, LIMITS));
            let mut response = Vec::new();
            client.write_all(&[0; 50_000]).await.unwrap();
            client.read_to_end(&mut response).await.unwrap();
            assert_eq!(response, b"HTTP/1.1 408");
            client.write_all(&[0; 40_000]).await.unwrap();
            drop(client);
            assert_eq!(closed.await.unwrap(), Some(Lingered::Closed));
        });
    }

    #[test]
    fn each_limit_ends_the_close() {
        paused().block_on(async {
            let (_silent, closing_one) = closing(true);
            let began = Instant::now();
            assert_eq!(close(closing_one, LIMITS).await, Some(Lingered::Timeout));
            assert_eq!(began.elapsed().as_secs(), 5);

            let (mut steady, closing_two) = closing(true);
            let began = Instant::now();
            let sends = async {
                while steady.write_all(b"x").await.is_ok() {
                    tokio::time::sleep(Duration::from_secs(4)).await;
                }
            };
            let (outcome, ()) = tokio::join!(close(closing_two, LIMITS), sends);
            assert_eq!(outcome, Some(Lingered::Time));
            assert!((30..35).contains(&began.elapsed().as_secs()));

            let (mut greedy, closing_three) = closing(true);
            let sends = async { while greedy.write_all(&[0; 10_000]).await.is_ok() {} };
            let (outcome, ()) = tokio::join!(close(closing_three, LIMITS), sends);
            assert_eq!(outcome, Some(Lingered::Bytes));
        });
    }
}
