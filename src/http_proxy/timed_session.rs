//! A clock around the client's session, for as long as an event stream runs.
//!
//! Pingora's phases run when something arrives; a silent stream needs somebody who wakes up when nothing
//! does. [`Timed`] takes the place of the client's session in the exchange and owns the deadlines of its
//! stream. Pingora polls `read_body_or_idle` all the while it waits for the upstream; `Timed` waits there
//! for the client and for its own timer. [`restore`] puts the real session back.
//!
//! The trait behind this is hidden in Pingora's documentation, so its version is pinned and every use of
//! it is in this file. What must stay true:
//!
//! - The future of `read_body_or_idle` is dropped whenever the upstream speaks. A frame that is being
//!   written then must survive: HTTP/1 keeps it in its queue of tasks; HTTP/2 has none, so frames are
//!   written byte by byte, each of which is sent within one poll or not at all. Whatever is written next
//!   completes the frame first.
//! - One timer a stream, and it is not touched when bytes pass: it fires at the earliest moment at which
//!   something could be due, and then looks at what is.

use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use async_trait::async_trait;
use bytes::{Buf, Bytes};
use futures::Stream;
use http::HeaderMap;
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

use super::errors::{MAX_AGE_ERROR, cancellation_error};
use super::stream_state::{Clock, Due, Terms};

/// Where a session comes home to when its stream is over.
pub type Home = Arc<Mutex<Option<(Box<HttpSession>, Clock)>>>;

/// The session in disguise.
pub struct Timed {
    inner: Box<HttpSession>,
    clock: Option<Clock>,
    sleep: Pin<Box<Sleep>>,
    home: Home,
    /// The request's body is complete, and Pingora has not been told so yet.
    end_held: bool,
}

/// Puts a timed session in the place of the exchange's. `started` is when the request's header was complete.
pub fn install(session: &mut Box<HttpSession>, terms: Terms, started: Instant) -> Home {
    let home = Home::default();
    wear(session, Clock::new(terms, started), &home);
    home
}

fn wear(session: &mut Box<HttpSession>, clock: Clock, home: &Home) {
    let mut inner = std::mem::replace(session, nobody());
    inner.set_write_timeout(Some(clock.terms.plan.write_timeout));
    let sleep = Box::pin(tokio::time::sleep_until(clock.next()));
    **session = HttpSession::Custom(Box::new(Timed { inner, clock: Some(clock), sleep, home: Arc::clone(home), end_held: false }));
}

/// An event stream has begun in an exchange whose session was timed for its body only: from here on the
/// plan of its chain holds.
pub fn adopt(session: &mut Box<HttpSession>, home: &Home, plan: StreamPlan, cancellation: Option<Arc<CancellationHandle>>) {
    if let Some(mut clock) = restore(session, home) {
        clock.attach_cancellation(cancellation);
        if clock.terms.plan.before_headers.is_none() {
            clock.terms.plan = plan;
        }
        wear(session, clock, home);
    }
}

/// Puts the real session back. `None` if it is back already.
pub fn restore(session: &mut Box<HttpSession>, home: &Home) -> Option<Clock> {
    // Dropping the disguise sends the real session home.
    **session = HttpSession::Custom(Box::new(()));
    let (inner, clock) = home.lock().take()?;
    *session = inner;
    Some(clock)
}

/// Fills a place for a moment. Never spoken to.
fn nobody() -> Box<HttpSession> {
    Box::new(HttpSession::Custom(Box::new(())))
}

impl Drop for Timed {
    fn drop(&mut self) {
        if let Some(clock) = self.clock.take() {
            let inner = std::mem::replace(&mut self.inner, nobody());
            *self.home.lock() = Some((inner, clock));
        }
    }
}

impl Timed {
    fn rearm(&mut self) {
        if let Some(clock) = &self.clock {
            self.sleep.as_mut().reset(clock.next());
        }
    }

    /// A stream that begins is due sooner than the timer knows; one that goes on never is.
    fn rearm_if_due_sooner(&mut self) {
        if self.clock.as_ref().is_some_and(|clock| clock.next() < self.sleep.deadline()) {
            self.rearm();
        }
    }

