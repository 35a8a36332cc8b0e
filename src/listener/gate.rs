//! The gate: normalises a request, or refuses it, before any filter runs. It knows no route and no
//! filter.
//!
//! A filter that can be bypassed by spelling is useless. So everything that two servers may read
//! differently is normalised or refused here: framing, target, Host, header names, path. No I/O:
//! the fuzzer calls [`check`] with arbitrary input.

use http::{HeaderValue, Method, StatusCode, Uri, Version, header};
use keylatch_filters::contract::host_name;
use memchr::memchr_iter;
use pingora::http::RequestHeader;

use super::connection_options::has_option;
use super::refusal::{Policy, Refused, bad};
use super::{target, underscores};

/// A request that has passed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Passed {
    /// The path contains `%2F`; only routes with `allow_encoded_slash` accept it.
    pub encoded_slash: bool,
    /// The target for the upstream, if the client's spelling differs from the normalised one.
    pub spelled_target: Option<Uri>,
    /// The number of fields that were dropped for an underscore in their names.
    pub dropped_fields: u64,
}

/// The longest registered method has 17 bytes.
pub(super) const METHOD_BYTES_MAX: usize = 32;

/// The path contains `%2F`, and the route does not accept it.
pub const ENCODED_SLASH: Refused = bad("path_encoded_slash");
/// The client certificate is not valid any more, or is now required and missing.
pub const NO_CERTIFICATE: Refused = Refused { status: StatusCode::FORBIDDEN, reason: "client_certificate" };
/// The request lacks the origin secret of the listener.
pub const NO_ORIGIN_SECRET: Refused = Refused { status: StatusCode::FORBIDDEN, reason: "origin_secret" };

/// Checks and normalises a request. `raw`: the bytes of an HTTP/1 header, as they were parsed.
pub fn check(head: &mut RequestHeader, raw: Option<&[u8]>, policy: &Policy) -> Result<Passed, Refused> {
    let limits = policy.limits;
    let too_large = |reason| Refused { status: StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, reason };
    let bytes = raw.map_or_else(|| size_of(head), <[u8]>::len);
    if bytes > limits.bytes {
        return Err(too_large("header_bytes"));
    }
    if head.headers.len() > limits.fields {
        return Err(too_large("header_count"));
    }
    if !matches!(head.version, Version::HTTP_10 | Version::HTTP_11 | Version::HTTP_2) {
        return Err(bad("version"));
    }
    if matches!(head.method, Method::TRACE | Method::CONNECT) || head.method.as_str().len() > METHOD_BYTES_MAX {
        return Err(Refused { status: StatusCode::METHOD_NOT_ALLOWED, reason: "method" });
    }
    if let Some(raw) = raw {
        line_ends(raw)?;
    }
    framing(head, raw)?;
    nominations(head)?;
    host(head)?;
    // A request with a body does not switch protocols, and an upgrade may always be ignored (RFC
    // 9110, section 7.8). Without the option `upgrade` the field is not for this hop.
    if head.headers.contains_key(header::UPGRADE)
        && (head.method != Method::GET
            || !has_option(&head.headers, "upgrade")
            || head.headers.contains_key(header::CONTENT_LENGTH)
            || head.headers.contains_key(header::TRANSFER_ENCODING))
    {
        head.remove_header(&header::UPGRADE);
    }
    // An expectation in HTTP/1.0 is ignored (RFC 9110, section 10.1.1): the client does not
    // understand 100.
    if head.version == Version::HTTP_10 {
        head.remove_header(&header::EXPECT);
    }
    let dropped_fields = underscores::apply_policy(head, policy.underscores)?;
    join_cookies(head)?;
    let settled = target::normalise_target(head, policy)?;
    strip_root_dot(head)?;
    Ok(Passed { encoded_slash: settled.encoded_slash, spelled_target: settled.spelled, dropped_fields })
}

/// HTTP/2 has no raw form; this is the size of RFC 9113, section 10.5.1.
fn size_of(head: &RequestHeader) -> usize {
    const OVERHEAD: usize = 32;
    let fields: usize = head.headers.iter().map(|(name, value)| name.as_str().len() + value.len() + OVERHEAD).sum();
    fields + head.raw_path().len() + head.method.as_str().len()
}

