//! The kind of response that a client accepts, by the header of its request. It does not read bodies.

use http::header::{self, HeaderMap};
use pingora_http::RequestHeader;

use crate::contract::{AnswerKind, Dialect, EVENT_STREAM, StreamRequest};

/// The media ranges of `Accept` (RFC 9110, section 12.5.1), reduced to the classes that matter here.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Accepted {
    event_stream: bool,
    json: bool,
    /// `*/*`, or no `Accept` field.
    anything: bool,
    other: bool,
}

fn accepted(headers: &HeaderMap) -> Accepted {
    let mut found = Accepted::default();
    let mut ranges = 0;
    for field in headers.get_all(header::ACCEPT) {
        let Ok(text) = field.to_str() else { continue };
        for range in text.split(',') {
            let mut parts = range.split(';').map(str::trim);
            let name = parts.next().unwrap_or_default();
            // `q=0` means not acceptable.
            let is_refused = parts.any(|part| part.strip_prefix("q=").or_else(|| part.strip_prefix("Q=")).is_some_and(is_zero));
            if name.is_empty() || is_refused {
                continue;
            }
            ranges += 1;
            if name.eq_ignore_ascii_case(EVENT_STREAM) {
                found.event_stream = true;
            } else if name.eq_ignore_ascii_case("application/json") {
                found.json = true;
            } else if name == "*/*" {
                found.anything = true;
            } else {
                found.other = true;
            }
        }
    }
    found.anything |= ranges == 0;
    found
}

fn is_zero(weight: &str) -> bool {
    weight.trim_start_matches('0').trim_start_matches('.').trim_matches('0').is_empty() && weight.starts_with('0')
}

/// The kind of response that the request header implies. `None`: the body decides.
pub fn kind_by_request_header(request: &RequestHeader, dialect: Dialect) -> Option<AnswerKind> {
    let accepted = accepted(&request.headers);
    let only_stream = accepted.event_stream && !(accepted.json || accepted.anything || accepted.other);
    let by_accept = match (only_stream, accepted.event_stream) {
        (true, _) => AnswerKind::EventStream,
        (false, true) => AnswerKind::Either,
        (false, false) => AnswerKind::Undecided,
    };
    match dialect.stream_request() {
        // A body that requests a stream gets one, whatever `Accept` contains.
        StreamRequest::Body => Some(by_accept).filter(|kind| *kind == AnswerKind::EventStream),
        StreamRequest::Target => Some(gemini(request)),
        StreamRequest::Header => {
            let is_enabled = request.headers.get("x-dashscope-sse").is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"enable"));
            Some(if is_enabled { AnswerKind::EventStream } else { by_accept }).filter(|kind| *kind != AnswerKind::Undecided)
        }
        StreamRequest::Server => Some(by_accept),
        StreamRequest::Never => None,
    }
}

/// Gemini streams events with `alt=sse` in the query, and a JSON array otherwise, whatever `Accept` contains.
fn gemini(request: &RequestHeader) -> AnswerKind {
    let path = request.uri.path();
    let events = request.uri.query().is_some_and(|query| query.split('&').any(|pair| pair == "alt=sse"));
    if path.ends_with(":streamGenerateContent") {
        return if events { AnswerKind::EventStream } else { AnswerKind::Undecided };
    }
    if path.rsplit('/').next().is_some_and(|last| last.contains(':')) { AnswerKind::Json } else { AnswerKind::Undecided }
}

/// Path suffixes of endpoints that respond with JSON unless the request asks for a stream.
const JSON_ENDPOINTS: [&str; 11] = [
    "/chat/completions",
    "/completions",
    "/responses",
    "/messages",
    "/embeddings",
    "/moderations",
    "/rerank",
    "/images/generations",
    "/images/edits",
    "/v2/chat",
    "/v2/embed",
];

/// Whether the client accepts only JSON, provided that its body does not request a stream.
pub fn accepts_only_json(request: &RequestHeader) -> bool {
    let accepted = accepted(&request.headers);
    if accepted.event_stream || accepted.other {
        return false;
    }
    accepted.json || JSON_ENDPOINTS.iter().any(|end| request.uri.path().ends_with(end))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(target: &str, fields: &[(&'static str, &str)]) -> RequestHeader {
        let mut request = RequestHeader::build("POST", target.as_bytes(), None).unwrap();
        for (name, value) in fields {
            request.append_header(*name, *value).unwrap();
        }
        request
    }

    #[test]
    fn kind_by_header() {
        let stream = ("accept", "text/event-stream");
        for (target, fields, kind) in [
            ("/v1/chat/completions", &[][..], None),
            ("/v1/chat/completions", &[("accept", "application/json")], None),
            ("/v1/chat/completions", &[("accept", "application/json, text/event-stream")], None),
            ("/v1/chat/completions", &[stream], Some(AnswerKind::EventStream)),
            ("/v1/messages", &[("accept", "text/event-stream;q=1.0, application/json;q=0")], Some(AnswerKind::EventStream)),
            ("/v1/messages", &[("accept", "text/event-stream;q=1.0, */*;q=0.1")], None),
            ("/mcp", &[("accept", "application/json, text/event-stream")], Some(AnswerKind::Either)),
            ("/mcp", &[stream], Some(AnswerKind::EventStream)),
            ("/mcp", &[], Some(AnswerKind::Undecided)),
            ("/v1beta/models/m:streamGenerateContent?alt=sse&key=x", &[], Some(AnswerKind::EventStream)),
            ("/v1beta/models/m:streamGenerateContent", &[stream], Some(AnswerKind::Undecided)),
            ("/v1beta/models/m:generateContent", &[stream], Some(AnswerKind::Json)),
            ("/api/v1/services/x/generation", &[("x-dashscope-sse", "enable")], Some(AnswerKind::EventStream)),
            ("/api/v1/services/x/generation", &[], None),
            ("/api/chat", &[stream], None),
        ] {
            let request = request(target, fields);
            assert_eq!(kind_by_request_header(&request, Dialect::of_path(request.uri.path())), kind, "{target} {fields:?}");
        }
    }

    #[test]
    fn clients_that_accept_only_json() {
        for (target, accept, json) in [
            ("/v1/chat/completions", "application/json", true),
            ("/v1/chat/completions", "*/*", true),
            ("/v1/chat/completions", "text/event-stream", false),
            ("/v1/audio/speech", "*/*", false),
            ("/v1/audio/speech", "application/octet-stream", false),
            ("/v1/anything", "application/json", true),
        ] {
            assert_eq!(accepts_only_json(&request(target, &[("accept", accept)])), json, "{target} {accept}");
        }
        assert!(accepts_only_json(&request("/v1/embeddings", &[])));
    }
}
