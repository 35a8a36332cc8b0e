//! The plan for keeping an event stream open. `sse_keepalive` makes the plan; the timed session in `src` carries it out.

use std::sync::Arc;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

/// The kinds of response that a client accepts, as far as its request tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum AnswerKind {
    /// Not known, or a kind of response that gets no frames.
    Undecided = 0,
    /// Only an event stream.
    EventStream = 1,
    /// An event stream or another kind, as the upstream chooses.
    Either = 2,
    /// Only a JSON document.
    Json = 3,
}

/// The response that a request asks for. A filter fills it in while the request body passes; the timed session reads it.
#[derive(Debug, Default)]
pub struct ExpectedAnswer {
    kind: AtomicU8,
    rpc_id: OnceLock<String>,
}

impl ExpectedAnswer {
    /// Starts with the kind that the request header tells.
    pub fn new(kind: AnswerKind) -> Self {
        Self { kind: AtomicU8::new(kind as u8), rpc_id: OnceLock::new() }
    }

    /// The kind, as far as it is known so far.
    pub fn kind(&self) -> AnswerKind {
        match self.kind.load(Ordering::Relaxed) {
            1 => AnswerKind::EventStream,
            2 => AnswerKind::Either,
            3 => AnswerKind::Json,
            _ => AnswerKind::Undecided,
        }
    }

    /// Sets the kind that the body has told.
    pub fn decide(&self, kind: AnswerKind) {
        self.kind.store(kind as u8, Ordering::Relaxed);
    }

    /// Whether the response may be an event stream.
    pub fn may_stream(&self) -> bool {
        matches!(self.kind(), AnswerKind::EventStream | AnswerKind::Either)
    }

    /// The `id` of a JSON-RPC request, as JSON.
    pub fn rpc_id(&self) -> Option<&str> {
        self.rpc_id.get().map(String::as_str)
    }

    /// Sets the `id` that the body has told. Later calls have no effect.
    pub fn set_rpc_id(&self, json: String) {
        let _ = self.rpc_id.set(json);
    }
}

/// A keep-alive frame, sent into an idle stream. No form changes the events that a WHATWG parser sees; a frame is inserted
/// only where that holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Frame {
    /// Between events, `: keep-alive` and a blank line. Inside an event or after an `id` field, only the comment line.
    #[default]
    Comment,
    /// Only the comment line.
    CommentLine,
    /// A blank line between events; nothing inside an event.
    BlankLine,
    /// A complete event between events; nothing inside an event.
    Event(&'static [u8]),
}

/// The keep-alive plan of one request.
#[derive(Clone, Debug)]
pub struct StreamPlan {
    /// The time without bytes sent to the client after which a frame is due.
    pub interval: Duration,
    /// The form of a frame.
    pub frame: Frame,
    /// Start an early event stream if the client accepts only that kind and the upstream has sent no header within this time
    /// after the complete request.
    pub before_headers: Option<Duration>,
    /// Start an early response with white space before the JSON document if the client accepts only that kind and the
    /// upstream has sent no header within this time after the complete request.
    pub json_padding: Option<Duration>,
    /// The time limit from the complete request to the first byte of data from the upstream.
    pub first_byte: Option<Duration>,
    /// The maximum age of a stream.
    pub max_age: Option<Duration>,
    /// The time limit for one write to a slow client.
    pub write_timeout: Duration,
    /// The response that the request asks for.
    pub expected: Arc<ExpectedAnswer>,
}

impl StreamPlan {
    /// A plan without frames and deadlines, for chains without `sse_keepalive`. Only the write timeout applies.
    pub fn none(write_timeout: Duration) -> Self {
        const NEVER: Duration = Duration::from_secs(365 * 86_400);
        Self {
            interval: NEVER,
            frame: Frame::Comment,
            before_headers: None,
            json_padding: None,
            first_byte: None,
            max_age: None,
            write_timeout,
            expected: Arc::default(),
        }
    }

    /// Whether a frame, early response or deadline may be due before the upstream header.
    pub fn acts_before_headers(&self) -> bool {
        self.before_headers.is_some() || self.json_padding.is_some() || self.first_byte.is_some()
    }
}
