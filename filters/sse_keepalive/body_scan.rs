//! Scans a request body while it is forwarded: `"stream": true`, `"stream_format": "sse"` or a JSON-RPC `id` at the top
//! level of a JSON object, or a form field `stream=true`.
//!
//! The scan delays nothing and buffers only the current key, the current scalar and the tail of a form chunk.

use std::borrow::Cow;

use memchr::memmem::Finder;

/// The scan stops after this number of bytes. Parameters may come after long messages.
const BYTES_MAX: usize = 16 << 20;
/// The longest key and scalar that are kept. JSON-RPC ids may be strings.
const TEXT_BYTES_MAX: usize = 128;
/// The longest header section of one form part (RFC 7578).
const PART_HEAD_BYTES_MAX: usize = 1024;

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
        BodyScan::Json(Box::new(JsonScan { rpc, ..JsonScan::default() }))
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
            BodyScan::Json(scan) => Some(&scan.result),
            BodyScan::Form(scan) => Some(&scan.result),
        }
    }
}

/// Scans the top level of one JSON object.
#[derive(Debug, Default)]
pub struct JsonScan {
    result: ScanResult,
    rpc: bool,
    /// The body cannot be parsed, or is too long; the scan has stopped.
    off: bool,
    seen_bytes: usize,
    depth: u32,
    in_string: bool,
    escaped: bool,
    /// The current key of the top level, without quotes.
    key: Vec<u8>,
    expects_value: bool,
    /// The current scalar of the top level, with quotes.
    scalar: Vec<u8>,
}

impl JsonScan {
    fn feed(&mut self, bytes: &[u8]) {
        if self.done() {
            return;
        }
        let mut rest = bytes;
        while let Some((&byte, after)) = rest.split_first() {
            rest = after;
            // Skip the content of nested strings, which may be long, up to the next quote or escape.
            if self.in_string && self.depth > 1 && !self.escaped {
                let end = memchr::memchr2(b'"', b'\\', after).unwrap_or(after.len());
                if !matches!(byte, b'"' | b'\\') {
                    rest = after.get(end..).unwrap_or_default();
                    continue;
                }
            }
            self.byte(byte);
            if self.done() {
                return;
            }
        }
        self.seen_bytes += bytes.len();
        self.off |= self.seen_bytes > BYTES_MAX;
    }

    fn done(&self) -> bool {
        // Most parsers use the last of duplicate members. The scan ends at the first `true` and ignores later duplicates.
        self.off || self.result.complete || if self.rpc { self.result.rpc_id.is_some() } else { self.result.stream == Some(true) }
    }

    fn byte(&mut self, byte: u8) {
        if self.in_string {
            let top = self.depth == 1;
            let text = if self.expects_value { &mut self.scalar } else { &mut self.key };
            if top && text.len() <= TEXT_BYTES_MAX && (self.expects_value || byte != b'"' || self.escaped) {
                text.push(byte);
            }
            match byte {
                _ if self.escaped => self.escaped = false,
                b'\\' => self.escaped = true,
                b'"' => self.in_string = false,
                _ => {}
            }
            return;
        }
        match byte {
            b'"' => {
                self.in_string = true;
                match (self.depth == 1, self.expects_value) {
                    (true, true) => self.scalar.push(byte),
                    (true, false) => self.key.clear(),
                    (false, _) => {}
                }
            }
            b'{' | b'[' => {
                // An array has no members, and a JSON-RPC batch has no single id.
                self.off |= self.depth == 0 && byte == b'[';
                self.depth += 1;
                if self.depth == 2 {
                    self.scalar.clear();
                }
            }
            b'}' | b']' => {
                self.end_of_member();
                self.result.complete |= self.depth == 1 && !self.off;
                self.depth = self.depth.saturating_sub(1);
            }
            b':' if self.depth == 1 => {
                self.expects_value = true;
                self.scalar.clear();
            }
            b',' if self.depth == 1 => self.end_of_member(),
            b' ' | b'\t' | b'\r' | b'\n' => {}
            // Many parsers skip a byte-order mark (RFC 8259, section 8.1).
            0xEF | 0xBB | 0xBF if self.depth == 0 => {}
            _ if self.depth == 0 => self.off = true,
            _ if self.depth == 1 && self.expects_value && self.scalar.len() <= TEXT_BYTES_MAX => self.scalar.push(byte),
            _ => {}
        }
    }

