//! Keys in header fields that `key_binding` does not read. They are removed from the upstream request, so that the upstream
//! cannot use a key that was not checked. This file decides nothing about the keys that are read.

use http::{HeaderName, HeaderValue};

use crate::contract::{Invalid, KeyForm, KeySource, Result, UpstreamCx, failure};

/// The known key fields that `from` does not list.
pub fn unread_fields(from: &[KeySource]) -> Result<Vec<(KeySource, HeaderName)>, Invalid> {
    let read: Vec<_> = from.iter().map(KeySource::header).collect::<Result<_, _>>().map_err(|invalid| invalid.at("from"))?;
    let known = KeySource::FIELDS.into_iter().filter_map(|source| source.header().ok().flatten().map(|name| (source, name)));
    Ok(known.filter(|(_, name)| !read.contains(&Some(name.clone()))).collect())
}

/// Removes the lines of a field that the client has sent and that carry a key. Lines that another filter has set stay. Of
/// `Sec-WebSocket-Protocol`, only the keys are removed.
pub fn remove_keys(source: &KeySource, name: &HeaderName, form: KeyForm, cx: &mut UpstreamCx<'_>) -> Result<()> {
    let sent: Vec<&HeaderValue> = cx.request.headers.get_all(name).iter().collect();
    let is_removed = |line: &HeaderValue| sent.contains(&line) && source.carries_key(line.as_bytes(), form);
    let lines: Vec<HeaderValue> = cx.upstream.headers.get_all(name).iter().cloned().collect();
    if !lines.iter().any(is_removed) {
        return Ok(());
    }
    cx.upstream.remove_header(name);
    for line in lines {
        let left = if is_removed(&line) { source.without_key(line.as_bytes(), form).map(HeaderValue::try_from) } else { Some(Ok(line)) };
        if let Some(line) = left.transpose().map_err(failure)? {
            cx.upstream.append_header(name.clone(), line).map_err(failure)?;
        }
    }
    Ok(())
}
