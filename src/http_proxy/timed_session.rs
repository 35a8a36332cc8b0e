//! A client session with deadlines of its own. It is used for event streams, for request bodies that
//! were read ahead or arrive on HTTP/2, and for requests to upgrade until their answer. The rules
//! are in [`super::stream_state`]; this module executes them.
//!
//! Pingora's phases run when data arrives; a silent stream needs a timer. [`TimedSession`] replaces
//! the client's session and owns the deadlines of its stream. Pingora polls `read_body_or_idle`
//! while it waits for the upstream; there, `TimedSession` waits for the client and for its timer.
//! [`restore`] puts the real session back.
//!
//! `TimedSession` implements Pingora's trait for custom sessions, which is hidden in Pingora's
//! documentation. So the version is pinned, and the trait is used in this file only. Invariants:
//!
//! - Pingora drops the future of `read_body_or_idle` whenever the upstream sends. A frame that is
//!   being written must survive that: HTTP/1 keeps it in its task queue; on HTTP/2 frames are
//!   written byte by byte, each of which is sent within one poll or not at all. Every later write
//!   completes the frame first.
//! - One timer per stream, which forwarded bytes do not reset. It fires at the earliest possible
//!   deadline, and the deadlines are evaluated then.

use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use async_trait::async_trait;
use bytes::{Buf, Bytes};
use futures::Stream;
use http::{HeaderMap, header};
use keylatch_filters::contract::{CancelReason, CancellationHandle, StreamPlan};
use parking_lot::Mutex;
use pingora::http::{RequestHeader, ResponseHeader};
use pingora::protocols::Digest;
use pingora::protocols::http::HttpTask;
use pingora::protocols::http::ServerSession as HttpSession;
use pingora::protocols::http::custom::CustomMessageWrite;
use pingora::protocols::http::custom::server::Session as CustomSession;
use pingora::protocols::l4::socket::SocketAddr;
use pingora::{Error, Result};
use tokio::time::{Instant, Sleep};

use super::body_ahead::BodyAhead;
use super::body_pieces::LatestPiece;
use super::errors::{MAX_AGE_ERROR, from_cancellation};
use super::informational::keep_open_after_informational;
use super::stream_state::{Due, StreamState, StreamTerms};

/// Receives the real session when the timed one is dropped.
pub type SessionSlot = Arc<Mutex<Option<(Box<HttpSession>, StreamState)>>>;

/// The timed session.
pub struct TimedSession {
    inner: Box<HttpSession>,
    stream: Option<StreamState>,
    sleep: Pin<Box<Sleep>>,
    slot: SessionSlot,
    /// The request body is complete, and Pingora has not been notified yet.
    body_end_pending: bool,
    /// The end of the body is reported only after this piece is written.
    latest_piece: LatestPiece,
    request_end: RequestEnd,
}

/// Replaces a session by a timed one. `started` is when the request header was complete, `ahead` is
/// the part of the body that was read already.
pub fn install(session: &mut Box<HttpSession>, terms: StreamTerms, started: Instant, ahead: Option<BodyAhead>) -> SessionSlot {
    let slot = SessionSlot::default();
    let mut stream = StreamState::new(terms, started);
    stream.ahead = ahead;
    wrap(session, stream, &slot, RequestEnd::Reported);
    slot
}

/// Replaces the session of a request to upgrade, until [`restore`] is called at the final answer.
pub fn await_protocol_switch(session: &mut Box<HttpSession>, terms: StreamTerms, started: Instant) -> SessionSlot {
    let slot = SessionSlot::default();
    wrap(session, StreamState::new(terms, started), &slot, RequestEnd::HiddenAfterHeader);
    slot
}

/// Whether Pingora is notified of the end of a request without a body.
///
/// Pingora 0.9 queues this end for the upstream before it reads the answer. If a `101` is read
/// first, it takes the end for that of the upgraded connection, and closes it. So a request to
/// upgrade has no end before its answer.
#[derive(Clone, Copy, PartialEq)]
enum RequestEnd {
    Reported,
    /// Reported until the header to the upstream is written, because Pingora derives the framing of
    /// the request from it. Hidden afterwards.
    HiddenAfterHeader,
    /// The header is written. Pingora waits for a body that never comes, so it does not end the
    /// request.
    Hidden,
}

fn wrap(session: &mut Box<HttpSession>, stream: StreamState, slot: &SessionSlot, request_end: RequestEnd) {
    let mut inner = std::mem::replace(session, placeholder());
    inner.set_write_timeout(Some(stream.terms.plan.write_timeout));
    let sleep = Box::pin(tokio::time::sleep_until(stream.next()));
    **session = HttpSession::Custom(Box::new(TimedSession {
        inner,
        stream: Some(stream),
        sleep,
        slot: Arc::clone(slot),
        body_end_pending: false,
        latest_piece: LatestPiece::default(),
        request_end,
    }));
}

