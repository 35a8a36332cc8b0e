//! Reads the fields of a `multipart/form-data` body (RFC 7578), piece by piece.

use std::ops::ControlFlow;

use http::HeaderValue;
use memchr::memmem::Finder;

use super::{Progress, TEXT_BYTES_MAX};

/// The longest header section of one form part.
const PART_HEAD_BYTES_MAX: usize = 1024;

/// The boundary of a `multipart/form-data` body.
pub fn form_boundary(content_type: &HeaderValue) -> Option<String> {
    let text = content_type.to_str().ok()?;
    let (kind, parameters) = text.split_once(';')?;
    if !kind.trim().eq_ignore_ascii_case("multipart/form-data") {
        return None;
    }
    let boundary = parameters.split(';').find_map(|parameter| {
        let (name, value) = parameter.split_once('=')?;
        name.trim().eq_ignore_ascii_case("boundary").then(|| value.trim().trim_matches('"').to_owned())
    });
    boundary.filter(|boundary| !boundary.is_empty())
}

/// Reads the parts of a form, and the values of the wanted ones.
#[derive(Debug)]
pub struct FormFields {
    wanted: &'static str,
    /// Reading has stopped: parsers read a part differently, a part is too long, or the caller rejected a value.
    off: bool,
    complete: bool,
    delimiter: Finder<'static>,
    /// The unprocessed tail: the start of a delimiter, a part header or a value.
    carried: Vec<u8>,
    state: FormState,
}

#[derive(Debug, PartialEq, Eq)]
enum FormState {
    /// Before the first delimiter, with which a form begins.
    Start,
    /// Inside content, before the next delimiter.
    Content,
    /// Inside the header section of a part.
    Head,
    /// Inside the value of a wanted part.
    Value,
}

impl FormFields {
    /// Reads the parts with this name.
    pub fn new(boundary: &str, wanted: &'static str) -> Self {
        let off = boundary.is_empty() || boundary.len() > 70;
        let delimiter = Finder::new(&[b"\r\n--", boundary.as_bytes()].concat()).into_owned();
        // The first delimiter has no CRLF before it, so start with one.
        Self { wanted, off, complete: false, delimiter, carried: b"\r\n".to_vec(), state: FormState::Start }
    }

    /// How far the form was read.
    pub fn progress(&self) -> Progress {
        // The line end after the last delimiter may be missing.
        let ended = self.state == FormState::Head && self.carried.starts_with(b"--");
        match (self.off, self.complete || ended) {
            (true, _) => Progress::Unreadable,
            (false, true) => Progress::Complete,
            (false, false) => Progress::Reading,
        }
    }

    /// Reads the next piece, and calls `each` with each wanted value that ends in it. `Break` makes the body unreadable.
    pub fn feed(&mut self, bytes: &[u8], mut each: impl FnMut(&[u8]) -> ControlFlow<()>) {
        if self.off || self.complete {
            return;
        }
        self.carried.extend_from_slice(bytes);
        while !self.off && self.step(&mut each) {}
    }

    /// Advances to the next state. `false`: more bytes are needed.
    fn step(&mut self, each: &mut impl FnMut(&[u8]) -> ControlFlow<()>) -> bool {
        match self.state {
            FormState::Start => {
                let first = self.delimiter.needle();
                self.off |= !self.carried.starts_with(first) && !first.starts_with(&self.carried);
                self.state = if self.carried.len() >= first.len() { FormState::Content } else { FormState::Start };
                self.state == FormState::Content
            }
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
                // A line end follows a delimiter; two dashes and a line end, or the end, follow the last one.
                _ if self.carried.starts_with(b"--") => {
                    let rest = self.carried.get(2..).unwrap_or_default();
                    self.off |= !rest.starts_with(b"\r\n") && !b"\r\n".starts_with(rest);
                    self.complete = rest.len() >= 2;
                    false
                }
                _ if !self.carried.starts_with(b"\r\n") && self.carried.len() >= 2 => {
                    self.off = true;
                    false
                }
                Some(end) => {
                    let name = part_name(self.carried.get(..end).unwrap_or_default());
                    self.off |= name == PartName::Unclear;
                    self.state = if name == PartName::Plain(self.wanted.to_owned()) { FormState::Value } else { FormState::Content };
                    // Some parsers take a delimiter directly after the header section for the end of an empty part.
                    self.carried.drain(..end + 2);
                    true
                }
                None => {
                    self.off |= self.carried.len() > PART_HEAD_BYTES_MAX;
                    false
                }
            },
            FormState::Value => {
                let Some(end) = self.delimiter.find(&self.carried) else {
                    self.off |= self.carried.len() > TEXT_BYTES_MAX + self.delimiter.needle().len();
                    return false;
                };
                self.off |= each(self.carried.get(2..end).unwrap_or_default()).is_break();
                self.state = FormState::Content;
                true
            }
        }
    }
}

#[derive(Debug, PartialEq, Eq)]
enum PartName {
    Plain(String),
    /// Parsers read this header section differently: an extended parameter (RFC 5987), an escape, a folded line.
    Unclear,
    None,
}

