//! # sse_keepalive
//!
//! Keeps event streams open: when nothing went to the client for `interval`, a frame that changes nothing is sent, so
//! that Cloudflare's read timeout (120 s) and those of other proxies and clients never fire.
//!
//! ```yaml
//! sse_keepalive:
//!   interval: 15s
//!   frame: auto
//!   frame_by_client:
//!     - {user_agent: my-desktop-app/, frame: event}
//!   before_headers: 10s
//!   wanted_when: 'request.path == "/v1/agents/run"'
//!   json_padding: 60s
//!   first_byte: 5min
//!   max_age: 1h
//!   write_timeout: 30s
//! ```
//!
//! Frames go only into responses of type `text/event-stream` without a `Content-Encoding`, and only where they change
//! nothing for a parser of the WHATWG's rules (HTML, section 9.2). To get streams uncompressed, `Accept-Encoding` is
//! removed from `POST` requests and from those that ask for an event stream. Streams of JSON lines and of JSON arrays
//! get no frames.
//!
//! `frame` is what is sent:
//!
//! | frame | between events | inside an event | for |
//! | --- | --- | --- | --- |
//! | `comment` | `: keep-alive` and a blank line | `: keep-alive` | nearly all clients; after an `id` field the blank line is left out |
//! | `comment_line` | `: keep-alive` | `: keep-alive` | clients that take a blank line after a comment for an empty message |
//! | `blank_line` | a blank line | nothing | Google's clients and others that fail on comments |
//! | `event` | `event: ping` (Anthropic) or `event: keepalive`, with data | nothing | clients with an idle timer that counts only events with data |
//! | `auto` | `blank_line` for Gemini, `event` for Anthropic, `comment` for others; the client's own where it is known by its `User-Agent` | | |
//!
//! `comment_line` has a price: hand-written clients that split a stream on blank lines take the comment for a part of
//! the next event and lose it. `frame_by_client` names other frames by a part of the `User-Agent`; the first row that
//! fits is taken, before `frame`.
//!
//! - `before_headers`: answers early with `200 text/event-stream` and frames, when the client accepts no other answer
//!   than an event stream, its request is complete, and the upstream has sent no header for so long. `POST` only. A
//!   later event stream is merged into it. A later JSON answer is delivered within the stream. A later failure becomes
//!   an error of the API's own form with the upstream's own message and status; the access log then has `late_status`.
//!   Off unless set, since the status can no longer tell of a failure, and an answer with a `Content-Encoding` cannot be
//!   delivered any more.
//!   A client accepts no other answer if the first 16 MiB of the body say `"stream": true` or `"stream_format": "sse"`
//!   (JSON, or a form's `stream`), if the path is Gemini's `:streamGenerateContent?alt=sse`, if DashScope's
//!   `X-DashScope-SSE: enable` is there, or if `Accept` names `text/event-stream` alone. MCP's clients accept JSON as
//!   well, and Ollama streams JSON lines: they are not answered early. `wanted_when`, an expression as in `rules`, names
//!   more requests that accept no other answer.
//! - `json_padding`: answers early with `200 application/json` and a space each `interval`, which JSON allows before a
//!   document, when the client accepts JSON alone: its body was understood and asks for no stream, and `Accept` names
//!   `application/json`, or names no type and the path is one of an API's JSON endpoints. The price: the status is 200
//!   whatever the upstream says later. A failure is then told by the body alone, which client libraries do not take for
//!   an error. Off unless set.
//! - `first_byte`: how long the upstream may take from the complete request to its first byte of data. Frames do not
//!   count.
//! - `max_age`: how long a stream may live, from its first byte; before that, how long it may be waited for after the
//!   complete request.
//! - `write_timeout`: how long a client may refuse to read before it is cut off.

mod accept;
pub mod body_scan;
mod frame;
pub mod tracker;

use std::sync::Arc;
use std::time::Duration;

use http::header::{self, HeaderMap};
use http::{HeaderName, HeaderValue, Method};
use schemars::JsonSchema;
use serde::Deserialize;

use crate::contract::{
    AnswerKind, BodyCx, Dialect, ExpectedAnswer, Filter, Flow, Hooks, HumanDuration, Invalid, RequestCx, ResponseCx, Result, Site, Source,
    StreamPlan, UpstreamCx, failure,
};
use crate::expression::{Expression, Scope, Type};
use accept::{takes_json, wanted_by_header};
use body_scan::BodyScan;
use frame::{ClientFrame, FrameChoice, Frames};