/// Gives a timed session the cancellation handle and the plan of a stream that has begun. A plan
/// that already acts before the response stays.
pub fn adopt(session: &mut Box<HttpSession>, slot: &SessionSlot, plan: StreamPlan, cancellation: Option<Arc<CancellationHandle>>) {
    if let Some(mut stream) = restore(session, slot) {
        stream.set_cancellation(cancellation);
        if stream.terms.plan.before_headers.is_none() {
            stream.terms.plan = plan;
        }
        wrap(session, stream, slot, RequestEnd::Reported);
    }
}

/// Restores the real session. `None` if it is already restored.
pub fn restore(session: &mut Box<HttpSession>, slot: &SessionSlot) -> Option<StreamState> {
    // Dropping the timed session fills the slot.
    **session = HttpSession::Custom(Box::new(()));
    let (inner, stream) = slot.lock().take()?;
    *session = inner;
    Some(stream)
}

/// A temporary value that is never used as a session.
fn placeholder() -> Box<HttpSession> {
    Box::new(HttpSession::Custom(Box::new(())))
}

impl Drop for TimedSession {
    fn drop(&mut self) {
        if let Some(stream) = self.stream.take() {
            let inner = std::mem::replace(&mut self.inner, placeholder());
            *self.slot.lock() = Some((inner, stream));
        }
    }
}

impl TimedSession {
    fn rearm(&mut self) {
        if let Some(stream) = &self.stream {
            self.sleep.as_mut().reset(stream.next());
        }
    }

    /// Only an earlier deadline resets the timer; a later one is evaluated when it fires.
    fn rearm_if_due_sooner(&mut self) {
        if self.stream.as_ref().is_some_and(|stream| stream.next() < self.sleep.deadline()) {
            self.rearm();
        }
    }

    /// Whether the body of a response may end at any time.
    fn is_unbounded(&self, head: &ResponseHeader) -> bool {
        let http2 = self.inner.is_http2() && !head.headers.contains_key(header::CONTENT_LENGTH);
        http2 || head.headers.contains_key(header::TRANSFER_ENCODING)
    }

    /// Whether nothing is left of the body that was read ahead.
    fn is_ahead_sent(&self) -> bool {
        self.stream.as_ref().and_then(|stream| stream.ahead.as_ref()).is_none_or(BodyAhead::is_sent)
    }

    async fn act(&mut self) -> Result<()> {
        let due = self.stream.as_mut().map_or(Due::Nothing, StreamState::due);
        match due {
            Due::Nothing => {}
            Due::Failed(error) => return Err(error),
            Due::Header => {
                let Some((header, frame)) = self.stream.as_mut().and_then(StreamState::take_early_header) else { return Ok(()) };
                match &mut *self.inner {
                    HttpSession::H1(session) => session.send_proxy_task(HttpTask::Header(header, false)),
                    HttpSession::H2(session) => session.write_response_header(header, false)?,
                    _ => {}
                }
                frame.into_iter().for_each(|frame| self.queue(frame));
            }
            Due::Frame(frame) => self.queue(frame),
        }
        self.rearm();
        self.complete().await
    }

    /// Queues a frame. From here on it counts as sent: it is completed before any other write.
    fn queue(&mut self, frame: &'static [u8]) {
        let Some(stream) = self.stream.as_mut() else { return };
        stream.frame_sent();
        let frame = Bytes::from_static(frame);
        match &mut *self.inner {
            HttpSession::H1(session) => session.send_proxy_task(HttpTask::Body(Some(frame), false)),
            _ => stream.unsent = frame,
        }
    }

    /// Whether a frame is partly sent.
    fn pending(&self) -> bool {
        match &*self.inner {
            HttpSession::H1(session) => session.has_pending_proxy_tasks(),
            _ => self.stream.as_ref().is_some_and(|stream| !stream.unsent.is_empty()),
        }
    }

    /// Completes a partly sent frame, unless the stream reaches its maximum age before.
    async fn complete(&mut self) -> Result<()> {
        if !self.pending() {
            return Ok(());
        }
        match self.stream.as_ref().and_then(StreamState::end_of_age) {
            None => self.send_pending().await,
            Some(end) => match tokio::time::timeout_at(end, self.send_pending()).await {
                Ok(sent) => sent,
                Err(_) => Err(Error::explain(MAX_AGE_ERROR, "the stream reached its maximum age")),
            },
        }
    }

