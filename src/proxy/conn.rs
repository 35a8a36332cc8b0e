//! One client connection: a thin layer over its stream that bounds the arrival of headers, sees the
//! first line of each request as it was sent, and carries what belongs to the connection.
//!
//! Pingora limits only single reads (60 s) and reads headers up to 1 MiB; and it mends illegal request
//! lines before anybody sees them. Here a header has one deadline and one size, from its first byte on.

use std::io;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use async_trait::async_trait;
use pingora::http::ResponseHeader;
use pingora::protocols::raw_connect::ProxyDigest;
use pingora::protocols::tls::SslDigest;
use pingora::protocols::{
    ALPN, GetProxyDigest, GetSocketDigest, GetTimingDigest, Peek, Shutdown, SocketDigest, Ssl, Stream, TimingDigest, UniqueID, UniqueIDType,
};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep};

const H2_PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

const IDLE: u8 = 0;
const HEAD: u8 = 1;
const REQUEST: u8 = 2;
const OPAQUE: u8 = 3;

/// What is known of a connection, shared between its stream and the exchanges on it.
#[derive(Debug)]
pub struct Conn {
    /// The other end, IPv4-mapped IPv6 already turned into IPv4.
    pub peer: IpAddr,
    phase: AtomicU8,
    line_ok: AtomicBool,
    /// Given back when the connection ends.
    _place: super::door::Place,
}

impl Conn {
    /// A fresh connection that takes up this place.
    pub fn new(peer: IpAddr, place: super::door::Place) -> Self {
        Self { peer, phase: AtomicU8::new(IDLE), line_ok: AtomicBool::new(true), _place: place }
    }

    /// A header is complete: what comes now is the request's body. Tells whether its first line was fine.
    pub fn head_complete(&self) -> bool {
        let _ = self.phase.compare_exchange(HEAD, REQUEST, Ordering::Relaxed, Ordering::Relaxed);
        self.line_ok.load(Ordering::Relaxed)
    }

    /// The exchange is over: the next byte begins a header.
    pub fn exchange_over(&self) {
        let _ = self.phase.compare_exchange(REQUEST, IDLE, Ordering::Relaxed, Ordering::Relaxed);
    }
}

/// The limits this layer keeps.
#[derive(Clone, Copy, Debug)]
pub struct ConnLimits {
    /// A header's size.
    pub header_bytes: usize,
    /// From a header's first byte to its last.
    pub header_timeout: Duration,
    /// For the first byte on a fresh connection.
    pub idle_timeout: Duration,
}

/// A refusal that Pingora never hears of: it only sees the stream end.
pub type OnRefusal = Arc<dyn Fn(&'static str) + Send + Sync>;

/// The layer.
pub struct ConnStream {
    inner: Stream,
    conn: Arc<Conn>,
    digest: Arc<ProxyDigest>,
    limits: ConnLimits,
    on_refusal: OnRefusal,
    /// Read to look for HTTP/2, not handed on yet.
    peeked: Vec<u8>,
    head: Head,
}

/// The header that is arriving.
#[derive(Default)]
struct Head {
    bytes: usize,
    deadline: Option<Instant>,
    /// Made only once a read has to wait: most headers arrive in one piece.
    sleep: Option<Pin<Box<Sleep>>>,
    line: Line,
}

/// The first line, watched for what a parser might mend.
#[derive(Default)]
struct Line {
    over: bool,
    bytes: usize,
    spaces: usize,
    illegal: bool,
    last: u8,
}

impl Line {
    fn feed(&mut self, bytes: &[u8]) {
        for byte in bytes {
            if self.over {
                return;
            }
            match byte {
                b'\n' if self.bytes == 0 => {}
                b'\n' => {
                    self.over = true;
                    self.illegal |= self.last != b'\r' || self.spaces != 2;
                }
                b'\r' if self.bytes == 0 || self.last != b'\r' => self.last = b'\r',
                _ => {
                    self.illegal |= self.last == b'\r' && self.bytes > 0;
                    self.illegal |= !(0x20..0x7f).contains(byte);
                    self.spaces += usize::from(*byte == b' ');
                    self.bytes += 1;
                    self.last = *byte;
                }
            }
        }
    }
}

impl ConnStream {
    /// Puts the layer over a fresh connection.
    pub fn new(inner: Stream, conn: Arc<Conn>, limits: ConnLimits, on_refusal: OnRefusal) -> io::Result<Self> {
        let none = ResponseHeader::build(200, Some(0)).map_err(|e| io::Error::other(e.to_string()))?;
        let carried: Box<dyn std::any::Any + Send + Sync> = Box::new(Arc::clone(&conn));
        let digest = Arc::new(ProxyDigest::new(Box::new(none), Some(carried)));
        Ok(Self { inner, conn, digest, limits, on_refusal, peeked: Vec::new(), head: Head::default() })
    }

    /// What the connection of this digest carries.
    pub fn conn_of(digest: &pingora::protocols::Digest) -> Option<&Arc<Conn>> {
        digest.proxy_digest.as_ref()?.user_data.as_ref()?.downcast_ref()
    }

    /// Answers as well as it can without waiting, and ends the stream: to Pingora the client has left.
    fn refuse(&mut self, cx: &mut Context<'_>, status: &str, reason: &'static str) {
        (self.on_refusal)(reason);
        let body = format!(
            "{{\"error\":{{\"message\":\"The request was refused.\",\"type\":\"invalid_request_error\",\"param\":null,\"code\":\"{reason}\"}}}}"
        );
        let answer = format!(
            "HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
            body.len()
        );
        let _ = Pin::new(&mut self.inner).poll_write(cx, answer.as_bytes());
        let _ = Pin::new(&mut self.inner).poll_flush(cx);
    }

    /// Notes what was read of a header.
    fn watch(&mut self, fresh: &[u8]) {
        if self.conn.phase.compare_exchange(IDLE, HEAD, Ordering::Relaxed, Ordering::Relaxed).is_ok() {
            self.head = Head { deadline: Some(Instant::now() + self.limits.header_timeout), ..Head::default() };
        }
        self.head.bytes += fresh.len();
        self.head.line.feed(fresh);
        if self.head.line.over {
            self.conn.line_ok.store(!self.head.line.illegal, Ordering::Relaxed);
        }
    }
}

impl AsyncRead for ConnStream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if !this.peeked.is_empty() {
            let length = this.peeked.len().min(buf.remaining());
            let piece: Vec<u8> = this.peeked.drain(..length).collect();
            if this.conn.phase.load(Ordering::Relaxed) != OPAQUE {
                this.watch(&piece);
            }
            buf.put_slice(&piece);
            return Poll::Ready(Ok(()));
        }
        let phase = this.conn.phase.load(Ordering::Relaxed);
        if phase >= REQUEST {
            return Pin::new(&mut this.inner).poll_read(cx, buf);
        }
        // Pingora reads on only while the header is not complete: so it is too large, whatever follows.
        if phase == HEAD && this.head.bytes > this.limits.header_bytes {
            this.refuse(cx, "431 Request Header Fields Too Large", "header_bytes");
            return Poll::Ready(Ok(()));
        }
        let before = buf.filled().len();
        match Pin::new(&mut this.inner).poll_read(cx, buf) {
            Poll::Ready(Ok(())) => {
                if let Some(fresh) = buf.filled().get(before..).filter(|fresh| !fresh.is_empty()) {
                    this.watch(fresh);
                }
                Poll::Ready(Ok(()))
            }
            Poll::Ready(Err(e)) => Poll::Ready(Err(e)),
            Poll::Pending => {
                let Some(deadline) = this.head.deadline.filter(|_| phase == HEAD) else { return Poll::Pending };
                let sleep = this.head.sleep.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(deadline)));
                ready!(sleep.as_mut().poll(cx));
                this.refuse(cx, "408 Request Timeout", "header_timeout");
                Poll::Ready(Ok(()))
            }
        }
    }
}

