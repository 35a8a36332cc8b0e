//! How an event stream is kept open: stated by `sse_keepalive`, carried out by the timed session.

use std::sync::Arc;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

/// The kinds of answer a client can take, as far as its request says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum AnswerKind {
    /// Nothing is known, or nothing that matters here.
    Undecided = 0,
    /// An event stream and nothing else.
    EventStream = 1,
    /// An event stream or something else, as the upstream chooses.
    Either = 2,
    /// A JSON document and nothing else.
    Json = 3,
}

/// What a request says about its answer. A filter fills it in while the body passes; the timed session reads it.
#[derive(Debug, Default)]
pub struct ExpectedAnswer {
    kind: AtomicU8,
    rpc_id: OnceLock<String>,
}

impl ExpectedAnswer {
    /// With the kind that the request's header tells.
    pub fn new(kind: AnswerKind) -> Self {
        Self { kind: AtomicU8::new(kind as u8), rpc_id: OnceLock::new() }
    }

    /// The kind, as far as it is known by now.
    pub fn kind(&self) -> AnswerKind {
        match self.kind.load(Ordering::Relaxed) {
            1 => AnswerKind::EventStream,
            2 => AnswerKind::Either,
            3 => AnswerKind::Json,
            _ => AnswerKind::Undecided,
        }
    }

    /// The body has told the kind.
    pub fn decide(&self, kind: AnswerKind) {
        self.kind.store(kind as u8, Ordering::Relaxed);
    }

    /// Whether the answer may be an event stream.
    pub fn may_stream(&self) -> bool {
        matches!(self.kind(), AnswerKind::EventStream | AnswerKind::Either)
    }

    /// The `id` of a JSON-RPC request, as JSON.
    pub fn rpc_id(&self) -> Option<&str> {
        self.rpc_id.get().map(String::as_str)
    }

    /// The body has told the `id`; the first one stands.
    pub fn set_rpc_id(&self, json: String) {
        let _ = self.rpc_id.set(json);
    }
}

/// What is sent into a silent stream. Each form changes nothing for a parser of the WHATWG's rules, and is put only
/// where that is so.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Frame {
    /// `: keep-alive` and a blank line between events, the comment line alone inside one or after an `id` field.
    #[default]
    Comment,
    /// The comment line alone.
    CommentLine,
    /// A blank line between events, nothing inside one.
    BlankLine,
    /// An event of its own between events, nothing inside one.
    Event(&'static [u8]),
}

/// How the event stream of one request is kept open.
#[derive(Clone, Debug)]
pub struct StreamPlan {
    /// Silence towards the client after which a frame is due.
    pub interval: Duration,
    /// What a frame is.
    pub frame: Frame,
    /// Answer with an event stream of our own, if the client takes nothing else and the upstream has sent no header for so
    /// long after the request was complete.
    pub before_headers: Option<Duration>,
    /// Answer with white space that a JSON document may follow, if the client takes nothing else and the upstream has sent
    /// no header for so long after the request was complete.
    pub json_padding: Option<Duration>,
    /// How long the upstream may take from the complete request to its first byte of data.
    pub first_byte: Option<Duration>,
    /// How long a stream may live.
    pub max_age: Option<Duration>,
    /// How long one write to a slow reader may take.
    pub write_timeout: Duration,
    /// What the request says about its answer.
    pub expected: Arc<ExpectedAnswer>,
}

impl StreamPlan {
    /// A plan without frames and deadlines, for chains without `sse_keepalive`: only slow readers are limited.
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

    /// Whether something may be due before the upstream's header.
    pub fn acts_before_headers(&self) -> bool {
        self.before_headers.is_some() || self.json_padding.is_some() || self.first_byte.is_some()
    }
}
