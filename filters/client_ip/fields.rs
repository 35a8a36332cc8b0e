//! Parses the header fields of proxies: `X-Forwarded-For`, `Forwarded` (RFC 7239) and `X-Forwarded-Proto`. It decides nothing
//! about trust.
//!
//! Lists are read from the right, where the nearest proxy appends. The client may have written the left part, so that the left
//! part must not affect how the right part is parsed.

use std::net::IpAddr;

use http::{HeaderMap, HeaderName, HeaderValue};

use crate::contract::parse_address;

/// The address in a field that must occur exactly once.
pub fn single(headers: &HeaderMap, name: &HeaderName) -> Option<IpAddr> {
    let mut values = headers.get_all(name).iter();
    match (values.next(), values.next()) {
        (Some(value), None) => parse_address(value.to_str().ok()?),
        _ => None,
    }
}

/// The elements of a list field, from the last line and element to the first, without empty ones (RFC 9110, section 5.6.1.2).
/// A non-ASCII element yields `?` and does not affect the others.
pub fn elements<'h>(headers: &'h HeaderMap, name: &HeaderName) -> impl Iterator<Item = &'h str> {
    let lines: Vec<&HeaderValue> = headers.get_all(name).iter().collect();
    lines.into_iter().rev().flat_map(|line| FromRight { rest: Some(line.as_bytes()), separator: b',' }).map(text)
}

fn text(element: &[u8]) -> &str {
    std::str::from_utf8(element).ok().filter(|text| text.is_ascii()).unwrap_or("?")
}

/// Splits from the right at separators outside of quoted strings, and skips empty pieces.
struct FromRight<'t> {
    rest: Option<&'t [u8]>,
    separator: u8,
}

impl<'t> Iterator for FromRight<'t> {
    type Item = &'t [u8];

    fn next(&mut self) -> Option<&'t [u8]> {
        loop {
            let rest = self.rest?;
            let piece = match separator_from_right(rest, self.separator) {
                Some(at) => {
                    let (before, piece) = rest.split_at(at);
                    self.rest = Some(before);
                    piece.get(1..).unwrap_or_default()
                }
                None => {
                    self.rest = None;
                    rest
                }
            };
            let piece = piece.trim_ascii();
            if !piece.is_empty() {
                return Some(piece);
            }
        }
    }
}

/// The position of the last separator outside of a quoted string (RFC 9110, section 5.6.4).
fn separator_from_right(text: &[u8], separator: u8) -> Option<usize> {
    let mut quoted = false;
    for (index, &byte) in text.iter().enumerate().rev() {
        let escapes = || text.get(..index).unwrap_or_default().iter().rev().take_while(|byte| **byte == b'\\').count();
        if byte == b'"' && (escapes() % 2 == 0 || !quoted) {
            quoted = !quoted;
        } else if byte == separator && !quoted {
            return Some(index);
        }
    }
    None
}

/// A parameter of one `Forwarded` element, still with its quotes. `None`: the parameter is missing or occurs twice, or the
/// element is malformed.
fn parameter<'e>(element: &'e str, wanted: &str) -> Option<&'e str> {
    let mut found = None;
    for pair in (FromRight { rest: Some(element.as_bytes()), separator: b';' }) {
        let (name, value) = text(pair).split_once('=')?;
        if name.trim_matches([' ', '\t']).eq_ignore_ascii_case(wanted) && found.replace(value.trim_matches([' ', '\t'])).is_some() {
            return None;
        }
    }
    found
}

/// The address of the `for=` parameter of one `Forwarded` element.
pub fn forwarded_for(element: &str) -> Option<IpAddr> {
    parse_address(parameter(element, "for")?)
}

/// The scheme in one element of `X-Forwarded-Proto`. Some proxies write `wss` or `ws` for a WebSocket.
pub fn scheme(element: &str) -> Option<&'static str> {
    let known = [("https", "https"), ("http", "http"), ("wss", "https"), ("ws", "http")];
    known.into_iter().find(|(name, _)| element.trim_matches('"').eq_ignore_ascii_case(name)).map(|(_, scheme)| scheme)
}

/// The scheme of the `proto=` parameter of one `Forwarded` element.
pub fn forwarded_proto(element: &str) -> Option<&'static str> {
    scheme(parameter(element, "proto")?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(lines: &[&str]) -> Vec<String> {
        let name = HeaderName::from_static("forwarded");
        let mut headers = HeaderMap::new();
        for line in lines {
            headers.append(&name, HeaderValue::from_bytes(line.as_bytes()).unwrap());
        }
        elements(&headers, &name).map(str::to_owned).collect()
    }

    #[test]
    fn lists_are_read_from_the_right() {
        assert_eq!(list(&["a, b", "c"]), ["c", "b", "a"]);
        assert_eq!(list(&["a,", ", ,b, ,", ""]), ["b", "a"]);
        assert_eq!(list(&[r#"for="a,b";x="c;d", for=e"#]), ["for=e", r#"for="a,b";x="c;d""#]);
        assert_eq!(list(&[r#"x="a\",b", c"#]), ["c", r#"x="a\",b""#]);
        // A non-ASCII element of the client does not affect the others.
        assert_eq!(list(&["\u{e9}, 203.0.113.1"]), ["203.0.113.1", "?"]);
        // An unterminated quote of the client does not hide the elements that a proxy has appended.
        assert_eq!(
            list(&[r#"for="evil, for=1.2.3.4, for="[2001:db8::1]:1""#]).first().map(String::as_str),
            Some(r#"for="[2001:db8::1]:1""#)
        );
        assert_eq!(list(&[r#"for="evil, for=1.2.3.4"#]).first().map(String::as_str), Some("for=1.2.3.4"));
    }

    #[test]
    fn elements_of_forwarded() {
        for (element, address) in [
            ("for=203.0.113.5", Some("203.0.113.5")),
            (r#"FOR="203.0.113.5:80";proto=https;"#, Some("203.0.113.5")),
            (r#"by="a;b"; for="203.0.113.5:_ob""#, Some("203.0.113.5")),
            (r#"for="[2001:db8::1]:_p-1.x""#, Some("2001:db8::1")),
            ("for=203.0.113.5;for=203.0.113.6", None),
            ("for=_hidden", None),
            ("for", None),
            ("proto=https", None),
            (r#"for="203.0.113.5:_""#, None),
        ] {
            assert_eq!(forwarded_for(element), address.map(|text| text.parse().unwrap()), "{element}");
        }
        assert_eq!(
            (forwarded_proto("for=a;proto=HTTPS"), forwarded_proto("proto=ftp"), scheme("Https")),
            (Some("https"), None, Some("https"))
        );
    }
}
