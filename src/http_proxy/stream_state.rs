//! The state of one timed stream: its deadlines, its frames, and the translation of upstream
//! output. It does no I/O: [`super::timed_session`] executes its decisions.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, StatusCode, header};
use keylatch_filters::contract::{AnswerKind, CancellationHandle, Dialect, StreamPlan};
use keylatch_filters::contract::{is_event_stream, is_json_lines, is_uncoded};
use keylatch_filters::sse_keepalive::tracker::Tracker;
use pingora::http::ResponseHeader;
use pingora::protocols::http::HttpTask;
use pingora::{Error, ErrorType};
use tokio::time::Instant;

use super::body_ahead::BodyAhead;
use super::dialects::{Collected, ErrorContext, LateAnswer};
use super::errors::{Answer, BODY_RATE_ERROR, FIRST_BYTE_ERROR, MAX_AGE_ERROR, from_error};
use crate::listener::conn::body_rate::{BodyPace, BodyRate};
use crate::telemetry::streams::{OpenStream, StreamInfo, Streams};

/// JSON allows white space before a document (RFC 8259, section 2).
const PADDING: &[u8] = b" ";

/// The parameters of a timed stream.
pub struct StreamTerms {
    /// The intervals.
    pub plan: StreamPlan,
    /// The header of an early response; `None`: no early response.
    pub early_header: Option<Box<ResponseHeader>>,
    /// The dialect of errors.
    pub dialect: Dialect,
    /// The request id in errors.
    pub request_id: Option<String>,
    /// The registry of open streams.
    pub streams: Arc<Streams>,
    /// Its entry in the registry.
    pub info: Box<StreamInfo>,
    /// The stream's cancellation handle.
    pub cancellation: Option<Arc<CancellationHandle>>,
    /// The longest pause in the request body.
    pub body_timeout: Duration,
    /// The minimum rate of the request body (HTTP/2 only; on HTTP/1 the connection enforces it).
    pub body_rate: BodyRate,
}

/// The stage of the response.
enum Stage {
    /// No header has been sent.
    Waiting,
    /// Events pass, with comment frames between them.
    Streaming,
    /// JSON lines pass, without frames.
    Lines { in_line: bool },
    /// An early event stream has begun, and the upstream response is not an event stream.
    Late(LateAnswer),
    /// Padding has been sent, and a JSON document is expected.
    Padding,
    /// Padding has been sent, and the upstream response is an error: it becomes a JSON document at
    /// its end.
    PaddedFailure(Collected),
    /// The response passes unchanged: it is not a stream, or a document after padding.
    Plain,
    /// The last event has been sent; further upstream data is dropped.
    Over,
}

/// The state of one timed stream.
pub struct StreamState {
    pub terms: StreamTerms,
    stage: Stage,
    tracker: Tracker,
    pub started: Instant,
    /// When the request was complete; `None`: its body is still arriving.
    complete: Option<Instant>,
    /// When the stream began.
    began: Option<Instant>,
    last_sent: Instant,
    /// The upstream has sent body data.
    upstream_spoke: bool,
    /// Since when the next piece of the request body is awaited (HTTP/2 only; HTTP/1 has its own
    /// deadline).
    pub body_since: Option<Instant>,
    /// The rate of that body.
    pub pace: BodyPace,
    /// The part of the request body that was read ahead.
    pub ahead: Option<BodyAhead>,
    /// The unsent rest of a frame (HTTP/2 only).
    pub unsent: Bytes,
    /// The status of an upstream response after an early response.
    late_status: Option<StatusCode>,
    /// That response became an error.
    late_failure: bool,
    /// The error of the upstream with which the stream ended properly.
    pub failure: Option<Box<Error>>,
    open: Option<OpenStream>,
}

