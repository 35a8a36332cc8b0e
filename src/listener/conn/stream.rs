//! The reading half of [`ConnStream`]: what is read when, up to which deadline, and where a request
//! ends. The bytes of a header are checked in `header_check`.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll, ready};

use async_trait::async_trait;
use pingora::http::ResponseHeader;
use pingora::protocols::raw_connect::ProxyDigest;
use pingora::protocols::{Peek, Stream};
use tokio::io::{AsyncRead, AsyncReadExt, ReadBuf};
use tokio::time::{Instant, Sleep};

use super::body_rate::BodyPace;
use super::chunks::Chunks;
use super::header_guard::{END_OF_HEAD, FIELDS_PARSED_MAX, HeaderGuard};
use super::http2::{Http2, PREFACE};
use super::lingering::ClosingStream;
use super::phase::{Event, Phase};
use super::{Conn, ConnLimits, OnRefusal};
use crate::listener::header_check::{self, Checked, Malformed};
use crate::listener::refusal::bad;

/// The size of a read while looking for HTTP/2; most headers are smaller.
const PEEKED_BYTES: usize = 2048;
/// The layer over the stream of a connection.
pub struct ConnStream {
    pub(super) inner: Stream,
    pub(super) conn: Arc<Conn>,
    pub(super) digest: Arc<ProxyDigest>,
    pub(super) limits: ConnLimits,
    pub(super) on_refusal: OnRefusal,
    /// Bytes that were read and not handed on: a possible HTTP/2 preface, a body, the next request.
    pub(super) buffered: Vec<u8>,
    pub(super) header: HeaderGuard,
    /// The deadline for the first byte of a new connection.
    pub(super) first: Option<Instant>,
    pub(super) http2: Option<Box<Http2>>,
    /// Bytes of the current body that were handed on.
    pub(super) body_bytes: u64,
    pub(super) chunks: Chunks,
    pub(super) pace: BodyPace,
    /// Created when a body is first awaited, and reused.
    pub(super) pace_sleep: Option<Pin<Box<Sleep>>>,
    /// The client sends no more, or cannot be written to.
    pub(super) ended: bool,
    /// The connection layer's own response, written after Pingora has dropped the connection.
    pub(super) refusal: Vec<u8>,
    /// A checked header that was not completely handed on.
    pub(super) checked: Vec<u8>,
}

impl ConnStream {
    /// Wraps a new connection. `read`: bytes that were read already.
    pub fn new(inner: Stream, read: Vec<u8>, conn: Arc<Conn>, limits: ConnLimits, on_refusal: OnRefusal) -> io::Result<Self> {
        let none = ResponseHeader::build(200, Some(0)).map_err(|e| io::Error::other(e.to_string()))?;
        let user_data: Box<dyn std::any::Any + Send + Sync> = Box::new(Arc::clone(&conn));
        let digest = Arc::new(ProxyDigest::new(Box::new(none), Some(user_data)));
        let mut header = HeaderGuard::default();
        let first = read.is_empty().then(|| Instant::now() + limits.idle_timeout);
        if !read.is_empty() {
            header.deadline = Some(Instant::now() + limits.header_timeout);
        }
        let http2 = conn.http2().map(|streams| Box::new(Http2::new(Arc::clone(streams), limits.header_timeout)));
        let chunks = Chunks::default();
        Ok(Self {
            inner,
            conn,
            digest,
            limits,
            on_refusal,
            buffered: read,
            header,
            first,
            http2,
            body_bytes: 0,
            chunks,
            pace: BodyPace::new(limits.body_rate),
            pace_sleep: None,
            ended: false,
            refusal: Vec::new(),
            checked: Vec::new(),
        })
    }

    /// The connection state behind a digest.
    pub fn conn_of(digest: &pingora::protocols::Digest) -> Option<&Arc<Conn>> {
        digest.proxy_digest.as_ref()?.user_data.as_ref()?.downcast_ref()
    }

    /// Sets the response that is written when the connection closes. The caller ends the stream:
    /// Pingora sees a client that has left.
    fn refuse(&mut self, status: &str, reason: &'static str) {
        (self.on_refusal)(reason);
        let body = format!(
            "{{\"error\":{{\"message\":\"The request was refused.\",\"type\":\"invalid_request_error\",\"param\":null,\"code\":\"{reason}\"}}}}"
        );
        self.refusal = format!(
            "HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
            body.len()
        )
        .into_bytes();
    }

    /// Reads from the client, and notes the end of the stream.
    pub(super) fn poll_inner(&mut self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let read = ready!(Pin::new(&mut self.inner).poll_read(cx, buf));
        self.ended |= read.is_err() || (buf.filled().len() == before && buf.remaining() > 0);
        Poll::Ready(read)
    }

