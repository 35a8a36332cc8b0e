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
use std::sync::atomic::Ordering;
use std::time::Duration;

use async_trait::async_trait;
use bytes::{Buf, Bytes};
use futures::Stream;
use http::{HeaderMap, StatusCode};
use keylatch_filters::contract::{Dialect, StreamPlan};
use keylatch_filters::sse_keepalive::is_event_stream;
use keylatch_filters::sse_keepalive::tracker::Tracker;
use parking_lot::Mutex;
use pingora::http::{RequestHeader, ResponseHeader};
use pingora::protocols::Digest;
use pingora::protocols::http::HttpTask;
use pingora::protocols::http::ServerSession as HttpSession;
use pingora::protocols::http::custom::CustomMessageWrite;
use pingora::protocols::http::custom::server::Session as CustomSession;
use pingora::protocols::l4::socket::SocketAddr;
use pingora::{Error, ErrorType, Result};
use tokio::time::{Instant, Sleep};

use super::errors::{Answer, FIRST_BYTE_ERROR, MAX_AGE_ERROR, of_status};
use crate::telemetry::metrics::StreamMetrics;

/// The most of an upstream's error that is read to be told as an event.
const ERROR_BODY_BYTES_MAX: usize = 64 * 1024;

/// Where a session comes home to when its stream is over.
pub type Home = Arc<Mutex<Option<(Box<HttpSession>, Clock)>>>;

/// What the timed session needs to know of its exchange.
pub struct Terms {
    /// The intervals.
    pub plan: StreamPlan,
    /// The header to answer with if the upstream has not; `None`: never answer ourselves.
    pub early_header: Option<Box<ResponseHeader>>,
    /// In whose shape errors are told.
    pub dialect: Dialect,
    /// Named in errors.
    pub request_id: Option<String>,
    /// Counted in.
    pub metrics: Arc<StreamMetrics>,
    /// How long a client may send nothing in the middle of a body.
    pub body_timeout: Duration,
}

/// How far the response is.
enum Stage {
    /// No header has gone to the client.
    Waiting,
    /// Events pass, with frames between them.
    Streaming,
    /// Ours went out, and then the upstream failed: its error is collected to be told as an event.
    Failing { status: StatusCode, body: Vec<u8> },
    /// Not a stream: everything passes.
    Plain,
    /// The last event has gone out; what still comes is dropped.
    Over,
}

/// The state of one stream.
pub struct Clock {
    terms: Terms,
    stage: Stage,
    tracker: Tracker,
    started: Instant,
    last_sent: Instant,
    /// Data of the upstream has been seen.
    spoke: bool,
    /// Since when a piece of the request's body is waited for (HTTP/2 only; HTTP/1 has its own deadline).
    body_since: Option<Instant>,
    /// What of a frame has not gone out yet (HTTP/2 only).
    unsent: Bytes,
    counted_open: bool,
}

impl Clock {
    fn new(terms: Terms, started: Instant) -> Self {
        Self {
            terms,
            stage: Stage::Waiting,
            tracker: Tracker::new(),
            started,
            last_sent: Instant::now(),
            spoke: false,
            body_since: None,
            unsent: Bytes::new(),
            counted_open: false,
        }
    }

    fn stream_begins(&mut self) {
        self.stage = Stage::Streaming;
        if !self.counted_open {
            self.counted_open = true;
            self.terms.metrics.open.inc();
        }
    }

    /// The next moment at which something is due.
    fn next(&self) -> Instant {
        let plan = &self.terms.plan;
        let far = self.started + Duration::from_secs(86_400 * 365);
        let early = match (&self.stage, &self.terms.early_header) {
            (Stage::Waiting, Some(_)) => plan.before_headers.map(|after| self.started + after),
            _ => None,
        };
        let frame = matches!(self.stage, Stage::Streaming).then(|| self.last_sent + plan.interval);
        let first = plan.first_byte.filter(|_| !self.spoke).map(|after| self.started + after);
        let age = plan.max_age.map(|age| self.started + age);
        let body = self.body_since.map(|since| since + self.terms.body_timeout);
        [early, frame, first, age, body].into_iter().flatten().min().unwrap_or(far)
    }

    /// A last event of ours, if the stream is at a place where one can stand. Inside a line it cannot: the
    /// line's own event would be dispatched cut short.
    pub fn last_event(&mut self, answer: &Answer) -> Option<Bytes> {
        if !matches!(self.stage, Stage::Streaming | Stage::Failing { .. }) || !self.unsent.is_empty() {
            return None;
        }
        let frame = self.tracker.frame()?;
        self.stage = Stage::Over;
        let event = answer.event(self.terms.dialect, self.terms.request_id.as_deref());
        // A frame without a blank line means that an event's lines stand before it: they are ended first.
        Some(if frame.ends_with(b"\n\n") { event } else { [b"\n", &event[..]].concat().into() })
    }