/// Requires CRLF line ends and no folded lines (RFC 9112, sections 2.2 and 5.2).
fn line_ends(raw: &[u8]) -> Result<(), Refused> {
    let mut start = 0;
    for end in memchr_iter(b'\n', raw) {
        if end == 0 || raw.get(end - 1) != Some(&b'\r') {
            return Err(bad("bare_lf"));
        }
        if start > 0 && matches!(raw.get(start), Some(b' ' | b'\t')) {
            return Err(bad("folded_header"));
        }
        // The URI parser drops a fragment silently; no target has one (RFC 9112, section 3.2).
        if start == 0 && raw.get(..end).is_some_and(|line| line.contains(&b'#')) {
            return Err(bad("target"));
        }
        start = end + 1;
    }
    Ok(())
}

/// Requires one framing: a length or chunks, never both (RFC 9112, section 6.3).
fn framing(head: &RequestHeader, raw: Option<&[u8]>) -> Result<(), Refused> {
    let mut codings = head.headers.get_all(header::TRANSFER_ENCODING).iter();
    if let Some(coding) = codings.next() {
        // HTTP/1.0 has no chunked coding (RFC 9112, section 6.1).
        if head.version == Version::HTTP_10 {
            return Err(bad("transfer_encoding"));
        }
        if codings.next().is_some() || !coding.as_bytes().eq_ignore_ascii_case(b"chunked") {
            return Err(bad("transfer_encoding"));
        }
        // The parser has removed a length beside it; the raw bytes still have it.
        if head.headers.contains_key(header::CONTENT_LENGTH) || raw.is_some_and(has_length) {
            return Err(bad("length_and_chunked"));
        }
    }
    let mut lengths = head.headers.get_all(header::CONTENT_LENGTH).iter();
    if let Some(length) = lengths.next() {
        let digits = !length.is_empty() && length.len() <= 19 && length.as_bytes().iter().all(u8::is_ascii_digit);
        if lengths.next().is_some() || !digits {
            return Err(bad("content_length"));
        }
    }
    Ok(())
}

fn has_length(raw: &[u8]) -> bool {
    const NAME: &[u8] = b"content-length";
    raw.split(|byte| *byte == b'\n').any(|line| line.get(..NAME.len()).is_some_and(|name| name.eq_ignore_ascii_case(NAME)))
}

/// Checks the fields that `Connection` nominates for removal (RFC 9110, section 7.6.1). Nominating
/// an identity or framing field would show the next hop another request than the one checked here.
fn nominations(head: &RequestHeader) -> Result<(), Refused> {
    const NEVER: [&str; 12] = [
        "api-key",
        "authorization",
        "cf-connecting-ip",
        "content-length",
        "cookie",
        "forwarded",
        "host",
        "transfer-encoding",
        "x-api-key",
        "x-goog-api-key",
        "x-real-ip",
        "traceparent",
    ];
    // Pingora accepts no more options, and only tokens; it would refuse them after the chain.
    const OPTIONS_MAX: usize = 9;
    let options = head.headers.get_all(header::CONNECTION).iter().flat_map(|line| line.as_bytes().split(|byte| *byte == b','));
    for (index, option) in options.map(<[u8]>::trim_ascii).filter(|option| !option.is_empty()).enumerate() {
        let never = NEVER.iter().any(|name| option.eq_ignore_ascii_case(name.as_bytes()));
        let forwarded = option.get(..12).is_some_and(|start| start.eq_ignore_ascii_case(b"x-forwarded-"));
        let token = option.iter().all(|byte| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(byte));
        if never || forwarded || !token || index >= OPTIONS_MAX {
            return Err(bad("connection_nomination"));
        }
    }
    Ok(())
}

/// Requires exactly one valid Host (RFC 9112, section 3.2). On HTTP/2 `:authority` becomes the
/// Host.
fn host(head: &mut RequestHeader) -> Result<(), Refused> {
    let mut hosts = head.headers.get_all(header::HOST).iter();
    let (first, second) = (hosts.next(), hosts.next());
    if second.is_some() {
        return Err(bad("host_twice"));
    }
    let authority = head.uri.authority();
    match (first.map(HeaderValue::to_str), authority) {
        (Some(Ok(host)), None) if is_host(host) => Ok(()),
        (Some(Ok(host)), Some(authority)) if !host.eq_ignore_ascii_case(authority.as_str()) => Err(bad("host_and_target_differ")),
        (Some(Ok(host)), Some(_)) if is_host(host) => Ok(()),
        (Some(_), _) => Err(bad("host")),
        (None, Some(authority)) if head.version == Version::HTTP_2 && is_host(authority.as_str()) => {
            let value = HeaderValue::from_str(authority.as_str()).map_err(|_| bad("host"))?;
            head.insert_header(header::HOST, value).map_err(|_| bad("host"))
        }
        (None, Some(_)) if head.version == Version::HTTP_2 => Err(bad("host")),
        (None, _) => Err(bad("host_missing")),
    }
}

