//! Lower-cases field names and removes framing fields that a response must not have.
//!
//! Field names are case-insensitive (RFC 9110, section 5.1), and in lower case on HTTP/2. To keep
//! the sender's spelling, Pingora maintains a second map of all fields, which was the largest part
//! of this proxy's overhead per request. So names go on in lower case, as through Envoy.

use http::{Method, StatusCode, Version, header, request, response};
use pingora::http::{RequestHeader, ResponseHeader};

/// The metric's label for a field that was dropped for an underscore.
pub const UNDERSCORE: &str = "underscore";

/// Reserved capacity for fields that filters usually add.
const ADDED_FIELDS: usize = 8;

/// Lower-cases the field names of a request. Its target must be in origin form.
pub fn lower_request(head: &mut RequestHeader) {
    if !head.has_case() {
        return;
    }
    // The placeholder is always valid; on an error the spelling would stay.
    let Ok(place) = RequestHeader::build_no_case(Method::GET, b"/", Some(0)) else { return };
    let mut parts = request::Parts::from(std::mem::replace(head, place));
    parts.headers.reserve(ADDED_FIELDS);
    *head = parts.into();
}

/// Lower-cases the field names of a response. A non-standard reason phrase stays.
pub fn lower_response(head: &mut ResponseHeader) {
    if !head.has_case() {
        return;
    }
    let Ok(place) = ResponseHeader::build_no_case(head.status, Some(0)) else { return };
    let own = std::mem::replace(head, place);
    let reason = own.get_reason_phrase().filter(|reason| own.status.canonical_reason() != Some(reason)).map(str::to_owned);
    let mut parts = response::Parts::from(own);
    parts.headers.reserve(ADDED_FIELDS);
    *head = parts.into();
    if reason.is_some() {
        // The phrase was parsed before, so it is valid.
        let _ = head.set_reason_phrase(reason.as_deref());
    }
}

/// Removes the framing fields that a response must not have: `Transfer-Encoding` for HTTP/1.0
/// clients, and either field where the status allows no body (RFC 9112, section 6.1; RFC 9110,
/// section 8.6). On a 304, `Content-Length` describes the resource and stays.
pub fn fix_framing(response: &mut ResponseHeader, client: Version) {
    let bodiless = response.status.is_informational() || response.status == StatusCode::NO_CONTENT;
    if bodiless || response.status == StatusCode::NOT_MODIFIED || client == Version::HTTP_10 {
        response.remove_header(&header::TRANSFER_ENCODING);
    }
    if bodiless {
        response.remove_header(&header::CONTENT_LENGTH);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn framing_where_there_is_no_body() {
        for (status, client, chunked, length) in [
            (200, Version::HTTP_11, true, true),
            (200, Version::HTTP_10, false, true),
            (103, Version::HTTP_11, false, false),
            (204, Version::HTTP_11, false, false),
            (205, Version::HTTP_11, true, true),
            (304, Version::HTTP_11, false, true),
        ] {
            let mut response = ResponseHeader::build(status, None).unwrap();
            response.append_header("Transfer-Encoding", "chunked").unwrap();
            response.append_header("Content-Length", "5").unwrap();
            fix_framing(&mut response, client);
            let has = |name| response.headers.contains_key(name);
            assert_eq!((has("transfer-encoding"), has("content-length")), (chunked, length), "{status}");
        }
    }

    #[test]
    fn only_the_spelling_goes() {
        let mut request = RequestHeader::build("POST", b"/v1/a?b=c%20d", None).unwrap();
        request.append_header("X-Two", "1").unwrap();
        request.append_header("x-TWO", "2").unwrap();
        lower_request(&mut request);
        let mut wire = Vec::new();
        request.header_to_h1_wire(&mut wire);
        assert_eq!(String::from_utf8(wire).unwrap(), "x-two: 1\r\nx-two: 2\r\n");
        assert_eq!((request.method.as_str(), request.raw_path()), ("POST", &b"/v1/a?b=c%20d"[..]));

        for (reason, kept) in [("Slow Down", "Slow Down"), ("OK", "OK")] {
            let mut response = ResponseHeader::build(200, None).unwrap();
            response.set_reason_phrase(Some(reason)).unwrap();
            response.append_header("Set-Cookie", "a").unwrap();
            response.append_header("Set-Cookie", "b").unwrap();
            lower_response(&mut response);
            assert_eq!(response.get_reason_phrase(), Some(kept));
            assert_eq!(response.headers.get_all("set-cookie").iter().count(), 2);
        }
    }
}