impl AsyncWrite for ConnStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(cx, buf)
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
    fn poll_write_vectored(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bufs: &[io::IoSlice<'_>]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write_vectored(cx, bufs)
    }
    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
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
        while H2_PREFACE.starts_with(&self.peeked) && self.peeked.len() < H2_PREFACE.len() {
            let mut piece = [0; H2_PREFACE.len()];
            let wanted = H2_PREFACE.len() - self.peeked.len();
            let read = tokio::time::timeout_at(deadline, self.inner.read(&mut piece[..wanted])).await;
            let Ok(read) = read else {
                (self.on_refusal)(if self.peeked.is_empty() { "idle_timeout" } else { "header_timeout" });
                return Err(io::ErrorKind::TimedOut.into());
            };
            let read = read?;
            if read == 0 {
                break;
            }
            if self.peeked.is_empty() {
                deadline = Instant::now() + self.limits.header_timeout;
            }
            self.peeked.extend_from_slice(piece.get(..read).unwrap_or_default());
        }
        if self.peeked == H2_PREFACE {
            self.conn.phase.store(OPAQUE, Ordering::Relaxed);
        } else if self.peeked.is_empty() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let length = self.peeked.len().min(buf.len());
        for (to, from) in buf.iter_mut().zip(&self.peeked[..length]) {
            *to = *from;
        }
        Ok(true)
    }
}

#[async_trait]
impl Shutdown for ConnStream {
    async fn shutdown(&mut self) {
        self.inner.shutdown().await;
    }
}

impl UniqueID for ConnStream {
    fn id(&self) -> UniqueIDType {
        self.inner.id()
    }
}

impl Ssl for ConnStream {
    fn get_ssl_digest(&self) -> Option<Arc<SslDigest>> {
        self.inner.get_ssl_digest()
    }
    fn selected_alpn_proto(&self) -> Option<ALPN> {
        self.inner.selected_alpn_proto()
    }
}

impl GetTimingDigest for ConnStream {
    fn get_timing_digest(&self) -> Vec<Option<TimingDigest>> {
        self.inner.get_timing_digest()
    }
    fn get_read_pending_time(&self) -> Duration {
        self.inner.get_read_pending_time()
    }
    fn get_write_pending_time(&self) -> Duration {
        self.inner.get_write_pending_time()
    }
}

impl GetProxyDigest for ConnStream {
    fn get_proxy_digest(&self) -> Option<Arc<ProxyDigest>> {
        Some(Arc::clone(&self.digest))
    }
}

impl GetSocketDigest for ConnStream {
    fn get_socket_digest(&self) -> Option<Arc<SocketDigest>> {
        self.inner.get_socket_digest()
    }
    fn set_socket_digest(&mut self, digest: SocketDigest) {
        self.inner.set_socket_digest(digest);
    }
}
