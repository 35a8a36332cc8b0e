//! # sse_keepalive
//!
//! Keeps silent event streams open. If nothing was sent to the client for `interval`, the filter sends a heartbeat frame
//! that does not change the content of the stream. Idle timeouts of proxies and clients, such as the read timeout of
//! Cloudflare (120 s), then do not fire.
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
//! **Which streams.** Frames are sent only in responses of type `text/event-stream` without a `Content-Encoding`, and only
//! at positions where they change nothing for a parser that follows WHATWG HTML, section 9.2. To receive streams
//! uncompressed, the filter removes `Accept-Encoding` from `POST` requests and from requests with an `Accept` that names
//! `text/event-stream`. Streams of JSON lines and JSON arrays get no frames.
//!
//! **Frames.** `frame` selects the form:
//!
//! | frame | between events | inside an event | for |
//! | --- | --- | --- | --- |
//! | `comment` | `: keep-alive` and a blank line | `: keep-alive` | nearly all clients; after an `id` field the blank line is omitted |
//! | `comment_line` | `: keep-alive` | `: keep-alive` | clients that take a blank line after a comment for an empty message |
//! | `blank_line` | a blank line | nothing | Google's clients and others that fail on comments |
//! | `event` | `event: ping` (Anthropic) or `event: keepalive`, with data | nothing | clients with an idle timer that only events with data reset |
//! | `auto` | `blank_line` for Gemini, `event` for Anthropic, `comment` for others; known clients get their own form by `User-Agent` | | |
//!
//! `comment_line` has a drawback: simple clients that split a stream at blank lines take the comment for a part of the next
//! event and lose that event. `frame_by_client` selects other frames by a part of the `User-Agent`. The first matching row
//! applies and takes precedence over `frame`.
//!
//! **Early responses.** Both options are off by default, because the status is then 200 whatever the upstream answers.
//!
//! - `before_headers` sends `200 text/event-stream` and frames if the upstream has sent no header this long after the
//!   request was complete. It applies to `POST` requests of clients that accept only an event stream. A later event stream
//!   is merged into the response. A later JSON response is delivered within the stream. A later failure becomes an error
//!   event in the format of the API, with the upstream's message and status; the access log then has `late_status`. A
//!   later response with a `Content-Encoding` cannot be delivered.
//! - `json_padding` sends `200 application/json` and a space every `interval`, which JSON allows before a document. It
//!   applies to clients that accept only JSON. A later failure is then visible only in the body, which client libraries do
//!   not treat as an error.
//!
//! A client accepts **only an event stream** if one of these holds:
//!
//! - the first 16 MiB of the body contain `"stream": true` or `"stream_format": "sse"` (JSON, or a form field `stream`)
//! - the path is Gemini's `:streamGenerateContent` with `alt=sse`
//! - DashScope's `X-DashScope-SSE: enable` is present
//! - `Accept` names only `text/event-stream`
//! - `wanted_when`, an expression as in `rules`, is true
//!
//! MCP clients also accept JSON and Ollama streams JSON lines, so they get no early event stream. A client accepts **only
//! JSON** if its body was parsed and requests no stream, and `Accept` names `application/json`, or names no type and the
//! path is a JSON endpoint of an API.
//!
//! **Time limits.**
//!
//! - `first_byte`: the maximum time from the complete request to the first byte of data from the upstream. Frames do not
//!   count as data.
//! - `max_age`: the maximum age of a stream, from its first byte. Before the first byte, it is the maximum wait after the
//!   complete request.
//! - `write_timeout`: the maximum time that one write to a slow client may take before the connection is closed.

mod accept;
mod frame;
pub mod stream_scan;
pub mod tracker;

use std::sync::Arc;
use std::time::Duration;

use http::{HeaderName, HeaderValue, Method, header};
use schemars::JsonSchema;
use serde::Deserialize;

use crate::body_scan::form_boundary;
use crate::contract::{
    AnswerKind, BodyCx, Dialect, ExpectedAnswer, Filter, Flow, Hooks, HumanDuration, Invalid, RequestCx, ResponseCx, Result, Site, Source,
    StreamPlan, UpstreamCx, failure, is_event_stream, names_event_stream,
};
use crate::expression::{Expression, Scope, Type};
use accept::{accepts_only_json, kind_by_request_header};
use frame::{ClientFrame, FrameChoice, Frames};
use stream_scan::StreamScan;

