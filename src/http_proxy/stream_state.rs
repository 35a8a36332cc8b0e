//! The clock of one event stream: what is due when, and what becomes of what the upstream says.
//!
//! [`super::timed_session`] asks it, and does what it says to the client's session.

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

use super::dialects::{Collected, LateAnswer, Place};
use super::errors::{Answer, BODY_RATE_ERROR, FIRST_BYTE_ERROR, MAX_AGE_ERROR};
use crate::listener::conn::body_rate::{BodyPace, BodyRate};
use crate::telemetry::streams::{OpenStream, StreamInfo, Streams};

/// JSON allows white space before a document (RFC 8259, section 2).
const PADDING: &[u8] = b" ";

/// What the timed session needs to know of its request.
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
    pub about: Box<StreamInfo>,
    /// By which the stream is ended from elsewhere.
    pub cancellation: Option<Arc<CancellationHandle>>,
    /// How long a client may send nothing in the middle of a body.
    pub body_timeout: Duration,
    /// How fast it has to be (HTTP/2 only; HTTP/1 has its own).
    pub body_rate: BodyRate,
}

/// How far the response is.
enum Stage {
    /// No header has gone to the client.
    Waiting,
    /// Events pass, with frames between them.
    Streaming,
    /// Lines of JSON pass, without frames.
    Lines { in_line: bool },
    /// Our stream has begun, and the upstream's answer is none.
    Late(LateAnswer),
    /// White space has gone out, and a JSON document is waited for.
    Padding,
    /// White space has gone out, and what came is no JSON document: it is told as one at its end.
    PaddedFailure(Collected),
    /// Everything passes: the response is no stream, or a document behind white space.
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
    /// When the request was complete; `None`: its body is still arriving.
    complete: Option<Instant>,
    /// When a stream began.
    began: Option<Instant>,
    last_sent: Instant,
    /// Data of the upstream has been seen.
    spoke: bool,
    /// Since when a piece of the request's body is waited for (HTTP/2 only; HTTP/1 has its own deadline).
    pub body_since: Option<Instant>,
    /// How fast that body is.
    pub pace: BodyPace,
    /// What of a frame has not gone out yet (HTTP/2 only).
    pub unsent: Bytes,
    /// The status of the upstream's answer where ours had gone out before.
    late_status: Option<StatusCode>,
    /// That answer was told as an error.
    late_failure: bool,
    open: Option<OpenStream>,
}

impl Clock {
    pub fn new(terms: Terms, started: Instant) -> Self {
        Self {
            pace: BodyPace::new(terms.body_rate),
            terms,
            stage: Stage::Waiting,
            tracker: Tracker::new(),
            started,
            complete: None,
            began: None,
            last_sent: Instant::now(),
            spoke: false,
            body_since: None,
            unsent: Bytes::new(),
            late_status: None,
            late_failure: false,
            open: None,
        }
    }

    fn stream_begins(&mut self, stage: Stage) {
        self.stage = stage;
        // Silence counts from the header: a frame right behind it would say nothing.
        self.last_sent = Instant::now();
        self.began.get_or_insert(self.last_sent);
        if self.open.is_none() {
            // Without a key nobody else holds it; an operator may end it all the same.
            let cancellation = Arc::clone(self.terms.cancellation.get_or_insert_default());
            self.open = Some(self.terms.streams.begin((*self.terms.about).clone(), cancellation));
        }
    }

    /// It is ended by this one from here on.
    pub fn attach_cancellation(&mut self, cancellation: Option<Arc<CancellationHandle>>) {
        if let (Some(open), Some(cancellation)) = (&self.open, &cancellation) {
            open.attach_cancellation(cancellation);
        }
        // One that is open and that no key holds is still held by its own.
        if cancellation.is_some() || self.open.is_none() {
            self.terms.cancellation = cancellation;
        }
    }

    /// The request has arrived whole: from here on the upstream is waited for.
    pub fn request_complete(&mut self) {
        self.complete.get_or_insert_with(Instant::now);
    }

    /// The status and whether it was told as an error, of an upstream's answer that came after ours.
    pub fn late_answer(&self) -> Option<(StatusCode, bool)> {
        self.late_status.map(|status| (status, self.late_failure))
    }

