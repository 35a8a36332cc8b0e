//! # body_limit
//!
//! Bounds the body of a request more tightly than its listener does: 413 at once where the length is announced, and as
//! soon as more has come where it is not.
//!
//! ```yaml
//! body_limit:
//!   bytes: 2MiB
//! ```
//!
//! In shadow mode only announced lengths are looked at. Of a body without an announced length what is within the limit may have gone upstream already; that request is cut.

use http::{StatusCode, header};
use schemars::JsonSchema;
use serde::Deserialize;

use crate::contract::{BodyCx, ByteSize, Failure, Filter, Flow, Hooks, Invalid, Problem, Reply, RequestCx, Result, Site};

/// `body_limit`
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The most that a body may have; 0: none may have one.
    pub bytes: ByteSize,
}

/// The compiled filter.
pub struct BodyLimit(u64);

/// What came so far. A body is replayed to another server from its beginning, behind the end of the first.
#[derive(Default)]
pub struct Counted {
    bytes: u64,
    ended: bool,
}

impl Filter for BodyLimit {
    const NAME: &'static str = "body_limit";
    const HOOKS: Hooks = Hooks { request: true, request_body: true, ..Hooks::NONE };
    const SOURCE: &'static str = include_str!("body_limit.rs");
    type Config = Config;
    type State = Counted;

    fn compile(config: Config, _site: &mut Site<'_>) -> Result<Self, Invalid> {
        Ok(Self(config.bytes.0))
    }

    async fn request(&self, cx: &mut RequestCx<'_>, _: &mut Counted) -> Result<Flow> {
        let announced = cx.headers().get(header::CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse::<u64>().ok());
        if announced.is_some_and(|length| length > self.0) {
            let message = format!("The request's body is too large: at most {} bytes are taken here.", self.0);
            let reply = Reply::new(Problem::BadRequest, "body_too_large", "announced", message);
            return Ok(reply.status(StatusCode::PAYLOAD_TOO_LARGE).into());
        }
        Ok(Flow::Continue)
    }

    fn request_body(&self, cx: &mut BodyCx<'_>, counted: &mut Counted) -> Result<()> {
        if counted.ended {
            *counted = Counted::default();
        }
        counted.bytes += cx.body.as_ref().map_or(0, |bytes| bytes.len() as u64);
        counted.ended = cx.end;
        if counted.bytes > self.0 { Err(Failure::BodyTooLarge) } else { Ok(()) }
    }
}
