//! # request_id
//!
//! Assigns an id to each request, which is sent to the client and the upstream and written to the
//! log. A well-formed `X-Request-Id` from the client is kept, so that one id identifies the request
//! across several proxies. Otherwise the filter generates a UUIDv7.
//!
//! ```yaml
//! request_id:
//!   header: x-request-id
//!   accept: true
//! ```
//!
//! - An id is well formed if the field occurs once and has 1 to 128 characters: ASCII letters,
//!   digits, `-`, `_`, `.`, `:` and `=`.
//! - With `accept: false` the id from the client is always replaced.
//! - A valid `traceparent` (W3C Trace Context) is passed on, and its trace id is logged. An invalid
//!   one is removed together with `tracestate`.
//!
//! In shadow mode the filter assigns no id.

use http::{HeaderMap, HeaderName};
use schemars::JsonSchema;
use serde::Deserialize;

use crate::contract::{
    Filter, Flow, Hooks, Invalid, RequestCx, RequestIds, ResponseCx, Result, Site, UpstreamCx, failure, field_name, header_value,
};

const ID_BYTES_MAX: usize = 128;

/// `request_id`
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RequestIdConfig {
    /// The name of the header field. Default: `x-request-id`.
    pub header: String,
    /// Keep a well-formed id from the client. Default: true.
    pub accept: bool,
}

impl Default for RequestIdConfig {
    fn default() -> Self {
        Self { header: "x-request-id".into(), accept: true }
    }
}

/// The compiled filter.
pub struct RequestId {
    header: HeaderName,
    accept: bool,
}

/// The value of a field that occurs exactly once.
fn one<'h>(headers: &'h HeaderMap, name: &HeaderName) -> Option<&'h str> {
    let mut values = headers.get_all(name).iter();
    match (values.next(), values.next()) {
        (Some(value), None) => value.to_str().ok(),
        _ => None,
    }
}

fn well_formed(id: &str) -> bool {
    (1..=ID_BYTES_MAX).contains(&id.len()) && id.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.:=".contains(&b))
}

/// The trace id of a valid `traceparent` (W3C Trace Context, section 3.2): version, trace id, parent id and flags
/// in lower-case hex, neither id all zeros, and no further data in version 00.
fn trace_id(value: &str) -> Option<&str> {
    let hex = |text: &str| text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
    let part = |range: std::ops::Range<usize>| value.get(range).filter(|text| hex(text));
    let (version, trace, parent) = (part(0..2)?, part(3..35)?, part(36..52)?);
    part(53..55)?;
    let dashes = [2, 35, 52].iter().all(|at| value.as_bytes().get(*at) == Some(&b'-'));
    let end = match value.as_bytes().get(55) {
        None => true,
        Some(next) => version != "00" && *next == b'-',
    };
    let nonzero = |id: &str| id.bytes().any(|b| b != b'0');
    (dashes && end && version != "ff" && nonzero(trace) && nonzero(parent)).then_some(trace)
}

const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");

impl Filter for RequestId {
    const NAME: &'static str = "request_id";
    const HOOKS: Hooks = Hooks { request: true, upstream_request: true, response: true, ..Hooks::NONE };
    const SOURCE: &'static str = include_str!("request_id.rs");
    type Config = RequestIdConfig;
    type State = ();

    fn compile(config: RequestIdConfig, _site: &mut Site<'_>) -> Result<Self, Invalid> {
        let header = field_name(&config.header).map_err(|invalid| invalid.at("header"))?;
        Ok(Self { header, accept: config.accept })
    }

    async fn request(&self, cx: &mut RequestCx<'_>, (): &mut ()) -> Result<Flow> {
        if cx.shadow {
            return Ok(Flow::Continue);
        }
        let given = one(cx.headers(), &self.header).filter(|id| self.accept && well_formed(id));
        let request_id = given.map_or_else(|| uuid::Uuid::now_v7().to_string(), str::to_owned);
        let trace_id = one(cx.headers(), &TRACEPARENT).and_then(trace_id).map(str::to_owned);
        cx.facts.put(RequestIds { request_id, trace_id });
        Ok(Flow::Continue)
    }

    fn upstream_request(&self, cx: &mut UpstreamCx<'_>, (): &mut ()) -> Result<()> {
        let Some(ids) = cx.facts.get::<RequestIds>() else { return Ok(()) };
        cx.upstream.insert_header(self.header.clone(), header_value(&ids.request_id)?).map_err(failure)?;
        if ids.trace_id.is_none() && cx.upstream.headers.contains_key(&TRACEPARENT) {
            cx.upstream.remove_header(&TRACEPARENT);
            // `tracestate` has no meaning without `traceparent` (section 3.3).
            cx.upstream.remove_header("tracestate");
        }
        Ok(())
    }

    fn response(&self, cx: &mut ResponseCx<'_>, (): &mut ()) -> Result<()> {
        if let Some(ids) = cx.facts.get::<RequestIds>() {
            cx.response.insert_header(self.header.clone(), header_value(&ids.request_id)?).map_err(failure)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn traceparents() {
        let good = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        assert_eq!(trace_id(good), Some("4bf92f3577b34da6a3ce929d0e0e4736"));
        assert!(trace_id(&good.replace("00-4", "01-4").replace("-01", "-01-more")).is_some(), "a later version may have further data");
        for wrong in [
            "",
            "00",
            &good.to_uppercase(),
            &format!("{good}-more"),
            &good.replacen("00", "ff", 1),
            &good.replace('-', "_"),
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
            "00-4bf92f3577b34da6a3ce929d0e0e473é-00f067aa0ba902b7-01",
        ] {
            assert_eq!(trace_id(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn ids() {
        assert!(well_formed("0190-abc.DEF_1:2=3"));
        for wrong in ["", "a b", "a\"b", "é", &"x".repeat(129)] {
            assert!(!well_formed(wrong), "{wrong}");
        }
    }
}
