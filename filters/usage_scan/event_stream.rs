//! Finds the data of events in an event stream (WHATWG HTML, server-sent events) and feeds it to the tokenizer, without keeping it.

use super::json_paths::{JsonPaths, Path, Sink};

/// The data that ends a stream of the OpenAI dialect.
const DONE: &[u8] = b"[DONE]";

/// The name of the field that is read, and its colon.
const DATA: &[u8] = b"data:";

const BYTE_ORDER_MARK: &[u8] = &[0xEF, 0xBB, 0xBF];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Line {
    /// At the start of the stream, after this many bytes of a byte-order mark.
    StreamStart(u8),
    /// Inside the field name, after this many bytes of `data:`. 0: at the start of a line.
    Name(u8),
    /// After the colon: one space is skipped.
    Colon,
    /// Inside the value of a data field.
    Data,
    /// Inside another field or a comment.
    Other,
}

/// Reads lines and events.
#[derive(Debug)]
pub(super) struct EventStream {
    line: Line,
    /// The last byte was a carriage return: a line feed after it belongs to it.
    after_return: bool,
    /// The event has a data field.
    has_data: bool,
    /// How many bytes of the event's data are those of [`DONE`]. `None`: it has other data.
    done_bytes: Option<u8>,
    done: bool,
}

impl EventStream {
    pub(super) fn new() -> Self {
        Self { line: Line::StreamStart(0), after_return: false, has_data: false, done_bytes: Some(0), done: false }
    }

    /// Whether `[DONE]` was seen.
    pub(super) fn is_done(&self) -> bool {
        self.done
    }

    /// Reads the next piece.
    pub(super) fn feed<P: Path>(&mut self, bytes: &[u8], json: &mut JsonPaths<P>, sink: &mut impl Sink<P>) {
        let mut rest = bytes;
        while let Some((&byte, after)) = rest.split_first() {
            if std::mem::take(&mut self.after_return) && byte == b'\n' {
                rest = after;
                continue;
            }
            if matches!(byte, b'\n' | b'\r') {
                self.after_return = byte == b'\r';
                self.line_end(json, sink);
                rest = after;
                continue;
            }
            rest = match self.line {
                Line::StreamStart(matched) if BYTE_ORDER_MARK.get(usize::from(matched)) == Some(&byte) => {
                    self.line = Line::StreamStart(matched + 1);
                    after
                }
                Line::StreamStart(0 | 3..) => {
                    self.line = Line::Name(0);
                    rest
                }
                Line::StreamStart(_) => {
                    self.line = Line::Other;
                    rest
                }
                Line::Name(0) if rest.starts_with(DATA) => {
                    self.data_start(json, sink);
                    rest.get(DATA.len()..).unwrap_or_default()
                }
                Line::Name(matched) => {
                    self.name(matched, byte, json, sink);
                    after
                }
                Line::Colon => {
                    self.line = Line::Data;
                    if byte == b' ' { after } else { rest }
                }
                Line::Data | Line::Other => self.value(rest, json, sink),
            };
        }
    }

    /// The end of the stream.
    pub(super) fn finish<P: Path>(&mut self, json: &mut JsonPaths<P>, sink: &mut impl Sink<P>) {
        self.event_end(json, sink);
    }

    /// Reads the next byte of a field name.
    fn name<P: Path>(&mut self, matched: u8, byte: u8, json: &mut JsonPaths<P>, sink: &mut impl Sink<P>) {
        if DATA.get(usize::from(matched)) != Some(&byte) {
            self.line = Line::Other;
        } else if byte == b':' {
            self.data_start(json, sink);
        } else {
            self.line = Line::Name(matched + 1);
        }
    }

    fn data_start<P: Path>(&mut self, json: &mut JsonPaths<P>, sink: &mut impl Sink<P>) {
        // The lines of one event are joined by line feeds.
        if std::mem::replace(&mut self.has_data, true) {
            json.feed(b"\n", sink);
            self.done_bytes = None;
        }
        self.line = Line::Colon;
    }

    /// Reads the value of a field up to the end of the line or piece.
    fn value<'b, P: Path>(&mut self, bytes: &'b [u8], json: &mut JsonPaths<P>, sink: &mut impl Sink<P>) -> &'b [u8] {
        let end = memchr::memchr2(b'\n', b'\r', bytes).unwrap_or(bytes.len());
        let (value, rest) = bytes.split_at_checked(end).unwrap_or((bytes, b""));
        if self.line == Line::Data {
            if let Some(matched) = self.done_bytes {
                let follows = DONE.get(usize::from(matched)..).is_some_and(|expected| expected.starts_with(value));
                self.done_bytes = follows.then(|| matched + value.len() as u8);
            }
            json.feed(value, sink);
        }
        rest
    }

    fn line_end<P: Path>(&mut self, json: &mut JsonPaths<P>, sink: &mut impl Sink<P>) {
        match self.line {
            Line::Name(0) | Line::StreamStart(0 | 3..) => self.event_end(json, sink),
            _ => self.done |= self.line == Line::Data && self.done_bytes == Some(DONE.len() as u8),
        }
        self.line = Line::Name(0);
    }

    fn event_end<P: Path>(&mut self, json: &mut JsonPaths<P>, sink: &mut impl Sink<P>) {
        self.done |= self.has_data && self.done_bytes == Some(DONE.len() as u8);
        (self.has_data, self.done_bytes) = (false, Some(0));
        json.reset(sink);
    }
}