/// `sse_keepalive`
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Silence after which a frame is sent, 100ms to 10min. Default: 15s.
    pub interval: HumanDuration,
    /// What a frame is. Default: `auto`, by API and client.
    pub frame: FrameChoice,
    /// Other frames for clients by a part of their `User-Agent`; the first row that fits. Default: none.
    pub frame_by_client: Vec<ClientFrame>,
    /// Answer with a stream of frames if the upstream has sent no header by then, at least 100ms. Default: never.
    pub before_headers: Option<HumanDuration>,
    /// An expression that says which other requests take nothing but an event stream. Default: none.
    pub wanted_when: Option<String>,
    /// Answer with white space before a JSON document if the upstream has sent no header by then, at least 100ms.
    /// Default: never.
    pub json_padding: Option<HumanDuration>,
    /// How long the upstream may take to its first byte of data. Default: no limit of its own.
    pub first_byte: Option<HumanDuration>,
    /// How long a stream may live. Default: no limit.
    pub max_age: Option<HumanDuration>,
    /// How long one write to a client that does not read may take. Default: 30s.
    pub write_timeout: HumanDuration,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            interval: HumanDuration::secs(15),
            frame: FrameChoice::Auto,
            frame_by_client: Vec::new(),
            before_headers: None,
            wanted_when: None,
            json_padding: None,
            first_byte: None,
            max_age: None,
            write_timeout: HumanDuration::secs(30),
        }
    }
}

/// The compiled filter.
pub struct SseKeepalive {
    config: Config,
    frames: Frames,
    wanted_when: Option<Expression>,
}

const ACCEL: HeaderName = HeaderName::from_static("x-accel-buffering");
const EVENT_STREAM: &str = "text/event-stream";

/// A media type without its parameters.
fn media_type(value: &[u8]) -> &[u8] {
    value.split(|byte| *byte == b';').next().unwrap_or_default().trim_ascii()
}

/// Whether a `Content-Type` or `Accept` value names the event stream's media type.
pub fn names_event_stream(value: &HeaderValue) -> bool {
    let text = value.as_bytes();
    let is_part = |part| media_type(part).eq_ignore_ascii_case(EVENT_STREAM.as_bytes());
    text.len() >= EVENT_STREAM.len() && text.split(|byte| *byte == b',').any(is_part)
}

/// Whether a body is sent as it is, without a coding.
pub fn is_uncoded(headers: &HeaderMap) -> bool {
    headers.get(header::CONTENT_ENCODING).is_none_or(|coding| coding.as_bytes().eq_ignore_ascii_case(b"identity"))
}

/// Whether frames may be put into this response.
pub fn is_event_stream(headers: &HeaderMap) -> bool {
    headers.get(header::CONTENT_TYPE).is_some_and(names_event_stream) && is_uncoded(headers)
}

/// Whether a response is a stream of JSON lines, as Ollama sends them.
pub fn is_json_lines(headers: &HeaderMap) -> bool {
    const KINDS: [&[u8]; 4] = [b"application/x-ndjson", b"application/ndjson", b"application/jsonl", b"application/jsonlines"];
    let kind = headers.get(header::CONTENT_TYPE).map(|value| media_type(value.as_bytes()));
    kind.is_some_and(|kind| KINDS.iter().any(|lines| kind.eq_ignore_ascii_case(lines))) && is_uncoded(headers)
}

/// What one request's hooks remember.
#[derive(Debug, Default)]
pub struct Progress {
    scan: BodyScan,
    /// The kind of answer if the body turns out not to ask for a stream.
    otherwise: Option<AnswerKind>,
}

impl SseKeepalive {
    /// What the request's header says about its answer, and what is to be looked for in its body.
    fn expect(&self, cx: &RequestCx<'_>) -> (AnswerKind, Progress) {
        if self.wanted_when.as_ref().is_some_and(|wanted| wanted.holds(&Scope::new(cx)).unwrap_or(false)) {
            return (AnswerKind::EventStream, Progress { scan: rpc_scan(cx), otherwise: None });
        }
        let by_header = wanted_by_header(cx.request, cx.dialect);
        if let Some(kind) = by_header {
            return (kind, Progress { scan: rpc_scan(cx), otherwise: None });
        }
        let acts = self.config.before_headers.is_some() || self.config.first_byte.is_some() || self.config.json_padding.is_some();
        // Ollama streams lines of JSON.
        if cx.request.method != Method::POST || !acts || cx.dialect == Dialect::Ollama {
            return (AnswerKind::Undecided, Progress::default());
        }
        // What a coded body says cannot be read.
        if cx.headers().contains_key(header::CONTENT_ENCODING) {
            return (AnswerKind::Undecided, Progress::default());
        }
        let form = cx.headers().get(header::CONTENT_TYPE).and_then(accept::form_boundary);
        let scan = form.map_or_else(|| BodyScan::json(false), |boundary| BodyScan::form(&boundary));
        (AnswerKind::Undecided, Progress { scan, otherwise: takes_json(cx.request).then_some(AnswerKind::Json) })
    }
}

/// Errors of JSON-RPC name the request's id.
fn rpc_scan(cx: &RequestCx<'_>) -> BodyScan {
    if cx.dialect == Dialect::Mcp { BodyScan::json(true) } else { BodyScan::Off }
}

