//! The clock of one event stream: what is due when, and what becomes of what the upstream says.
//!
//! [`super::timed_session`] asks it, and does what it says to the client's session.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use http::StatusCode;
use keylatch_filters::contract::{Dialect, Leash, StreamPlan};
use keylatch_filters::sse_keepalive::is_event_stream;
use keylatch_filters::sse_keepalive::tracker::Tracker;
use pingora::http::ResponseHeader;
use pingora::protocols::http::HttpTask;
use pingora::{Error, ErrorType};
use tokio::time::Instant;

use super::errors::{Answer, FIRST_BYTE_ERROR, MAX_AGE_ERROR, of_status};
use crate::telemetry::streams::{About, Open, Streams};

/// The most of an upstream's error that is read to be told as an event.
const ERROR_BODY_BYTES_MAX: usize = 64 * 1024;

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
    /// Where it stands while it is open.
    pub streams: Arc<Streams>,
    /// What stands there.
    pub about: Box<About>,
    /// By which the stream is ended from elsewhere.
    pub leash: Option<Arc<Leash>>,
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
    pub terms: Terms,
    stage: Stage,
    tracker: Tracker,
    pub started: Instant,
    last_sent: Instant,
    /// Data of the upstream has been seen.
    spoke: bool,
    /// Since when a piece of the request's body is waited for (HTTP/2 only; HTTP/1 has its own deadline).
    pub body_since: Option<Instant>,
    /// What of a frame has not gone out yet (HTTP/2 only).
    pub unsent: Bytes,
    open: Option<Open>,
}

impl Clock {
    pub fn new(terms: Terms, started: Instant) -> Self {
        Self {
            terms,
            stage: Stage::Waiting,
            tracker: Tracker::new(),
            started,
            last_sent: Instant::now(),
            spoke: false,
            body_since: None,
            unsent: Bytes::new(),
            open: None,
        }
    }

    pub fn stream_begins(&mut self) {
        self.stage = Stage::Streaming;
        if self.open.is_none() {
            // Without a key nobody else holds it; an operator may end it all the same.
            let leash = Arc::clone(self.terms.leash.get_or_insert_default());
            self.open = Some(self.terms.streams.begin((*self.terms.about).clone(), leash));
        }
    }

    /// It is ended by this one from here on.
    pub fn hold_by(&mut self, leash: Option<Arc<Leash>>) {
        if let (Some(open), Some(leash)) = (&self.open, &leash) {
            open.hold_by(leash);
        }
        // One that is open and that no key holds is still held by its own.
        if leash.is_some() || self.open.is_none() {
            self.terms.leash = leash;
        }
    }

    /// The next moment at which something is due.
    pub fn next(&self) -> Instant {
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

    /// What is due now.
    pub fn due(&mut self) -> Due {
        let now = Instant::now();
        let plan = &self.terms.plan;
        let past = |after: Option<Duration>| after.is_some_and(|after| now >= self.started + after);
        // Before the header it is not known to be a stream, unless the client asked for one.
        let streams = !matches!(self.stage, Stage::Waiting) || plan.wanted.load(Ordering::Relaxed);
        if !streams && (past(plan.max_age) || past(plan.first_byte)) {
            (self.terms.plan.max_age, self.terms.plan.first_byte) = (None, None);
            return Due::Nothing;
        }
        if past(plan.max_age) {
            return Due::Failed(Error::explain(MAX_AGE_ERROR, "the stream reached its maximum age"));
        }
        if self.body_since.is_some_and(|since| now >= since + self.terms.body_timeout) {
            return Due::Failed(Error::explain(ErrorType::ReadTimedout, "the request's body stopped arriving").into_down());
        }
        if !self.spoke && past(plan.first_byte) {
            return Due::Failed(Error::explain(FIRST_BYTE_ERROR, "no data from upstream in time"));
        }
        match self.stage {
            Stage::Waiting if past(plan.before_headers) && self.terms.early_header.is_some() => {
                if plan.wanted.load(Ordering::Relaxed) {
                    Due::Header
                } else {
                    self.terms.early_header = None;
                    Due::Nothing
                }
            }
            Stage::Streaming if now >= self.last_sent + plan.interval => match self.tracker.frame() {
                Some(frame) => Due::Frame(frame),
                None => {
                    // Inside a line: the next byte of the upstream starts the interval anew.
                    self.last_sent = now;
                    Due::Nothing
                }
            },
            _ => Due::Nothing,
        }
    }

    /// A frame goes out now. From here on it counts as sent.
    pub fn framed(&mut self) {
        self.tracker.framed();
        self.last_sent = Instant::now();
        self.terms.streams.frames.inc();
    }

    /// Our own header goes out now; the frame that follows it.
    pub fn answers(&mut self) -> Option<&'static [u8]> {
        self.stream_begins();
        self.last_sent = Instant::now();
        self.tracker.frame()
    }

    /// Whether the last event has gone out.
    pub fn is_over(&self) -> bool {
        matches!(self.stage, Stage::Over)
    }

    /// What becomes of a task of the upstream's.
    pub fn translate(&mut self, task: HttpTask) -> Option<HttpTask> {
        match task {
            HttpTask::Header(header, end) if header.status.is_informational() => {
                matches!(self.stage, Stage::Waiting).then_some(HttpTask::Header(header, end))
            }
            HttpTask::Header(header, end) if matches!(self.stage, Stage::Waiting) => {
                if is_event_stream(&header.headers) && !end {
                    self.stream_begins();
                } else {
                    self.stage = Stage::Plain;
                    // From here on this is an ordinary response, with no deadlines of a stream.
                    (self.terms.plan.first_byte, self.terms.plan.max_age) = (None, None);
                }
                Some(HttpTask::Header(header, end))
            }
            HttpTask::Header(header, end) => {
                self.late_header(&header);
                if end { self.body(None, true) } else { None }
            }
            HttpTask::Body(data, end) => self.body(data, end),
            HttpTask::Done | HttpTask::Trailer(_) if !matches!(self.stage, Stage::Plain) => self.body(None, true),
            other => Some(other),
        }
    }

    fn body(&mut self, data: Option<Bytes>, end: bool) -> Option<HttpTask> {
        self.spoke |= data.as_ref().is_some_and(|data| !data.is_empty());
        match &mut self.stage {
            Stage::Streaming => {
                let data = data.map(|data| self.tracker.pass(data));
                let rest = if end { self.tracker.finish() } else { Bytes::new() };
                let data = match data {
                    Some(data) if rest.is_empty() => Some(data),
                    Some(data) => Some([&data[..], &rest[..]].concat().into()),
                    None => (!rest.is_empty()).then_some(rest),
                };
                self.last_sent = Instant::now();
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
        let Stage::Failing { status, body } = &self.stage else { return None };
        // An upstream that already speaks the API's dialect is told in its own words.
        let own: Option<serde_json::Value> =
            serde_json::from_slice(body).ok().filter(|value: &serde_json::Value| value.get("error").is_some());
        let answer = of_status(*status);
        let event = self.last_event(&answer)?;
        Some(match (own, self.terms.dialect) {
            (Some(own), Dialect::OpenAi) => format!("data: {own}\n\n").into(),
            (Some(own), Dialect::Anthropic) => format!("event: error\ndata: {own}\n\n").into(),
            (None, _) => event,
        })
    }
}

/// What the timed session is to do.
pub enum Due {
    Nothing,
    Header,
    Frame(&'static [u8]),
    Failed(Box<Error>),
}
