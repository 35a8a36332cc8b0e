//! Reads the top-level members of a JSON object, piece by piece.

use std::borrow::Cow;
use std::ops::ControlFlow;

use super::{Progress, TEXT_BYTES_MAX};

/// Reads the members of one JSON object. It keeps only the current key and the current scalar.
#[derive(Debug, Default)]
pub struct JsonMembers {
    /// Reading has stopped: the body is no JSON object, or the caller rejected a member.
    off: bool,
    complete: bool,
    depth: u32,
    in_string: bool,
    escaped: bool,
    /// The current key of the top level, without quotes.
    key: Vec<u8>,
    expects_value: bool,
    /// The current scalar of the top level, with quotes.
    scalar: Vec<u8>,
}

/// One top-level member.
pub struct Member<'a> {
    /// The key, with its escapes decoded. A key that is too long is cut.
    pub key: Cow<'a, [u8]>,
    /// A scalar as JSON, with its quotes. Empty: an object or an array. Longer than [`TEXT_BYTES_MAX`]: cut.
    pub scalar: &'a [u8],
}

impl JsonMembers {
    /// How far the object was read.
    pub fn progress(&self) -> Progress {
        match (self.off, self.complete) {
            (true, _) => Progress::Unreadable,
            (false, true) => Progress::Complete,
            (false, false) => Progress::Reading,
        }
    }

    /// Reads the next piece, and calls `each` for each member that ends in it. `Break` makes the body unreadable.
    pub fn feed(&mut self, bytes: &[u8], mut each: impl FnMut(Member<'_>) -> ControlFlow<()>) {
        let mut rest = bytes;
        while let Some((&byte, after)) = rest.split_first().filter(|_| !self.off && !self.complete) {
            rest = after;
            // Skip the content of nested strings, which may be long, up to the next quote or escape.
            if self.in_string && self.depth > 1 && !self.escaped {
                let end = memchr::memchr2(b'"', b'\\', after).unwrap_or(after.len());
                if !matches!(byte, b'"' | b'\\') {
                    rest = after.get(end..).unwrap_or_default();
                    continue;
                }
            }
            self.byte(byte, &mut each);
        }
    }

    fn byte(&mut self, byte: u8, each: &mut impl FnMut(Member<'_>) -> ControlFlow<()>) {
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
                // An array has no members.
                self.off |= self.depth == 0 && byte == b'[';
                self.depth += 1;
                if self.depth == 2 {
                    self.scalar.clear();
                }
            }
            b'}' | b']' => {
                self.end_of_member(each);
                self.complete |= self.depth == 1 && !self.off;
                self.depth = self.depth.saturating_sub(1);
            }
            b':' if self.depth == 1 => {
                self.expects_value = true;
                self.scalar.clear();
            }
            b',' if self.depth == 1 => self.end_of_member(each),
            b' ' | b'\t' | b'\r' | b'\n' => {}
            // Many parsers skip a byte-order mark (RFC 8259, section 8.1).
            0xEF | 0xBB | 0xBF if self.depth == 0 => {}
            // Not UTF-8, or no JSON: servers that read it nevertheless may read something else.
            _ if self.depth == 0 || !(byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'-' | b'.' | b':' | b',')) => self.off = true,
            _ if self.depth == 1 && self.expects_value && self.scalar.len() <= TEXT_BYTES_MAX => self.scalar.push(byte),
            _ => {}
        }
    }

    fn end_of_member(&mut self, each: &mut impl FnMut(Member<'_>) -> ControlFlow<()>) {
        if self.depth != 1 {
            return;
        }
        if self.expects_value {
            self.off |= each(Member { key: unescaped(&self.key), scalar: &self.scalar }).is_break();
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