impl StreamState {
    pub fn new(terms: StreamTerms, started: Instant) -> Self {
        Self {
            pace: BodyPace::new(terms.body_rate),
            terms,
            stage: Stage::Waiting,
            tracker: Tracker::new(),
            started,
            complete: None,
            began: None,
            last_sent: Instant::now(),
            upstream_spoke: false,
            body_since: None,
            ahead: None,
            unsent: Bytes::new(),
            late_status: None,
            late_failure: false,
            failure: None,
            open: None,
        }
    }

    fn stream_begins(&mut self, stage: Stage) {
        self.stage = stage;
        // The interval starts at the header: a frame directly after it would be useless.
        self.last_sent = Instant::now();
        self.began.get_or_insert(self.last_sent);
        if self.open.is_none() {
            // A stream without a key has a handle of its own, so that an operator can end it.
            let cancellation = Arc::clone(self.terms.cancellation.get_or_insert_default());
            self.open = Some(self.terms.streams.begin((*self.terms.info).clone(), cancellation));
        }
    }

    /// Replaces the cancellation handle.
    pub fn set_cancellation(&mut self, cancellation: Option<Arc<CancellationHandle>>) {
        if let (Some(open), Some(cancellation)) = (&self.open, &cancellation) {
            open.attach_cancellation(cancellation);
        }
        // An open stream without a key keeps its own handle.
        if cancellation.is_some() || self.open.is_none() {
            self.terms.cancellation = cancellation;
        }
    }

    /// The request is complete: from here on, the upstream is awaited.
    pub fn request_complete(&mut self) {
        self.complete.get_or_insert_with(Instant::now);
    }

    /// The status of a late upstream response, and whether it became an error.
    pub fn late_answer(&self) -> Option<(StatusCode, bool)> {
        self.late_status.map(|status| (status, self.late_failure))
    }

