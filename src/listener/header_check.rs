//! Checks a complete HTTP/1 header before Pingora's parser sees it.
//!
//! Pingora answers a header that it cannot parse itself: without a body, an access log line or a
//! metric. Such a header is detected here and replaced, so that the gate refuses it like any other
//! request. The gate decides what is allowed, not this module.

use std::borrow::Cow;
use std::mem::MaybeUninit;

use http::{HeaderName, HeaderValue, Method, StatusCode, Version};
use httparse::{Error, Header, Request, Status};
use pingora::http::RequestHeader;

use super::path::Slashes;
use super::refusal::{HeadLimits, Policy, Refused, bad};
use super::{gate, target};
use crate::config::model::Underscores;

/// The most fields that Pingora's parser accepts.
const FIELDS_MAX: usize = 256;
/// The longest target of a URI in the crate `http`.
const TARGET_BYTES_MAX: usize = 65_534;
/// The logged length of the path of a request that cannot be parsed, in bytes.
const LOGGED_PATH_BYTES_MAX: usize = 2048;
const TARGET_TOO_LONG: Refused = Refused { status: StatusCode::URI_TOO_LONG, reason: "target_bytes" };
const TOO_MANY_FIELDS: Refused = Refused { status: StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, reason: "header_count" };

/// The result of a check.
#[derive(Debug)]
pub enum Checked {
    /// The header is incomplete.
    Partial,
    /// Pingora accepts it as it is.
    Good,
    /// Pingora accepts it in this equivalent form.
    Rewritten(Vec<u8>),
    /// It must be refused.
    Malformed(Box<Malformed>),
}

/// A header that Pingora would answer itself.
#[derive(Debug, PartialEq, Eq)]
pub struct Malformed {
    /// Why it is refused.
    pub refused: Refused,
    /// The method, if it could be parsed; for the access log.
    method: Option<String>,
    /// The path without its query; for the access log.
    path: Option<String>,
    is_http10: bool,
}

/// Checks a header. `scheme` is that of the connection.
pub fn check(header: &[u8], scheme: &'static str) -> Checked {
    let mut fields = [const { MaybeUninit::uninit() }; FIELDS_MAX];
    let mut request = Request::new(&mut []);
    match request.parse_with_uninit_headers(header, &mut fields) {
        Ok(Status::Partial) => Checked::Partial,
        Ok(Status::Complete(_)) if is_plain(&request) => Checked::Good,
        Ok(Status::Complete(_)) => match settle(&request, header, scheme) {
            Ok(rewritten) => Checked::Rewritten(rewritten),
            Err(refused) => Checked::Malformed(Box::new(Malformed::new(header, refused))),
        },
        Err(error) => Checked::Malformed(Box::new(Malformed::new(header, of_error(error, header)))),
    }
}

/// Whether Pingora certainly accepts the header as it is: the fast path, for nearly every request.
fn is_plain(request: &Request<'_, '_>) -> bool {
    let target = request.path.unwrap_or_default();
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let target_plain = path.starts_with('/')
        && target.len() <= TARGET_BYTES_MAX
        && !path.bytes().any(must_escape_in_path)
        && !query.bytes().any(must_escape_in_query);
    if !target_plain || request.method == Some("CONNECT") {
        return false;
    }
    let (mut hosts, mut lengths, mut codings) = (0, 0, 0);
    for Header { name, value } in request.headers.iter() {
        let good = match name.len() {
            4 if name.eq_ignore_ascii_case("host") => {
                hosts += 1;
                !value.contains(&b'@')
            }
            14 if name.eq_ignore_ascii_case("content-length") => {
                lengths += 1;
                !value.is_empty() && value.len() <= 19 && value.iter().all(u8::is_ascii_digit)
            }
            17 if name.eq_ignore_ascii_case("transfer-encoding") => {
                codings += 1;
                value.eq_ignore_ascii_case(b"chunked") && request.version == Some(1)
            }
            length => length <= usize::from(u16::MAX),
        };
        if !good {
            return false;
        }
    }
    hosts == 1 && lengths + codings <= 1
}

