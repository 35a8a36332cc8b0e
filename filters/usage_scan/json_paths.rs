//! A streaming JSON tokenizer that tracks the path of the current value. It builds no values and keeps no text but the first bytes of
//! a key, a short string or a number.

use super::json_text::{Escape, Partial, TEXT_BYTES_MAX, Text, Wants, count_chars, plain_string};

/// The deepest container with a path. The values of deeper ones are skipped.
pub(super) const DEPTH_MAX: usize = 64;

/// A position in a JSON value, as the keys on the way to it. The indexes of arrays do not count: an element has the path of its array.
pub(super) trait Path: Copy {
    /// The path of a top-level value, and of the elements of a top-level array.
    const ROOT: Self;
    /// Whether [`Text::has_space`] is needed.
    const FINDS_SPACES: bool;
    /// The path of a member of an object with this path.
    fn member(self, key: &[u8]) -> Self;
    /// What is needed of a string with this path.
    fn wants(self) -> Wants;
}

/// The receiver of values.
pub(super) trait Sink<P> {
    /// A number, `true`, `false` or `null`, as it is written. Its syntax is not checked.
    fn scalar(&mut self, path: P, token: &[u8]);
    /// A string.
    fn text(&mut self, path: P, text: Text<'_>);
    /// The end of an object.
    fn object_end(&mut self, path: P);
    /// The end of a top-level value, or of an element of a top-level array.
    fn event_end(&mut self);
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// A value must follow.
    Value,
    /// After `[`.
    FirstElement,
    /// After `{`.
    FirstKey,
    /// After a comma in an object.
    Key,
    /// After a key.
    Colon,
    /// After a value in a container.
    AfterValue,
    /// Inside a number or literal.
    Scalar,
    /// Inside a key.
    KeyString,
    /// Inside a string value.
    Text,
    /// Below the deepest level, outside strings.
    Deep,
    /// Below the deepest level, inside a string.
    DeepString,
    /// Below the deepest level, after a backslash.
    DeepEscape,
    /// After invalid JSON, until the next reset.
    Broken,
}

#[derive(Clone, Copy, Debug)]
struct Level<P> {
    path: P,
    is_object: bool,
}

impl<P: Path> Level<P> {
    /// Around the top-level values.
    const ROOT: Self = Self { path: P::ROOT, is_object: false };
}

/// The tokenizer.
#[derive(Debug)]
pub(super) struct JsonPaths<P> {
    state: State,
    /// The innermost container.
    container: Level<P>,
    /// The containers around it, the outermost first.
    outer: [Level<P>; DEPTH_MAX],
    depth: usize,
    /// Open containers below the deepest level.
    depth_skipped: u64,
    /// The path of the current value.
    path: P,
    partial: Partial,
    complete: bool,
}

impl<P: Path> JsonPaths<P> {
    pub(super) fn new() -> Self {
        Self {
            state: State::Value,
            container: Level::ROOT,
            outer: [Level::ROOT; DEPTH_MAX],
            depth: 0,
            depth_skipped: 0,
            path: P::ROOT,
            partial: Partial::new(),
            complete: false,
        }
    }

    /// Whether a top-level object or array was read to its end.
    pub(super) fn is_complete(&self) -> bool {
        self.complete
    }

    /// Whether the bytes since the last reset are no JSON.
    pub(super) fn is_broken(&self) -> bool {
        self.state == State::Broken
    }

    /// Reads the next piece.
    pub(super) fn feed(&mut self, bytes: &[u8], sink: &mut impl Sink<P>) {
        let mut rest = bytes;
        while !rest.is_empty() {
            rest = match self.state {
                State::Broken => return,
                State::Scalar => self.scalar(rest, sink),
                State::KeyString | State::Text => self.string(rest, sink),
                State::Deep | State::DeepString | State::DeepEscape => self.deep(rest, sink),
                _ => self.structure(rest, sink),
            };
        }
    }

    /// The end of a line that ends no value: a string may not contain it.
    pub(super) fn line_end(&mut self, sink: &mut impl Sink<P>) {
        match self.state {
            State::KeyString | State::Text | State::DeepString | State::DeepEscape | State::Broken => self.reset(sink),
            _ => self.feed(b"\n", sink),
        }
    }

    /// Ends the current event, and reports the length of its unfinished string.
    pub(super) fn reset(&mut self, sink: &mut impl Sink<P>) {
        if self.state == State::Text && self.partial.wants.length() {
            sink.text(self.path, Text { is_cut: true, ..self.partial.text() });
        }
        if self.depth > 0 || self.state != State::Value {
            sink.event_end();
        }
        (self.state, self.depth, self.depth_skipped) = (State::Value, 0, 0);
        (self.container, self.path) = (Level::ROOT, P::ROOT);
    }

