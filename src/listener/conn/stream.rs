//! The layer over a connection's stream: what is read of it when, until when, and where a request ends.

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
use super::http2::{Http2, PREFACE};
use super::lingering::ClosingStream;
use super::{Conn, ConnLimits, HEAD, HTTP2, IDLE, OPAQUE, OnRefusal, REQUEST};
use crate::listener::chunks::Chunks;
use crate::listener::header_check::{self, Checked, Malformed};
use crate::listener::header_guard::{END_OF_HEAD, FIELDS_PARSED_MAX, Head};
use crate::listener::refusal::bad;

/// What is read at once while looking for HTTP/2; most requests' headers are smaller.
const PEEKED_BYTES: usize = 2048;
/// The layer.
pub struct ConnStream {
    pub(super) inner: Stream,
    pub(super) conn: Arc<Conn>,
    pub(super) digest: Arc<ProxyDigest>,
    pub(super) limits: ConnLimits,
    pub(super) on_refusal: OnRefusal,
    /// Read, and not handed on yet: what was looked at for HTTP/2, a body, the next request.
    pub(super) held: Vec<u8>,
    pub(super) head: Head,
    /// Until when the first byte of a fresh connection is waited for.
    pub(super) first: Option<Instant>,
    pub(super) http2: Option<Box<Http2>>,
    /// Bytes of the current body that were handed on.
    pub(super) body_bytes: u64,
    pub(super) chunks: Chunks,
    pub(super) pace: BodyPace,
    /// Made only once a body is waited for, and kept for the next.
    pub(super) pace_sleep: Option<Pin<Box<Sleep>>>,
    /// The client sends no more, or cannot be written to.
    pub(super) ended: bool,
    /// The connection layer's own response, written once Pingora has given the connection up.
    pub(super) refusal: Vec<u8>,
    /// A header that was checked, and has not been handed on as a whole.
    pub(super) checked: Vec<u8>,
}