    /// Whether the client has sent bytes that were not read, or gets a refusal.
    fn unread(&self) -> bool {
        let begun = match self.conn.phase.get() {
            Phase::Header => true,
            Phase::Request => !self.body_complete(),
            _ => false,
        };
        begun || !self.refusal.is_empty() || !self.buffered.is_empty()
    }

    /// Tracks bytes of a header. Returns how many belong to it.
    fn track_header(&mut self, fresh: &[u8]) -> usize {
        if self.conn.phase.apply(Event::HeaderByte) {
            let deadline = self.header.deadline.take().unwrap_or_else(|| Instant::now() + self.limits.header_timeout);
            self.header = HeaderGuard::until(deadline);
            self.first = None;
            (self.body_bytes, self.chunks) = (0, Chunks::default());
            self.pace = BodyPace::new(self.limits.body_rate);
            for flag in [&self.conn.body_bad, &self.conn.body_slow, &self.conn.responding] {
                flag.store(false, Ordering::Relaxed);
            }
        }
        let own = self.header.end_in(fresh);
        let head = fresh.get(..own).unwrap_or(fresh);
        self.header.feed(head);
        own
    }

    /// Why an incomplete header is refused.
    fn limit_exceeded(&self) -> Option<&'static str> {
        // The request line and the final empty line are not fields.
        let fields = self.header.lines.saturating_sub(2);
        if self.header.bytes > self.limits.header_bytes && self.header.ending < END_OF_HEAD.len() {
            Some("header_bytes")
        } else if fields > self.limits.header_fields.max(FIELDS_PARSED_MAX) {
            Some("header_count")
        } else {
            None
        }
    }

    /// Reads a header. It is handed on once it is complete and checked.
    fn read_header(&mut self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>, in_head: bool) -> Poll<io::Result<()>> {
        let mut in_head = in_head;
        while self.checked.is_empty() {
            let before = buf.filled().len();
            let length = self.buffered.len().min(buf.remaining());
            if length > 0 {
                buf.put_slice(self.buffered.get(..length).unwrap_or_default());
                take_front(&mut self.buffered, length);
            } else if self.poll_inner(cx, buf)?.is_pending() {
                return self.wait_for_header(cx, in_head);
            }
            let fresh = buf.filled().get(before..).unwrap_or_default();
            if fresh.is_empty() {
                return Poll::Ready(Ok(()));
            }
            in_head = true;
            let own = self.track_header(fresh);
            if own < fresh.len() {
                self.buffered.splice(..0, fresh.get(own..).unwrap_or_default().iter().copied());
            }
            buf.set_filled(before + own);
            if let Some(reason) = self.limit_exceeded() {
                buf.set_filled(before);
                self.buffered.clear();
                self.refuse("431 Request Header Fields Too Large", reason);
                return Poll::Ready(Ok(()));
            }
            if self.check(buf.filled().get(before..).unwrap_or_default()) {
                return Poll::Ready(Ok(()));
            }
            buf.set_filled(before);
        }
        let length = self.checked.len().min(buf.remaining());
        buf.put_slice(self.checked.get(..length).unwrap_or_default());
        take_front(&mut self.checked, length);
        Poll::Ready(Ok(()))
    }

    /// Checks the header that these bytes complete, or stores them. `true`: they are a complete
    /// header that can be handed on unchanged.
    fn check(&mut self, fresh: &[u8]) -> bool {
        let malformed = self.header.malformed();
        let whole = self.header.partial.is_empty();
        if !whole || (malformed.is_none() && self.header.ending < END_OF_HEAD.len()) {
            self.header.partial.extend_from_slice(fresh);
        }
        let header = if whole { fresh } else { self.header.partial.as_slice() };
        let checked = match malformed {
            Some(reason) => Checked::Malformed(Box::new(Malformed::new(header, bad(reason)))),
            None if self.header.ending < END_OF_HEAD.len() => return false,
            None => header_check::check(header, self.conn.scheme()),
        };
        match checked {
            Checked::Good if whole => return true,
            Checked::Good => self.checked = std::mem::take(&mut self.header.partial),
            Checked::Rewritten(header) => self.checked = header,
            Checked::Malformed(malformed) => {
                self.checked = malformed.replacement();
                let _ = self.conn.malformed.set(malformed);
            }
            // Empty lines before the header.
            Checked::Partial => {
                if whole {
                    self.header.partial.extend_from_slice(fresh);
                }
                self.header.ending = 0;
                return false;
            }
        }
        self.header.partial = Vec::new();
        false
    }

    /// Waits for a header, or for the rest of one, up to its deadline.
    fn wait_for_header(&mut self, cx: &mut Context<'_>, in_head: bool) -> Poll<io::Result<()>> {
        let Some(deadline) = (if in_head { self.header.deadline } else { self.first }) else { return Poll::Pending };
        ready!(self.poll_late(cx, deadline));
        if in_head {
            self.refuse("408 Request Timeout", "header_timeout");
        } else {
            self.ended = true;
            (self.on_refusal)("idle_timeout");
        }
        Poll::Ready(Ok(()))
    }

    /// Ready at the deadline.
    fn poll_late(&mut self, cx: &mut Context<'_>, deadline: Instant) -> Poll<()> {
        self.header.sleep.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(deadline))).as_mut().poll(cx)
    }

    /// Reads HTTP/2. An incomplete frame that is not DATA has the deadline of a header.
    fn read_http2(&mut self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let Some(mut http2) = self.http2.take() else { return Poll::Ready(Err(io::ErrorKind::InvalidData.into())) };
        let before = buf.filled().len();
        let read = if http2.poll_closing(cx).is_ready() {
            Poll::Ready(Ok(()))
        } else if self.buffered.is_empty() {
            self.poll_inner(cx, buf)
        } else {
            self.take_buffered(buf);
            Poll::Ready(Ok(()))
        };
        http2.received(buf.filled().get(before..).unwrap_or_default());
        let late = read.is_pending() && http2.poll_late(cx).is_ready();
        if late {
            (self.on_refusal)("header_timeout");
            self.refusal = http2.goaway();
        }
        self.http2 = Some(http2);
        if late { Poll::Ready(Err(io::ErrorKind::TimedOut.into())) } else { read }
    }

    /// Hands on buffered bytes.
    fn take_buffered(&mut self, buf: &mut ReadBuf<'_>) {
        let length = self.buffered.len().min(buf.remaining());
        let piece: Vec<u8> = self.buffered.drain(..length).collect();
        buf.put_slice(&piece);
    }

    /// Reads an upgraded connection.
    fn read_upgraded(&mut self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if let Some(Poll::Ready(why)) = self.conn.cancellation.get().map(|cancellation| cancellation.poll_cancelled(cx)) {
            let _ = self.conn.cancelled.set(why);
            return Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into()));
        }
        if self.buffered.is_empty() {
            return self.poll_inner(cx, buf);
        }
        self.take_buffered(buf);
        Poll::Ready(Ok(()))
    }
}

