//! The normalised form of a path, by which routes, rules and logs judge it, and the form in which it goes upstream.
//!
//! Normalised (RFC 3986, section 6.2.2): unreserved characters and those that delimit nothing in a path are decoded, hex
//! digits are upper case, dot segments are removed, repeated slashes are merged. What two servers may read differently is refused.
//!
//! The upstream gets the same segments in the client's own spelling, so that signatures over the path stay valid. Both
//! forms decode to the same bytes, segment by segment; neither has a dot segment or a slash that the other does not have.

use std::borrow::Cow;

/// Why a path is refused; the metric's words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BadPath {
    /// It does not begin with a slash, or holds bytes that no target has.
    Malformed,
    /// A `%` without two hex digits.
    Escape,
    /// A control character, a backslash, a `%25` that would make a second decoding mean something, or slashes that
    /// are kept where a server that merges them would read another path.
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

/// What happens to slashes that follow each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Slashes {
    /// They are one, in matching and on the way.
    Merge,
    /// They stay, in matching and on the way.
    Keep,
}

/// A path in both of its forms.
#[derive(Debug, PartialEq, Eq)]
pub struct Normal<'p> {
    /// The normalised one, by which it is judged.
    pub path: Cow<'p, str>,
    /// The same segments as the client spelled them, for the upstream.
    pub spelled: Cow<'p, str>,
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
pub fn normalise(raw: &str, slashes: Slashes) -> Result<Normal<'_>, BadPath> {
    if !raw.starts_with('/') {
        return Err(BadPath::Malformed);
    }
    // Nearly every path is normal already; those are not copied.
    let quick = raw.bytes().all(|byte| plain(byte) && byte != b';') && !raw.contains("//") && !raw.contains("/.");
    if quick {
        return Ok(Normal { path: Cow::Borrowed(raw), spelled: Cow::Borrowed(raw), encoded_slash: false });
    }
    let (decoded, encoded_slash) = decode(raw.as_bytes())?;
    let (path, spelled) = settle(raw, decoded, slashes)?;
    Ok(Normal { path: Cow::Owned(path), spelled, encoded_slash })
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

/// Removes dot segments (RFC 3986, section 5.2.4) and repeated slashes from both forms. `..;x` and `..%2F` are refused: there
/// are servers that read a dot segment in them. Decoding makes and unmakes no slash, so the segments of both forms are the same ones.
fn settle(raw: &str, decoded: String, slashes: Slashes) -> Result<(String, Cow<'_, str>), BadPath> {
    let (mut dots, mut empty, mut ends_open) = (false, false, false);
    for segment in decoded.split('/').skip(1) {
        empty |= ends_open;
        ends_open = segment.is_empty();
        dots |= is_dots(segment);
        if hides_dots(segment) {
            return Err(BadPath::Ambiguous);
        }
    }
    if slashes == Slashes::Keep && empty && (dots || decoded.starts_with("//")) {
        // `/a//../b` is `/a/b` to a server that keeps slashes and `/b` to one that merges them; `//a/b` may be read as a host.
        return Err(BadPath::Ambiguous);
    }
    if !dots && (!empty || slashes == Slashes::Keep) {
        return Ok((decoded, Cow::Borrowed(raw)));
    }
    remove(raw, &decoded).map(|(path, spelled)| (path, Cow::Owned(spelled)))
}

fn is_dots(segment: &str) -> bool {
    matches!(segment, "." | "..")
}

/// Whether a server that decodes `%2F` or `%3B`, or takes parameters off, would find a dot segment in this one.
fn hides_dots(segment: &str) -> bool {
    let name = |part: &str| is_dots(part.split(';').next().and_then(|part| part.split("%3B").next()).unwrap_or_default());
    !is_dots(segment) && segment.split("%2F").any(name)
}