impl ConnStream {
    /// Puts the layer over a fresh connection, of which something may have been read already.
    pub fn new(inner: Stream, read: Vec<u8>, conn: Arc<Conn>, limits: ConnLimits, on_refusal: OnRefusal) -> io::Result<Self> {
        let none = ResponseHeader::build(200, Some(0)).map_err(|e| io::Error::other(e.to_string()))?;
        let carried: Box<dyn std::any::Any + Send + Sync> = Box::new(Arc::clone(&conn));
        let digest = Arc::new(ProxyDigest::new(Box::new(none), Some(carried)));
        let mut head = Head::default();
        let first = read.is_empty().then(|| Instant::now() + limits.idle_timeout);
        if !read.is_empty() {
            head.deadline = Some(Instant::now() + limits.header_timeout);
        }
        let http2 = conn.http2().map(|streams| Box::new(Http2::new(Arc::clone(streams), limits.header_timeout)));
        let chunks = Chunks::default();
        Ok(Self {
            inner,
            conn,
            digest,
            limits,
            on_refusal,
            held: read,
            head,
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

    /// What the connection of this digest carries.
    pub fn conn_of(digest: &pingora::protocols::Digest) -> Option<&Arc<Conn>> {
        digest.proxy_digest.as_ref()?.user_data.as_ref()?.downcast_ref()
    }

    /// Leaves a response to be written when the connection closes. The caller ends the stream: to Pingora the client has left.
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

    /// Reads from the client, and notes whether that has an end.
    pub(super) fn poll_inner(&mut self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let read = ready!(Pin::new(&mut self.inner).poll_read(cx, buf));
        self.ended |= read.is_err() || (buf.filled().len() == before && buf.remaining() > 0);
        Poll::Ready(read)
    }

    /// Whether the client has begun to send what was not read, or is told that it sends too much.
    fn unread(&self) -> bool {
        let begun = match self.conn.phase.load(Ordering::Relaxed) {
            HEAD => true,
            REQUEST => !self.body_complete(),
            _ => false,
        };
        begun || !self.refusal.is_empty() || !self.held.is_empty()
    }

    /// Notes what was read of a header, and how much of it belongs to it.
    fn watch(&mut self, fresh: &[u8]) -> usize {
        if self.conn.phase.compare_exchange(IDLE, HEAD, Ordering::Relaxed, Ordering::Relaxed).is_ok() {
            let deadline = self.head.deadline.take().unwrap_or_else(|| Instant::now() + self.limits.header_timeout);
            self.head = Head::until(deadline);
            self.first = None;
            (self.body_bytes, self.chunks) = (0, Chunks::default());
            self.pace = BodyPace::new(self.limits.body_rate);
            for flag in [&self.conn.body_bad, &self.conn.body_slow, &self.conn.responding] {
                flag.store(false, Ordering::Relaxed);
            }
        }
        let own = self.head.end_in(fresh);
        let head = fresh.get(..own).unwrap_or(fresh);
        self.head.feed(head);
        own
    }

    /// Why the header is refused before it is complete.
    fn too_much(&self) -> Option<&'static str> {
        // The first line and the last, empty one are no fields.
        let fields = self.head.lines.saturating_sub(2);
        if self.head.bytes > self.limits.header_bytes && self.head.ending < END_OF_HEAD.len() {
            Some("header_bytes")
        } else if fields > self.limits.header_fields.max(FIELDS_PARSED_MAX) {
            Some("header_count")
        } else {
            None
        }
    }

    /// Reads a header. It is handed on once it is there as a whole and has been checked.
    fn read_head(&mut self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>, in_head: bool) -> Poll<io::Result<()>> {
        let mut in_head = in_head;
        while self.checked.is_empty() {
            let before = buf.filled().len();
            let length = self.held.len().min(buf.remaining());
            if length > 0 {
                buf.put_slice(self.held.get(..length).unwrap_or_default());
                take_front(&mut self.held, length);
            } else if self.poll_inner(cx, buf)?.is_pending() {
                return self.wait_for_head(cx, in_head);
            }
            let fresh = buf.filled().get(before..).unwrap_or_default();
            if fresh.is_empty() {
                return Poll::Ready(Ok(()));
            }
            in_head = true;
            let own = self.watch(fresh);
            if own < fresh.len() {
                self.held.splice(..0, fresh.get(own..).unwrap_or_default().iter().copied());
            }
            buf.set_filled(before + own);
            if let Some(reason) = self.too_much() {
                buf.set_filled(before);
                self.held.clear();
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

    /// Checks the header that these bytes end, or keeps them. `true`: they are all of it, and can be handed on as they are.
    fn check(&mut self, fresh: &[u8]) -> bool {
        let malformed = self.head.malformed();
        let whole = self.head.partial.is_empty();
        if !whole || (malformed.is_none() && self.head.ending < END_OF_HEAD.len()) {
            self.head.partial.extend_from_slice(fresh);
        }
        let header = if whole { fresh } else { self.head.partial.as_slice() };
        let checked = match malformed {
            Some(reason) => Checked::Malformed(Box::new(Malformed::new(header, bad(reason)))),
            None if self.head.ending < END_OF_HEAD.len() => return false,
            None => header_check::check(header, self.conn.scheme()),
        };
        match checked {
            Checked::Good if whole => return true,
            Checked::Good => self.checked = std::mem::take(&mut self.head.partial),
            Checked::Rewritten(header) => self.checked = header,
            Checked::Malformed(malformed) => {
                self.checked = malformed.replacement();
                let _ = self.conn.malformed.set(malformed);
            }
            // Empty lines before it.
            Checked::Partial => {
                if whole {
                    self.head.partial.extend_from_slice(fresh);
                }
                self.head.ending = 0;
                return false;
            }
        }
        self.head.partial = Vec::new();
        false
    }

    /// Nothing more has come of a header, or nothing at all.
    fn wait_for_head(&mut self, cx: &mut Context<'_>, in_head: bool) -> Poll<io::Result<()>> {
        let Some(deadline) = (if in_head { self.head.deadline } else { self.first }) else { return Poll::Pending };
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
        self.head.sleep.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(deadline))).as_mut().poll(cx)
    }

    /// Reads HTTP/2. What has begun and is not a request's body has the time of a header.
    fn read_http2(&mut self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let Some(mut http2) = self.http2.take() else { return Poll::Ready(Err(io::ErrorKind::InvalidData.into())) };
        let before = buf.filled().len();
        let read = if http2.poll_closing(cx).is_ready() {
            Poll::Ready(Ok(()))
        } else if self.held.is_empty() {
            self.poll_inner(cx, buf)
        } else {
            self.take_held(buf);
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

    /// Hands on what was read already.
    fn take_held(&mut self, buf: &mut ReadBuf<'_>) {
        let length = self.held.len().min(buf.remaining());
        let piece: Vec<u8> = self.held.drain(..length).collect();
        buf.put_slice(&piece);
    }

    /// Reads what is another protocol's.
    fn read_opaque(&mut self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if let Some(Poll::Ready(why)) = self.conn.cancellation.get().map(|cancellation| cancellation.poll_cancelled(cx)) {
            let _ = self.conn.cancelled.set(why);
            return Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into()));
        }
        if self.held.is_empty() {
            return self.poll_inner(cx, buf);
        }
        self.take_held(buf);
        Poll::Ready(Ok(()))
    }
}

/// Removes what was handed on. An open stream keeps no buffer for what came before it.
fn take_front(bytes: &mut Vec<u8>, length: usize) {
    bytes.drain(..length);
    if bytes.is_empty() {
        *bytes = Vec::new();
    }
}

impl AsyncRead for ConnStream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        match this.conn.phase.load(Ordering::Relaxed) {
            REQUEST => this.read_body(cx, buf),
            OPAQUE => this.read_opaque(cx, buf),
            HTTP2 => this.read_http2(cx, buf),
            phase => this.read_head(cx, buf, phase == HEAD),
        }
    }
}

impl Drop for ConnStream {
    /// What is still open goes back to the acceptor, which closes it without destroying the last response.
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
        // Never the bytes: they hold keys.
        write!(f, "ConnStream({})", self.conn.peer)
    }
}