/// Removes bytes that were handed on. An open stream keeps no empty buffer.
fn take_front(bytes: &mut Vec<u8>, length: usize) {
    bytes.drain(..length);
    if bytes.is_empty() {
        *bytes = Vec::new();
    }
}

impl AsyncRead for ConnStream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        match this.conn.phase.get() {
            phase @ (Phase::Idle | Phase::Header) => this.read_header(cx, buf, phase == Phase::Header),
            Phase::Request => this.read_body(cx, buf),
            Phase::Upgraded => this.read_upgraded(cx, buf),
            Phase::Http2 => this.read_http2(cx, buf),
        }
    }
}

impl Drop for ConnStream {
    /// Returns an open stream to the acceptor, which closes it without destroying the last
    /// response.
    fn drop(&mut self) {
        if self.ended {
            return;
        }
        let unread = self.unread();
        let stream = std::mem::replace(&mut self.inner, Box::new(io::Cursor::new(Vec::new())));
        let response = std::mem::take(&mut self.refusal);
        *self.conn.closing.lock() = Some(ClosingStream { stream, response, unread });
    }
}

impl std::fmt::Debug for ConnStream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Without the bytes: they contain keys.
        write!(f, "ConnStream({})", self.conn.peer)
    }
}

#[async_trait]
impl Peek for ConnStream {
    /// Looks for the HTTP/2 preface. Unlike a plain peek it stops at the first byte that differs,
    /// so that it does not wait for a request that is shorter than the preface.
    async fn try_peek(&mut self, buf: &mut [u8]) -> io::Result<bool> {
        let mut deadline = Instant::now() + self.limits.idle_timeout;
        while PREFACE.starts_with(&self.buffered) && self.buffered.len() < PREFACE.len() {
            // On the heap: in the future it would exist as long as the connection.
            let mut piece = vec![0; PEEKED_BYTES];
            let read = tokio::time::timeout_at(deadline, self.inner.read(&mut piece)).await;
            let Ok(read) = read else {
                (self.on_refusal)(if self.buffered.is_empty() { "idle_timeout" } else { "header_timeout" });
                return Err(io::ErrorKind::TimedOut.into());
            };
            let read = read?;
            if read == 0 {
                break;
            }
            if self.buffered.is_empty() {
                deadline = Instant::now() + self.limits.header_timeout;
                self.header.deadline = Some(deadline);
            }
            self.buffered.extend_from_slice(piece.get(..read).unwrap_or_default());
        }
        if self.buffered.starts_with(PREFACE) {
            self.conn.set_http2();
            self.http2 = self.conn.http2().map(|streams| Box::new(Http2::new(Arc::clone(streams), self.limits.header_timeout)));
        } else if self.buffered.is_empty() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let length = self.buffered.len().min(buf.len());
        for (to, from) in buf.iter_mut().zip(&self.buffered[..length]) {
            *to = *from;
        }
        Ok(true)
    }
}