    /// Cancellation-safe: may be dropped at any await and called again.
    async fn send_pending(&mut self) -> Result<()> {
        match &mut *self.inner {
            HttpSession::H1(session) => {
                while session.has_pending_proxy_tasks() {
                    session.write_proxy_tasks().await?;
                }
            }
            session => {
                let Some(stream) = self.stream.as_mut() else { return Ok(()) };
                while !stream.unsent.is_empty() {
                    session.write_response_body(stream.unsent.slice(..1), false).await?;
                    stream.unsent.advance(1);
                }
            }
        }
        Ok(())
    }
}

#[async_trait]
impl CustomSession for TimedSession {
    async fn read_body_or_idle(&mut self, no_body_expected: bool) -> Result<Option<Bytes>> {
        self.complete().await?;
        if let Some(piece) = self.stream.as_mut().and_then(|stream| stream.ahead.as_mut()?.next()) {
            self.body_end_pending = self.is_ahead_sent() && self.inner.is_body_done();
            return Ok(Some(self.latest_piece.track(piece)));
        }
        let body_expected = !no_body_expected && self.inner.is_http2() && !self.inner.is_body_done();
        if let Some(stream) = self.stream.as_mut() {
            if no_body_expected {
                stream.request_complete();
            }
            stream.body_since = body_expected.then(|| stream.body_since.unwrap_or_else(Instant::now));
            if body_expected {
                stream.pace.start_waiting();
            }
        }
        self.rearm_if_due_sooner();
        loop {
            // A stream that begins in this loop gets its handle only then.
            let cancellation = self.stream.as_ref().and_then(|stream| stream.terms.cancellation.clone());
            tokio::select! {
                biased;
                () = self.latest_piece.written(), if self.body_end_pending => {
                    self.body_end_pending = false;
                    return Ok(None);
                }
                read = self.inner.read_body_or_idle(no_body_expected), if !self.body_end_pending => {
                    if let Some(stream) = self.stream.as_mut() {
                        stream.body_since = None;
                        stream.pace.arrived(read.as_ref().ok().and_then(Option::as_ref).map_or(0, Bytes::len));
                    }
                    let is_body = !no_body_expected && self.request_end == RequestEnd::Reported;
                    self.body_end_pending = is_body && self.inner.is_body_done() && read.is_ok();
                    match read {
                        Ok(None) if self.body_end_pending => continue,
                        Ok(Some(piece)) if is_body && !piece.is_empty() => return Ok(Some(self.latest_piece.track(piece))),
                        read => return read,
                    }
                }
                why = cancelled(cancellation.as_deref()) => return Err(from_cancellation(why)),
                () = &mut self.sleep => {}
            }
            self.act().await?;
        }
    }

    async fn response_duplex_vec(&mut self, tasks: Vec<HttpTask>) -> Result<bool> {
        self.complete().await?;
        let mut passed = Vec::with_capacity(tasks.len());
        let mut unbounded = self.inner.response_written().is_some_and(|head| self.is_unbounded(head));
        for task in tasks {
            if let HttpTask::Header(head, false) = &task {
                unbounded |= self.is_unbounded(head);
            }
            passed.extend(match (self.stream.as_mut(), task) {
                (Some(stream), HttpTask::Failed(error)) if unbounded => Some(stream.end_with(error).unwrap_or_else(HttpTask::Failed)),
                (Some(stream), task) => stream.translate(task),
                (None, task) => Some(task),
            });
        }
        self.rearm_if_due_sooner();
        let over = self.stream.as_ref().is_some_and(StreamState::is_over);
        if passed.is_empty() {
            return Ok(over);
        }
        let informational = |task: &HttpTask| matches!(task, HttpTask::Header(header, _) if header.status.is_informational());
        keep_open_after_informational(&mut self.inner, passed.iter().any(informational));
        self.inner.response_duplex_vec(passed).await
    }

    async fn write_body(&mut self, data: Bytes, end: bool) -> Result<()> {
        self.complete().await?;
        self.inner.write_response_body(data, end).await
    }

    async fn finish(&mut self) -> Result<()> {
        self.complete().await?;
        self.inner.finish_body().await
    }

    async fn write_trailers(&mut self, trailers: HeaderMap) -> Result<()> {
        self.complete().await?;
        self.inner.write_response_trailers(trailers).await
    }

    async fn write_response_header(&mut self, header: Box<ResponseHeader>, _end: bool) -> Result<()> {
        self.inner.write_response_header(header).await
    }

    async fn write_response_header_ref(&mut self, header: &ResponseHeader, _end: bool) -> Result<()> {
        self.inner.write_response_header_ref(header).await
    }

    // Everything below is delegated to the inner session.

