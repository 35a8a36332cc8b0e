//! One form of a path, made once: routes match it, rules see it, and the upstream gets it.
//!
//! RFC 3986, section 6.2.2: unreserved characters are decoded, and so are those that delimit nothing in a path (no
//! rule is passed by `%3A`); hex digits are upper case, dot segments are removed; and as reverse proxies do, slashes that follow each other are one. What two servers may read
//! differently is refused.

use std::borrow::Cow;

/// Why a path is refused; the metric's words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BadPath {
    /// It does not begin with a slash, or holds bytes that no target has.
    Malformed,
    /// A `%` without two hex digits.
    Escape,
    /// A control character, a backslash, or a `%25` that would make a second decoding mean something.
    Ambiguous,
    /// Dot segments that lead above the root.
    AboveRoot,
    /// What is escaped is not UTF-8.
    NotUtf8,
}

impl BadPath {
    /// The metric's word.
    pub fn reason(self) -> &'static str {
        match self {
            BadPath::Malformed => "target",
            BadPath::Escape => "path_escape",
            BadPath::Ambiguous => "path_ambiguous",
            BadPath::AboveRoot => "path_above_root",
            BadPath::NotUtf8 => "path_not_utf8",
        }
    }
}

/// A path in its one form.
#[derive(Debug, PartialEq, Eq)]
pub struct Normal<'p> {
    /// The path.
    pub path: Cow<'p, str>,
    /// `%2F` stands in it: some servers read it as a slash, others do not.
    pub encoded_slash: bool,
}

/// Characters that stand in a path as they are (`pchar` and the slash), RFC 3986, section 3.3.
fn plain(byte: u8) -> bool {
    unreserved(byte) || b"!$&'()*+,;=:@/".contains(&byte)
}

/// What means the same in a path whether it is escaped or not: reserved, but no delimiter of anything there. The semicolon
/// begins a segment's parameters, and stays what it was.
fn settled(byte: u8) -> bool {
    b"!$&'()*+,=:@".contains(&byte)
}

fn unreserved(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-._~".contains(&byte)
}

/// Normalises a path, without its query.
pub fn normalise(raw: &str) -> Result<Normal<'_>, BadPath> {
    if !raw.starts_with('/') {
        return Err(BadPath::Malformed);
    }
    // Nearly every path is normal already; those are not copied.
    let quick = raw.bytes().all(|byte| plain(byte) && byte != b';') && !raw.contains("//") && !raw.contains("/.");
    if quick {
        return Ok(Normal { path: Cow::Borrowed(raw), encoded_slash: false });
    }
    let (decoded, encoded_slash) = decode(raw.as_bytes())?;
    let path = remove_dots(&decoded)?;
    Ok(Normal { path: Cow::Owned(path), encoded_slash })
}

/// Decodes what is unreserved, escapes what must not stand in a path as it is, refuses the rest.
fn decode(raw: &[u8]) -> Result<(String, bool), BadPath> {
    let mut out = String::with_capacity(raw.len());
    let mut meant = Vec::with_capacity(raw.len());
    let mut encoded_slash = false;
    let mut rest = raw;
    while let Some((&byte, after)) = rest.split_first() {
        rest = after;
        let (value, escaped) = if byte == b'%' {
            let value = hex_pair(rest).ok_or(BadPath::Escape)?;
            rest = rest.get(2..).unwrap_or_default();
            (value, true)
        } else {
            (byte, false)
        };
        match value {
            0..=0x1f | 0x7f | b'\\' => return Err(BadPath::Ambiguous),
            b'%' if second_decoding(rest) => return Err(BadPath::Ambiguous),
            b' ' | b'#' | b'?' if !escaped => return Err(BadPath::Malformed),
            0x80.. if !escaped => return Err(BadPath::Malformed),
            _ => {}
        }
        meant.push(value);
        if unreserved(value) || settled(value) || (plain(value) && !escaped) {
            out.push(char::from(value));
        } else {
            encoded_slash |= value == b'/';
            out.push('%');
            out.push(char::from(hex_digit(value >> 4)));
            out.push(char::from(hex_digit(value & 0xf)));
        }
    }
    std::str::from_utf8(&meant).map_err(|_| BadPath::NotUtf8)?;
    Ok((out, encoded_slash))
}

/// Whether an escaped `%` and what follows it would be an escape to somebody who decodes twice.
fn second_decoding(after: &[u8]) -> bool {
    let next = |bytes: &[u8]| match bytes.first() {
        Some(b'%') => hex_pair(bytes.get(1..).unwrap_or_default()).map(|value| (value, 3)),
        Some(byte) => Some((*byte, 1)),
        None => None,
    };
    let Some((first, length)) = next(after) else { return false };
    let second = next(after.get(length..).unwrap_or_default());
    first.is_ascii_hexdigit() && second.is_some_and(|(value, _)| value.is_ascii_hexdigit())
}

