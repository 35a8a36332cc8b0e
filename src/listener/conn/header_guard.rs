//! Tracks an HTTP/1 header as it arrives: its end, its deadline, and early signs that it is
//! malformed. The complete header is checked in `header_check`.

use std::pin::Pin;
use std::sync::LazyLock;

use memchr::memmem::Finder;
use tokio::time::{Instant, Sleep};

/// The header that is arriving.
#[derive(Default)]
pub struct HeaderGuard {
    pub bytes: usize,
    pub deadline: Option<Instant>,
    /// Created only when a read has to wait: most headers arrive in one piece.
    pub sleep: Option<Pin<Box<Sleep>>>,
    pub lines: usize,
    /// The bytes so far. Nothing is handed on before its end, so that it can be checked as a whole.
    pub partial: Vec<u8>,
    first: Option<u8>,
    last: u8,
    bare_lf: bool,
    /// How many bytes of `END_OF_HEAD` the last bytes match.
    pub ending: usize,
}

/// The end of the last line and the empty line that ends a header.
pub const END_OF_HEAD: &[u8] = b"\r\n\r\n";
/// Built once: building costs as much as a short search.
static FINDER: LazyLock<Finder<'static>> = LazyLock::new(|| Finder::new(END_OF_HEAD));
/// Pingora's parser answers more fields itself.
pub const FIELDS_PARSED_MAX: usize = 250;

impl HeaderGuard {
    /// A header with this deadline.
    pub fn until(deadline: Instant) -> Self {
        Self { deadline: Some(deadline), ..Self::default() }
    }

    /// Tracks bytes of the header.
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

    /// Why an incomplete header is refused: a bare LF, which some parsers take for a line end, or a
    /// first byte that is not HTTP.
    pub fn malformed(&self) -> Option<&'static str> {
        let begins = self.first.is_none_or(|first| first.is_ascii_graphic());
        if self.bare_lf { Some("bare_lf") } else { (!begins).then_some("request_line") }
    }

    /// How many of these bytes belong to the header.
    pub fn end_in(&mut self, fresh: &[u8]) -> usize {
        // Most headers arrive in one piece.
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