/// Both forms without their dot segments and empty segments.
fn remove(raw: &str, decoded: &str) -> Result<(String, String), BadPath> {
    let mut segments: Vec<(&str, &str)> = Vec::new();
    let mut ends_open = false;
    for (segment, spelled) in decoded.split('/').zip(raw.split('/')).skip(1) {
        ends_open = segment.is_empty() || is_dots(segment);
        match segment {
            "" | "." => {}
            ".." => {
                segments.pop().ok_or(BadPath::AboveRoot)?;
            }
            _ => segments.push((segment, spelled)),
        }
    }
    let (mut path, mut spelled) = (String::with_capacity(decoded.len()), String::with_capacity(raw.len()));
    for (segment, own) in &segments {
        path.push('/');
        path.push_str(segment);
        spelled.push('/');
        spelled.push_str(own);
    }
    if ends_open || segments.is_empty() {
        path.push('/');
        spelled.push('/');
    }
    Ok((path, spelled))
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
            let once = normalise(raw, Slashes::Merge).unwrap_or_else(|why| panic!("{raw}: {why:?}"));
            assert_eq!(once.path, normal, "{raw}");
            assert_eq!(normalise(normal, Slashes::Merge).map(|n| n.path.into_owned()).as_deref(), Ok(normal), "once is enough: {raw}");
            assert_eq!(normalise(&once.spelled, Slashes::Merge).map(|n| n.path.into_owned()).as_deref(), Ok(normal), "upstream: {raw}");
        }
        let slash = normalise("/a%2fb", Slashes::Merge).unwrap();
        assert!(slash.encoded_slash && slash.path == "/a%2Fb" && slash.spelled == "/a%2fb");
    }

    #[test]
    fn the_upstream_gets_the_clients_spelling() {
        for (raw, spelled) in [
            ("/model/x-v1%3A0/invoke", "/model/x-v1%3A0/invoke"),
            ("/model/x-v1%3a0/invoke", "/model/x-v1%3a0/invoke"),
            ("/a%2Bb+c", "/a%2Bb+c"),
            ("/%7euser/%41", "/%7euser/%41"),
            ("/a|b{c}^", "/a|b{c}^"),
            ("/%e4%bd%a0", "/%e4%bd%a0"),
            ("/a;x=1/b", "/a;x=1/b"),
            // Dot segments and repeated slashes are removed; what is left keeps its spelling.
            ("/v1/./x%3A0/../y%3A0", "/v1/y%3A0"),
            ("/v1/%2e%2E/x%3A0", "/x%3A0"),
            ("//v1//x%3A0//", "/v1/x%3A0/"),
            ("/x%3A0/..", "/"),
        ] {
            assert_eq!(normalise(raw, Slashes::Merge).map(|n| n.spelled.into_owned()).as_deref(), Ok(spelled), "{raw}");
        }
    }

    /// The bytes of each segment, percent-decoded once.
    fn segments(path: &str) -> Vec<Vec<u8>> {
        let decode = |segment: &str| {
            let mut pieces = segment.split('%');
            let mut out = pieces.next().unwrap_or_default().as_bytes().to_vec();
            for piece in pieces {
                out.push(u8::from_str_radix(&piece[..2], 16).unwrap());
                out.extend_from_slice(&piece.as_bytes()[2..]);
            }
            out
        };
        path.split('/').map(decode).collect()
    }

    proptest::proptest! {
        #[test]
        fn the_upstream_reads_what_was_judged(raw in "/([a-b./;:+|]|%2[eEfF5bB]|%3[aAbB]|%41|%e4%bd%a0|//|/\\.\\.){0,12}") {
            for slashes in [Slashes::Merge, Slashes::Keep] {
                let Ok(normal) = normalise(&raw, slashes) else { continue };
                let read = segments(&normal.spelled);
                proptest::prop_assert_eq!(&read, &segments(&normal.path));
                proptest::prop_assert!(!read.iter().any(|segment| segment == b"." || segment == b".."), "{}", raw);
                proptest::prop_assert!(!normal.spelled.starts_with("//"));
                proptest::prop_assert!(slashes == Slashes::Keep || !normal.spelled.contains("//"));
                let again = normalise(&normal.spelled, slashes);
                proptest::prop_assert_eq!(again.as_ref().map(|again| &*again.path), Ok(&*normal.path));
            }
        }
    }

    #[test]
    fn slashes_that_are_kept() {
        for (raw, path, spelled) in [
            ("/v1//x%3A0", "/v1//x:0", "/v1//x%3A0"),
            ("/v1/x//", "/v1/x//", "/v1/x//"),
            ("/v1/./x", "/v1/x", "/v1/x"),
            ("/v1/x/..", "/v1/", "/v1/"),
        ] {
            let kept = normalise(raw, Slashes::Keep).unwrap();
            assert_eq!((&*kept.path, &*kept.spelled), (path, spelled), "{raw}");
        }
        for raw in ["//", "//v1/x", "//evil/v1", "/v1//../x", "/v1/..//x", "/.//v1", "/v1//%2e%2e/x", "/v1/%2e//x"] {
            assert_eq!(normalise(raw, Slashes::Keep), Err(BadPath::Ambiguous), "{raw}");
        }
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
            ("/a/..%3b/b", BadPath::Ambiguous),
            ("/a/..%3Bfoo/b", BadPath::Ambiguous),
            ("/%2e%3b/b", BadPath::Ambiguous),
            ("/a/..%2fb", BadPath::Ambiguous),
            ("/a%2f..%2fb", BadPath::Ambiguous),
            ("/a/%2e%2e%2fb", BadPath::Ambiguous),
            ("/a/x%2f.;y", BadPath::Ambiguous),
            ("/a/.;/b", BadPath::Ambiguous),
            ("/%252e%252e/b", BadPath::Ambiguous),
            ("/a%25%32%66b", BadPath::Ambiguous),
            ("/%c0%af", BadPath::NotUtf8),
            ("/%ff", BadPath::NotUtf8),
        ] {
            for slashes in [Slashes::Merge, Slashes::Keep] {
                assert_eq!(normalise(raw, slashes), Err(why), "{raw}");
            }
        }
    }
}
