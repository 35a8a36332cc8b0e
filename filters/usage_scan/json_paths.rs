//! A streaming JSON tokenizer that tracks the path of the current value. It builds no values and keeps no text but the first bytes of
//! a key, a short string or a number.

/// The longest key, number or short string that is kept.
pub(super) const TEXT_BYTES_MAX: usize = 128;

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

/// What is needed of a string.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wants {
    /// Nothing: its content is skipped.
    Nothing,
    /// Its first bytes.
    Start,
    /// Its length.
    Length,
    /// Both.
    StartAndLength,
}

impl Wants {
    fn start(self) -> bool {
        matches!(self, Wants::Start | Wants::StartAndLength)
    }

    fn length(self) -> bool {
        matches!(self, Wants::Length | Wants::StartAndLength)
    }
}

/// A string value.
#[derive(Clone, Copy, Debug)]
pub(super) struct Text<'a> {
    /// Its first bytes, decoded, if they are wanted: at most [`TEXT_BYTES_MAX`].
    pub(super) start: &'a [u8],
    /// Its length in bytes, decoded.
    pub(super) bytes: u64,
    /// Its length in characters, if it is wanted. An escape counts one, so that a surrogate pair counts two.
    pub(super) chars: u64,
    /// Whether it has a space.
    pub(super) has_space: bool,
    /// Whether its end is missing.
    pub(super) is_cut: bool,
}

impl<'a> Text<'a> {
    /// The whole string, if its end was seen and it is short enough.
    pub(super) fn whole(&self) -> Option<&'a str> {
        let is_whole = !self.is_cut && self.start.len() as u64 == self.bytes;
        std::str::from_utf8(self.start).ok().filter(|_| is_whole)
    }
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

