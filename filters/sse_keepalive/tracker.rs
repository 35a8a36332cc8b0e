//! Where in an event stream a comment changes nothing: a byte-level reading of WHATWG HTML, section 9.2.
//!
//! Lines end with LF, CR or CRLF, and a piece may end anywhere: within a line, within a byte-order mark,
//! between CR and LF. The tracker reads each piece as it passes, and says which frame fits right now.

use bytes::{Bytes, BytesMut};

use crate::contract::Frame;

const BOM: &[u8] = b"\xEF\xBB\xBF";
/// Between events: the comment, and a blank line so that proxies and readers take it as a frame.
const COMMENT: &[u8] = b": keep-alive\n\n";
/// Where a blank line would say something: the comment line alone.
const COMMENT_LINE: &[u8] = b": keep-alive\n";
const BLANK_LINE: &[u8] = b"\n";

/// Follows one stream.
#[derive(Debug, Default)]
pub struct Tracker {
    /// Bytes of the upstream so far; only whether there were any, and whether a BOM may still come.
    seen_bytes: u64,
    /// The start of the current line, without the byte-order mark.
    line: LineStart,
    /// The first line is not over: a byte-order mark at its start belongs to no line.
    on_first_line: bool,
    /// The current line has no byte yet.
    at_line_start: bool,
    /// A line was seen since the last blank one.
    in_event: bool,
    /// One of them was a `data` field.
    has_data: bool,
    /// Events with data that have been completed.
    events: u64,
    /// The last byte was a CR; an LF would belong to it.
    after_cr: bool,
    /// A frame went out between a CR and the LF that may belong to it: such an LF is dropped, or it
    /// would become a blank line.
    drop_lf: bool,
    /// The stream has carried an `id` field.
    seen_id: bool,
    /// A frame went out before the first byte: a byte-order mark is no longer at the start, and is dropped.
    framed_before_start: bool,
    /// The start of what may become a byte-order mark that is to be dropped.
    held_bom_bytes: usize,
}

/// The first three bytes of a line: enough to tell `id`, `id:` and all others apart.
#[derive(Debug, Default, Clone, Copy)]
struct LineStart {
    bytes: [u8; 3],
    length: usize,
}

impl LineStart {
    fn push(&mut self, byte: u8) {
        if let Some(slot) = self.bytes.get_mut(self.length) {
            *slot = byte;
        }
        self.length = self.length.saturating_add(1);
    }

    /// `data`, by what is kept of it; no other field begins so.
    fn is_data(self) -> bool {
        self.length > 3 && self.bytes == *b"dat"
    }

    fn is_id(self) -> bool {
        match self.length {
            0 | 1 => false,
            2 => self.bytes.starts_with(b"id"),
            _ => self.bytes == *b"id:",
        }
    }
}

impl Tracker {
    /// At the start of a stream.
    pub fn new() -> Self {
        Self { at_line_start: true, on_first_line: true, ..Self::default() }
    }

    /// The frame that may go out right now; `None` where this form would change something: inside a line, and for all
    /// forms but comments inside an event. After it has gone out, say so with [`Self::framed`].
    pub fn frame(&self, form: Frame) -> Option<&'static [u8]> {
        if !self.at_line_start() {
            return None;
        }
        match form {
            // openai-python dispatches on every blank line once it has seen an id.
            Frame::Comment if self.in_event || self.seen_id => Some(COMMENT_LINE),
            Frame::Comment => Some(COMMENT),
            Frame::CommentLine => Some(COMMENT_LINE),
            Frame::BlankLine if !self.in_event => Some(BLANK_LINE),
            Frame::Event(event) if !self.in_event => Some(event),
            Frame::BlankLine | Frame::Event(_) => None,
        }
    }

    /// Whether a whole line of ours may stand here.
    pub fn at_line_start(&self) -> bool {
        self.at_line_start && self.held_bom_bytes == 0
    }

    /// Whether lines of an event stand before this place, that a blank line would end.
    pub fn in_event(&self) -> bool {
        self.in_event
    }

    /// How many events with data have been completed.
    pub fn events(&self) -> u64 {
        self.events
    }

    /// The frame went out.
    pub fn framed(&mut self) {
        if self.seen_bytes == 0 {
            self.framed_before_start = true;
            self.on_first_line = false;
        }
        self.drop_lf |= self.after_cr;
    }

    /// Reads a piece that is about to go to the client, and takes from it what frames have made wrong:
    /// a byte-order mark that is no longer first, an LF whose CR was followed by a frame.
    pub fn pass(&mut self, piece: Bytes) -> Bytes {
        if piece.is_empty() {
            return piece;
        }
        let piece = self.without_bom(piece);
        if piece.is_empty() {
            return piece;
        }
        let drop_first = self.drop_lf && piece.first() == Some(&b'\n');
        self.drop_lf = false;
        for byte in &piece {
            self.byte(*byte);
        }
        if drop_first { piece.slice(1..) } else { piece }
    }

    /// What was held back as the start of a byte-order mark, at the end of a stream that ended within it.
    pub fn finish(&mut self) -> Bytes {
        let held = std::mem::take(&mut self.held_bom_bytes);
        Bytes::from_static(BOM.get(..held).unwrap_or_default())
    }

    fn without_bom(&mut self, piece: Bytes) -> Bytes {
        let mark_may_come = self.framed_before_start && (self.seen_bytes == 0 || self.held_bom_bytes > 0);
        self.seen_bytes += piece.len() as u64;
        if !mark_may_come {
            return piece;
        }
        let rest = BOM.get(self.held_bom_bytes..).unwrap_or_default();
        let common = rest.iter().zip(&piece).take_while(|(mark, byte)| mark == byte).count();
        if common == rest.len() {
            self.held_bom_bytes = 0;
            return piece.slice(common..);
        }
        if common == piece.len() {
            self.held_bom_bytes += common;
            return Bytes::new();
        }
        // It was none: what was held back goes first.
        let held = self.finish();
        if held.is_empty() {
            return piece;
        }
        let mut whole = BytesMut::with_capacity(held.len() + piece.len());
        whole.extend_from_slice(&held);
        whole.extend_from_slice(&piece);
        whole.freeze()
    }

    fn byte(&mut self, byte: u8) {
        match byte {
            b'\n' if self.after_cr => self.after_cr = false,
            b'\n' => self.end_of_line(),
            b'\r' => {
                self.end_of_line();
                self.after_cr = true;
            }
            _ => {
                self.after_cr = false;
                self.at_line_start = false;
                self.line.push(byte);
                if self.on_first_line && self.line.length == BOM.len() && self.line.bytes == *BOM {
                    self.line = LineStart::default();
                    self.on_first_line = false;
                }
            }
        }
    }

    fn end_of_line(&mut self) {
        self.on_first_line = false;
        if self.line.length == 0 {
            self.events += u64::from(self.has_data);
            (self.in_event, self.has_data) = (false, false);
        } else {
            self.in_event = true;
            self.has_data |= self.line.is_data();
            self.seen_id |= self.line.is_id();
        }
        self.line = LineStart::default();
        self.at_line_start = true;
    }
}

#[cfg(test)]
mod tests;