    fn place(&self) -> ErrorContext<'_> {
        let rpc_id = self.terms.plan.expected.rpc_id();
        ErrorContext { request_id: self.terms.request_id.as_deref(), rpc_id, sequence: self.tracker.events() }
    }

    /// How long after the complete request an early response is sent; `None`: never.
    fn early_after(&self) -> Option<Duration> {
        self.terms.early_header.as_ref()?;
        let plan = &self.terms.plan;
        match plan.expected.kind() {
            AnswerKind::EventStream => plan.before_headers,
            AnswerKind::Json => plan.json_padding,
            AnswerKind::Either | AnswerKind::Undecided => None,
        }
    }

    /// When the stream reaches its maximum age. Before it begins, the time since the complete
    /// request counts.
    pub fn end_of_age(&self) -> Option<Instant> {
        Some(self.began.or(self.complete)? + self.terms.plan.max_age?)
    }

    /// The earliest deadline.
    pub fn next(&self) -> Instant {
        let plan = &self.terms.plan;
        let far = self.started + Duration::from_secs(86_400 * 365);
        let waiting = matches!(self.stage, Stage::Waiting);
        let after_complete = |after: Option<Duration>| Some(self.complete? + after?);
        let early = after_complete(self.early_after().filter(|_| waiting));
        let frame = (!matches!(self.stage, Stage::Waiting | Stage::Plain | Stage::Lines { .. } | Stage::Over))
            .then(|| self.last_sent + plan.interval);
        let first = after_complete(plan.first_byte.filter(|_| !self.upstream_spoke));
        let age = self.end_of_age();
        let body = self.body_since.map(|since| since + self.terms.body_timeout);
        [early, frame, first, age, body, self.pace_deadline()].into_iter().flatten().min().unwrap_or(far)
    }

    /// When the request body is too slow, unless the response has begun.
    fn pace_deadline(&self) -> Option<Instant> {
        self.pace.deadline().filter(|_| matches!(self.stage, Stage::Waiting))
    }

    /// The last event, if one can be sent here. Not inside a line: the client would dispatch a
    /// truncated event.
    pub fn last_event(&mut self, answer: &Answer) -> Option<Bytes> {
        if !self.unsent.is_empty() {
            return None;
        }
        let event = match &self.stage {
            Stage::Padding | Stage::PaddedFailure(_) => answer.document(self.terms.dialect, &self.place()),
            Stage::Lines { in_line: false } => [&answer.document(self.terms.dialect, &self.place())[..], b"\n"].concat().into(),
            Stage::Late(late) if late.at_event_start() => answer.event(self.terms.dialect, &self.place()),
            Stage::Streaming if self.tracker.at_line_start() => {
                let event = answer.event(self.terms.dialect, &self.place());
                // An unfinished event is ended first.
                if self.tracker.in_event() { [b"\n", &event[..]].concat().into() } else { event }
            }
            _ => return None,
        };
        self.stage = Stage::Over;
        Some(event)
    }

    /// Ends the stream after an error of the upstream. The connection stays usable, unlike after an
    /// error that Pingora handles. Returns the error if it cannot be sent here.
    pub fn end_with(&mut self, error: Box<Error>) -> Result<HttpTask, Box<Error>> {
        let Some(answer) = from_error(&error) else { return Err(error) };
        match self.last_event(&answer) {
            Some(event) => {
                self.failure = Some(error);
                Ok(HttpTask::Body(Some(event), true))
            }
            None => Err(error),
        }
    }

    /// Handles an upstream header after an early response.
    fn late_header(&mut self, answer: &ResponseHeader) {
        self.late_status = Some(answer.status);
        match self.stage {
            Stage::Streaming if answer.status.is_success() && is_event_stream(&answer.headers) => {}
            Stage::Streaming => {
                self.stage = Stage::Late(LateAnswer::new(answer));
            }
            // The media type is ignored: the client would have received the same body.
            Stage::Padding if answer.status.is_success() && is_uncoded(&answer.headers) && !is_event_stream(&answer.headers) => {
                self.stage = Stage::Plain;
            }
            Stage::Padding => {
                self.late_failure = true;
                self.stage = Stage::PaddedFailure(Collected::new(answer));
            }
            _ => {}
        }
    }

    /// The action that is due now.
    pub fn due(&mut self) -> Due {
        let now = Instant::now();
        let plan = &self.terms.plan;
        let aged = self.end_of_age().is_some_and(|end| now >= end);
        let complete = self.complete;
        let waited = |after: Option<Duration>| complete.zip(after).is_some_and(|(since, after)| now >= since + after);
        let first_byte_late = !self.upstream_spoke && waited(plan.first_byte);
        // Before the header, only the request tells whether a stream is expected.
        let streams = !matches!(self.stage, Stage::Waiting) || plan.expected.may_stream();
        if !streams && (aged || first_byte_late) {
            (self.terms.plan.max_age, self.terms.plan.first_byte) = (None, None);
            return Due::Nothing;
        }
        if aged {
            return Due::Failed(Error::explain(MAX_AGE_ERROR, "the stream reached its maximum age"));
        }
        if self.body_since.is_some_and(|since| now >= since + self.terms.body_timeout) {
            return Due::Failed(Error::explain(ErrorType::ReadTimedout, "the request body stopped arriving").into_down());
        }
        if self.pace_deadline().is_some_and(|deadline| now >= deadline) {
            return Due::Failed(Error::explain(BODY_RATE_ERROR, "the request body arrives too slowly").into_down());
        }
        if first_byte_late {
            return Due::Failed(Error::explain(FIRST_BYTE_ERROR, "the upstream sent no data in time"));
        }
        if matches!(self.stage, Stage::Waiting) && waited(self.early_after()) {
            return Due::Header;
        }
        if now < self.last_sent + plan.interval {
            return Due::Nothing;
        }
        let frame = match &self.stage {
            Stage::Streaming => self.tracker.frame(plan.frame),
            Stage::Late(late) if late.at_event_start() => self.tracker.frame(plan.frame),
            Stage::Padding | Stage::PaddedFailure(_) => Some(PADDING),
            _ => None,
        };
        // Inside a line or an event no frame fits; the interval restarts.
        self.last_sent = if frame.is_some() { self.last_sent } else { now };
        frame.map_or(Due::Nothing, Due::Frame)
    }

    /// Notes that a frame is being sent. From here on it counts as sent.
    pub fn frame_sent(&mut self) {
        if matches!(self.stage, Stage::Streaming) {
            self.tracker.framed();
        }
        self.last_sent = Instant::now();
        self.terms.streams.frames.inc();
    }

    /// Takes the header of the early response, and the frame that follows it.
    pub fn take_early_header(&mut self) -> Option<(Box<ResponseHeader>, Option<&'static [u8]>)> {
        let mut header = self.terms.early_header.take()?;
        if self.terms.plan.expected.kind() == AnswerKind::Json {
            // A static value is always valid.
            let _ = header.insert_header(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
            self.stream_begins(Stage::Padding);
            // The deadlines of a stream do not apply to a document.
            (self.terms.plan.first_byte, self.terms.plan.max_age) = (None, None);
            return Some((header, Some(PADDING)));
        }
        self.stream_begins(Stage::Streaming);
        Some((header, self.tracker.frame(self.terms.plan.frame)))
    }

    /// Whether the last event has been sent.
    pub fn is_over(&self) -> bool {
        matches!(self.stage, Stage::Over)
    }

    /// Translates a task from the upstream; `None`: nothing is sent for it.
    pub fn translate(&mut self, task: HttpTask) -> Option<HttpTask> {
        match task {
            HttpTask::Header(header, end) if header.status.is_informational() => {
                matches!(self.stage, Stage::Waiting).then_some(HttpTask::Header(header, end))
            }
            HttpTask::Header(header, end) if matches!(self.stage, Stage::Waiting) => {
                if is_event_stream(&header.headers) && !end {
                    self.stream_begins(Stage::Streaming);
                } else if is_json_lines(&header.headers) && !end {
                    self.stream_begins(Stage::Lines { in_line: false });
                } else {
                    self.stage = Stage::Plain;
                    // An ordinary response has no stream deadlines.
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
        self.upstream_spoke |= data.as_ref().is_some_and(|data| !data.is_empty());
        let dialect = self.terms.dialect;
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
            Stage::Lines { in_line } => {
                if let Some(last) = data.as_ref().and_then(|data| data.last()) {
                    *in_line = *last != b'\n';
                }
                Some(HttpTask::Body(data, end))
            }
            Stage::Late(late) => {
                let passed = data.map(|data| late.pass(dialect, &data)).unwrap_or_default();
                if !end {
                    return (!passed.is_empty()).then_some(HttpTask::Body(Some(passed), false));
                }
                let Stage::Late(late) = std::mem::replace(&mut self.stage, Stage::Over) else { return None };
                self.late_failure |= late.is_failure();
                let last = late.finish(dialect, &self.place());
                let whole: Bytes = if passed.is_empty() { last } else { [&passed[..], &last[..]].concat().into() };
                Some(HttpTask::Body(Some(whole).filter(|whole| !whole.is_empty()), true))
            }
            Stage::PaddedFailure(collected) => {
                data.iter().for_each(|data| collected.pass(data));
                if !end {
                    return None;
                }
                let Stage::PaddedFailure(collected) = std::mem::replace(&mut self.stage, Stage::Over) else { return None };
                Some(HttpTask::Body(Some(collected.document(dialect, &self.place())), true))
            }
            Stage::Over => end.then_some(HttpTask::Body(None, true)),
            Stage::Waiting | Stage::Padding | Stage::Plain => Some(HttpTask::Body(data, end)),
        }
    }
}

/// The next action of the timed session.
pub enum Due {
    Nothing,
    Header,
    Frame(&'static [u8]),
    Failed(Box<Error>),
}