/// The name of a part, by its header section.
fn part_name(head: &[u8]) -> PartName {
    let head = String::from_utf8_lossy(head);
    let bare = head.replace("\r\n", "").contains(['\r', '\n']);
    if bare || head.contains("\r\n ") || head.contains("\r\n\t") || is_recoded(&head) {
        return PartName::Unclear;
    }
    let mut dispositions = head.split("\r\n").filter_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.trim().eq_ignore_ascii_case("content-disposition").then_some(value)
    });
    let disposition = match (dispositions.next(), dispositions.next()) {
        (Some(disposition), None) => disposition,
        (None, _) => return PartName::None,
        (Some(_), Some(_)) => return PartName::Unclear,
    };
    let mut names = disposition.split(';').skip(1).filter_map(|parameter| {
        let (name, value) = parameter.split_once('=')?;
        let name = name.trim().to_ascii_lowercase();
        name.starts_with("name").then(|| (name, value.trim()))
    });
    match (names.next(), names.next()) {
        (None, _) => PartName::None,
        (Some((name, value)), None) if name == "name" && !value.contains('\\') => PartName::Plain(value.trim_matches('"').to_owned()),
        _ => PartName::Unclear,
    }
}

/// Whether the content of a part has an encoding, which some parsers decode.
fn is_recoded(head: &str) -> bool {
    head.split("\r\n").filter_map(|line| line.split_once(':')).any(|(name, value)| {
        let plain = ["binary", "7bit", "8bit"].iter().any(|plain| value.trim().eq_ignore_ascii_case(plain));
        name.trim().eq_ignore_ascii_case("content-transfer-encoding") && !plain
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values(body: &str) -> (Vec<String>, Progress) {
        let mut seen = Vec::new();
        for bytewise in [false, true] {
            let (mut fields, mut found) = (FormFields::new("b0", "model"), Vec::new());
            let mut feed = |bytes: &[u8]| {
                fields.feed(bytes, |value| {
                    found.push(String::from_utf8_lossy(value).into_owned());
                    ControlFlow::Continue(())
                });
            };
            if bytewise {
                body.bytes().for_each(|byte| feed(&[byte]))
            } else {
                feed(body.as_bytes())
            }
            seen.push((found, fields.progress()));
        }
        assert_eq!(seen[0], seen[1], "byte by byte: {body}");
        seen.swap_remove(0)
    }

    #[test]
    fn values_of_the_wanted_parts() {
        let part = |head: &str, value: &str| format!("--b0\r\n{head}\r\n\r\n{value}\r\n");
        let model = |value: &str| part("Content-Disposition: form-data; name=\"model\"", value);
        let file =
            part("Content-Disposition: form-data; name=\"file\"; filename=\"model\"\r\nContent-Type: audio/wav", "RIFF--b0\r\n--b\r\n");
        for (body, found) in [
            (model("a"), vec!["a"]),
            (model("a\r\nb"), vec!["a\r\nb"]),
            (model(""), vec![""]),
            (file.clone() + &model("a") + &file + &model("b"), vec!["a", "b"]),
            (part("content-disposition:form-data;NAME=model", "a"), vec!["a"]),
            (part("Content-Type: text/plain\r\nContent-Disposition: form-data; name=\"model\"", "a"), vec!["a"]),
            (part("Content-Disposition: form-data; name=\"Model\"", "a"), vec![]),
            (part("X: y", "a"), vec![]),
            ("--b0\r\nX: y\r\n\r\n".to_owned() + &model("a"), vec!["a"]),
            (String::new(), vec![]),
        ] {
            assert_eq!(
                values(&(body.clone() + "--b0--\r\n")),
                (found.into_iter().map(str::to_owned).collect(), Progress::Complete),
                "{body}"
            );
        }
        assert_eq!(values(&model("a")).1, Progress::Reading);
    }

    #[test]
    fn parts_that_parsers_read_differently() {
        for head in [
            "Content-Disposition: form-data; name*=utf-8''model",
            "Content-Disposition: form-data; name*0=\"mo\"; name*1=\"del\"",
            "Content-Disposition: form-data; name=\"mo\\del\"",
            "Content-Disposition: form-data;\r\n name=\"model\"",
            "Content-Disposition: form-data; name=\"a\"; name=\"model\"",
            "Content-Disposition: form-data; name=\"a\"\r\nContent-Disposition: form-data; name=\"model\"",
            "X: y\nContent-Disposition: form-data; name=\"model\"",
            "Content-Disposition: form-data; name=\"model\"\r\nContent-Transfer-Encoding: quoted-printable",
        ] {
            assert_eq!(values(&format!("--b0\r\n{head}\r\n\r\nx\r\n--b0--\r\n")).1, Progress::Unreadable, "{head}");
        }
    }

    #[test]
    fn delimiters_that_parsers_read_differently() {
        let part = "Content-Disposition: form-data; name=\"model\"\r\n\r\nx";
        for body in [
            format!("{{\"model\":\"y\"}}\r\n--b0\r\n{part}\r\n--b0--\r\n"),
            format!("--b0--Z\r\n--b0\r\n{part}\r\n--b0--\r\n"),
            format!("--b0\r\nX: y\r\n\r\n\r\n--b0Z\r\n{part}\r\n--b0--\r\n"),
            format!("--b0\n{part}\n--b0--\n\r\n\r\n\r\n--b0--"),
        ] {
            assert_eq!(values(&body).1, Progress::Unreadable, "{body}");
        }
        assert_eq!(values(&format!("--b0\r\n{part}\r\n--b0--")), (vec!["x".to_owned()], Progress::Complete));
    }

    #[test]
    fn boundary_of_a_form() {
        for (field, boundary) in [
            ("multipart/form-data; boundary=b0", Some("b0")),
            ("Multipart/Form-Data; charset=x; Boundary=\"b 0\"", Some("b 0")),
            ("multipart/form-data", None),
            ("multipart/mixed; boundary=b0", None),
            ("application/json", None),
        ] {
            assert_eq!(form_boundary(&HeaderValue::from_str(field).unwrap()).as_deref(), boundary, "{field}");
        }
    }
}