    fn end_of_member(&mut self) {
        if self.depth != 1 {
            return;
        }
        if self.expects_value {
            let key = unescaped(&self.key);
            match (&*key, &*self.scalar) {
                (b"stream", b"true") => self.result.stream = Some(true),
                (b"stream", b"false" | b"null") => self.result.stream = Some(false),
                // The meaning of any other value depends on the upstream.
                (b"stream", _) => self.off = true,
                // The speech endpoint of OpenAI.
                (b"stream_format", b"\"sse\"") => self.result.stream = Some(true),
                (b"id", id) if self.rpc && self.result.rpc_id.is_none() && is_rpc_id(id) => {
                    self.result.rpc_id = String::from_utf8(id.to_vec()).ok();
                }
                _ => {}
            }
        }
        self.expects_value = false;
        self.key.clear();
        self.scalar.clear();
    }
}

/// A key with its escapes decoded.
fn unescaped(key: &[u8]) -> Cow<'_, [u8]> {
    if !key.contains(&b'\\') {
        return Cow::Borrowed(key);
    }
    let quoted = [b"\"", key, b"\""].concat();
    serde_json::from_slice::<String>(&quoted).map_or(Cow::Borrowed(key), |key| Cow::Owned(key.into_bytes()))
}

/// Whether this is a complete string or number (JSON-RPC 2.0, section 4).
fn is_rpc_id(json: &[u8]) -> bool {
    json.len() <= TEXT_BYTES_MAX
        && serde_json::from_slice::<serde_json::Value>(json).is_ok_and(|value| value.is_string() || value.is_number())
}

/// Scans the parts of a form for a part named `stream`.
#[derive(Debug)]
pub struct FormScan {
    result: ScanResult,
    off: bool,
    seen_bytes: usize,
    delimiter: Finder<'static>,
    /// The unprocessed tail: the start of a delimiter, a part header or a value.
    carried: Vec<u8>,
    state: FormState,
}

#[derive(Debug, PartialEq, Eq)]
enum FormState {
    /// Inside content, before the next delimiter.
    Content,
    /// Inside the header section of a part.
    Head,
    /// Inside the value of the part `stream`.
    Value,
}

impl FormScan {
    fn new(boundary: &str) -> Self {
        let off = boundary.is_empty() || boundary.len() > 70;
        let delimiter = Finder::new(&[b"\r\n--", boundary.as_bytes()].concat()).into_owned();
        // The first delimiter has no CRLF before it, so start with one.
        Self { result: ScanResult::default(), off, seen_bytes: 0, delimiter, carried: b"\r\n".to_vec(), state: FormState::Content }
    }

    fn feed(&mut self, bytes: &[u8]) {
        if self.off || self.result.complete || self.result.stream == Some(true) {
            return;
        }
        self.seen_bytes += bytes.len();
        self.off |= self.seen_bytes > BYTES_MAX;
        self.carried.extend_from_slice(bytes);
        while self.result.stream != Some(true) && self.step() {}
    }

    /// Advances to the next state. `false`: more bytes are needed.
    fn step(&mut self) -> bool {
        match self.state {
            FormState::Content => match self.delimiter.find(&self.carried) {
                Some(at) => {
                    self.carried.drain(..at + self.delimiter.needle().len());
                    self.state = FormState::Head;
                    true
                }
                None => {
                    let kept = self.carried.len().min(self.delimiter.needle().len());
                    self.carried.drain(..self.carried.len() - kept);
                    false
                }
            },
            FormState::Head => match memchr::memmem::find(&self.carried, b"\r\n\r\n") {
                Some(end) => {
                    let matters = names_stream(self.carried.get(..end).unwrap_or_default());
                    self.carried.drain(..end + 4);
                    self.state = if matters { FormState::Value } else { FormState::Content };
                    true
                }
                None => {
                    // Two dashes follow the last delimiter.
                    self.result.complete = self.carried.starts_with(b"--");
                    self.off |= self.carried.len() > PART_HEAD_BYTES_MAX;
                    false
                }
            },
            FormState::Value => {
                let Some(end) = memchr::memmem::find(&self.carried, b"\r\n") else {
                    self.off |= self.carried.len() > TEXT_BYTES_MAX;
                    return false;
                };
                let value = self.carried.get(..end).unwrap_or_default().trim_ascii();
                self.result.stream = Some(value.eq_ignore_ascii_case(b"true") || value == b"1");
                self.state = FormState::Content;
                true
            }
        }
    }
}

/// Whether the header section of a part has `name="stream"`.
fn names_stream(head: &[u8]) -> bool {
    let head = String::from_utf8_lossy(head).to_ascii_lowercase();
    let disposition = head.split("\r\n").find_map(|line| line.strip_prefix("content-disposition:"));
    disposition.is_some_and(|rest| rest.split(';').any(|part| matches!(part.trim(), "name=\"stream\"" | "name=stream")))
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
