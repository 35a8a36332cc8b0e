//! Header fields by name: how they are written in a configuration, and which nobody but the proxy itself may set.

use http::HeaderName;

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
