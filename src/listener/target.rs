//! Normalises the request target: from the client's form to origin form, then to the normalised
//! form and the form for the upstream.

use std::borrow::Cow;

use http::{StatusCode, Uri, header};
use pingora::http::RequestHeader;

use super::path::normalise;
use super::refusal::{Policy, Refused, bad};

/// A normalised target.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NormalTarget {
    /// The path contains `%2F`.
    pub encoded_slash: bool,
    /// The target in the client's spelling, if it differs from the normalised one.
    pub spelled: Option<Uri>,
}

/// The target in origin form. The absolute form (RFC 9112, section 3.2.2) repeats scheme and host:
/// both must match the connection and `Host` (RFC 9110, section 7.4).
pub fn origin_form<'t>(target: &'t str, host: &[u8], scheme: &str) -> Result<Cow<'t, str>, Refused> {
    if target.starts_with('/') {
        return Ok(Cow::Borrowed(target));
    }
    let Some((named, rest)) = target.split_once("://") else { return Ok(Cow::Borrowed(target)) };
    if !["http", "https"].iter().any(|known| named.eq_ignore_ascii_case(known)) {
        return Err(bad("target"));
    }
    if !named.eq_ignore_ascii_case(scheme) {
        return Err(Refused { status: StatusCode::MISDIRECTED_REQUEST, reason: "target_scheme" });
    }
    let (authority, path) = rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len()));
    if !authority.as_bytes().eq_ignore_ascii_case(host) {
        return Err(bad("host_and_target_differ"));
    }
    Ok(if path.starts_with('/') { Cow::Borrowed(path) } else { Cow::Owned(format!("/{path}")) })
}

/// Normalises the target.
pub fn normalise_target(head: &mut RequestHeader, policy: &Policy) -> Result<NormalTarget, Refused> {
    let raw = std::str::from_utf8(head.raw_path()).map_err(|_| bad("target"))?;
    let host = head.headers.get(header::HOST).map(http::HeaderValue::as_bytes).unwrap_or_default();
    let origin = origin_form(raw, host, policy.scheme)?;
    let (path, query) = match origin.split_once('?') {
        Some((path, query)) => (path, Some(query)),
        None => (&*origin, None),
    };
    if query.is_some_and(|query| !query.bytes().all(|b| b.is_ascii_graphic() && b != b'#')) {
        return Err(bad("target"));
    }
    let normal = normalise(path, policy.slashes)?;
    let uri = |path: &str| match query {
        Some(query) => format!("{path}?{query}").parse::<Uri>(),
        None => path.parse(),
    };
    // Characters that no URI may contain go upstream normalised, although the parser accepts them
    // (RFC 3986, section 2).
    let valid = !normal.spelled.bytes().any(|byte| b"\"<>`".contains(&byte));
    let spelled = if normal.spelled == normal.path || !valid { None } else { uri(&normal.spelled).ok() };
    let target = NormalTarget { encoded_slash: normal.encoded_slash, spelled };
    let in_form = origin == raw && normal.path == path && head.uri.path() == path;
    if !in_form {
        let uri = uri(&normal.path).map_err(|_| bad("target"))?;
        head.set_uri(uri);
    }
    Ok(target)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn absolute_targets_must_match_the_connection() {
        for (target, scheme, origin) in [
            ("/v1/x", "http", Ok("/v1/x")),
            ("/v1/x?u=https://h/", "http", Ok("/v1/x?u=https://h/")),
            ("http://h/v1/x", "http", Ok("/v1/x")),
            ("HTTP://H", "http", Ok("/")),
            ("https://h/v1/x?q", "https", Ok("/v1/x?q")),
            ("https://h?q", "https", Ok("/?q")),
            ("https://h/v1/x", "http", Err("target_scheme")),
            ("http://h/v1/x", "https", Err("target_scheme")),
            ("https://other/v1/x", "https", Err("host_and_target_differ")),
            ("https://u@h/v1/x", "https", Err("host_and_target_differ")),
            ("ftp://h/v1/x", "http", Err("target")),
            ("://h/v1/x", "http", Err("target")),
        ] {
            assert_eq!(
                origin_form(target, b"h", scheme).map_err(|refused| refused.reason).as_deref(),
                origin.as_ref().copied(),
                "{target}"
            );
        }
    }
}