#[async_trait]
impl Peek for ConnStream {
    /// Looks for HTTP/2's preface. Unlike a plain peek it gives up at the first byte that differs, so that
    /// a request shorter than the preface is not waited on.
    async fn try_peek(&mut self, buf: &mut [u8]) -> io::Result<bool> {
        let mut deadline = Instant::now() + self.limits.idle_timeout;
        while PREFACE.starts_with(&self.held) && self.held.len() < PREFACE.len() {
            // On the heap: in the future it would stay for as long as the connection.
            let mut piece = vec![0; PEEKED_BYTES];
            let read = tokio::time::timeout_at(deadline, self.inner.read(&mut piece)).await;
            let Ok(read) = read else {
                (self.on_refusal)(if self.held.is_empty() { "idle_timeout" } else { "header_timeout" });
                return Err(io::ErrorKind::TimedOut.into());
            };
            let read = read?;
            if read == 0 {
                break;
            }
            if self.held.is_empty() {
                deadline = Instant::now() + self.limits.header_timeout;
                self.head.deadline = Some(deadline);
            }
            self.held.extend_from_slice(piece.get(..read).unwrap_or_default());
        }
        if self.held.starts_with(PREFACE) {
            self.conn.set_http2();
            self.http2 = self.conn.http2().map(|streams| Box::new(Http2::new(Arc::clone(streams), self.limits.header_timeout)));
        } else if self.held.is_empty() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let length = self.held.len().min(buf.len());
        for (to, from) in buf.iter_mut().zip(&self.held[..length]) {
            *to = *from;
        }
        Ok(true)
    }
}
