//! # body_limit
//!
//! Limits the size of request bodies below the limit of the listener. A larger body gets 413: immediately if its
//! `Content-Length` exceeds the limit, otherwise when the limit is reached.
//!
//! ```yaml
//! body_limit:
//!   bytes: 2MiB
//! ```
//!
//! Without a `Content-Length`, the part of a body within the limit may already be at the upstream. The upstream request is
//! then aborted. In shadow mode only the `Content-Length` is checked.

use http::{StatusCode, header};
use schemars::JsonSchema;
use serde::Deserialize;

use crate::contract::{BodyCx, ByteSize, Failure, Filter, Flow, Hooks, Invalid, Problem, Reply, RequestCx, Result, Site};

/// `body_limit`
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct BodyLimitConfig {
    /// The maximum size of a request body. 0 allows only empty bodies.
    pub bytes: ByteSize,
}

/// The compiled filter.
pub struct BodyLimit(u64);

/// The bytes of the body so far. A retry sends the body again from its beginning, so data after the end starts a new count.
#[derive(Default)]
pub struct BodyBytes {
    bytes: u64,
    ended: bool,
}

impl Filter for BodyLimit {
    const NAME: &'static str = "body_limit";
    const HOOKS: Hooks = Hooks { request: true, request_body: true, ..Hooks::NONE };
    const SOURCE: &'static str = include_str!("body_limit.rs");
    type Config = BodyLimitConfig;
    type State = BodyBytes;

    fn compile(config: BodyLimitConfig, _site: &mut Site<'_>) -> Result<Self, Invalid> {
        Ok(Self(config.bytes.0))
    }

    async fn request(&self, cx: &mut RequestCx<'_>, _: &mut BodyBytes) -> Result<Flow> {
        let announced = cx.headers().get(header::CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse::<u64>().ok());
        if announced.is_some_and(|length| length > self.0) {
            let message = format!("The request body is too large. The limit is {} bytes.", self.0);
            let reply = Reply::new(Problem::BadRequest, "body_too_large", "announced", message);
            return Ok(reply.status(StatusCode::PAYLOAD_TOO_LARGE).into());
        }
        Ok(Flow::Continue)
    }

    fn request_body(&self, cx: &mut BodyCx<'_>, counted: &mut BodyBytes) -> Result<()> {
        if counted.ended {
            *counted = BodyBytes::default();
        }
        counted.bytes += cx.body.as_ref().map_or(0, |bytes| bytes.len() as u64);
        counted.ended = cx.end;
        if counted.bytes > self.0 { Err(Failure::BodyTooLarge) } else { Ok(()) }
    }
}