impl Filter for SseKeepalive {
    const NAME: &'static str = "sse_keepalive";
    const HOOKS: Hooks = Hooks { request: true, request_body: true, upstream_request: true, response: true, ..Hooks::NONE };
    const SOURCE: &'static str = include_str!("mod.rs");
    type Config = Config;
    type State = Progress;

    fn compile(config: Config, site: &mut Site<'_>) -> Result<Self, Invalid> {
        let least = Duration::from_millis(100);
        if config.interval.0 < least || config.interval.0 > Duration::from_secs(600) {
            return Err(Invalid::new("must be between 100ms and 10min").at("interval"));
        }
        let short = |value: Option<HumanDuration>| value.is_some_and(|d| d.0 < least);
        for (name, value) in [
            ("before_headers", config.before_headers),
            ("json_padding", config.json_padding),
            ("first_byte", config.first_byte),
            ("max_age", config.max_age),
            ("write_timeout", Some(config.write_timeout)),
        ] {
            if short(value) {
                return Err(Invalid::new("must be at least 100ms").at(name));
            }
        }
        for (name, value) in [("before_headers", config.before_headers), ("json_padding", config.json_padding)] {
            if let (Some(begins), Some(ends)) = (value, config.first_byte)
                && begins.0 >= ends.0
            {
                return Err(Invalid::new(format!("must be shorter than `first_byte` ({ends}), which ends the request before")).at(name));
            }
        }
        if config.wanted_when.is_some() && config.before_headers.is_none() && config.first_byte.is_none() {
            return Err(Invalid::new("says which requests `before_headers` and `first_byte` are for; set one of them").at("wanted_when"));
        }
        let wanted_when = config.wanted_when.as_deref().map(|source| Expression::compile(source, &Type::Bool, site.routes)).transpose();
        let wanted_when = wanted_when.map_err(|invalid| invalid.at("wanted_when"))?;
        let frames = Frames::compile(config.frame, config.frame_by_client.clone())?;
        Ok(Self { config, frames, wanted_when })
    }

    async fn request(&self, cx: &mut RequestCx<'_>, progress: &mut Progress) -> Result<Flow> {
        // A HEAD has no body that frames could go into.
        if cx.shadow || cx.request.method == Method::HEAD {
            return Ok(Flow::Continue);
        }
        let (kind, scan) = self.expect(cx);
        *progress = scan;
        // An EventSource that meets a late refusal as an event connects again, where a plain 401 would have ended it.
        let post = cx.request.method == Method::POST;
        let user_agent = cx.headers().get(header::USER_AGENT).and_then(|agent| agent.to_str().ok());
        let plan = StreamPlan {
            interval: self.config.interval.0,
            frame: self.frames.choose(cx.dialect, user_agent),
            before_headers: self.config.before_headers.filter(|_| post && cx.dialect != Dialect::Ollama).map(|d| d.0),
            json_padding: self.config.json_padding.filter(|_| post).map(|d| d.0),
            first_byte: self.config.first_byte.map(|d| d.0),
            max_age: self.config.max_age.map(|d| d.0),
            write_timeout: self.config.write_timeout.0,
            expected: Arc::new(ExpectedAnswer::new(kind)),
        };
        cx.facts.put(plan);
        Ok(Flow::Continue)
    }

    fn request_body(&self, cx: &mut BodyCx<'_>, progress: &mut Progress) -> Result<()> {
        if let Some(bytes) = cx.body.as_ref() {
            progress.scan.feed(bytes);
        }
        let Some(plan) = cx.facts.get::<StreamPlan>() else { return Ok(()) };
        let Some(found) = progress.scan.found() else { return Ok(()) };
        if found.stream == Some(true) {
            plan.expected.decide(AnswerKind::EventStream);
            *progress = Progress::default();
        } else if let Some(id) = found.rpc_id.clone() {
            plan.expected.set_rpc_id(id);
            *progress = Progress::default();
        } else if cx.end && found.complete {
            progress.otherwise.into_iter().for_each(|kind| plan.expected.decide(kind));
        }
        Ok(())
    }

    fn upstream_request(&self, cx: &mut UpstreamCx<'_>, _progress: &mut Progress) -> Result<()> {
        let asked = cx.request.headers.get(header::ACCEPT).is_some_and(names_event_stream);
        if asked || cx.request.method == Method::POST {
            cx.upstream.remove_header(&header::ACCEPT_ENCODING);
        }
        Ok(())
    }

    fn response(&self, cx: &mut ResponseCx<'_>, _progress: &mut Progress) -> Result<()> {
        if cx.source != Source::Ours && is_event_stream(&cx.response.headers) {
            cx.response.insert_header(ACCEL, HeaderValue::from_static("no")).map_err(failure)?;
            cx.response.insert_header(header::CACHE_CONTROL, HeaderValue::from_static("no-cache, no-transform")).map_err(failure)?;
            cx.response.remove_header(&header::CONTENT_LENGTH);
        }
        Ok(())
    }
}
