//! Header fields by name: how they are written in a configuration, and which nobody but the proxy itself may set.

use http::HeaderName;
use pingora_http::RequestHeader;

use super::Invalid;

/// The field that somebody has named, in whatever case.
pub fn field_name(text: &str) -> Result<HeaderName, Invalid> {
    text.to_ascii_lowercase().parse().map_err(|_| Invalid::new(format!("`{text}` is not a header field's name")))
}

/// Of what stands in `Host`, the name without the port; an IPv6 address keeps its brackets.
pub fn host_name(host: &str) -> &str {
    match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|b| b.is_ascii_digit()) && !name.is_empty() => name,
        _ => host,
    }
}

/// Removes a field, and those that applications take for it because they see `_` and `-` as one.
pub fn remove_spellings(head: &mut RequestHeader, name: &HeaderName) {
    head.remove_header(name);
    let resembles = |other: &&HeaderName| other.as_str().contains('_') && other.as_str().replace('_', "-") == name.as_str();
    let spelled: Vec<HeaderName> = head.headers.keys().filter(resembles).cloned().collect();
    for other in &spelled {
        head.remove_header(other);
    }
}

/// Who changes these breaks the framing of messages, or the connection they travel on.
const FRAMING: [&str; 12] = [
    "connection",
    "content-length",
    "expect",
    "keep-alive",
    "proxy-authenticate",
    "proxy-authorization",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "http2-settings",
];

/// Whether a field belongs to one message or one connection, and cannot be set or go over to another.
pub fn is_framing(name: &HeaderName) -> bool {
    FRAMING.contains(&name.as_str())
}
