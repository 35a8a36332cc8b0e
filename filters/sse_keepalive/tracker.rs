//! Tracks the position in an event stream, byte by byte (WHATWG HTML, section 9.2), and returns the frame that can be sent
//! there without changing the stream. It keeps no time and sends nothing.
//!
//! Lines end with LF, CR or CRLF. A chunk may end anywhere: within a line, within a byte-order mark (BOM), or between CR
//! and LF.

use bytes::{Bytes, BytesMut};

use crate::contract::Frame;

const BOM: &[u8] = b"\xEF\xBB\xBF";
/// Between events: the comment with a blank line, so that proxies and readers take it for a complete frame.
const COMMENT: &[u8] = b": keep-alive\n\n";
/// Where a blank line would have a meaning: only the comment line.
const COMMENT_LINE: &[u8] = b": keep-alive\n";
const BLANK_LINE: &[u8] = b"\n";

/// The state of one stream.
#[derive(Debug, Default)]
pub struct Tracker {
    /// Bytes from the upstream so far. Only zero or not zero matters.
    seen_bytes: u64,
    /// The start of the current line, without a BOM.
    line: LineStart,
    /// The first line has not ended. A BOM at its start is not part of the line.
    on_first_line: bool,
    /// The current line has no byte yet.
    at_line_start: bool,
    /// A line has ended since the last blank line.
    in_event: bool,
    /// One of these lines was a `data` field.
    has_data: bool,
    /// Number of completed events with data.
    events: u64,
    /// The last byte was a CR, so a following LF belongs to the same line end.
    after_cr: bool,
    /// A frame was sent between a CR and a possible LF of the same line end. Such an LF is dropped, since it would become a
    /// blank line.
    drop_lf: bool,
    /// The stream has carried an `id` field.
    seen_id: bool,
    /// A frame was sent before the first byte. A BOM is then no longer at the start and is dropped.
    framed_before_start: bool,
    /// Number of bytes held back because they may be the start of a BOM to drop.
    held_bom_bytes: usize,
}

/// The first three bytes of a line: enough to recognise `id`, `id:` and `data`.
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

    /// Whether the line is a `data` field. No other field starts with `dat`.
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

    /// The bytes of the frame that may be sent at this position. `None`: inside a line, and inside an event for all forms
    /// except comments. Call [`Self::framed`] after sending it.
    pub fn frame(&self, form: Frame) -> Option<&'static [u8]> {
        if !self.at_line_start() {
            return None;
        }
        match form {
            // openai-python dispatches an event at every blank line once it has seen an `id`.
            Frame::Comment if self.in_event || self.seen_id => Some(COMMENT_LINE),
            Frame::Comment => Some(COMMENT),
            Frame::CommentLine => Some(COMMENT_LINE),
            Frame::BlankLine if !self.in_event => Some(BLANK_LINE),
            Frame::Event(event) if !self.in_event => Some(event),
            Frame::BlankLine | Frame::Event(_) => None,
        }
    }

    /// Whether a complete extra line may be sent at this position.
    pub fn at_line_start(&self) -> bool {
        self.at_line_start && self.held_bom_bytes == 0
    }

    /// Whether the position is inside an event, which a blank line would end.
    pub fn in_event(&self) -> bool {
        self.in_event
    }

    /// The number of completed events with data.
    pub fn events(&self) -> u64 {
        self.events
    }

    /// Records that a frame was sent.
    pub fn framed(&mut self) {
        if self.seen_bytes == 0 {
            self.framed_before_start = true;
            self.on_first_line = false;
        }
        self.drop_lf |= self.after_cr;
    }

    /// Reads a chunk before it is sent to the client. Removes a BOM that is no longer at the start, and an LF separated from
    /// its CR by a frame.
    pub fn pass(&mut self, chunk: Bytes) -> Bytes {
        if chunk.is_empty() {
            return chunk;
        }
        let chunk = self.without_bom(chunk);
        if chunk.is_empty() {
            return chunk;
        }
        let drop_first = self.drop_lf && chunk.first() == Some(&b'\n');
        self.drop_lf = false;
        for byte in &chunk {
            self.byte(*byte);
        }
        if drop_first { chunk.slice(1..) } else { chunk }
    }

    /// The bytes held back as the start of a BOM, to send at the end of the stream.
    pub fn finish(&mut self) -> Bytes {
        let held = std::mem::take(&mut self.held_bom_bytes);
        Bytes::from_static(BOM.get(..held).unwrap_or_default())
    }

    fn without_bom(&mut self, chunk: Bytes) -> Bytes {
        let may_be_bom = self.framed_before_start && (self.seen_bytes == 0 || self.held_bom_bytes > 0);
        self.seen_bytes += chunk.len() as u64;
        if !may_be_bom {
            return chunk;
        }
        let rest = BOM.get(self.held_bom_bytes..).unwrap_or_default();
        let common = rest.iter().zip(&chunk).take_while(|(mark, byte)| mark == byte).count();
        if common == rest.len() {
            self.held_bom_bytes = 0;
            return chunk.slice(common..);
        }
        if common == chunk.len() {
            self.held_bom_bytes += common;
            return Bytes::new();
        }
        // It was not a BOM: send the held bytes first.
        let held = self.finish();
        if held.is_empty() {
            return chunk;
        }
        let mut whole = BytesMut::with_capacity(held.len() + chunk.len());
        whole.extend_from_slice(&held);
        whole.extend_from_slice(&chunk);
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