/// Runs the gate on a header that is not plain. If it passes, its target is rewritten into a form
/// that Pingora accepts.
fn settle(request: &Request<'_, '_>, header: &[u8], scheme: &'static str) -> Result<Vec<u8>, Refused> {
    let (method, target) = (request.method.unwrap_or_default(), request.path.unwrap_or_default());
    // Pingora drops a fragment silently; no target has one (RFC 9112, section 3.2).
    if target.contains('#') {
        return Err(bad("target"));
    }
    let escaped = escaped(target);
    if escaped.len() > TARGET_BYTES_MAX {
        return Err(TARGET_TOO_LONG);
    }
    let method = Method::from_bytes(method.as_bytes()).map_err(|_| bad("method"))?;
    let mut head = RequestHeader::build_no_case(method, escaped.as_bytes(), Some(request.headers.len())).map_err(|_| bad("target"))?;
    head.set_version(if request.version == Some(0) { Version::HTTP_10 } else { Version::HTTP_11 });
    for Header { name, value } in request.headers.iter() {
        let name = HeaderName::from_bytes(name.as_bytes()).map_err(|_| bad("header_name"))?;
        let value = HeaderValue::from_bytes(value).map_err(|_| bad("header_value"))?;
        head.append_header(name, value).map_err(|_| bad("header_name"))?;
    }
    let host = head.headers.get(http::header::HOST).cloned();
    // The limits and options of the listener are applied later.
    let limits = HeadLimits { bytes: usize::MAX, fields: usize::MAX };
    gate::check(&mut head, Some(header), &Policy { limits, slashes: Slashes::Merge, underscores: Underscores::Allow, scheme })?;
    let host = host.as_ref().map(HeaderValue::as_bytes).unwrap_or_default();
    let origin = target::origin_form(&escaped, host, scheme)?;
    let start = memchr::memmem::find(header, target.as_bytes()).ok_or(bad("target"))?;
    let (before, after) = header.split_at(start);
    Ok([before, origin.as_bytes(), after.get(target.len()..).unwrap_or_default()].concat())
}

/// Escapes the bytes that no URI of the crate `http` accepts. Browsers escape them, too; the
/// meaning is the same.
fn escaped(target: &str) -> Cow<'_, str> {
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    if !path.bytes().any(must_escape_in_path) && !query.bytes().any(must_escape_in_query) {
        return Cow::Borrowed(target);
    }
    let mut out = String::with_capacity(target.len() + 16);
    let mut in_query = false;
    for char in target.chars() {
        in_query |= char == '?';
        let escape = |byte| if in_query { must_escape_in_query(byte) } else { must_escape_in_path(byte) };
        match u8::try_from(char) {
            Ok(byte) if char.is_ascii() && escape(byte) => out.push_str(&format!("%{byte:02X}")),
            _ => out.push(char),
        }
    }
    Cow::Owned(out)
}

fn must_escape_in_path(byte: u8) -> bool {
    must_escape_in_query(byte) || byte == b'`'
}

fn must_escape_in_query(byte: u8) -> bool {
    matches!(byte, b'"' | b'<' | b'>' | b'#')
}

/// A parser error as a refusal of the gate.
fn of_error(error: Error, header: &[u8]) -> Refused {
    match error {
        Error::TooManyHeaders => TOO_MANY_FIELDS,
        Error::Version if first_line(header).iter().filter(|byte| **byte == b' ').count() == 2 => bad("version"),
        Error::Version | Error::Token | Error::Status => bad("request_line"),
        Error::NewLine => bad("line_end"),
        Error::HeaderValue => bad("header_value"),
        Error::HeaderName => bad(if is_folded(header) { "folded_header" } else { "header_name" }),
    }
}

/// The first line that is not empty.
fn first_line(header: &[u8]) -> &[u8] {
    header.split(|byte| matches!(byte, b'\r' | b'\n')).find(|line| !line.is_empty()).unwrap_or_default()
}

