//! Translates an upstream response that arrives after Keylatch has begun its own: into stream
//! events, or into the error body after JSON padding. It writes nothing to the session.

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, StatusCode, header};
use keylatch_filters::contract::{Dialect, is_json_lines, is_uncoded};
use pingora::http::ResponseHeader;

use super::{ErrorContext, Fault, body, event, of_upstream};

/// The most bytes of an upstream error that are read.
const ERROR_BYTES_MAX: usize = 64 * 1024;

/// An upstream response that is not an event stream, after an event stream has begun.
#[derive(Debug)]
pub enum LateAnswer {
    /// A successful JSON document. It becomes the data of one event.
    Json,
    /// JSON lines. Each line becomes the data of one event.
    Lines { in_line: bool },
    /// Anything else is collected and becomes an error. A success with a body that begins like
    /// JSON becomes `Json`.
    Failure(Collected),
}

/// A response that becomes an error event once it is complete.
#[derive(Debug)]
pub struct Collected {
    status: StatusCode,
    headers: HeaderMap,
    body: Vec<u8>,
}

fn media_type(headers: &HeaderMap) -> &str {
    let value = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    value.and_then(|text| text.split(';').next()).map(str::trim).unwrap_or_default()
}

/// The bytes before and after a whole JSON response in a stream. Responses and Anthropic use the
/// events by which their streams carry a whole response; OpenAI chat streams end with `[DONE]`.
fn around(dialect: Dialect) -> (&'static str, &'static str) {
    match dialect {
        Dialect::OpenAi | Dialect::Mistral => ("data: ", "\n\ndata: [DONE]\n\n"),
        Dialect::OpenAiResponses => {
            ("event: response.completed\ndata: {\"type\":\"response.completed\",\"sequence_number\":0,\"response\":", "}\n\n")
        }
        Dialect::Anthropic => (
            "event: message_start\ndata: {\"type\":\"message_start\",\"message\":",
            "}\n\nevent: message_stop\ndata: {\"type\":\"message_stop\"}\n\n",
        ),
        Dialect::Gemini | Dialect::Cohere | Dialect::Ollama => ("data: ", "\n\n"),
        Dialect::Mcp => ("event: message\ndata: ", "\n\n"),
        Dialect::DashScope => ("event: result\ndata: ", "\n\n"),
    }
}

impl LateAnswer {
    /// Chooses the translation by the response header.
    pub fn new(answer: &ResponseHeader) -> Self {
        if answer.status.is_success() && is_json_lines(&answer.headers) {
            return LateAnswer::Lines { in_line: false };
        }
        LateAnswer::Failure(Collected::new(answer))
    }

    /// The bytes for the client, for a piece of the response body.
    pub fn pass(&mut self, dialect: Dialect, piece: &[u8]) -> Bytes {
        let (before, _) = around(dialect);
        match self {
            // A line end is white space anywhere in JSON, but would end the line of the event.
            LateAnswer::Json => piece.iter().map(|byte| if matches!(byte, b'\r' | b'\n') { b' ' } else { *byte }).collect(),
            LateAnswer::Lines { in_line } => {
                let mut out = BytesMut::with_capacity(piece.len() * 2);
                for byte in piece {
                    match (byte, *in_line) {
                        (b'\n', true) => out.extend_from_slice(b"\n\n"),
                        (b'\r', _) | (b'\n', false) => {}
                        (_, true) => out.extend_from_slice(&[*byte]),
                        (_, false) => out.extend_from_slice(&[b"data: ", &[*byte][..]].concat()),
                    }
                    *in_line = match byte {
                        b'\n' => false,
                        b'\r' => *in_line,
                        _ => true,
                    };
                }
                out.freeze()
            }
            LateAnswer::Failure(collected) if collected.begins_json(piece) => {
                *self = LateAnswer::Json;
                [before.as_bytes(), &self.pass(dialect, piece.trim_ascii_start())[..]].concat().into()
            }
            LateAnswer::Failure(collected) => {
                collected.pass(piece);
                Bytes::new()
            }
        }
    }

