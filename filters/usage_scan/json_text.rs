//! The strings, keys and scalars that the tokenizer meets: finding their end, counting characters, and keeping those that a piece cuts.

/// The longest key, number or short string that is kept.
pub(super) const TEXT_BYTES_MAX: usize = 128;

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
    pub(super) fn start(self) -> bool {
        matches!(self, Wants::Start | Wants::StartAndLength)
    }

    pub(super) fn length(self) -> bool {
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

/// The content of a string without escapes that ends in these bytes, and what follows it.
pub(super) fn plain_string(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (content, rest) = bytes.split_at_checked(string_end(bytes)?)?;
    Some((content, rest.strip_prefix(b"\"")?))
}

/// The place of the first quote or backslash.
fn string_end(bytes: &[u8]) -> Option<usize> {
    const ONES: u64 = u64::from_ne_bytes([1; 8]);
    // Most keys and values are short: a call of memchr takes longer than to look at some words.
    let mut skipped = 0;
    while let Some(word) = bytes.get(skipped..).and_then(<[u8]>::first_chunk::<8>).filter(|_| skipped < 32) {
        let word = u64::from_le_bytes(*word);
        let (quotes, escapes) = (word ^ (ONES * u64::from(b'"')), word ^ (ONES * u64::from(b'\\')));
        // The lowest bit that is set belongs to the first byte that is zero.
        let found = (quotes.wrapping_sub(ONES) & !quotes | escapes.wrapping_sub(ONES) & !escapes) & (ONES << 7);
        if found != 0 {
            return Some(skipped + found.trailing_zeros() as usize / 8);
        }
        skipped += 8;
    }
    memchr::memchr2(b'"', b'\\', bytes.get(skipped..)?).map(|end| skipped + end)
}

/// The number of UTF-8 sequences that begin in these bytes.
pub(super) fn count_chars(bytes: &[u8]) -> u64 {
    // Sums of few bytes fit a byte, which the compiler turns into vector instructions.
    let in_block = |block: &[u8]| block.iter().fold(0u8, |sum, byte| sum.wrapping_add(u8::from(byte & 0xC0 != 0x80)));
    bytes.chunks(128).map(|block| u64::from(in_block(block))).sum()
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Escape {
    None,
    /// After the backslash.
    Start,
    /// After `\u` and this many digits of the value.
    Unicode(u8, u16),
}

/// The key, string or scalar that the current piece began or an earlier one.
#[derive(Debug)]
pub(super) struct Partial {
    pub(super) wants: Wants,
    pub(super) escape: Escape,
    start: [u8; TEXT_BYTES_MAX],
    start_bytes: usize,
    bytes: u64,
    chars: u64,
    has_space: bool,
}

impl Partial {
    pub(super) fn new() -> Self {
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

    pub(super) fn clear(&mut self, wants: Wants) {
        (self.wants, self.escape, self.start_bytes, self.bytes, self.chars, self.has_space) = (wants, Escape::None, 0, 0, 0, false);
    }

    pub(super) fn text(&self) -> Text<'_> {
        let start = self.start.get(..self.start_bytes).unwrap_or_default();
        Text { start, bytes: self.bytes, chars: self.chars, has_space: self.has_space, is_cut: false }
    }

    pub(super) fn push(&mut self, content: &[u8], finds_spaces: bool) {
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
    pub(super) fn escaped(&mut self, byte: u8) -> bool {
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