/// The tokenizer.
#[derive(Debug)]
pub(super) struct JsonPaths<P> {
    state: State,
    levels: [Level<P>; DEPTH_MAX],
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
            levels: [Level { path: P::ROOT, is_object: false }; DEPTH_MAX],
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
        (self.state, self.depth, self.depth_skipped, self.path) = (State::Value, 0, 0, P::ROOT);
    }

    /// Reads the next byte between values.
    fn structure<'b>(&mut self, bytes: &'b [u8], sink: &mut impl Sink<P>) -> &'b [u8] {
        let Some((&byte, rest)) = bytes.split_first() else { return bytes };
        let in_object = self.level().is_some_and(|level| level.is_object);
        match (byte, self.state) {
            (b' ' | b'\t' | b'\r' | b'\n', _) => {}
            (b'"', State::FirstKey | State::Key) => return self.key_start(rest),
            (b'"', State::Value | State::FirstElement) => return self.string_start(rest, sink),
            (b':', State::Colon) => self.state = State::Value,
            (b',', State::AfterValue) if in_object => self.state = State::Key,
            (b',', State::AfterValue) => {
                self.path = self.level().map_or(P::ROOT, |level| level.path);
                self.state = State::Value;
            }
            (b'{' | b'[', State::Value | State::FirstElement) => self.open(byte == b'{'),
            (b'}', State::FirstKey | State::AfterValue) if in_object => self.close(sink),
            (b']', State::FirstElement | State::AfterValue) if !in_object => self.close(sink),
            (b'-' | b'+' | b'0'..=b'9' | b'a'..=b'z' | b'A'..=b'Z', State::Value | State::FirstElement) => {
                return self.scalar_start(bytes, sink);
            }
            // Many parsers skip a byte-order mark (RFC 8259, section 8.1).
            (0xEF | 0xBB | 0xBF, State::Value) if self.depth == 0 => {}
            _ => self.state = State::Broken,
        }
        rest
    }

    /// The innermost container.
    fn level(&self) -> Option<&Level<P>> {
        self.levels.get(self.depth.checked_sub(1)?)
    }

    fn open(&mut self, is_object: bool) {
        match self.levels.get_mut(self.depth) {
            Some(level) => {
                *level = Level { path: self.path, is_object };
                self.depth += 1;
                self.state = if is_object { State::FirstKey } else { State::FirstElement };
            }
            None => (self.state, self.depth_skipped) = (State::Deep, 1),
        }
    }

    fn close(&mut self, sink: &mut impl Sink<P>) {
        if let Some(level) = self.level().filter(|level| level.is_object) {
            sink.object_end(level.path);
        }
        self.depth = self.depth.saturating_sub(1);
        self.complete |= self.depth == 0;
        self.value_end(sink);
    }

    fn value_end(&mut self, sink: &mut impl Sink<P>) {
        if self.depth == 0 {
            (self.state, self.path) = (State::Value, P::ROOT);
            sink.event_end();
            return;
        }
        self.state = State::AfterValue;
        if self.depth == 1 && self.level().is_some_and(|level| !level.is_object) {
            sink.event_end();
        }
    }

    /// Reads a key at once, if all of it is here and nothing is escaped.
    fn key_start<'b>(&mut self, bytes: &'b [u8]) -> &'b [u8] {
        if let Some((key, rest)) = plain_string(bytes) {
            self.key_end(key);
            return rest;
        }
        self.partial.clear(Wants::Start);
        self.state = State::KeyString;
        bytes
    }

    fn key_end(&mut self, key: &[u8]) {
        self.path = self.level().map_or(P::ROOT, |level| level.path).member(key);
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
            self.path = self.level().map_or(P::ROOT, |level| level.path).member(self.partial.text().start);
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
        match bytes.iter().position(|&byte| !is_scalar(byte)).and_then(|end| bytes.split_at_checked(end)) {
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
        let end = bytes.iter().position(|&byte| !is_scalar(byte)).unwrap_or(bytes.len());
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

/// The content of a string without escapes that ends in these bytes, and what follows it.
fn plain_string(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (content, rest) = bytes.split_at_checked(memchr::memchr2(b'"', b'\\', bytes)?)?;
    Some((content, rest.strip_prefix(b"\"")?))
}

fn is_scalar(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'-' | b'.')
}

/// The number of UTF-8 sequences that begin in these bytes.
fn count_chars(bytes: &[u8]) -> u64 {
    bytes.iter().filter(|&&byte| byte & 0xC0 != 0x80).count() as u64
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Escape {
    None,
    /// After the backslash.
    Start,
    /// After `\u` and this many digits of the value.
    Unicode(u8, u16),
}

/// The key, string or scalar that the current piece began or an earlier one.
#[derive(Debug)]
struct Partial {
    wants: Wants,
    escape: Escape,
    start: [u8; TEXT_BYTES_MAX],
    start_bytes: usize,
    bytes: u64,
    chars: u64,
    has_space: bool,
}

impl Partial {
    fn new() -> Self {
        Self {
            wants: Wants::Nothing,
            escape: Escape::None,
            start: [0; TEXT_BYTES_MAX],
            start_bytes: 0,
            bytes: 0,
            chars: 0,
            has_space: false,
        }
    }

    fn clear(&mut self, wants: Wants) {
        (self.wants, self.escape, self.start_bytes, self.bytes, self.chars, self.has_space) = (wants, Escape::None, 0, 0, 0, false);
    }

    fn text(&self) -> Text<'_> {
        let start = self.start.get(..self.start_bytes).unwrap_or_default();
        Text { start, bytes: self.bytes, chars: self.chars, has_space: self.has_space, is_cut: false }
    }

    fn push(&mut self, content: &[u8], finds_spaces: bool) {
        self.bytes = self.bytes.saturating_add(content.len() as u64);
        if self.wants.length() {
            self.chars = self.chars.saturating_add(count_chars(content));
            self.has_space |= finds_spaces && !self.has_space && memchr::memchr(b' ', content).is_some();
        }
        if self.wants.start() {
            let free = self.start.get_mut(self.start_bytes..).unwrap_or_default();
            let kept = content.len().min(free.len());
            free.iter_mut().zip(content).for_each(|(to, from)| *to = *from);
            self.start_bytes += kept;
        }
    }

    /// Reads the next byte of an escape. `false`: it is invalid.
    fn escaped(&mut self, byte: u8) -> bool {
        let decoded = match (self.escape, byte) {
            (Escape::Start, b'u') => {
                self.escape = Escape::Unicode(0, 0);
                return true;
            }
            (Escape::Unicode(digits, value), _) => {
                let Some(digit) = char::from(byte).to_digit(16) else { return false };
                let value = (value << 4) | digit as u16;
                if digits < 3 {
                    self.escape = Escape::Unicode(digits + 1, value);
                    return true;
                }
                char::from_u32(value.into()).unwrap_or(char::REPLACEMENT_CHARACTER)
            }
            (_, b'n') => '\n',
            (_, b't') => '\t',
            (_, b'r') => '\r',
            (_, b'b') => '\u{8}',
            (_, b'f') => '\u{c}',
            (_, b'"' | b'\\' | b'/') => char::from(byte),
            _ => return false,
        };
        self.escape = Escape::None;
        self.push(decoded.encode_utf8(&mut [0; 4]).as_bytes(), true);
        true
    }
}
