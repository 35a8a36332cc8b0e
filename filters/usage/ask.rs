//! Asks the upstream for the usage of a stream, and takes out of the stream what it adds for that: the chunk of usage, and the
//! member `"usage":null` of other chunks. It reads no counts.

use bytes::{Bytes, BytesMut};
use memchr::memmem;
use serde_json::Value;

use crate::usage_scan::RequestParameters;

/// The member that asks, at the start of the object.
const MEMBER: &[u8] = br#""stream_options":{"include_usage":true},"#;
/// A longer event passes unchanged.
const EVENT_BYTES_MAX: usize = 64 << 10;

/// Whether to ask: the client requests a stream of chat or text completions, and says nothing about usage.
pub fn applies(path: &str, parameters: &RequestParameters) -> bool {
    parameters.stream && parameters.is_complete && !parameters.has_stream_options && path.ends_with("/completions")
}

/// The number of bytes that a request gets longer.
pub const ADDED_BYTES: u64 = MEMBER.len() as u64;

/// Adds the member after the first brace of this piece. `None`: it has none.
pub fn add_member(piece: &Bytes) -> Option<Bytes> {
    let at = memchr::memchr(b'{', piece)? + 1;
    let (before, after) = piece.split_at_checked(at)?;
    let mut longer = BytesMut::with_capacity(piece.len() + MEMBER.len());
    [before, MEMBER, after].into_iter().for_each(|part| longer.extend_from_slice(part));
    Some(longer.freeze())
}

/// Removes from an event stream what was added because the upstream was asked. It holds the bytes of an event until its end.
#[derive(Debug, Default)]
pub struct UnaskedUsage {
    held: BytesMut,
    /// How much of `held` was searched for the end of an event.
    searched: usize,
    /// The rest of a long event passes.
    is_passing: bool,
}

impl UnaskedUsage {
    /// Replaces a piece of the stream. `None`: nothing is to be sent yet. `end`: it is the last piece.
    pub fn replace(&mut self, piece: Option<&Bytes>, end: bool) -> Option<Bytes> {
        let mut out = BytesMut::new();
        self.held.extend_from_slice(piece.map_or(&[], |piece| piece));
        while let Some(length) = self.event_end() {
            let event = self.held.split_to(length);
            self.searched = 0;
            if std::mem::take(&mut self.is_passing) {
                out.extend_from_slice(&event);
            } else {
                cleaned(&event, &mut out);
            }
        }
        if end || self.is_passing || self.held.len() > EVENT_BYTES_MAX {
            self.is_passing = !end && !self.held.is_empty();
            // The end of an event may be cut.
            let kept = if end { 0 } else { self.held.len().min(3) };
            let passed = self.held.split_to(self.held.len() - kept);
            out.extend_from_slice(&passed);
            self.searched = 0;
        }
        (!out.is_empty()).then(|| out.freeze())
    }

    /// The length of the first event with its blank line.
    fn event_end(&mut self) -> Option<usize> {
        let from = self.searched.saturating_sub(3);
        let rest = self.held.get(from..)?;
        let ends = [&b"\n\n"[..], b"\r\n\r\n", b"\r\r"].into_iter().filter_map(|blank| Some(memmem::find(rest, blank)? + blank.len()));
        let end = ends.min();
        self.searched = self.held.len();
        end.map(|end| from + end)
    }
}

/// Writes an event without what was added.
fn cleaned(event: &[u8], out: &mut BytesMut) {
    if memmem::find(event, b"\"usage\"").is_none() {
        return out.extend_from_slice(event);
    }
    if let Some((start, end)) = null_member(event) {
        out.extend_from_slice(event.get(..start).unwrap_or_default());
        return out.extend_from_slice(event.get(end..).unwrap_or_default());
    }
    if !is_usage_chunk(event) {
        out.extend_from_slice(event);
    }
}

