//! Parses the framing of a chunked body (RFC 9112, section 7.1) more strictly than Pingora. A size
//! line without a digit, or one that ends with a bare LF, is read differently by different servers.
//! It decodes nothing.

/// The most hex digits of a size; more than any allowed body needs.
const DIGITS_MAX: usize = 15;
/// The most bytes of extensions and trailers together. Clients send none in practice.
const EXTRA_BYTES_MAX: usize = 4096;

/// The state of the parser.
#[derive(Debug, Default)]
pub struct Chunks {
    place: Place,
    size: u64,
    digits: usize,
    extra_bytes: usize,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Place {
    /// In the digits of a size.
    #[default]
    Size,
    /// In the chunk extension.
    Extension,
    /// At the LF of the size line.
    SizeLf,
    /// In the data of a chunk.
    Data,
    /// At the CR after the data.
    DataCr,
    /// At the LF after the data.
    DataLf,
    /// At the start of a trailer line or of the final empty line.
    TrailerStart,
    /// In a trailer line.
    Trailer,
    /// At the LF of a trailer line.
    TrailerLf,
    /// At the LF of the final empty line.
    LastLf,
    /// The body is complete.
    Complete,
}

impl Chunks {
    /// Whether the body is complete.
    pub fn is_complete(&self) -> bool {
        self.place == Place::Complete
    }

    /// Returns how many of these bytes belong to the body. `None`: the body is malformed.
    pub fn feed(&mut self, bytes: &[u8]) -> Option<usize> {
        let mut at = 0;
        while let Some(byte) = bytes.get(at).copied() {
            if self.place == Place::Complete {
                break;
            }
            if self.place == Place::Data {
                let data = (bytes.len() - at).min(usize::try_from(self.size).unwrap_or(usize::MAX));
                self.size -= data as u64;
                at += data;
                if self.size == 0 {
                    self.place = Place::DataCr;
                }
                continue;
            }
            self.place = self.step(byte)?;
            at += 1;
        }
        Some(at)
    }

    fn step(&mut self, byte: u8) -> Option<Place> {
        let is_text = |byte: u8| matches!(byte, b'\t' | 0x20..=0x7e | 0x80..);
        Some(match (self.place, byte) {
            (Place::Size, _) if byte.is_ascii_hexdigit() => {
                let digit = char::from(byte).to_digit(16)?;
                self.digits += 1;
                if self.digits > DIGITS_MAX {
                    return None;
                }
                self.size = self.size << 4 | u64::from(digit);
                Place::Size
            }
            (Place::Size, b'\r') if self.digits > 0 => Place::SizeLf,
            (Place::Size, b';') if self.digits > 0 => Place::Extension,
            (Place::Extension, b'\r') => Place::SizeLf,
            (Place::Extension, _) if is_text(byte) => self.extra(Place::Extension)?,
            (Place::SizeLf, b'\n') => {
                self.digits = 0;
                if self.size == 0 { Place::TrailerStart } else { Place::Data }
            }
            (Place::DataCr, b'\r') => Place::DataLf,
            (Place::DataLf, b'\n') => Place::Size,
            (Place::TrailerStart, b'\r') => Place::LastLf,
            (Place::TrailerStart | Place::Trailer, _) if is_text(byte) => self.extra(Place::Trailer)?,
            (Place::Trailer, b'\r') => Place::TrailerLf,
            (Place::TrailerLf, b'\n') => Place::TrailerStart,
            (Place::LastLf, b'\n') => Place::Complete,
            _ => return None,
        })
    }

    fn extra(&mut self, place: Place) -> Option<Place> {
        self.extra_bytes += 1;
        (self.extra_bytes <= EXTRA_BYTES_MAX).then_some(place)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn well_formed_bodies_end_at_their_last_byte() {
        for (body, rest) in [
            ("0\r\n\r\n", ""),
            ("5\r\nhello\r\n0\r\n\r\nGET / HTTP/1.1", "GET / HTTP/1.1"),
            ("A;x=y\r\n0123456789\r\n00\r\n\r\n", ""),
            ("1\r\n\n\r\n0\r\nX: y\r\nZ: 1\r\n\r\n", ""),
        ] {
            let mut whole = Chunks::default();
            assert_eq!(whole.feed(body.as_bytes()), Some(body.len() - rest.len()), "{body:?}");
            assert!(whole.is_complete());
            let mut bytewise = Chunks::default();
            let taken: usize = body.bytes().map(|byte| bytewise.feed(&[byte]).unwrap()).sum();
            assert_eq!(taken, body.len() - rest.len(), "byte by byte: {body:?}");
        }
    }

    #[test]
    fn malformed_bodies() {
        for body in [
            "\r\n",
            " \r\n",
            ";a\r\n",
            "5\n",
            "5;\nxx",
            "5 \r\n",
            "-1\r\n",
            "0x5\r\n",
            "5\r\nhelloX",
            "5\r\nhello\n",
            "0\r\nX: y\n",
            "0\r\n\n",
            "1000000000000000\r\n",
            "5;\0\r\n",
        ] {
            assert_eq!(Chunks::default().feed(body.as_bytes()), None, "{body:?}");
        }
        assert_eq!(Chunks::default().feed(format!("1;{}", "x".repeat(EXTRA_BYTES_MAX + 1)).as_bytes()), None);
    }
}
