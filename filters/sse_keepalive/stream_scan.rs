//! Scans a request body while it is forwarded: `"stream": true`, `"stream_format": "sse"` or a JSON-RPC `id` at the top
//! level of a JSON object, or a form field `stream=true`.

use std::ops::ControlFlow;

use crate::body_scan::{FormFields, JsonMembers, Member, Progress};

/// The scan stops after this number of bytes. Parameters may come after long messages.
const BYTES_MAX: usize = 16 << 20;
/// The longest JSON-RPC id that is kept. Ids may be strings.
const ID_BYTES_MAX: usize = 128;

/// The findings of a scan.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct ScanResult {
    /// Whether the body requests an event stream. `None`: no such member so far.
    pub stream: Option<bool>,
    /// The JSON-RPC `id` member, as JSON.
    pub rpc_id: Option<String>,
    /// The body was parsed to its end without a request for a stream.
    pub complete: bool,
}

/// A scanner that reads a body piece by piece.
#[derive(Debug, Default)]
pub struct StreamScan {
    body: Body,
    seen_bytes: usize,
    found: ScanResult,
}

#[derive(Debug, Default)]
enum Body {
    /// No scan.
    #[default]
    Off,
    /// A JSON object. `rpc`: with a JSON-RPC `id` instead of `stream`.
    Json { members: Box<JsonMembers>, rpc: bool },
    /// `multipart/form-data`.
    Form(Box<FormFields>),
}

impl StreamScan {
    /// A scan of a JSON body. `rpc`: look for the JSON-RPC `id` instead of `stream`.
    pub fn json(rpc: bool) -> Self {
        Self { body: Body::Json { members: Box::default(), rpc }, ..Self::default() }
    }

    /// A scan of a form with the boundary of its `Content-Type`.
    pub fn form(boundary: &str) -> Self {
        Self { body: Body::Form(Box::new(FormFields::new(boundary, "stream"))), ..Self::default() }
    }

    /// Scans the next piece. A request for a stream, once found, does not change: most parsers use the last of duplicate
    /// members, but the scan ends at the first `true`.
    pub fn feed(&mut self, bytes: &[u8]) {
        let found = &mut self.found;
        self.seen_bytes += bytes.len();
        if found.stream == Some(true) || self.seen_bytes > BYTES_MAX {
            return;
        }
        let progress = match &mut self.body {
            Body::Off => return,
            Body::Json { members, rpc } => {
                members.feed(bytes, |member| if *rpc { rpc_member(&member, found) } else { stream_member(&member, found) });
                members.progress()
            }
            Body::Form(fields) => {
                fields.feed(bytes, |value| {
                    let value = value.trim_ascii();
                    let wanted = value.eq_ignore_ascii_case(b"true") || value == b"1";
                    found.stream = Some(found.stream == Some(true) || wanted);
                    ControlFlow::Continue(())
                });
                fields.progress()
            }
        };
        found.complete = progress == Progress::Complete && found.stream != Some(true);
    }

    /// The findings so far. `None`: no scan.
    pub fn result(&self) -> Option<&ScanResult> {
        (!matches!(self.body, Body::Off)).then_some(&self.found)
    }
}

fn stream_member(member: &Member<'_>, found: &mut ScanResult) -> ControlFlow<()> {
    let wanted = match (&*member.key, member.scalar) {
        (b"stream", b"true") => true,
        (b"stream", b"false" | b"null") => false,
        // The meaning of any other value depends on the upstream.
        (b"stream", _) => return ControlFlow::Break(()),
        // The speech endpoint of OpenAI.
        (b"stream_format", b"\"sse\"") => true,
        _ => return ControlFlow::Continue(()),
    };
    found.stream = Some(found.stream == Some(true) || wanted);
    ControlFlow::Continue(())
}

fn rpc_member(member: &Member<'_>, found: &mut ScanResult) -> ControlFlow<()> {
    if &*member.key == b"id" && found.rpc_id.is_none() && is_rpc_id(member.scalar) {
        found.rpc_id = String::from_utf8(member.scalar.to_vec()).ok();
    }
    ControlFlow::Continue(())
}

/// Whether this is a complete string or number (JSON-RPC 2.0, section 4).
fn is_rpc_id(json: &[u8]) -> bool {
    json.len() <= ID_BYTES_MAX
        && serde_json::from_slice::<serde_json::Value>(json).is_ok_and(|value| value.is_string() || value.is_number())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Scans a body at once and byte by byte; both results must be equal.
    fn scan(fresh: impl Fn() -> StreamScan, body: &str) -> ScanResult {
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
            assert_eq!(scan(|| StreamScan::json(false), body).stream, wanted, "{body}");
        }
        let mut off = StreamScan::default();
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
            assert_eq!(scan(|| StreamScan::json(false), body).complete, complete, "{body}");
        }
        let part = "--b0\r\nContent-Disposition: form-data; name=\"model\"\r\n\r\nm\r\n";
        for (body, complete) in
            [(format!("{part}--b0--\r\n"), true), (part.to_owned(), false), (format!("{part}--b0--").replace("\r\n", "\n"), false)]
        {
            assert_eq!(scan(|| StreamScan::form("b0"), &body).complete, complete, "{body:?}");
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
            assert_eq!(scan(|| StreamScan::json(true), body).rpc_id.as_deref(), id, "{body}");
        }
        let long = format!(r#"{{"id":"{}"}}"#, "x".repeat(200));
        assert_eq!(scan(|| StreamScan::json(true), &long).rpc_id, None);
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
            assert_eq!(scan(|| StreamScan::form("b0"), &body).stream, wanted, "{body}");
        }
        assert_eq!(scan(|| StreamScan::form(""), "--\r\n").stream, None);
    }
}
