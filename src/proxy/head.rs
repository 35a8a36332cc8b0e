//! A header as it arrives: where it ends, how long it may take, and what its first line held.

use std::pin::Pin;

use tokio::time::{Instant, Sleep};

/// The header that is arriving.
#[derive(Default)]
pub struct Head {
    pub bytes: usize,
    pub deadline: Option<Instant>,
    /// Made only once a read has to wait: most headers arrive in one piece.
    pub sleep: Option<Pin<Box<Sleep>>>,
    pub line: Line,
    pub lines: usize,
    /// How much of the empty line that ends a header the last bytes were.
    pub ending: usize,
}

/// The empty line that ends a header, with the end of the line before it.
pub const END_OF_HEAD: &[u8] = b"\r\n\r\n";
/// Pingora's parser refuses more with an answer of its own.
pub const FIELDS_PARSED_MAX: usize = 250;

impl Head {
    /// How many of these bytes belong to the header.
    pub fn end_in(&mut self, fresh: &[u8]) -> usize {
        // Most headers arrive whole.
        if self.ending == 0
            && let Some(start) = memchr::memmem::find(fresh, END_OF_HEAD)
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

/// The first line, watched for what a parser might mend.
#[derive(Default)]
pub struct Line {
    pub over: bool,
    pub bytes: usize,
    spaces: usize,
    pub illegal: bool,
    last: u8,
}

impl Line {
    /// Looks at the next bytes of the header.
    pub fn feed(&mut self, bytes: &[u8]) {
        for byte in bytes {
            if self.over {
                return;
            }
            match byte {
                b'\n' if self.bytes == 0 => {}
                b'\n' => {
                    self.over = true;
                    self.illegal |= self.last != b'\r' || self.spaces != 2;
                }
                b'\r' if self.bytes == 0 || self.last != b'\r' => self.last = b'\r',
                _ => {
                    self.illegal |= self.last == b'\r' && self.bytes > 0;
                    self.illegal |= !(0x20..0x7f).contains(byte);
                    self.spaces += usize::from(*byte == b' ');
                    self.bytes += 1;
                    self.last = *byte;
                }
            }
        }
    }
}