    /// The bytes for the client at the end of the response.
    pub fn finish(&self, dialect: Dialect, place: &ErrorContext<'_>) -> Bytes {
        let (_, behind) = around(dialect);
        match self {
            LateAnswer::Json => Bytes::from_static(behind.as_bytes()),
            LateAnswer::Lines { in_line } => Bytes::from_static(if *in_line { b"\n\n" } else { b"" }),
            LateAnswer::Failure(collected) => event(dialect, &collected.fault(), place),
        }
    }

    /// Whether another event may begin here.
    pub fn at_event_start(&self) -> bool {
        match self {
            LateAnswer::Json => false,
            LateAnswer::Lines { in_line } => !*in_line,
            LateAnswer::Failure(_) => true,
        }
    }

    /// Whether the client gets an error.
    pub fn is_failure(&self) -> bool {
        matches!(self, LateAnswer::Failure(_))
    }
}

impl Collected {
    /// An empty collection for a response with this header.
    pub fn new(answer: &ResponseHeader) -> Self {
        Self { status: answer.status, headers: answer.headers.clone(), body: Vec::new() }
    }

    /// Whether the first piece of an uncompressed success begins like JSON. The media type is
    /// ignored: some servers send JSON as plain text, or without a type.
    fn begins_json(&self, piece: &[u8]) -> bool {
        let fits = self.status.is_success() && is_uncoded(&self.headers) && self.body.trim_ascii().is_empty();
        fits && matches!(piece.trim_ascii_start().first(), Some(b'{' | b'['))
    }

    /// Appends a piece, up to the limit.
    pub fn pass(&mut self, piece: &[u8]) {
        let room = ERROR_BYTES_MAX.saturating_sub(self.body.len());
        self.body.extend_from_slice(piece.get(..room.min(piece.len())).unwrap_or_default());
    }

    /// The error as a JSON document, in the dialect.
    pub fn document(&self, dialect: Dialect, place: &ErrorContext<'_>) -> Bytes {
        body(dialect, &self.fault(), place)
    }

    fn fault(&self) -> Fault<'_> {
        let mut fault = of_upstream(self.status, &self.headers, if is_uncoded(&self.headers) { &self.body } else { b"" });
        if self.status.is_success() {
            let coding = self.headers.get(header::CONTENT_ENCODING).and_then(|coding| coding.to_str().ok());
            let what = coding.filter(|_| !is_uncoded(&self.headers)).unwrap_or_else(|| media_type(&self.headers));
            fault.code = "upstream_not_streamable".into();
            fault.message = match (self.body.is_empty(), what) {
                (true, _) => format!("The server behind this API answered with status {} and no body.", self.status.as_u16()),
                (false, "") => "The server behind this API answered with a body that this response cannot carry.".to_owned(),
                (false, what) => format!("The server behind this API answered with `{what}`, which this response cannot carry."),
            }
            .into();
        }
        fault
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(status: u16, content_type: &str) -> ResponseHeader {
        let mut answer = ResponseHeader::build(status, None).unwrap();
        answer.insert_header("content-type", content_type).unwrap();
        answer
    }

    /// Translates a body whole and byte by byte; both must be equal.
    fn translated(dialect: Dialect, answer: &ResponseHeader, body: &str) -> String {
        let place = ErrorContext { request_id: Some("r"), rpc_id: Some("7"), sequence: 0 };
        let run = |pieces: &[&[u8]]| {
            let mut late = LateAnswer::new(answer);
            let mut out: Vec<u8> = pieces.iter().flat_map(|piece| late.pass(dialect, piece)).collect();
            out.extend_from_slice(&late.finish(dialect, &place));
            String::from_utf8(out).unwrap()
        };
        let whole = run(&[body.as_bytes()]);
        let bytes: Vec<&[u8]> = body.as_bytes().chunks(1).collect();
        assert_eq!(run(&bytes), whole, "byte by byte");
        whole
    }

