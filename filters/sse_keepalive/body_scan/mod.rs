//! Scans a request body while it is forwarded: `"stream": true`, `"stream_format": "sse"` or a JSON-RPC `id` at the top
//! level of a JSON object, or a form field `stream=true`.
//!
//! The scan delays nothing and buffers only the current key, the current scalar and the tail of a form chunk.

mod form;
mod json;

use form::FormScan;
use json::JsonScan;

/// The scan stops after this number of bytes. Parameters may come after long messages.
const BYTES_MAX: usize = 16 << 20;
/// The longest key and scalar that are kept. JSON-RPC ids may be strings.
const TEXT_BYTES_MAX: usize = 128;
/// The findings of a scan.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct ScanResult {
    /// Whether the body requests an event stream. `None`: no such member so far.
    pub stream: Option<bool>,
    /// The JSON-RPC `id` member, as JSON.
    pub rpc_id: Option<String>,
    /// The body was parsed to its end, so an absent member means that it is not requested.
    pub complete: bool,
}

/// A scanner that reads a body chunk by chunk.
#[derive(Debug, Default)]
pub enum BodyScan {
    /// No scan.
    #[default]
    Off,
    /// A JSON object.
    Json(Box<JsonScan>),
    /// `multipart/form-data`.
    Form(Box<FormScan>),
}

impl BodyScan {
    /// A scan of a JSON body. `rpc`: look for the JSON-RPC `id` instead of `stream`.
    pub fn json(rpc: bool) -> Self {
        BodyScan::Json(Box::new(JsonScan::new(rpc)))
    }

    /// A scan of a form with the boundary of its `Content-Type`.
    pub fn form(boundary: &str) -> Self {
        BodyScan::Form(Box::new(FormScan::new(boundary)))
    }

    /// Scans the next chunk. A request for a stream, once found, does not change.
    pub fn feed(&mut self, bytes: &[u8]) {
        match self {
            BodyScan::Off => {}
            BodyScan::Json(scan) => scan.feed(bytes),
            BodyScan::Form(scan) => scan.feed(bytes),
        }
    }

