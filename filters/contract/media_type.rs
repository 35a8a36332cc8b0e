//! Media types of requests and responses: which response is an event stream, and which is a stream of JSON lines.

use http::HeaderValue;
use http::header::{self, HeaderMap};

/// The media type of an event stream (WHATWG HTML, section 9.2).
pub const EVENT_STREAM: &str = "text/event-stream";

/// A media type without its parameters.
fn media_type(value: &[u8]) -> &[u8] {
    value.split(|byte| *byte == b';').next().unwrap_or_default().trim_ascii()
}

/// Whether a `Content-Type` or `Accept` value names the media type of event streams.
pub fn names_event_stream(value: &HeaderValue) -> bool {
    let text = value.as_bytes();
    let is_part = |part| media_type(part).eq_ignore_ascii_case(EVENT_STREAM.as_bytes());
    text.len() >= EVENT_STREAM.len() && text.split(|byte| *byte == b',').any(is_part)
}

/// Whether a body has no `Content-Encoding`, or `identity`.
pub fn is_uncoded(headers: &HeaderMap) -> bool {
    headers.get(header::CONTENT_ENCODING).is_none_or(|coding| coding.as_bytes().eq_ignore_ascii_case(b"identity"))
}

/// Whether a response is an event stream without a content coding.
pub fn is_event_stream(headers: &HeaderMap) -> bool {
    headers.get(header::CONTENT_TYPE).is_some_and(names_event_stream) && is_uncoded(headers)
}

/// Whether a response is a stream of JSON lines without a content coding, as Ollama sends it.
pub fn is_json_lines(headers: &HeaderMap) -> bool {
    const KINDS: [&[u8]; 4] = [b"application/x-ndjson", b"application/ndjson", b"application/jsonl", b"application/jsonlines"];
    let kind = headers.get(header::CONTENT_TYPE).map(|value| media_type(value.as_bytes()));
    kind.is_some_and(|kind| KINDS.iter().any(|lines| kind.eq_ignore_ascii_case(lines))) && is_uncoded(headers)
}