    #[test]
    fn json_becomes_one_event() {
        let json = answer(200, "application/json; charset=utf-8");
        let body = "{\r\n \"a\": 1\n}\n";
        for (dialect, out) in [
            (Dialect::OpenAi, "data: {   \"a\": 1 } \n\ndata: [DONE]\n\n"),
            (Dialect::Gemini, "data: {   \"a\": 1 } \n\n"),
            (Dialect::Mcp, "event: message\ndata: {   \"a\": 1 } \n\n"),
            (
                Dialect::OpenAiResponses,
                "event: response.completed\ndata: {\"type\":\"response.completed\",\"sequence_number\":0,\"response\":{   \"a\": 1 } }\n\n",
            ),
        ] {
            assert_eq!(translated(dialect, &json, body), out, "{dialect:?}");
        }
        let anthropic = translated(Dialect::Anthropic, &json, "{}");
        assert!(
            anthropic
                .ends_with("{\"type\":\"message_start\",\"message\":{}}\n\nevent: message_stop\ndata: {\"type\":\"message_stop\"}\n\n")
        );
        let empty = translated(Dialect::OpenAi, &json, "");
        assert!(empty.contains("answered with status 200 and no body"), "{empty}");
        for kind in ["text/plain", "text/html"] {
            assert_eq!(translated(Dialect::Gemini, &answer(200, kind), " {}"), "data: {}\n\n", "JSON by another name");
        }
    }

    #[test]
    fn lines_become_events() {
        let lines = answer(200, "application/x-ndjson");
        assert_eq!(
            translated(Dialect::OpenAi, &lines, "{\"a\":1}\r\n\n{\"b\":2}\n{\"c\":3}"),
            "data: {\"a\":1}\n\ndata: {\"b\":2}\n\ndata: {\"c\":3}\n\n"
        );
    }

    #[test]
    fn failures_keep_what_the_upstream_said() {
        let own = r#"{"error":{"message":"m","type":"t","param":null,"code":"c"}}"#;
        for (dialect, status, kind, body, out) in [
            (
                Dialect::OpenAi,
                429,
                "application/json",
                own,
                r#"data: {"error":{"message":"m","type":"t","param":null,"code":"c","status":429}}"#,
            ),
            (Dialect::OpenAi, 500, "text/plain", "no", r#"data: {"error":{"message":"no","type":"server_error","#),
            (
                Dialect::Anthropic,
                529,
                "application/json",
                r#"{"type":"error","error":{"type":"overloaded_error","message":"m"}}"#,
                "event: error\ndata: {\"type\":\"error\",\"error\":{\"type\":\"overloaded_error\",\"message\":\"m\",\"status\":529}}",
            ),
            (
                Dialect::Anthropic,
                500,
                "application/json",
                own,
                "event: error\ndata: {\"type\":\"error\",\"error\":{\"type\":\"api_error\",\"message\":\"m\",\"status\":500",
            ),
            (
                Dialect::Gemini,
                429,
                "application/json",
                r#"{"error":{"code":429,"message":"m","status":"RESOURCE_EXHAUSTED"}}"#,
                "data: {\"error\":{\"code\":429,\"message\":\"m\",\"status\":\"RESOURCE_EXHAUSTED\"}}\n\n",
            ),
            (
                Dialect::Mcp,
                500,
                "application/json",
                own,
                "event: message\ndata: {\"jsonrpc\":\"2.0\",\"id\":7,\"error\":{\"code\":-32603,\"message\":\"m\"",
            ),
            (
                Dialect::OpenAi,
                200,
                "audio/mpeg",
                "x",
                r#"data: {"error":{"message":"The server behind this API answered with `audio/mpeg`, which"#,
            ),
            (
                Dialect::OpenAi,
                302,
                "text/html",
                "<p>",
                r#"data: {"error":{"message":"The server behind this API answered with status 302."#,
            ),
        ] {
            let text = translated(dialect, &answer(status, kind), body);
            assert!(text.starts_with(out), "{dialect:?} {status}: {text}");
        }
        let mut coded = answer(200, "application/json");
        coded.insert_header("content-encoding", "gzip").unwrap();
        assert!(translated(Dialect::OpenAi, &coded, "x").contains("answered with `gzip`"));
    }
}