    /// Reads what is between values, and the keys and values that can be read at once.
    fn structure<'b>(&mut self, bytes: &'b [u8], sink: &mut impl Sink<P>) -> &'b [u8] {
        let mut rest = bytes;
        while let Some((&byte, after)) = rest.split_first() {
            rest = match self.state {
                State::KeyString | State::Text | State::Scalar | State::Broken => return rest,
                State::Deep | State::DeepString | State::DeepEscape => return rest,
                _ if matches!(byte, b' ' | b'\t' | b'\r' | b'\n') => after,
                State::Value => self.value(byte, rest, after, sink),
                State::AfterValue => self.after_value(byte, after, sink),
                State::Colon if byte == b':' => {
                    self.state = State::Value;
                    after
                }
                State::Key | State::FirstKey if byte == b'"' => self.key_start(after),
                State::FirstKey if byte == b'}' => self.close(after, sink),
                State::FirstElement if byte == b']' => self.close(after, sink),
                State::FirstElement => self.value(byte, rest, after, sink),
                State::Colon | State::Key | State::FirstKey => self.broken(),
            };
        }
        rest
    }

    fn value<'b>(&mut self, byte: u8, bytes: &'b [u8], after: &'b [u8], sink: &mut impl Sink<P>) -> &'b [u8] {
        match byte {
            b'"' => self.string_start(after, sink),
            b'{' | b'[' => self.open(byte == b'{', after),
            _ if is_scalar(byte) && byte != b'.' => self.scalar_start(bytes, sink),
            // Many parsers skip a byte-order mark (RFC 8259, section 8.1).
            0xEF | 0xBB | 0xBF if self.depth == 0 => after,
            _ => self.broken(),
        }
    }

    fn after_value<'b>(&mut self, byte: u8, after: &'b [u8], sink: &mut impl Sink<P>) -> &'b [u8] {
        match (byte, self.container.is_object) {
            (b',', true) => {
                self.state = State::Key;
                return after.strip_prefix(b"\"").map_or(after, |key| self.key_start(key));
            }
            (b',', false) => (self.state, self.path) = (State::Value, self.container.path),
            (b'}', true) | (b']', false) => return self.close(after, sink),
            _ => return self.broken(),
        }
        after
    }

    fn broken(&mut self) -> &'static [u8] {
        self.state = State::Broken;
        b""
    }

    fn open<'b>(&mut self, is_object: bool, after: &'b [u8]) -> &'b [u8] {
        match self.outer.get_mut(self.depth) {
            Some(outer) => {
                *outer = std::mem::replace(&mut self.container, Level { path: self.path, is_object });
                self.depth += 1;
                self.state = if is_object { State::FirstKey } else { State::FirstElement };
            }
            None => (self.state, self.depth_skipped) = (State::Deep, 1),
        }
        after
    }

    fn close<'b>(&mut self, after: &'b [u8], sink: &mut impl Sink<P>) -> &'b [u8] {
        if self.container.is_object {
            sink.object_end(self.container.path);
        }
        self.depth = self.depth.saturating_sub(1);
        self.container = self.outer.get(self.depth).copied().unwrap_or(Level::ROOT);
        self.complete |= self.depth == 0;
        self.value_end(sink);
        after
    }

    fn value_end(&mut self, sink: &mut impl Sink<P>) {
        if self.depth == 0 {
            (self.state, self.path) = (State::Value, P::ROOT);
            sink.event_end();
            return;
        }
        self.state = State::AfterValue;
        if self.depth == 1 && !self.container.is_object {
            sink.event_end();
        }
    }

    /// Reads a key at once, if all of it is here and nothing is escaped.
    fn key_start<'b>(&mut self, bytes: &'b [u8]) -> &'b [u8] {
        if let Some((key, rest)) = plain_string(bytes) {
            self.key_end(key);
            // Most serialisers write no space here.
            let Some(value) = rest.strip_prefix(b":") else { return rest };
            self.state = State::Value;
            return value;
        }
        self.partial.clear(Wants::Start);
        self.state = State::KeyString;
        bytes
    }

    fn key_end(&mut self, key: &[u8]) {
        self.path = self.container.path.member(key);
        self.state = State::Colon;
    }

    /// Reads a string at once, if all of it is here and nothing is escaped.
    fn string_start<'b>(&mut self, bytes: &'b [u8], sink: &mut impl Sink<P>) -> &'b [u8] {
        let wants = self.path.wants();
        let Some((content, rest)) = plain_string(bytes) else {
            self.partial.clear(wants);
            self.state = State::Text;
            return bytes;
        };
        if wants != Wants::Nothing {
            let start = content.get(..TEXT_BYTES_MAX).unwrap_or(content);
            let has_space = P::FINDS_SPACES && memchr::memchr(b' ', content).is_some();
            let chars = if wants.length() { count_chars(content) } else { 0 };
            let start = if wants.start() { start } else { b"" };
            sink.text(self.path, Text { start, bytes: content.len() as u64, chars, has_space, is_cut: false });
        }
        self.value_end(sink);
        rest
    }

    /// Reads the next part of a key or string, up to a quote, an escape or the end of the piece.
    fn string<'b>(&mut self, bytes: &'b [u8], sink: &mut impl Sink<P>) -> &'b [u8] {
        if self.partial.escape != Escape::None {
            let Some((&byte, rest)) = bytes.split_first() else { return bytes };
            if !self.partial.escaped(byte) {
                self.state = State::Broken;
            }
            return rest;
        }
        let end = memchr::memchr2(b'"', b'\\', bytes).unwrap_or(bytes.len());
        let (content, rest) = bytes.split_at_checked(end).unwrap_or((bytes, b""));
        self.partial.push(content, P::FINDS_SPACES);
        let Some((&byte, rest)) = rest.split_first() else { return rest };
        if byte == b'\\' {
            self.partial.escape = Escape::Start;
        } else if self.state == State::KeyString {
            // A key that is too long cannot be one that is looked for: its start is longer than those.
            self.path = self.container.path.member(self.partial.text().start);
            self.state = State::Colon;
        } else {
            if self.partial.wants != Wants::Nothing {
                sink.text(self.path, self.partial.text());
            }
            self.value_end(sink);
        }
        rest
    }

    /// Reads a number or literal at once, if its end is here.
    fn scalar_start<'b>(&mut self, bytes: &'b [u8], sink: &mut impl Sink<P>) -> &'b [u8] {
        match scalar_end(bytes).and_then(|end| bytes.split_at_checked(end)) {
            Some((token, rest)) => {
                if token.len() <= TEXT_BYTES_MAX {
                    sink.scalar(self.path, token);
                }
                self.value_end(sink);
                rest
            }
            None => {
                self.partial.clear(Wants::Start);
                self.partial.push(bytes, false);
                self.state = State::Scalar;
                b""
            }
        }
    }

    fn scalar<'b>(&mut self, bytes: &'b [u8], sink: &mut impl Sink<P>) -> &'b [u8] {
        let end = scalar_end(bytes).unwrap_or(bytes.len());
        let (token, rest) = bytes.split_at_checked(end).unwrap_or((bytes, b""));
        self.partial.push(token, false);
        if !rest.is_empty() {
            let text = self.partial.text();
            if text.bytes <= TEXT_BYTES_MAX as u64 {
                sink.scalar(self.path, text.start);
            }
            self.value_end(sink);
        }
        rest
    }

    /// Skips what is below the deepest level. It counts brackets and does not compare their kinds.
    fn deep<'b>(&mut self, bytes: &'b [u8], sink: &mut impl Sink<P>) -> &'b [u8] {
        if self.state == State::DeepString {
            let end = memchr::memchr2(b'"', b'\\', bytes).unwrap_or(bytes.len());
            let Some((&byte, rest)) = bytes.get(end..).and_then(<[u8]>::split_first) else { return b"" };
            self.state = if byte == b'"' { State::Deep } else { State::DeepEscape };
            return rest;
        }
        let Some((&byte, rest)) = bytes.split_first() else { return bytes };
        match (byte, self.state) {
            (_, State::DeepEscape) => self.state = State::DeepString,
            (b'"', _) => self.state = State::DeepString,
            (b'{' | b'[', _) => self.depth_skipped = self.depth_skipped.saturating_add(1),
            (b'}' | b']', _) => {
                self.depth_skipped = self.depth_skipped.saturating_sub(1);
                if self.depth_skipped == 0 {
                    self.value_end(sink);
                }
            }
            _ => {}
        }
        rest
    }
}

/// The bytes of numbers and literals.
static SCALAR: [bool; 256] = {
    let mut table = [false; 256];
    let mut byte = 0;
    while byte < 256 {
        table[byte] = (byte as u8).is_ascii_alphanumeric() || matches!(byte as u8, b'+' | b'-' | b'.');
        byte += 1;
    }
    table
};

fn is_scalar(byte: u8) -> bool {
    SCALAR.get(usize::from(byte)).is_some_and(|is_scalar| *is_scalar)
}

fn scalar_end(bytes: &[u8]) -> Option<usize> {
    bytes.iter().position(|&byte| !is_scalar(byte))
}