/// Removes a final dot: the name is the same (RFC 1034, section 3.1), and must not bypass a route
/// or a rule.
fn strip_root_dot(head: &mut RequestHeader) -> Result<(), Refused> {
    let Some(host) = head.headers.get(header::HOST).and_then(|host| host.to_str().ok()) else { return Ok(()) };
    let (name, port) = host.split_at(host_name(host).len());
    let Some(plain) = name.strip_suffix('.').filter(|plain| !plain.is_empty()) else { return Ok(()) };
    let value = HeaderValue::from_str(&format!("{plain}{port}")).map_err(|_| bad("host"))?;
    head.insert_header(header::HOST, value).map_err(|_| bad("host"))
}

/// Whether this is `uri-host [":" port]`, without user information and without escapes.
fn is_host(host: &str) -> bool {
    const LONGEST: usize = 255 + 6;
    let (name, port) = match host.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((inside, after)) if inside.parse::<std::net::Ipv6Addr>().is_ok() => {
            ("v6", after.strip_prefix(':').or(after.is_empty().then_some("0")))
        }
        Some(_) => return false,
        None => match host.split_once(':') {
            Some((name, port)) => (name, Some(port)),
            None => (host, Some("0")),
        },
    };
    let name_ok = !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._".contains(&b));
    let port_ok = port.is_some_and(|port| port.len() <= 5 && port.bytes().all(|b| b.is_ascii_digit()) && port.parse::<u16>().is_ok());
    host.len() <= LONGEST && name_ok && port_ok
}