    fn place(&self) -> Place<'_> {
        let rpc_id = self.terms.plan.expected.rpc_id();
        Place { request_id: self.terms.request_id.as_deref(), rpc_id, sequence: self.tracker.events() }
    }

    /// After how long of waiting for the upstream an answer of ours is due; `None`: never.
    fn early_after(&self) -> Option<Duration> {
        self.terms.early_header.as_ref()?;
        let plan = &self.terms.plan;
        match plan.expected.kind() {
            AnswerKind::EventStream => plan.before_headers,
            AnswerKind::Json => plan.json_padding,
            AnswerKind::Either | AnswerKind::Undecided => None,
        }
    }

    /// When the stream will have lived for as long as it may. Until it begins, waiting for it counts.
    pub fn end_of_age(&self) -> Option<Instant> {
        Some(self.began.or(self.complete)? + self.terms.plan.max_age?)
    }

    /// The next moment at which something is due.
    pub fn next(&self) -> Instant {
        let plan = &self.terms.plan;
        let far = self.started + Duration::from_secs(86_400 * 365);
        let waiting = matches!(self.stage, Stage::Waiting);
        let after_complete = |after: Option<Duration>| Some(self.complete? + after?);
        let early = after_complete(self.early_after().filter(|_| waiting));
        let frame = (!matches!(self.stage, Stage::Waiting | Stage::Plain | Stage::Lines { .. } | Stage::Over))
            .then(|| self.last_sent + plan.interval);
        let first = after_complete(plan.first_byte.filter(|_| !self.spoke));
        let age = self.end_of_age();
        let body = self.body_since.map(|since| since + self.terms.body_timeout);
        [early, frame, first, age, body, self.pace_deadline()].into_iter().flatten().min().unwrap_or(far)
    }

    /// When the request's body is too slow, as long as the response has not begun.
    fn pace_deadline(&self) -> Option<Instant> {
        self.pace.deadline().filter(|_| matches!(self.stage, Stage::Waiting))
    }

    /// A last event of ours, if the stream is at a place where one can stand. Inside a line it cannot: the
    /// line's own event would be dispatched cut short.
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
                // Lines of an unfinished event are ended first.
                if self.tracker.in_event() { [b"\n", &event[..]].concat().into() } else { event }
            }
            _ => return None,
        };
        self.stage = Stage::Over;
        Some(event)
    }

    /// The upstream's header after ours went out.
    fn late_header(&mut self, answer: &ResponseHeader) {
        self.late_status = Some(answer.status);
        match self.stage {
            Stage::Streaming if answer.status.is_success() && is_event_stream(&answer.headers) => {}
            Stage::Streaming => {
                self.stage = Stage::Late(LateAnswer::new(answer));
            }
            // Whatever the type, it is what the client would have got.
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

    /// What is due now.
    pub fn due(&mut self) -> Due {
        let now = Instant::now();
        let plan = &self.terms.plan;
        let aged = self.end_of_age().is_some_and(|end| now >= end);
        let complete = self.complete;
        let waited = |after: Option<Duration>| complete.zip(after).is_some_and(|(since, after)| now >= since + after);
        let first_byte_late = !self.spoke && waited(plan.first_byte);
        // Before the header it is not known to be a stream, unless the client asked for one.
        let streams = !matches!(self.stage, Stage::Waiting) || plan.expected.may_stream();
        if !streams && (aged || first_byte_late) {
            (self.terms.plan.max_age, self.terms.plan.first_byte) = (None, None);
            return Due::Nothing;
        }
        if aged {
            return Due::Failed(Error::explain(MAX_AGE_ERROR, "the stream reached its maximum age"));
        }
        if self.body_since.is_some_and(|since| now >= since + self.terms.body_timeout) {
            return Due::Failed(Error::explain(ErrorType::ReadTimedout, "the request's body stopped arriving").into_down());
        }
        if self.pace_deadline().is_some_and(|deadline| now >= deadline) {
            return Due::Failed(Error::explain(BODY_RATE_ERROR, "the request's body arrives too slowly").into_down());
        }
        if first_byte_late {
            return Due::Failed(Error::explain(FIRST_BYTE_ERROR, "no data from upstream in time"));
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
        // Inside a line or an event the interval begins anew.
        self.last_sent = if frame.is_some() { self.last_sent } else { now };
        frame.map_or(Due::Nothing, Due::Frame)
    }

    /// A frame goes out now. From here on it counts as sent.
    pub fn framed(&mut self) {
        if matches!(self.stage, Stage::Streaming) {
            self.tracker.framed();
        }
        self.last_sent = Instant::now();
        self.terms.streams.frames.inc();
    }

    /// Our own header goes out now, with the frame that follows it.
    pub fn answers(&mut self) -> Option<(Box<ResponseHeader>, Option<&'static [u8]>)> {
        let mut header = self.terms.early_header.take()?;
        if self.terms.plan.expected.kind() == AnswerKind::Json {
            // Nothing about this value can be wrong.
            let _ = header.insert_header(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
            self.stream_begins(Stage::Padding);
            // Deadlines of a stream are none of a document's.
            (self.terms.plan.first_byte, self.terms.plan.max_age) = (None, None);
            return Some((header, Some(PADDING)));
        }
        self.stream_begins(Stage::Streaming);
        Some((header, self.tracker.frame(self.terms.plan.frame)))
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
                    self.stream_begins(Stage::Streaming);
                } else if is_json_lines(&header.headers) && !end {
                    self.stream_begins(Stage::Lines { in_line: false });
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

/// What the timed session is to do.
pub enum Due {
    Nothing,
    Header,
    Frame(&'static [u8]),
    Failed(Box<Error>),
}