fn is_folded(header: &[u8]) -> bool {
    header.windows(2).any(|pair| matches!(pair, [b'\n', b' ' | b'\t']))
}

impl Malformed {
    /// Describes a header that may be incomplete.
    pub fn new(header: &[u8], refused: Refused) -> Self {
        let line = first_line(header);
        let (line, version) = match memchr::memrchr(b' ', line) {
            Some(space) if line.get(space..).is_some_and(|rest| rest.starts_with(b" HTTP/")) => line.split_at(space),
            _ => (line, &b""[..]),
        };
        let (method, target) = memchr::memchr(b' ', line).map_or((line, &b""[..]), |space| line.split_at(space));
        let method = Some(method).filter(|method| method.len() <= gate::METHOD_BYTES_MAX);
        let method = method.and_then(|method| Method::from_bytes(method).ok()).map(|method| method.to_string());
        let path = Some(target.trim_ascii()).filter(|target| method.is_some() && target.starts_with(b"/")).map(logged_path);
        Self { refused, method, path, is_http10: version == b" HTTP/1.0" }
    }

    /// Method and path for the access log.
    pub fn line(&self) -> (&str, &str) {
        (self.method.as_deref().unwrap_or("-"), self.path.as_deref().unwrap_or("-"))
    }

    /// The replacement for Pingora. HEAD and the version are kept: both determine how the response
    /// is read.
    pub fn replacement(&self) -> Vec<u8> {
        let method = if self.method.as_deref() == Some("HEAD") { "HEAD" } else { "GET" };
        format!("{method} / HTTP/1.{}\r\n\r\n", u8::from(!self.is_http10)).into_bytes()
    }
}

