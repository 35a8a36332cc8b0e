//! Stream tracker: frames at any permitted position change no event. The first byte of each piece gives
//! its length, and whether a frame is due before it.
#![no_main]

use bytes::Bytes;
use keylatch_filters::contract::Frame;
use keylatch_filters::sse_keepalive::stream_scan::StreamScan;
use keylatch_filters::sse_keepalive::tracker::Tracker;
use libfuzzer_sys::fuzz_target;

/// The fields of each event by WHATWG HTML, section 9.2.6.
fn events(stream: &[u8]) -> Vec<(Vec<u8>, Vec<u8>, Vec<u8>)> {
    let stream = stream.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(stream);
    let (mut events, mut data, mut kind, mut id) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    let mut rest = stream;
    while let Some(end) = rest.iter().position(|byte| matches!(byte, b'\r' | b'\n')) {
        let line = &rest[..end];
        rest = if rest[end..].starts_with(b"\r\n") { &rest[end + 2..] } else { &rest[end + 1..] };
        let colon = line.iter().position(|byte| *byte == b':');
        let (field, value) = colon.map_or((line, &[][..]), |at| (&line[..at], &line[at + 1..]));
        let value = value.strip_prefix(b" ").unwrap_or(value);
        match (line.is_empty(), field) {
            (true, _) => {
                if !data.is_empty() {
                    events.push((kind.clone(), data.clone(), id.clone()));
                }
                data.clear();
                kind.clear();
            }
            (_, b"data") => {
                data.extend_from_slice(value);
                data.push(b'\n');
            }
            (_, b"event") => kind = value.to_vec(),
            (_, b"id") => id = value.to_vec(),
            _ => {}
        }
    }
    events
}

fuzz_target!(|data: &[u8]| {
    let (mut tracker, mut plain, mut framed) = (Tracker::new(), Vec::new(), Vec::new());
    let (mut json, mut form) = (StreamScan::json(true), StreamScan::form("x"));
    // The length of the input chooses the kind of frame, so that all kinds are tried.
    let frame = [Frame::Comment, Frame::CommentLine, Frame::BlankLine][data.len() % 3];
    let mut rest = data;
    while let Some((control, after)) = rest.split_first() {
        if control & 0x80 != 0
            && let Some(frame) = tracker.frame(frame)
        {
            framed.extend_from_slice(frame);
            tracker.framed();
        }
        let (piece, after) = after.split_at(usize::from(control & 0x0f).min(after.len()));
        plain.extend_from_slice(piece);
        framed.extend_from_slice(&tracker.pass(Bytes::copy_from_slice(piece)));
        json.feed(piece);
        form.feed(piece);
        rest = after;
    }
    framed.extend_from_slice(&tracker.finish());
    assert_eq!(events(&framed), events(&plain));
});