/// `sse_keepalive`
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct SseKeepaliveConfig {
    /// The silence after which a frame is sent, 100ms to 10min. Default: 15s.
    pub interval: HumanDuration,
    /// The form of a frame. Default: `auto`, by API and client.
    pub frame: FrameChoice,
    /// Frames for certain clients, by a part of their `User-Agent`. The first matching row applies. Default: none.
    pub frame_by_client: Vec<ClientFrame>,
    /// Start an event stream of frames if the upstream has sent no header after this time, at least 100ms. Default: never.
    pub before_headers: Option<HumanDuration>,
    /// An expression that selects further requests that accept only an event stream. Default: none.
    pub wanted_when: Option<String>,
    /// Start a JSON response of white space if the upstream has sent no header after this time, at least 100ms.
    /// Default: never.
    pub json_padding: Option<HumanDuration>,
    /// The maximum time to the upstream's first byte of data, at least 100ms. Default: no limit of this filter.
    pub first_byte: Option<HumanDuration>,
    /// The maximum age of a stream, at least 100ms. Default: no limit.
    pub max_age: Option<HumanDuration>,
    /// The maximum time of one write to a slow client, at least 100ms. Default: 30s.
    pub write_timeout: HumanDuration,
}

impl Default for SseKeepaliveConfig {
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
    config: SseKeepaliveConfig,
    frames: Frames,
    wanted_when: Option<Expression>,
}

const ACCEL: HeaderName = HeaderName::from_static("x-accel-buffering");

/// The state of one request between hooks.
#[derive(Debug, Default)]
pub struct ScanState {
    scan: StreamScan,
    /// The expected kind of response if the complete body does not request a stream.
    otherwise: Option<AnswerKind>,
}

impl SseKeepalive {
    /// The kind of response that the request header implies, and the scan that its body needs.
    fn expected_by_header(&self, cx: &RequestCx<'_>) -> (AnswerKind, ScanState) {
        if self.wanted_when.as_ref().is_some_and(|wanted| wanted.holds(&Scope::new(cx)).unwrap_or(false)) {
            return (AnswerKind::EventStream, ScanState { scan: rpc_scan(cx), otherwise: None });
        }
        let by_header = kind_by_request_header(cx.request, cx.dialect);
        if let Some(kind) = by_header {
            return (kind, ScanState { scan: rpc_scan(cx), otherwise: None });
        }
        let acts_early = self.config.before_headers.is_some() || self.config.first_byte.is_some() || self.config.json_padding.is_some();
        // Ollama streams JSON lines, so its responses need no early action.
        if cx.request.method != Method::POST || !acts_early || cx.dialect == Dialect::Ollama {
            return (AnswerKind::Undecided, ScanState::default());
        }
        // A compressed body cannot be scanned.
        if cx.headers().contains_key(header::CONTENT_ENCODING) {
            return (AnswerKind::Undecided, ScanState::default());
        }
        let form = cx.headers().get(header::CONTENT_TYPE).and_then(form_boundary);
        let scan = form.map_or_else(|| StreamScan::json(false), |boundary| StreamScan::form(&boundary));
        (AnswerKind::Undecided, ScanState { scan, otherwise: accepts_only_json(cx.request).then_some(AnswerKind::Json) })
    }
}

/// MCP bodies are scanned for the JSON-RPC `id`, which error responses repeat.
fn rpc_scan(cx: &RequestCx<'_>) -> StreamScan {
    if cx.dialect == Dialect::Mcp { StreamScan::json(true) } else { StreamScan::default() }
}

impl Filter for SseKeepalive {
    const NAME: &'static str = "sse_keepalive";
    const HOOKS: Hooks = Hooks { request: true, request_body: true, upstream_request: true, response: true, ..Hooks::NONE };
    const SOURCE: &'static str = include_str!("mod.rs");
    type Config = SseKeepaliveConfig;
    type State = ScanState;

    fn reads_model(&self) -> bool {
        self.wanted_when.as_ref().is_some_and(Expression::reads_model)
    }

