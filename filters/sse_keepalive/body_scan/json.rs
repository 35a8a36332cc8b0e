//! Scans a JSON object for its top-level members `stream`, `stream_format` and `id`.

use std::borrow::Cow;

use super::{BYTES_MAX, ScanResult, TEXT_BYTES_MAX};

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
    pub fn new(rpc: bool) -> Self {
        Self { rpc, ..Self::default() }
    }

    pub fn result(&self) -> &ScanResult {
        &self.result
    }

    pub fn feed(&mut self, bytes: &[u8]) {
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