/// Joins the cookie fields of HTTP/2 into one, as HTTP/1 requires (RFC 9113, section 8.2.3).
fn join_cookies(head: &mut RequestHeader) -> Result<(), Refused> {
    if head.version != Version::HTTP_2 {
        return Ok(());
    }
    let cookies: Vec<&[u8]> = head.headers.get_all(header::COOKIE).iter().map(HeaderValue::as_bytes).collect();
    if cookies.len() > 1 {
        let joined = HeaderValue::from_bytes(&cookies.join(&b"; "[..])).map_err(|_| bad("cookie"))?;
        head.insert_header(header::COOKIE, joined).map_err(|_| bad("cookie"))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::path::Slashes;
    use super::super::refusal::HeadLimits;
    use super::*;
    use crate::config::model::Underscores;

    const LIMITS: HeadLimits = HeadLimits { bytes: 32 * 1024, fields: 100 };
    const POLICY: Policy = Policy { limits: LIMITS, slashes: Slashes::Merge, underscores: Underscores::Drop, scheme: "http" };

    fn head(target: &str, fields: &[(&'static str, &str)]) -> RequestHeader {
        let mut head = RequestHeader::build("GET", target.as_bytes(), None).unwrap();
        for (name, value) in fields {
            head.append_header(*name, *value).unwrap();
        }
        head
    }

    fn run(target: &str, fields: &[(&'static str, &str)]) -> Result<(String, Passed), &'static str> {
        let mut head = head(target, fields);
        let passed = check(&mut head, None, &POLICY).map_err(|refused| refused.reason)?;
        Ok((String::from_utf8(head.raw_path().to_vec()).unwrap(), passed))
    }

    #[test]
    fn targets() {
        let host = [("host", "h")];
        for (target, settled) in [
            ("/a?x=1", "/a?x=1"),
            ("/a/../b?x=/../", "/b?x=/../"),
            ("//a", "/a"),
            ("/a%2fb", "/a%2Fb"),
            ("http://h/a", "/a"),
            ("http://h", "/"),
            ("http://h?x", "/?x"),
            ("HTTP://H//a", "/a"),
        ] {
            assert_eq!(run(target, &host).map(|(target, _)| target), Ok(settled.to_owned()), "{target}");
        }
        assert!(run("/a%2fb", &host).unwrap().1.encoded_slash);
        for (target, upstream) in [
            ("/model/x-v1%3A0/invoke?a=%3a", Some("/model/x-v1%3A0/invoke?a=%3a")),
            ("http://h/a%2Bb", Some("/a%2Bb")),
            ("/a%2fx/../b%3A", Some("/b%3A")),
            ("//a", None),
            ("/a+b?x=%41", None),
        ] {
            let passed = run(target, &host).unwrap().1;
            assert_eq!(passed.spelled_target.map(|uri| uri.to_string()).as_deref(), upstream, "{target}");
        }
        for target in ["a", "*", "@evil/a", "https://h/a", "http://other/a", "http://user@h/a", "/a?é", "ftp://h/"] {
            assert!(run(target, &host).is_err(), "{target}: {:?}", run(target, &host));
        }
    }

    #[test]
    fn hosts() {
        assert_eq!(run("/", &[]).err(), Some("host_missing"));
        assert_eq!(run("/", &[("host", "a"), ("host", "a")]).err(), Some("host_twice"));
        for good in ["a", "a.b-c.d:80", "127.0.0.1:8080", "[::1]", "[::1]:80", "a_b"] {
            assert!(run("/", &[("host", good)]).is_ok(), "{good}");
        }
        for wrong in ["", " ", "a b", "a:b", "a:99999", "u@a", "a/b", "a?b", "[::1", "::1", "[1.2.3.4]", "a%41", "é"] {
            assert_eq!(run("/", &[("host", wrong)]).err(), Some("host"), "{wrong}");
        }
    }

    #[test]
    fn framings() {
        let host = ("host", "h");
        assert!(run("/", &[host, ("content-length", "5")]).is_ok());
        assert!(run("/", &[host, ("transfer-encoding", "Chunked")]).is_ok());
        for (fields, reason) in [
            (vec![("content-length", "5"), ("content-length", "5")], "content_length"),
            (vec![("content-length", "5, 5")], "content_length"),
            (vec![("content-length", "+5")], "content_length"),
            (vec![("content-length", "")], "content_length"),
            (vec![("content-length", "99999999999999999999")], "content_length"),
            (vec![("transfer-encoding", "chunked"), ("content-length", "5")], "length_and_chunked"),
            (vec![("transfer-encoding", "gzip, chunked")], "transfer_encoding"),
            (vec![("transfer-encoding", "chunked"), ("transfer-encoding", "chunked")], "transfer_encoding"),
            (vec![("transfer-encoding", "identity")], "transfer_encoding"),
            (vec![("transfer-encoding", "xchunked")], "transfer_encoding"),
        ] {
            let fields: Vec<_> = std::iter::once(host).chain(fields).collect();
            assert_eq!(run("/", &fields).err(), Some(reason), "{fields:?}");
        }
        let mut chunked = head("/", &[host, ("transfer-encoding", "chunked")]);
        let raw = b"GET / HTTP/1.1\r\nHost: h\r\nCONTENT-LENGTH: 5\r\nTransfer-Encoding: chunked\r\n\r\n";
        assert_eq!(check(&mut chunked, Some(raw), &POLICY).unwrap_err().reason, "length_and_chunked");
    }

    #[test]
    fn nominations_of_protected_fields() {
        for good in ["close", "keep-alive, Upgrade", "te", "x-anything", ""] {
            assert!(run("/", &[("host", "h"), ("connection", good)]).is_ok(), "{good}");
        }
        for wrong in
            ["a;b", "\"a\"", ":path", "Authorization", "close, x-real-ip", "X-FORWARDED-FOR", "host", "content-length", &"a,".repeat(100)]
        {
            assert_eq!(run("/", &[("host", "h"), ("connection", wrong)]).err(), Some("connection_nomination"), "{wrong}");
        }
    }

    #[test]
    fn lines_sizes_and_names() {
        let refused = |raw: &[u8], limits| {
            let policy = Policy { limits, ..POLICY };
            check(&mut head("/", &[("host", "h")]), Some(raw), &policy).map_err(|r| (r.status.as_u16(), r.reason))
        };
        let good = b"GET / HTTP/1.1\r\nHost: h\r\n\r\n";
        assert!(refused(good, LIMITS).is_ok());
        assert_eq!(refused(b"GET / HTTP/1.1\nHost: h\r\n\r\n", LIMITS), Err((400, "bare_lf")));
        assert_eq!(refused(b"GET /a#b HTTP/1.1\r\nHost: h\r\n\r\n", LIMITS), Err((400, "target")));
        assert_eq!(refused(b"GET / HTTP/1.1\r\nHost: h\r\n x\r\n\r\n", LIMITS), Err((400, "folded_header")));
        assert_eq!(refused(good, HeadLimits { bytes: 10, ..LIMITS }), Err((431, "header_bytes")));
        assert_eq!(refused(good, HeadLimits { fields: 0, ..LIMITS }), Err((431, "header_count")));
        let mut spelled = head("/", &[("host", "h"), ("x_real_ip", "1.2.3.4"), ("x-real-ip", "1.2.3.4")]);
        check(&mut spelled, None, &POLICY).unwrap();
        assert!(!spelled.headers.contains_key("x_real_ip") && spelled.headers.contains_key("x-real-ip"));
    }
}
