//! Header fields that nobody but the proxy itself may set.

use http::HeaderName;

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