    fn compile(config: SseKeepaliveConfig, site: &mut Site<'_>) -> Result<Self, Invalid> {
        let shortest = Duration::from_millis(100);
        if config.interval.0 < shortest || config.interval.0 > Duration::from_secs(600) {
            return Err(Invalid::new("must be between 100ms and 10min").at("interval"));
        }
        let is_short = |value: Option<HumanDuration>| value.is_some_and(|d| d.0 < shortest);
        for (name, value) in [
            ("before_headers", config.before_headers),
            ("json_padding", config.json_padding),
            ("first_byte", config.first_byte),
            ("max_age", config.max_age),
            ("write_timeout", Some(config.write_timeout)),
        ] {
            if is_short(value) {
                return Err(Invalid::new("must be at least 100ms").at(name));
            }
        }
        for (name, value) in [("before_headers", config.before_headers), ("json_padding", config.json_padding)] {
            if let (Some(start), Some(end)) = (value, config.first_byte)
                && start.0 >= end.0
            {
                return Err(Invalid::new(format!("must be shorter than `first_byte` ({end}), which would end the request first")).at(name));
            }
        }
        if config.wanted_when.is_some() && config.before_headers.is_none() && config.first_byte.is_none() {
            return Err(Invalid::new("has no effect without `before_headers` or `first_byte`; set one of them").at("wanted_when"));
        }
        let wanted_when = config.wanted_when.as_deref().map(|source| Expression::compile(source, &Type::Bool, site.routes)).transpose();
        let wanted_when = wanted_when.map_err(|invalid| invalid.at("wanted_when"))?;
        let frames = Frames::compile(config.frame, config.frame_by_client.clone())?;
        Ok(Self { config, frames, wanted_when })
    }

    async fn request(&self, cx: &mut RequestCx<'_>, state: &mut ScanState) -> Result<Flow> {
        // A response to HEAD has no body for frames.
        if cx.shadow || cx.request.method == Method::HEAD {
            return Ok(Flow::Continue);
        }
        let (kind, scan_state) = self.expected_by_header(cx);
        *state = scan_state;
        // Early responses are for POST only: an EventSource (GET) reconnects after a late error event, but stops at a 401.
        let is_post = cx.request.method == Method::POST;
        let user_agent = cx.headers().get(header::USER_AGENT).and_then(|agent| agent.to_str().ok());
        let plan = StreamPlan {
            interval: self.config.interval.0,
            frame: self.frames.choose(cx.dialect, user_agent),
            before_headers: self.config.before_headers.filter(|_| is_post && cx.dialect != Dialect::Ollama).map(|d| d.0),
            json_padding: self.config.json_padding.filter(|_| is_post).map(|d| d.0),
            first_byte: self.config.first_byte.map(|d| d.0),
            max_age: self.config.max_age.map(|d| d.0),
            write_timeout: self.config.write_timeout.0,
            expected: Arc::new(ExpectedAnswer::new(kind)),
        };
        cx.facts.put(plan);
        Ok(Flow::Continue)
    }

    fn request_body(&self, cx: &mut BodyCx<'_>, state: &mut ScanState) -> Result<()> {
        if let Some(bytes) = cx.body.as_ref() {
            state.scan.feed(bytes);
        }
        let Some(plan) = cx.facts.get::<StreamPlan>() else { return Ok(()) };
        let Some(found) = state.scan.result() else { return Ok(()) };
        if found.stream == Some(true) {
            plan.expected.decide(AnswerKind::EventStream);
            *state = ScanState::default();
        } else if let Some(id) = found.rpc_id.clone() {
            plan.expected.set_rpc_id(id);
            *state = ScanState::default();
        } else if cx.end && found.complete {
            state.otherwise.into_iter().for_each(|kind| plan.expected.decide(kind));
        }
        Ok(())
    }

    fn upstream_request(&self, cx: &mut UpstreamCx<'_>, _state: &mut ScanState) -> Result<()> {
        let wants_events = cx.request.headers.get(header::ACCEPT).is_some_and(names_event_stream);
        if wants_events || cx.request.method == Method::POST {
            cx.upstream.remove_header(&header::ACCEPT_ENCODING);
        }
        Ok(())
    }

    fn response(&self, cx: &mut ResponseCx<'_>, _state: &mut ScanState) -> Result<()> {
        if cx.source != Source::Ours && is_event_stream(&cx.response.headers) {
            cx.response.insert_header(ACCEL, HeaderValue::from_static("no")).map_err(failure)?;
            cx.response.insert_header(header::CACHE_CONTROL, HeaderValue::from_static("no-cache, no-transform")).map_err(failure)?;
            cx.response.remove_header(&header::CONTENT_LENGTH);
        }
        Ok(())
    }
}