/// A path for the log: without query, visible ASCII only.
fn logged_path(target: &[u8]) -> String {
    let path = target.split(|byte| *byte == b'?').next().unwrap_or_default();
    let mut out = String::with_capacity(path.len());
    for byte in path.iter().take(LOGGED_PATH_BYTES_MAX) {
        if byte.is_ascii_graphic() {
            out.push(char::from(*byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checked(header: &str) -> Result<Option<String>, (u16, &'static str)> {
        match check(header.as_bytes(), "http") {
            Checked::Partial => panic!("a whole header"),
            Checked::Good => Ok(None),
            Checked::Rewritten(header) => Ok(Some(String::from_utf8(header).unwrap())),
            Checked::Malformed(malformed) => Err((malformed.refused.status.as_u16(), malformed.refused.reason)),
        }
    }

    #[test]
    fn parsable_headers_pass() {
        for header in [
            "GET / HTTP/1.1\r\nHost: h\r\n\r\n",
            "\r\nGET /a%2Fb?q={|}^`'%zz HTTP/1.0\r\nhost: h\r\n\r\n",
            "POST /v1/x HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: Chunked\r\n\r\n",
            "POST /v1/x HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\n\r\nhello",
            "GET /{}|^ HTTP/1.1\r\nX_A: é\r\nHost: h\r\n\r\n",
        ] {
            assert_eq!(checked(header), Ok(None), "{header}");
        }
        assert!(matches!(check(b"GET / HTTP/1.1\r\nHost: h\r\n", "http"), Checked::Partial));
        assert!(matches!(check(b"\r\n\r\n", "http"), Checked::Partial));
    }

    #[test]
    fn a_target_that_pingora_rejects_only_for_its_spelling_is_rewritten() {
        for (target, rewritten) in [
            ("/v1/x?q=\"a\"&r=<b>`", "/v1/x?q=%22a%22&r=%3Cb%3E`"),
            ("/v1/<x>\"`%3A0", "/v1/%3Cx%3E%22%60%3A0"),
            ("http://H/v1/x%3A0?q=\"", "/v1/x%3A0?q=%22"),
            ("http://h", "/"),
        ] {
            let header = |target| format!("GET {target} HTTP/1.1\r\nHost: h\r\nX-A: {target}\r\n\r\n");
            let expected = header(target).replacen(target, rewritten, 1);
            assert_eq!(checked(&header(target)), Ok(Some(expected)), "{target}");
        }
    }

    #[test]
    fn unparsable_headers_have_a_reason() {
        let long = format!("GET /{} HTTP/1.1\r\nHost: h\r\n\r\n", "a".repeat(70_000));
        let many = format!("GET / HTTP/1.1\r\nHost: h\r\n{}\r\n", "X: a\r\n".repeat(300));
        let host = |line: &str| format!("{line}\r\nHost: h\r\n\r\n");
        let field = |line: &str| format!("POST /v1/x HTTP/1.1\r\nHost: h\r\n{line}\r\n\r\n");
        for (header, status, reason) in [
            (host("GET  / HTTP/1.1"), 400, "request_line"),
            (host("GE(T / HTTP/1.1"), 400, "request_line"),
            (host("GET / HTTP/2.0"), 400, "version"),
            (host("GET /a b HTTP/1.1"), 400, "request_line"),
            (host("GET / HTTP/1.1\r"), 400, "line_end"),
            (host("GET /a#b HTTP/1.1\r\nX: @"), 400, "target"),
            (host("GET a HTTP/1.1"), 400, "target"),
            (host("OPTIONS * HTTP/1.1"), 400, "target"),
            (host("GET https://h/ HTTP/1.1"), 421, "target_scheme"),
            (host("GET http://other/ HTTP/1.1"), 400, "host_and_target_differ"),
            (host("CONNECT h:80 HTTP/1.1"), 405, "method"),
            (field("X-A : b"), 400, "header_name"),
            (field(" X-A: b"), 400, "folded_header"),
            (field("X-A: b\r\n c"), 400, "folded_header"),
            (field("X-A: b\x01c"), 400, "header_value"),
            (field("X-A: b\x7fc"), 400, "header_value"),
            (field("Host: h"), 400, "host_twice"),
            (field("Content-Length: 5\r\nContent-Length: 5"), 400, "content_length"),
            (field("Content-Length: +5"), 400, "content_length"),
            (field("Transfer-Encoding: gzip"), 400, "transfer_encoding"),
            (field("Transfer-Encoding: chunked\r\nContent-Length: 5"), 400, "length_and_chunked"),
            ("GET / HTTP/1.1\r\n\r\n".into(), 400, "host_missing"),
            ("GET / HTTP/1.1\r\nHost: u@h\r\n\r\n".into(), 400, "host"),
            ("POST / HTTP/1.0\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n".into(), 400, "transfer_encoding"),
            (long, 414, "target_bytes"),
            (many, 431, "header_count"),
        ] {
            assert_eq!(checked(&header), Err((status, reason)), "{}", header.get(..200).unwrap_or(&header));
        }
    }

    #[test]
    fn unparsable_headers_in_the_log() {
        for (header, method, path, replacement) in [
            ("GET /v1/a b?key=sk HTTP/1.1\r\nX: y\r\n", Some("GET"), Some("/v1/a%20b"), "GET / HTTP/1.1\r\n\r\n"),
            ("\r\nHEAD /v1/x HTTP/1.0\r\n", Some("HEAD"), Some("/v1/x"), "HEAD / HTTP/1.0\r\n\r\n"),
            ("POST http://u:secret@h/ HTTP/1.1\r\n", Some("POST"), None, "GET / HTTP/1.1\r\n\r\n"),
            ("Authorization: Bearer sk", None, None, "GET / HTTP/1.1\r\n\r\n"),
            ("\u{16}\u{3}\u{1}", None, None, "GET / HTTP/1.1\r\n\r\n"),
            ("", None, None, "GET / HTTP/1.1\r\n\r\n"),
        ] {
            let malformed = Malformed::new(header.as_bytes(), bad("request_line"));
            assert_eq!((malformed.method.as_deref(), malformed.path.as_deref()), (method, path), "{header}");
            assert_eq!(malformed.replacement(), replacement.as_bytes(), "{header}");
            assert!(matches!(check(replacement.as_bytes(), "http"), Checked::Malformed(_)), "the replacement alone is refused");
        }
    }
}