/// The place of `,"usage":null`. In a string, its quotes would be escaped.
fn null_member(event: &[u8]) -> Option<(usize, usize)> {
    [&br#","usage":null"#[..], br#", "usage": null"#]
        .into_iter()
        .find_map(|member| memmem::find(event, member).map(|start| (start, start + member.len())))
}

/// Whether an event is a chunk with usage and without choices.
fn is_usage_chunk(event: &[u8]) -> bool {
    let lines = event.split(|byte| matches!(byte, b'\n' | b'\r')).filter_map(|line| line.strip_prefix(b"data:"));
    let data: Vec<u8> = lines.flat_map(|line| line.iter().copied().chain(*b"\n")).collect();
    let Ok(chunk) = serde_json::from_slice::<Value>(&data) else { return false };
    chunk["usage"].is_object() && chunk["choices"].as_array().is_some_and(Vec::is_empty)
}

#[cfg(test)]
mod tests {
    use super::*;

    const WITHOUT: &str = concat!(
        ": comment\n\n",
        "data: {\"id\":\"c\",\"choices\":[{\"delta\":{\"content\":\"a, \\\"usage\\\":null\"}}]}\n\n",
        "data: {\"id\":\"c\",\"choices\":[{\"delta\":{\"content\":\"\u{e9}\"}}]}\r\n\r\n",
        "data: {\"choices\":[],\"prompt_filter_results\":[]}\n\n",
        "data: [DONE]\n\n",
    );
    const WITH: &str = concat!(
        ": comment\n\n",
        "data: {\"id\":\"c\",\"choices\":[{\"delta\":{\"content\":\"a, \\\"usage\\\":null\"}}],\"usage\":null}\n\n",
        "data: {\"id\":\"c\",\"choices\":[{\"delta\":{\"content\":\"\u{e9}\"}}], \"usage\": null}\r\n\r\n",
        "data: {\"choices\":[],\"prompt_filter_results\":[],\"usage\":null}\n\n",
        "data: {\"id\":\"c\",\"choices\":[],\"usage\":{\"prompt_tokens\":1}}\n\n",
        "data: [DONE]\n\n",
    );

    fn through<'p>(pieces: impl Iterator<Item = &'p [u8]>) -> Vec<u8> {
        let (mut filter, mut out) = (UnaskedUsage::default(), Vec::new());
        let mut add = |piece: Option<Bytes>| piece.iter().for_each(|piece| out.extend_from_slice(piece));
        pieces.for_each(|piece| add(filter.replace(Some(&Bytes::copy_from_slice(piece)), false)));
        add(filter.replace(None, true));
        out
    }

    #[test]
    fn the_stream_is_as_if_nothing_was_asked() {
        for (stream, expected) in [(WITH, WITHOUT), (WITHOUT, WITHOUT)] {
            for cut in 0..=stream.len() {
                let (before, after) = stream.as_bytes().split_at(cut);
                assert_eq!(through([before, after].into_iter()), expected.as_bytes(), "cut at {cut}");
            }
            assert_eq!(through(stream.as_bytes().chunks(1)), expected.as_bytes());
        }
        for stream in ["data: {\"usage\":", "", "\n\n", "data: {\"choices\":[],\"usage\":{\"a\":1}}"] {
            assert_eq!(through(stream.as_bytes().chunks(1)), stream.as_bytes(), "unfinished");
        }
    }

    #[test]
    fn long_events_pass_and_memory_is_bounded() {
        let long = format!("data: {{\"usage\":null,\"x\":\"{}\"}}\n\n{WITH}", "x".repeat(300_000));
        let mut filter = UnaskedUsage::default();
        for piece in long.as_bytes().chunks(1000) {
            filter.replace(Some(&Bytes::copy_from_slice(piece)), false);
            assert!(filter.held.len() <= EVENT_BYTES_MAX + 1000);
        }
        let expected = format!("{}{WITHOUT}", &long[..long.len() - WITH.len()]);
        for size in [1, 999, 100_000] {
            assert!(through(long.as_bytes().chunks(size)) == expected.as_bytes(), "pieces of {size}");
        }
    }

    #[test]
    fn the_member_is_added_once() {
        let body = Bytes::from_static(b" {\"stream\":true}");
        let longer = add_member(&body).unwrap();
        assert_eq!(&*longer, br#" {"stream_options":{"include_usage":true},"stream":true}"#);
        assert_eq!(longer.len() - body.len(), usize::try_from(ADDED_BYTES).unwrap());
        assert_eq!(add_member(&Bytes::from_static(b"  ")), None);
    }
}
