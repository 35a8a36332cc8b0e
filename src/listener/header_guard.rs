//! A header as it arrives: where it ends, how long it may take, and what tells early that it is none.

use std::pin::Pin;
use std::sync::LazyLock;

use memchr::memmem::Finder;
use tokio::time::{Instant, Sleep};

/// The header that is arriving.
#[derive(Default)]
pub struct Head {
    pub bytes: usize,
    pub deadline: Option<Instant>,
    /// Made only once a read has to wait: most headers arrive in one piece.
    pub sleep: Option<Pin<Box<Sleep>>>,
    pub lines: usize,
    /// What has come of it. Nothing is handed on before its end, so that it can be checked as a whole.
    pub partial: Vec<u8>,
    first: Option<u8>,
    last: u8,
    bare_lf: bool,
    /// How much of the empty line that ends a header the last bytes were.
    pub ending: usize,
}

/// The empty line that ends a header, with the end of the line before it.
pub const END_OF_HEAD: &[u8] = b"\r\n\r\n";
/// Made once: making one costs as much as a short search.
static FINDER: LazyLock<Finder<'static>> = LazyLock::new(|| Finder::new(END_OF_HEAD));
/// Pingora's parser refuses more with an answer of its own.
pub const FIELDS_PARSED_MAX: usize = 250;

impl Head {
    /// One that must be there by then.
    pub fn until(deadline: Instant) -> Self {
        Self { deadline: Some(deadline), ..Self::default() }
    }

    /// Notes these bytes of the header.
    pub fn feed(&mut self, bytes: &[u8]) {
        for at in memchr::memchr_iter(b'\n', bytes) {
            let before = at.checked_sub(1).map_or(Some(&self.last), |before| bytes.get(before));
            self.bare_lf |= before != Some(&b'\r');
            self.lines += 1;
        }
        if self.first.is_none() {
            self.first = bytes.iter().find(|byte| !matches!(byte, b'\r' | b'\n')).copied();
        }
        self.last = bytes.last().copied().unwrap_or(self.last);
        self.bytes += bytes.len();
    }

    /// Why it is refused although its end has not come: some parsers would see an end where others do not, or it is no HTTP.
    pub fn malformed(&self) -> Option<&'static str> {
        let begins = self.first.is_none_or(|first| first.is_ascii_graphic());
        if self.bare_lf { Some("bare_lf") } else { (!begins).then_some("request_line") }
    }

    /// How many of these bytes belong to the header.
    pub fn end_in(&mut self, fresh: &[u8]) -> usize {
        // Most headers arrive whole.
        if self.ending == 0
            && let Some(start) = FINDER.find(fresh)
        {
            self.ending = END_OF_HEAD.len();
            return start + END_OF_HEAD.len();
        }
        for (index, byte) in fresh.iter().enumerate() {
            let next = END_OF_HEAD.get(self.ending);
            self.ending = match byte {
                byte if Some(byte) == next => self.ending + 1,
                b'\r' => 1,
                _ => 0,
            };
            if self.ending == END_OF_HEAD.len() {
                return index + 1;
            }
        }
        fresh.len()
    }
}