    async fn act(&mut self) -> Result<()> {
        let due = self.clock.as_mut().map_or(Due::Nothing, Clock::due);
        match due {
            Due::Nothing => {}
            Due::Failed(error) => return Err(error),
            Due::Header => {
                let Some((header, frame)) = self.clock.as_mut().and_then(Clock::answers) else { return Ok(()) };
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

    /// From here on the frame counts as sent: it is completed before anything else goes out.
    fn queue(&mut self, frame: &'static [u8]) {
        let Some(clock) = self.clock.as_mut() else { return };
        clock.framed();
        let frame = Bytes::from_static(frame);
        match &mut *self.inner {
            HttpSession::H1(session) => session.send_proxy_task(HttpTask::Body(Some(frame), false)),
            _ => clock.unsent = frame,
        }
    }

    /// Tells Pingora that the request's body is complete. The pipe to an HTTP/1 upstream holds four pieces, and Pingora does not
    /// poll us while it is full and the request is complete: so the upstream's half of this task empties it first.
    async fn tell_end(&mut self) -> Result<Option<Bytes>> {
        tokio::task::yield_now().await;
        self.end_held = false;
        Ok(None)
    }

    /// Whether a frame is only partly sent.
    fn pending(&self) -> bool {
        match &*self.inner {
            HttpSession::H1(session) => session.has_pending_proxy_tasks(),
            _ => self.clock.as_ref().is_some_and(|clock| !clock.unsent.is_empty()),
        }
    }

    /// Sends what was begun, unless the stream's time is up before the client takes it.
    async fn complete(&mut self) -> Result<()> {
        if !self.pending() {
            return Ok(());
        }
        match self.clock.as_ref().and_then(Clock::end_of_age) {
            None => self.send_pending().await,
            Some(end) => match tokio::time::timeout_at(end, self.send_pending()).await {
                Ok(sent) => sent,
                Err(_) => Err(Error::explain(MAX_AGE_ERROR, "the stream reached its maximum age")),
            },
        }
    }

    /// May be cut off at any await and called again.
    async fn send_pending(&mut self) -> Result<()> {
        match &mut *self.inner {
            HttpSession::H1(session) => {
                while session.has_pending_proxy_tasks() {
                    session.write_proxy_tasks().await?;
                }
            }
            session => {
                let Some(clock) = self.clock.as_mut() else { return Ok(()) };
                while !clock.unsent.is_empty() {
                    session.write_response_body(clock.unsent.slice(..1), false).await?;
                    clock.unsent.advance(1);
                }
            }
        }
        Ok(())
    }
}

#[async_trait]
impl CustomSession for Timed {
    async fn read_body_or_idle(&mut self, no_body_expected: bool) -> Result<Option<Bytes>> {
        self.complete().await?;
        if self.end_held {
            return self.tell_end().await;
        }
        let body_expected = !no_body_expected && self.inner.is_http2() && !self.inner.is_body_done();
        if let Some(clock) = self.clock.as_mut() {
            if no_body_expected {
                clock.request_complete();
            }
            clock.body_since = body_expected.then(|| clock.body_since.unwrap_or_else(Instant::now));
            if body_expected {
                clock.pace.waits();
            }
        }
        self.rearm_if_due_sooner();
        loop {
            // One that begins in this loop has its own only then.
            let cancellation = self.clock.as_ref().and_then(|clock| clock.terms.cancellation.clone());
            tokio::select! {
                biased;
                read = self.inner.read_body_or_idle(no_body_expected) => {
                    if let Some(clock) = self.clock.as_mut() {
                        clock.body_since = None;
                        clock.pace.arrived(read.as_ref().ok().and_then(Option::as_ref).map_or(0, Bytes::len));
                    }
                    let done = !no_body_expected && !self.inner.is_upgrade_req() && self.inner.is_body_done();
                    self.end_held = done && read.is_ok();
                    return match read {
                        Ok(None) if done => self.tell_end().await,
                        read => read,
                    };
                }
                why = cancelled(cancellation.as_deref()) => return Err(cancellation_error(why)),
                () = &mut self.sleep => {}
            }
            self.act().await?;
        }
    }

    async fn response_duplex_vec(&mut self, tasks: Vec<HttpTask>) -> Result<bool> {
        self.complete().await?;
        let mut passed = Vec::with_capacity(tasks.len());
        for task in tasks {
            passed.extend(match self.clock.as_mut() {
                Some(clock) => clock.translate(task),
                None => Some(task),
            });
        }
        self.rearm_if_due_sooner();
        let over = self.clock.as_ref().is_some_and(Clock::is_over);
        if passed.is_empty() {
            return Ok(over);
        }
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

    // From here on everything is the inner session's.

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
        !self.end_held && self.inner.is_body_done()
    }
    fn is_body_empty(&mut self) -> bool {
        self.inner.is_body_empty()
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
    fn enable_retry_buffering(&mut self) {
        self.inner.enable_retry_buffering();
    }
    fn retry_buffer_truncated(&self) -> bool {
        self.inner.retry_buffer_truncated()
    }
    fn get_retry_buffer(&self) -> Option<Bytes> {
        self.inner.get_retry_buffer()
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

/// Waits until somebody ends the stream; for ever without a handle.
async fn cancelled(cancellation: Option<&CancellationHandle>) -> CancelReason {
    std::future::poll_fn(|cx| cancellation.map_or(Poll::Pending, |cancellation| cancellation.poll_cancelled(cx))).await
}

/// Completes a frame that was being written when the stream failed.
pub async fn settle(session: &mut HttpSession) -> Result<()> {
    while session.has_pending_downstream_proxy_tasks() {
        session.write_downstream_proxy_tasks().await?;
    }
    Ok(())
}