    /// The findings so far. `None`: no scan.
    pub fn result(&self) -> Option<&ScanResult> {
        match self {
            BodyScan::Off => None,
            BodyScan::Json(scan) => Some(scan.result()),
            BodyScan::Form(scan) => Some(scan.result()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Scans a body at once and byte by byte; both results must be equal.
    fn scan(fresh: impl Fn() -> BodyScan, body: &str) -> ScanResult {
        let mut whole = fresh();
        whole.feed(body.as_bytes());
        let mut bytewise = fresh();
        body.bytes().for_each(|byte| bytewise.feed(&[byte]));
        assert_eq!(whole.result(), bytewise.result(), "byte by byte: {body}");
        whole.result().cloned().unwrap_or_default()
    }

    #[test]
    fn stream_member_of_the_top_level() {
        for (body, wanted) in [
            (r#"{"stream":true}"#, Some(true)),
            (r#"{ "model" : "m" , "stream" : true , "n": 1 }"#, Some(true)),
            ("{\n\t\"stream\":\r\ntrue\n}", Some(true)),
            (r#"{"messages":[{"role":"user","content":"\"stream\": true, }{"}],"stream":true}"#, Some(true)),
            (r#"{"stream":false}"#, Some(false)),
            (r#"{"stream":"true"}"#, None),
            (r#"{"stream":1}"#, None),
            (r#"{"stream":null}"#, Some(false)),
            (r#"{"stream":false,"stream":true}"#, Some(true)),
            (r#"{"str\u0065am":true}"#, Some(true)),
            ("\u{feff}{\"stream\":true}", Some(true)),
            (r#"{"input":"hi","stream_format":"sse"}"#, Some(true)),
            (r#"{"input":"hi","stream_format":"audio"}"#, None),
            (r#"{"stream_options":{"stream":true}}"#, None),
            (r#"{"messages":[{"stream":true}]}"#, None),
            (r#"{"user":"stream","x":true}"#, None),
            (r#"{"user":"\\","stream":true}"#, Some(true)),
            (r#"{"\"stream":true}"#, None),
            (r#"{"streams":true}"#, None),
            (r#"["stream",true]"#, None),
            ("stream=true", None),
            ("", None),
            ("}}}}", None),
            (r#"{"stream":true"#, None),
        ] {
            assert_eq!(scan(|| BodyScan::json(false), body).stream, wanted, "{body}");
        }
        let mut off = BodyScan::Off;
        off.feed(br#"{"stream":true}"#);
        assert_eq!(off.result(), None);
    }

    #[test]
    fn complete_only_if_the_body_was_parsed() {
        for (body, complete) in [
            (r#"{"a":{"b":[1]}}"#, true),
            (r#"{"stream":false}"#, true),
            (r#"{"stream":null} "#, true),
            (r#"{"stream":1}"#, false),
            (r#"{"a":1"#, false),
            ("[{}]", false),
            ("a=1&stream=true", false),
            ("\x1f\u{8b}", false),
            ("", false),
        ] {
            assert_eq!(scan(|| BodyScan::json(false), body).complete, complete, "{body}");
        }
        let part = "--b0\r\nContent-Disposition: form-data; name=\"model\"\r\n\r\nm\r\n";
        for (body, complete) in
            [(format!("{part}--b0--\r\n"), true), (part.to_owned(), false), (format!("{part}--b0--").replace("\r\n", "\n"), false)]
        {
            assert_eq!(scan(|| BodyScan::form("b0"), &body).complete, complete, "{body:?}");
        }
    }

    #[test]
    fn json_rpc_ids() {
        for (body, id) in [
            (r#"{"jsonrpc":"2.0","id":7,"method":"tools/call","params":{"id":9}}"#, Some("7")),
            (r#"{"params":{"id":9,"x":"}"},"id":"a\"b","method":"m"}"#, Some(r#""a\"b""#)),
            (r#"{"method":"notifications/initialized"}"#, None),
            (r#"{"id":null}"#, None),
            (r#"{"id":{"a":1}}"#, None),
            (r#"[{"id":1}]"#, None),
        ] {
            assert_eq!(scan(|| BodyScan::json(true), body).rpc_id.as_deref(), id, "{body}");
        }
        let long = format!(r#"{{"id":"{}"}}"#, "x".repeat(200));
        assert_eq!(scan(|| BodyScan::json(true), &long).rpc_id, None);
    }

    #[test]
    fn stream_part_of_a_form() {
        let part = |head: &str, value: &str| format!("--b0\r\nContent-Disposition: form-data; {head}\r\n\r\n{value}\r\n");
        for (body, wanted) in [
            (part("name=\"stream\"", "true"), Some(true)),
            (part("name=\"stream\"", "True"), Some(true)),
            (part("name=stream", "1"), Some(true)),
            (part("name=\"stream\"", "false"), Some(false)),
            (part("name=\"file\"; filename=\"stream\"", "true"), None),
            (part("name=\"prompt\"", "") + &part("name=\"stream\"", "true"), Some(true)),
            (part("name=\"file\"; filename=\"a\"", "name=\"stream\"\r\n\r\ntrue\r\n") + &part("name=\"stream\"", "false"), Some(false)),
            (part("name=\"file\"; filename=\"a\"", "\r\n--b\r\n--b1") + &part("name=\"stream\"", "true"), Some(true)),
            (part("name=\"streams\"", "true"), None),
        ] {
            let body = body + "--b0--\r\n";
            assert_eq!(scan(|| BodyScan::form("b0"), &body).stream, wanted, "{body}");
        }
        assert_eq!(scan(|| BodyScan::form(""), "--\r\n").stream, None);
    }
}
