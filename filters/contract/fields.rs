//! Header field names: how a configuration writes them, and which ones only the proxy itself may set. It reads no values.

use http::HeaderName;
use pingora_http::RequestHeader;

use super::Invalid;

/// Parses a header field name, in any case.
pub fn field_name(text: &str) -> Result<HeaderName, Invalid> {
    text.to_ascii_lowercase().parse().map_err(|_| Invalid::new(format!("`{text}` is not a valid header field name")))
}

/// The name in a `Host` value, without the port. An IPv6 address keeps its brackets.
pub fn host_name(host: &str) -> &str {
    match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|b| b.is_ascii_digit()) && !name.is_empty() => name,
        _ => host,
    }
}

/// Removes a field and its spellings with `_` for `-`, which many applications treat as the same name.
pub fn remove_spellings(head: &mut RequestHeader, name: &HeaderName) {
    head.remove_header(name);
    let resembles = |other: &&HeaderName| other.as_str().contains('_') && other.as_str().replace('_', "-") == name.as_str();
    let spelled: Vec<HeaderName> = head.headers.keys().filter(resembles).cloned().collect();
    for other in &spelled {
        head.remove_header(other);
    }
}

/// Fields that control message framing or the connection.
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

/// Whether a field belongs to one message or connection, so that it cannot be set or forwarded.
pub fn is_framing(name: &HeaderName) -> bool {
    FRAMING.contains(&name.as_str())
}