    fn req_header(&self) -> &RequestHeader {
        self.inner.req_header()
    }
    fn req_header_mut(&mut self) -> &mut RequestHeader {
        self.inner.req_header_mut()
    }
    async fn read_body_bytes(&mut self) -> Result<Option<Bytes>> {
        self.inner.read_request_body().await
    }
    async fn drain_request_body(&mut self) -> Result<()> {
        self.inner.drain_request_body().await
    }
    fn set_read_timeout(&mut self, timeout: Option<Duration>) {
        self.inner.set_read_timeout(timeout);
    }
    fn get_read_timeout(&self) -> Option<Duration> {
        self.inner.get_read_timeout()
    }
    fn set_write_timeout(&mut self, timeout: Option<Duration>) {
        self.inner.set_write_timeout(timeout);
    }
    fn get_write_timeout(&self) -> Option<Duration> {
        self.inner.get_write_timeout()
    }
    fn set_total_drain_timeout(&mut self, timeout: Option<Duration>) {
        self.inner.set_total_drain_timeout(timeout);
    }
    fn get_total_drain_timeout(&self) -> Option<Duration> {
        self.inner.get_total_drain_timeout()
    }
    fn request_summary(&self) -> String {
        self.inner.request_summary()
    }
    fn response_written(&self) -> Option<&ResponseHeader> {
        self.inner.response_written()
    }
    async fn shutdown(&mut self, _code: u32, _why: &str) {
        self.inner.shutdown().await;
    }
    fn is_body_done(&mut self) -> bool {
        !self.body_end_pending && self.request_end != RequestEnd::Hidden && self.is_ahead_sent() && self.inner.is_body_done()
    }
    fn is_body_empty(&mut self) -> bool {
        self.request_end != RequestEnd::Hidden && self.inner.is_body_empty()
    }
    fn body_bytes_sent(&self) -> usize {
        self.inner.body_bytes_sent()
    }
    fn body_bytes_read(&self) -> usize {
        self.inner.body_bytes_read()
    }
    fn digest(&self) -> Option<&Digest> {
        self.inner.digest()
    }
    fn digest_mut(&mut self) -> Option<&mut Digest> {
        self.inner.digest_mut()
    }
    fn client_addr(&self) -> Option<&SocketAddr> {
        self.inner.client_addr()
    }
    fn server_addr(&self) -> Option<&SocketAddr> {
        self.inner.server_addr()
    }
    fn pseudo_raw_h1_request_header(&self) -> Bytes {
        self.inner.to_h1_raw()
    }
    /// Pingora calls this between the request header and the body.
    fn enable_retry_buffering(&mut self) {
        if self.request_end == RequestEnd::HiddenAfterHeader {
            self.request_end = RequestEnd::Hidden;
        }
        self.inner.enable_retry_buffering();
    }
    fn retry_buffer_truncated(&self) -> bool {
        self.inner.retry_buffer_truncated()
    }
    fn get_retry_buffer(&self) -> Option<Bytes> {
        let rest = self.inner.get_retry_buffer();
        match self.stream.as_ref().and_then(|stream| stream.ahead.as_ref()) {
            Some(ahead) => ahead.sent_with(rest),
            None => rest,
        }
    }
    async fn finish_custom(&mut self) -> Result<()> {
        Ok(())
    }
    fn take_custom_message_reader(&mut self) -> Option<Box<dyn Stream<Item = Result<Bytes>> + Unpin + Send + Sync + 'static>> {
        None
    }
    fn restore_custom_message_reader(&mut self, _: Box<dyn Stream<Item = Result<Bytes>> + Unpin + Send + Sync + 'static>) -> Result<()> {
        Ok(())
    }
    fn take_custom_message_writer(&mut self) -> Option<Box<dyn CustomMessageWrite>> {
        None
    }
    fn restore_custom_message_writer(&mut self, _: Box<dyn CustomMessageWrite>) -> Result<()> {
        Ok(())
    }
    fn is_upgrade_req(&self) -> bool {
        self.inner.is_upgrade_req()
    }
    fn was_upgraded(&self) -> bool {
        self.inner.was_upgraded()
    }
}

/// Waits for the cancellation of the stream; for ever without a handle.
async fn cancelled(cancellation: Option<&CancellationHandle>) -> CancelReason {
    std::future::poll_fn(|cx| cancellation.map_or(Poll::Pending, |cancellation| cancellation.poll_cancelled(cx))).await
}

/// Completes a frame that was being written when the stream failed.
pub async fn complete_frame(session: &mut HttpSession) -> Result<()> {
    while session.has_pending_downstream_proxy_tasks() {
        session.write_downstream_proxy_tasks().await?;
    }
    Ok(())
}