fn hex_pair(bytes: &[u8]) -> Option<u8> {
    let digit = |byte: &u8| char::from(*byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    Some(digit(bytes.first()?)? << 4 | digit(bytes.get(1)?)?)
}

fn hex_digit(nibble: u8) -> u8 {
    if nibble < 10 { b'0' + nibble } else { b'A' + nibble - 10 }
}

/// RFC 3986, section 5.2.4, and one slash for several. `..;x` is refused: Java servers read it as `..`.
fn remove_dots(path: &str) -> Result<String, BadPath> {
    let mut segments: Vec<&str> = Vec::new();
    let mut ends_open = false;
    for segment in path.split('/').skip(1) {
        ends_open = matches!(segment, "" | "." | "..");
        match segment {
            "" | "." => {}
            ".." => {
                segments.pop().ok_or(BadPath::AboveRoot)?;
            }
            _ if matches!(segment.split_once(';'), Some((".." | ".", _))) => return Err(BadPath::Ambiguous),
            _ => segments.push(segment),
        }
    }
    let mut out = String::with_capacity(path.len());
    for segment in &segments {
        out.push('/');
        out.push_str(segment);
    }
    if ends_open || segments.is_empty() {
        out.push('/');
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_form() {
        for (raw, normal) in [
            ("/", "/"),
            ("/v1/chat/completions", "/v1/chat/completions"),
            ("/v1beta/models/gemini-pro:generateContent", "/v1beta/models/gemini-pro:generateContent"),
            ("//v1//chat", "/v1/chat"),
            ("/v1/", "/v1/"),
            ("/v1/./chat", "/v1/chat"),
            ("/v1/.", "/v1/"),
            ("/a/../v1", "/v1"),
            ("/a/..", "/"),
            ("/%76%31/chat", "/v1/chat"),
            ("/a/%2e%2e/v1", "/v1"),
            ("/a/%2E./v1", "/v1"),
            ("/a/.%2e/v1", "/v1"),
            ("/%7euser", "/~user"),
            ("/a%3ab", "/a:b"),
            ("/a%3bb", "/a%3Bb"),
            ("/%21%24%26%27%28%29%2a%2B%2c%3D%40", "/!$&'()*+,=@"),
            ("/a%20b", "/a%20b"),
            ("/%e4%bd%a0", "/%E4%BD%A0"),
            ("/a|b{c}", "/a%7Cb%7Bc%7D"),
            ("/a;x=1/b", "/a;x=1/b"),
            ("/...", "/..."),
            ("/.well-known/x", "/.well-known/x"),
            ("/a%25", "/a%25"),
            ("/100%25/x", "/100%25/x"),
        ] {
            let once = normalise(raw).map(|n| n.path.into_owned());
            assert_eq!(once.as_deref(), Ok(normal), "{raw}");
            assert_eq!(normalise(normal).map(|n| n.path.into_owned()).as_deref(), Ok(normal), "once is enough: {raw}");
        }
        assert!(normalise("/a%2Fb").unwrap().encoded_slash && normalise("/a%2fb").unwrap().path == "/a%2Fb");
    }

    #[test]
    fn what_is_refused() {
        for (raw, why) in [
            ("", BadPath::Malformed),
            ("v1", BadPath::Malformed),
            ("*", BadPath::Malformed),
            ("/a b", BadPath::Malformed),
            ("/é", BadPath::Malformed),
            ("/..", BadPath::AboveRoot),
            ("/a/../../b", BadPath::AboveRoot),
            ("/%2e%2e/b", BadPath::AboveRoot),
            ("/%", BadPath::Escape),
            ("/%4", BadPath::Escape),
            ("/%zz", BadPath::Escape),
            ("/%u002e", BadPath::Escape),
            ("/a%00", BadPath::Ambiguous),
            ("/a%0d%0ab", BadPath::Ambiguous),
            ("/a%5cb", BadPath::Ambiguous),
            ("/a\\b", BadPath::Ambiguous),
            ("/a/..;/b", BadPath::Ambiguous),
            ("/a/..;x=1/b", BadPath::Ambiguous),
            ("/a/.;/b", BadPath::Ambiguous),
            ("/%252e%252e/b", BadPath::Ambiguous),
            ("/a%25%32%66b", BadPath::Ambiguous),
            ("/%c0%af", BadPath::NotUtf8),
            ("/%ff", BadPath::NotUtf8),
        ] {
            assert_eq!(normalise(raw), Err(why), "{raw}");
        }
    }
}
