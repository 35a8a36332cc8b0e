//! # sse_keepalive
//!
//! Keeps event streams open: when nothing went to the client for `interval`, a comment frame
//! (`: keep-alive`) is sent, so that Cloudflare's 100-second timer and its like never fire. Comments are
//! invisible to every conforming client (WHATWG HTML, section 9.2).
//!
//! ```yaml
//! sse_keepalive:
//!   interval: 15s
//!   before_headers: 10s
//!   first_byte: 5min
//!   max_age: 1h
//!   write_timeout: 30s
//! ```
//!
//! Frames go only into responses of type `text/event-stream` without a `Content-Encoding`, and only where
//! they change nothing: between events as a comment and a blank line, inside an event as a comment line,
//! inside a line not at all. Once the stream has carried an `id:` field the blank line is left out.
//! To get streams uncompressed, `Accept-Encoding` is removed from `POST` requests and from those that
//! ask for an event stream.
//!
//! - `before_headers`: when the client asked to stream (`"stream": true`, or `Accept: text/event-stream`)
//!   and the upstream has not answered by then, the client gets `200 text/event-stream` and comments. A
//!   later success is merged into it; a later failure becomes an error event in the dialect of the API.
//!   Off unless set, since the status can then no longer tell of a failure.
//! - `first_byte`: how long the upstream may take to its first byte of data. Comments do not count.
//! - `max_age`: how long a stream may live.
//! - `write_timeout`: how long a client may refuse to read before it is cut off.

pub mod stream_flag;
pub mod tracker;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use http::header::{self, HeaderMap};
use http::{HeaderName, HeaderValue, Method};
use schemars::JsonSchema;
use serde::Deserialize;

use crate::contract::{
    BodyCx, Filter, Flow, Hooks, HumanDuration, Invalid, RequestCx, ResponseCx, Result, Site, Source, StreamPlan, UpstreamCx, failure,
};
use stream_flag::StreamFlag;

/// `sse_keepalive`
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Silence after which a comment frame is sent, 100ms to 10min. Default: 15s.
    pub interval: HumanDuration,
    /// Answer ourselves if the upstream has not by then, at least 100ms. Default: never.
    pub before_headers: Option<HumanDuration>,
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
            before_headers: None,
            first_byte: None,
            max_age: None,
            write_timeout: HumanDuration::secs(30),
        }
    }
}

/// The compiled filter.
pub struct SseKeepalive {
    config: Config,
}

const ACCEL: HeaderName = HeaderName::from_static("x-accel-buffering");
const EVENT_STREAM: &str = "text/event-stream";

/// Whether a `Content-Type` or `Accept` value names the event stream's media type.
pub fn names_event_stream(value: &HeaderValue) -> bool {
    let Ok(text) = value.to_str() else { return false };
    text.split(',').any(|part| part.split(';').next().is_some_and(|kind| kind.trim().eq_ignore_ascii_case(EVENT_STREAM)))
}

/// Whether frames may be put into this response.
pub fn is_event_stream(headers: &HeaderMap) -> bool {
    let plain = headers.get(header::CONTENT_ENCODING).is_none_or(|coding| coding.as_bytes().eq_ignore_ascii_case(b"identity"));
    plain && headers.get(header::CONTENT_TYPE).is_some_and(names_event_stream)
}

impl Filter for SseKeepalive {
    const NAME: &'static str = "sse_keepalive";
    const HOOKS: Hooks = Hooks { request: true, request_body: true, upstream_request: true, response: true, ..Hooks::NONE };
    const SOURCE: &'static str = include_str!("mod.rs");
    type Config = Config;
    type State = StreamFlag;

    fn compile(config: Config, _site: &mut Site<'_>) -> Result<Self, Invalid> {
        let least = Duration::from_millis(100);
        if config.interval.0 < least || config.interval.0 > Duration::from_secs(600) {
            return Err(Invalid::new("must be between 100ms and 10min").at("interval"));
        }
        let short = |value: Option<HumanDuration>| value.is_some_and(|d| d.0 < least);
        for (name, value) in [
            ("before_headers", config.before_headers),
            ("first_byte", config.first_byte),
            ("max_age", config.max_age),
            ("write_timeout", Some(config.write_timeout)),
        ] {
            if short(value) {
                return Err(Invalid::new("must be at least 100ms").at(name));
            }
        }
        Ok(Self { config })
    }

    async fn request(&self, cx: &mut RequestCx<'_>, flag: &mut StreamFlag) -> Result<Flow> {
        // A HEAD has no body that frames could go into.
        if cx.shadow || cx.request.method == Method::HEAD {
            *flag = StreamFlag::off();
            return Ok(Flow::Continue);
        }
        let asked = cx.headers().get(header::ACCEPT).is_some_and(names_event_stream);
        // Only a JSON body can say `"stream": true`, and only what is due before the header needs to know.
        let json =
            cx.headers().get(header::CONTENT_TYPE).is_some_and(|kind| kind.as_bytes().windows(4).any(|w| w.eq_ignore_ascii_case(b"json")));
        let early = self.config.before_headers.is_some() || self.config.first_byte.is_some();
        let look = early && !asked && cx.request.method == Method::POST;
        *flag = if look && (json || !cx.headers().contains_key(header::CONTENT_TYPE)) { StreamFlag::default() } else { StreamFlag::off() };
        cx.facts.put(StreamPlan {
            interval: self.config.interval.0,
            before_headers: self.config.before_headers.map(|d| d.0),
            first_byte: self.config.first_byte.map(|d| d.0),
            max_age: self.config.max_age.map(|d| d.0),
            write_timeout: self.config.write_timeout.0,
            wanted: Arc::new(AtomicBool::new(asked)),
        });
        Ok(Flow::Continue)
    }

    fn request_body(&self, cx: &mut BodyCx<'_>, flag: &mut StreamFlag) -> Result<()> {
        if let Some(bytes) = cx.body.as_ref()
            && flag.feed(bytes) == Some(true)
            && let Some(plan) = cx.facts.get::<StreamPlan>()
        {
            plan.wanted.store(true, Ordering::Relaxed);
        }
        Ok(())
    }

    fn upstream_request(&self, cx: &mut UpstreamCx<'_>, _flag: &mut StreamFlag) -> Result<()> {
        let asked = cx.request.headers.get(header::ACCEPT).is_some_and(names_event_stream);
        if asked || cx.request.method == Method::POST {
            cx.upstream.remove_header(&header::ACCEPT_ENCODING);
        }
        Ok(())
    }

    fn response(&self, cx: &mut ResponseCx<'_>, _flag: &mut StreamFlag) -> Result<()> {
        if cx.source != Source::Ours && is_event_stream(&cx.response.headers) {
            cx.response.insert_header(ACCEL, HeaderValue::from_static("no")).map_err(failure)?;
            cx.response.insert_header(header::CACHE_CONTROL, HeaderValue::from_static("no-cache, no-transform")).map_err(failure)?;
            cx.response.remove_header(&header::CONTENT_LENGTH);
        }
        Ok(())
    }
}