    /// The upstream's header after ours went out.
    fn late_header(&mut self, header: &ResponseHeader) {
        if !(header.status.is_success() && is_event_stream(&header.headers)) {
            self.stage = Stage::Failing { status: header.status, body: Vec::new() };
        }
    }
}

impl Drop for Clock {
    fn drop(&mut self) {
        if self.counted_open {
            self.terms.metrics.open.dec();
        }
    }
}

/// The session in disguise.
pub struct Timed {
    inner: Box<HttpSession>,
    clock: Option<Clock>,
    sleep: Pin<Box<Sleep>>,
    home: Home,
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
    **session = HttpSession::Custom(Box::new(Timed { inner, clock: Some(clock), sleep, home: Arc::clone(home) }));
}

/// An event stream has begun in an exchange whose session was timed for its body only: from here on the
/// plan of its chain holds.
pub fn adopt(session: &mut Box<HttpSession>, home: &Home, plan: StreamPlan) {
    if let Some(mut clock) = restore(session, home) {
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

enum Due {
    Nothing,
    Header,
    Frame(&'static [u8]),
    Failed(Box<Error>),
}

impl Timed {
    /// What is due now.
    fn due(&mut self) -> Due {
        let now = Instant::now();
        let Some(clock) = self.clock.as_mut() else { return Due::Nothing };
        let plan = &clock.terms.plan;
        let past = |after: Option<Duration>| after.is_some_and(|after| now >= clock.started + after);
        // Before the header it is not known to be a stream, unless the client asked for one.
        let streams = !matches!(clock.stage, Stage::Waiting) || plan.wanted.load(Ordering::Relaxed);
        if !streams && (past(plan.max_age) || past(plan.first_byte)) {
            (clock.terms.plan.max_age, clock.terms.plan.first_byte) = (None, None);
            return Due::Nothing;
        }
        if past(plan.max_age) {
            return Due::Failed(Error::explain(MAX_AGE_ERROR, "the stream reached its maximum age"));
        }
        if clock.body_since.is_some_and(|since| now >= since + clock.terms.body_timeout) {
            return Due::Failed(Error::explain(ErrorType::ReadTimedout, "the request's body stopped arriving").into_down());
        }
        if !clock.spoke && past(plan.first_byte) {
            return Due::Failed(Error::explain(FIRST_BYTE_ERROR, "no data from upstream in time"));
        }
        match clock.stage {
            Stage::Waiting if past(plan.before_headers) && clock.terms.early_header.is_some() => {
                if plan.wanted.load(Ordering::Relaxed) {
                    Due::Header
                } else {
                    clock.terms.early_header = None;
                    Due::Nothing
                }
            }
            Stage::Streaming if now >= clock.last_sent + plan.interval => match clock.tracker.frame() {
                Some(frame) => Due::Frame(frame),
                None => {
                    // Inside a line: the next byte of the upstream starts the interval anew.
                    clock.last_sent = now;
                    Due::Nothing
                }
            },
            _ => Due::Nothing,
        }
    }

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
        match self.due() {
            Due::Nothing => {}
            Due::Failed(error) => return Err(error),
            Due::Header => {
                let Some(clock) = self.clock.as_mut() else { return Ok(()) };
                let Some(header) = clock.terms.early_header.take() else { return Ok(()) };
                clock.stream_begins();
                clock.last_sent = Instant::now();
                match &mut *self.inner {
                    HttpSession::H1(session) => session.send_proxy_task(HttpTask::Header(header, false)),
                    HttpSession::H2(session) => session.write_response_header(header, false)?,
                    _ => {}
                }
                if let Some(frame) = self.clock.as_ref().and_then(|clock| clock.tracker.frame()) {
                    self.queue(frame);
                }
            }
            Due::Frame(frame) => self.queue(frame),
        }
        self.rearm();
        self.complete().await
    }

    /// From here on the frame counts as sent: it is completed before anything else goes out.
    fn queue(&mut self, frame: &'static [u8]) {
        let Some(clock) = self.clock.as_mut() else { return };
        clock.tracker.framed();
        clock.last_sent = Instant::now();
        clock.terms.metrics.frames.inc();
        let frame = Bytes::from_static(frame);
        match &mut *self.inner {
            HttpSession::H1(session) => session.send_proxy_task(HttpTask::Body(Some(frame), false)),
            _ => clock.unsent = frame,
        }
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
        match self.clock.as_ref().and_then(|clock| clock.terms.plan.max_age.map(|age| clock.started + age)) {
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

    /// What becomes of a task of the upstream's.
    fn translate(&mut self, task: HttpTask) -> Option<HttpTask> {
        let Some(clock) = self.clock.as_mut() else { return Some(task) };
        match task {
            HttpTask::Header(header, end) if header.status.is_informational() => {
                matches!(clock.stage, Stage::Waiting).then_some(HttpTask::Header(header, end))
            }
            HttpTask::Header(header, end) if matches!(clock.stage, Stage::Waiting) => {
                if is_event_stream(&header.headers) && !end {
                    clock.stream_begins();
                } else {
                    clock.stage = Stage::Plain;
                    // From here on this is an ordinary response, with no deadlines of a stream.
                    (clock.terms.plan.first_byte, clock.terms.plan.max_age) = (None, None);
                }
                Some(HttpTask::Header(header, end))
            }
            HttpTask::Header(header, end) => {
                clock.late_header(&header);
                if end { self.body(None, true) } else { None }
            }
            HttpTask::Body(data, end) => self.body(data, end),
            HttpTask::Done | HttpTask::Trailer(_) if !matches!(clock.stage, Stage::Plain) => self.body(None, true),
            other => Some(other),
        }
    }

    fn body(&mut self, data: Option<Bytes>, end: bool) -> Option<HttpTask> {
        let clock = self.clock.as_mut()?;
        clock.spoke |= data.as_ref().is_some_and(|data| !data.is_empty());
        match &mut clock.stage {
            Stage::Streaming => {
                let data = data.map(|data| clock.tracker.pass(data));
                let rest = if end { clock.tracker.finish() } else { Bytes::new() };
                let data = match data {
                    Some(data) if rest.is_empty() => Some(data),
                    Some(data) => Some([&data[..], &rest[..]].concat().into()),
                    None => (!rest.is_empty()).then_some(rest),
                };
                clock.last_sent = Instant::now();
                Some(HttpTask::Body(data.filter(|data| !data.is_empty()), end))
            }
            Stage::Failing { body, .. } => {
                let room = ERROR_BODY_BYTES_MAX.saturating_sub(body.len());
                body.extend(data.iter().flatten().take(room));
                end.then(|| HttpTask::Body(self.failure(), true))
            }
            Stage::Over => end.then_some(HttpTask::Body(None, true)),
            Stage::Waiting | Stage::Plain => Some(HttpTask::Body(data, end)),
        }
    }

    /// The upstream's error, after our header went out, as the stream's last event.
    fn failure(&mut self) -> Option<Bytes> {
        let clock = self.clock.as_mut()?;
        let Stage::Failing { status, body } = &clock.stage else { return None };
        // An upstream that already speaks the API's dialect is told in its own words.
        let own: Option<serde_json::Value> =
            serde_json::from_slice(body).ok().filter(|value: &serde_json::Value| value.get("error").is_some());
        let answer = of_status(*status);
        let event = clock.last_event(&answer)?;
        Some(match (own, clock.terms.dialect) {
            (Some(own), Dialect::OpenAi) => format!("data: {own}\n\n").into(),
            (Some(own), Dialect::Anthropic) => format!("event: error\ndata: {own}\n\n").into(),
            (None, _) => event,
        })
    }
}

#[async_trait]
impl CustomSession for Timed {
    async fn read_body_or_idle(&mut self, no_body_expected: bool) -> Result<Option<Bytes>> {
        self.complete().await?;
        let body_expected = !no_body_expected && self.inner.is_http2() && !self.inner.is_body_done();
        if let Some(clock) = self.clock.as_mut() {
            clock.body_since = body_expected.then(|| clock.body_since.unwrap_or_else(Instant::now));
        }
        self.rearm_if_due_sooner();
        loop {
            tokio::select! {
                biased;
                read = self.inner.read_body_or_idle(no_body_expected) => {
                    if let Some(clock) = self.clock.as_mut() {
                        clock.body_since = None;
                    }
                    return read;
                }
                () = &mut self.sleep => {}
            }
            self.act().await?;
        }
    }

    async fn response_duplex_vec(&mut self, tasks: Vec<HttpTask>) -> Result<bool> {
        self.complete().await?;
        let mut passed = Vec::with_capacity(tasks.len());
        for task in tasks {
            passed.extend(self.translate(task));
        }
        self.rearm_if_due_sooner();
        let over = matches!(self.clock.as_ref().map(|clock| &clock.stage), Some(Stage::Over));
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
        self.inner.is_body_done()
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

/// Completes a frame that was being written when the stream failed.
pub async fn settle(session: &mut HttpSession) -> Result<()> {
    while session.has_pending_downstream_proxy_tasks() {
        session.write_downstream_proxy_tasks().await?;
    }
    Ok(())
}
