//! Scans a `multipart/form-data` body for its part `stream`.

use memchr::memmem::Finder;

use super::{BYTES_MAX, ScanResult, TEXT_BYTES_MAX};

/// The longest header section of one form part (RFC 7578).
const PART_HEAD_BYTES_MAX: usize = 1024;

/// Scans the parts of a form for a part named `stream`.
#[derive(Debug)]
pub struct FormScan {
    result: ScanResult,
    off: bool,
    seen_bytes: usize,
    delimiter: Finder<'static>,
    /// The unprocessed tail: the start of a delimiter, a part header or a value.
    carried: Vec<u8>,
    state: FormState,
}

#[derive(Debug, PartialEq, Eq)]
enum FormState {
    /// Inside content, before the next delimiter.
    Content,
    /// Inside the header section of a part.
    Head,
    /// Inside the value of the part `stream`.
    Value,
}

impl FormScan {
    pub fn new(boundary: &str) -> Self {
        let off = boundary.is_empty() || boundary.len() > 70;
        let delimiter = Finder::new(&[b"\r\n--", boundary.as_bytes()].concat()).into_owned();
        // The first delimiter has no CRLF before it, so start with one.
        Self { result: ScanResult::default(), off, seen_bytes: 0, delimiter, carried: b"\r\n".to_vec(), state: FormState::Content }
    }

    pub fn result(&self) -> &ScanResult {
        &self.result
    }

    pub fn feed(&mut self, bytes: &[u8]) {
        if self.off || self.result.complete || self.result.stream == Some(true) {
            return;
        }
        self.seen_bytes += bytes.len();
        self.off |= self.seen_bytes > BYTES_MAX;
        self.carried.extend_from_slice(bytes);
        while self.result.stream != Some(true) && self.step() {}
    }

    /// Advances to the next state. `false`: more bytes are needed.
    fn step(&mut self) -> bool {
        match self.state {
            FormState::Content => match self.delimiter.find(&self.carried) {
                Some(at) => {
                    self.carried.drain(..at + self.delimiter.needle().len());
                    self.state = FormState::Head;
                    true
                }
                None => {
                    let kept = self.carried.len().min(self.delimiter.needle().len());
                    self.carried.drain(..self.carried.len() - kept);
                    false
                }
            },
            FormState::Head => match memchr::memmem::find(&self.carried, b"\r\n\r\n") {
                Some(end) => {
                    let matters = names_stream(self.carried.get(..end).unwrap_or_default());
                    self.carried.drain(..end + 4);
                    self.state = if matters { FormState::Value } else { FormState::Content };
                    true
                }
                None => {
                    // Two dashes follow the last delimiter.
                    self.result.complete = self.carried.starts_with(b"--");
                    self.off |= self.carried.len() > PART_HEAD_BYTES_MAX;
                    false
                }
            },
            FormState::Value => {
                let Some(end) = memchr::memmem::find(&self.carried, b"\r\n") else {
                    self.off |= self.carried.len() > TEXT_BYTES_MAX;
                    return false;
                };
                let value = self.carried.get(..end).unwrap_or_default().trim_ascii();
                self.result.stream = Some(value.eq_ignore_ascii_case(b"true") || value == b"1");
                self.state = FormState::Content;
                true
            }
        }
    }
}

/// Whether the header section of a part has `name="stream"`.
fn names_stream(head: &[u8]) -> bool {
    let head = String::from_utf8_lossy(head).to_ascii_lowercase();
    let disposition = head.split("\r\n").find_map(|line| line.strip_prefix("content-disposition:"));
    disposition.is_some_and(|rest| rest.split(';').any(|part| matches!(part.trim(), "name=\"stream\"" | "name=stream")))
}
