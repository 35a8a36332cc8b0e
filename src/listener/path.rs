//! Normalises a path. Routes, rules and logs use the normalised form; the upstream gets the
//! client's spelling.
//!
//! Normalised (RFC 3986, section 6.2.2): unreserved characters and those without a meaning in paths
//! are decoded, hex digits are upper case, dot segments are removed, repeated slashes are merged.
//! Paths that two servers may read differently are refused.
//!
//! The upstream gets the same segments in the client's spelling, so that signatures over the path
//! stay valid. Both forms decode to the same bytes, segment by segment, and have the same slashes;
//! neither has a dot segment.

use std::borrow::Cow;

/// Why a path is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BadPath {
    /// It does not begin with a slash, or contains bytes that no target has.
    Malformed,
    /// A `%` without two hex digits.
    Escape,
    /// A control character, a backslash, a `%25` that would allow a second decoding, or repeated
    /// slashes that a server that merges them would read as another path.
    Ambiguous,
    /// Dot segments that lead above the root.
    AboveRoot,
    /// The decoded bytes are not UTF-8.
    NotUtf8,
}

impl BadPath {
    /// The label of the metric.
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

/// The treatment of repeated slashes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Slashes {
    /// Merged, for matching and for the upstream.
    Merge,
    /// Kept, for matching and for the upstream.
    Keep,
}

/// A path in both forms.
#[derive(Debug, PartialEq, Eq)]
pub struct Normal<'p> {
    /// The normalised form, for routes, rules and logs.
    pub path: Cow<'p, str>,
    /// The same segments in the client's spelling, for the upstream.
    pub spelled: Cow<'p, str>,
    /// It contains `%2F`, which some servers read as a slash.
    pub encoded_slash: bool,
}

/// Characters that need no escape in a path (`pchar` and the slash; RFC 3986, section 3.3).
fn plain(byte: u8) -> bool {
    unreserved(byte) || b"!$&'()*+,;=:@/".contains(&byte)
}

/// Reserved characters without a meaning in paths: escaped or not, they are the same. A semicolon
/// begins parameters, so it is not among them.
fn meaning_free(byte: u8) -> bool {
    b"!$&'()*+,=:@".contains(&byte)
}

fn unreserved(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-._~".contains(&byte)
}

/// Normalises a path without its query.
pub fn normalise(raw: &str, slashes: Slashes) -> Result<Normal<'_>, BadPath> {
    if !raw.starts_with('/') {
        return Err(BadPath::Malformed);
    }
    // Nearly every path is normal already, and is not copied.
    let quick = raw.bytes().all(|byte| plain(byte) && byte != b';') && !raw.contains("//") && !raw.contains("/.");
    if quick {
        return Ok(Normal { path: Cow::Borrowed(raw), spelled: Cow::Borrowed(raw), encoded_slash: false });
    }
    let (decoded, encoded_slash) = decode(raw.as_bytes())?;
    let (path, spelled) = remove_segments(raw, decoded, slashes)?;
    Ok(Normal { path: Cow::Owned(path), spelled, encoded_slash })
}

/// Decodes unreserved characters, escapes those that need it, and refuses the rest.
fn decode(raw: &[u8]) -> Result<(String, bool), BadPath> {
    let mut out = String::with_capacity(raw.len());
    let mut value_bytes = Vec::with_capacity(raw.len());
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
        value_bytes.push(value);
        if unreserved(value) || meaning_free(value) || (plain(value) && !escaped) {
            out.push(char::from(value));
        } else {
            encoded_slash |= value == b'/';
            out.push('%');
            out.push(char::from(hex_digit(value >> 4)));
            out.push(char::from(hex_digit(value & 0xf)));
        }
    }
    std::str::from_utf8(&value_bytes).map_err(|_| BadPath::NotUtf8)?;
    Ok((out, encoded_slash))
}

/// Whether an escaped `%` and the characters after it would be an escape to a server that decodes
/// twice.
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

/// Removes dot segments (RFC 3986, section 5.2.4) and repeated slashes from both forms. `..;x` and
/// `..%2F` are refused: some servers read a dot segment in them. Decoding neither adds nor removes
/// slashes, so both forms have the same segments.
fn remove_segments(raw: &str, decoded: String, slashes: Slashes) -> Result<(String, Cow<'_, str>), BadPath> {
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
        // `/a//../b` is `/a/b` to a server that keeps slashes and `/b` to one that merges them;
        // `//a/b` may be read as a host.
        return Err(BadPath::Ambiguous);
    }
    if !dots && (!empty || slashes == Slashes::Keep) {
        return Ok((decoded, Cow::Borrowed(raw)));
    }
    rebuild(raw, &decoded).map(|(path, spelled)| (path, Cow::Owned(spelled)))
}

fn is_dots(segment: &str) -> bool {
    matches!(segment, "." | "..")
}

/// Whether a server that decodes `%2F` or `%3B`, or removes parameters, would find a dot segment
/// here.
fn hides_dots(segment: &str) -> bool {
    let name = |part: &str| is_dots(part.split(';').next().and_then(|part| part.split("%3B").next()).unwrap_or_default());
    !is_dots(segment) && segment.split("%2F").any(name)
}

/// Both forms without dot segments and empty segments.
fn rebuild(raw: &str, decoded: &str) -> Result<(String, String), BadPath> {
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
    fn normalised_forms() {
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
            assert_eq!(normalise(normal, Slashes::Merge).map(|n| n.path.into_owned()).as_deref(), Ok(normal), "idempotent: {raw}");
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
            // Dot segments and repeated slashes are removed; the rest keeps its spelling.
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
        fn the_upstream_reads_the_checked_path(raw in "/([a-b./;:+|]|%2[eEfF5bB]|%3[aAbB]|%41|%e4%bd%a0|//|/\\.\\.){0,12}") {
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
    fn kept_slashes() {
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
    fn refused_paths() {
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
