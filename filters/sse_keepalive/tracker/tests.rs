//! Property tests: frames change no event. Random streams are cut into random chunks, with frames at random positions, and
//! parsed by a parser that shares no code with the tracker.

use super::*;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use std::cell::Cell;

#[derive(Debug, Default, Clone, PartialEq, Eq)]
struct Event {
    kind: String,
    data: String,
    id: String,
}

/// A parser after WHATWG HTML, section 9.2.6: decode, split into lines, interpret fields.
fn parse(stream: &[u8]) -> Vec<Event> {
    let text = String::from_utf8_lossy(stream);
    let text = text.strip_prefix('\u{FEFF}').unwrap_or(&text);
    let normalised = text.replace("\r\n", "\n").replace('\r', "\n");
    let mut lines: Vec<&str> = normalised.split('\n').collect();
    lines.pop(); // text after the last line end is not a line
    let (mut events, mut data, mut kind, mut id) = (Vec::new(), String::new(), String::new(), String::new());
    for line in lines {
        if line.is_empty() {
            if !data.is_empty() {
                let data = data.strip_suffix('\n').unwrap_or(&data).to_owned();
                events.push(Event { kind: kind.clone(), data, id: id.clone() });
            }
            data.clear();
            kind.clear();
            continue;
        }
        if line.starts_with(':') {
            continue;
        }
        let (field, value) = line.split_once(':').map_or((line, ""), |(f, v)| (f, v.strip_prefix(' ').unwrap_or(v)));
        match field {
            "data" => {
                data.push_str(value);
                data.push('\n');
            }
            "event" => kind = value.to_owned(),
            "id" if !value.contains('\0') => id = value.to_owned(),
            _ => {}
        }
    }
    events
}

/// The behaviour of openai-python: once an `id` was seen, every blank line dispatches an event, with or without data.
fn dispatches_with_sticky_id(stream: &[u8]) -> usize {
    let text = String::from_utf8_lossy(stream).replace("\r\n", "\n").replace('\r', "\n");
    let (mut dispatched, mut pending, mut id) = (0, false, false);
    for line in text.trim_start_matches('\u{FEFF}').split('\n') {
        match line {
            "" if pending || id => {
                dispatched += 1;
                pending = false;
            }
            _ if line.starts_with("id:") || line == "id" => id = true,
            _ if line.starts_with("data") || line.starts_with("event") => pending = true,
            _ => {}
        }
    }
    dispatched
}

/// Sends the stream in chunks, with a frame before each chunk with a set flag.
fn with_frames(chunks: &[(Vec<u8>, bool)], due_at_end: bool, form: Frame) -> (Vec<u8>, usize) {
    let (mut tracker, mut out, mut frames) = (Tracker::new(), Vec::new(), 0);
    let mut frame = |tracker: &mut Tracker, out: &mut Vec<u8>| {
        if let Some(frame) = tracker.frame(form) {
            out.extend_from_slice(frame);
            tracker.framed();
            frames += 1;
        }
    };
    for (chunk, due) in chunks {
        if *due {
            frame(&mut tracker, &mut out);
        }
        out.extend_from_slice(&tracker.pass(Bytes::copy_from_slice(chunk)));
    }
    if due_at_end {
        frame(&mut tracker, &mut out);
    }
    out.extend_from_slice(&tracker.finish());
    (out, frames)
}

fn line() -> impl Strategy<Value = String> {
    prop_oneof![
        6 => "data: ?[a-z{}\"é ]{0,12}",
        1 => Just("data".to_owned()),
        1 => "event: ?[a-z]{0,5}",
        1 => "id:[0-9]{0,3}",
        1 => Just("id".to_owned()),
        1 => Just("retry: 100".to_owned()),
        1 => ": ?[a-z-]{0,8}",
        1 => "[a-z\u{FEFF}]{1,4}",
    ]
}

fn stream() -> impl Strategy<Value = String> {
    let end = prop_oneof![Just("\n"), Just("\r\n"), Just("\r")];
    let event = (proptest::collection::vec((line(), end.clone()), 1..4), end);
    let events = proptest::collection::vec(event, 20..80);
    (prop_oneof![4 => Just(""), 1 => Just("\u{FEFF}")], events, any::<bool>()).prop_map(|(bom, events, cut)| {
        let mut text = bom.to_owned();
        for (lines, end) in events {
            for (line, end) in lines {
                text.push_str(&line);
                text.push_str(end);
            }
            text.push_str(end);
        }
        if cut {
            text.pop();
        }
        text
    })
}

fn chunks(text: &str, cuts: &[(usize, bool)]) -> Vec<(Vec<u8>, bool)> {
    let (mut rest, mut chunks) = (text.as_bytes(), Vec::new());
    for (length, due) in cuts.iter().cycle() {
        if rest.is_empty() {
            break;
        }
        let (chunk, after) = rest.split_at((*length).min(rest.len()));
        chunks.push((chunk.to_vec(), *due));
        rest = after;
    }
    chunks
}

const PING: &[u8] = b"event: ping\ndata: {}\n\n";

#[test]
fn frames_change_no_event() {
    for form in [Frame::Comment, Frame::CommentLine, Frame::BlankLine, Frame::Event(PING)] {
        frames_of_a_form_change_no_event(form);
    }
}

fn frames_of_a_form_change_no_event(form: Frame) {
    let (events, frames) = (Cell::new(0), Cell::new(0));
    let cuts = proptest::collection::vec((prop_oneof![1_usize..4, 1_usize..40], any::<bool>()), 1..60);
    let mut runner = TestRunner::new(Config { cases: 800, failure_persistence: None, ..Config::default() });
    let result = runner.run(&(stream(), cuts, any::<bool>()), |(text, cuts, due_at_end)| {
        let (framed, count) = with_frames(&chunks(&text, &cuts), due_at_end, form);
        let (without, mut with) = (parse(text.as_bytes()), parse(&framed));
        // Random streams contain no event of the type `ping`.
        with.retain(|event| event.kind != "ping");
        events.set(events.get() + with.len());
        frames.set(frames.get() + count);
        prop_assert_eq!(&with, &without, "framed: {:?}", String::from_utf8_lossy(&framed));
        if matches!(form, Frame::Comment | Frame::CommentLine) {
            prop_assert_eq!(dispatches_with_sticky_id(&framed), dispatches_with_sticky_id(text.as_bytes()));
        }
        if matches!(form, Frame::BlankLine) {
            prop_assert!(!String::from_utf8_lossy(&framed).contains("keep-alive"));
        }
        Ok(())
    });
    result.unwrap();
    assert!(events.get() >= 15_000, "only {} events", events.get());
    assert!(frames.get() >= 1_500, "only {} frames of {form:?}", frames.get());
}

#[test]
fn completed_events_are_counted() {
    let mut tracker = Tracker::new();
    tracker.pass(Bytes::from_static(b": hello\n\nevent: x\ndata: 1\n\ndata\n\nid: 3\n\ndata: 2\r\rdatb: 3\n\ndata: 4\n"));
    assert_eq!((tracker.events(), tracker.in_event()), (4, true), "`datb` counts as data; no field has this name");
}

/// The output for a script in which `|` marks the positions of frames.
fn framed(script: &str) -> String {
    framed_by(script, Frame::Comment)
}

fn framed_by(script: &str, form: Frame) -> String {
    let mut chunks: Vec<(Vec<u8>, bool)> = Vec::new();
    for (index, chunk) in script.split('|').enumerate() {
        chunks.push((chunk.as_bytes().to_vec(), index > 0));
    }
    String::from_utf8(with_frames(&chunks, false, form).0).unwrap()
}

#[test]
fn positions_of_comments() {
    for (script, out) in [
        ("|data: 1\n\n", ": keep-alive\n\ndata: 1\n\n"),
        ("data: 1\n\n|data: 2\n\n", "data: 1\n\n: keep-alive\n\ndata: 2\n\n"),
        ("data: 1\n|data: 2\n\n", "data: 1\n: keep-alive\ndata: 2\n\n"),
        ("da|ta: 1\n\n", "data: 1\n\n"),
        ("id: 7\ndata: 1\n\n|data: 2\n\n", "id: 7\ndata: 1\n\n: keep-alive\ndata: 2\n\n"),
        ("id\ndata: 1\n\n|", "id\ndata: 1\n\n: keep-alive\n"),
        ("idea: 7\ndata: 1\n\n|", "idea: 7\ndata: 1\n\n: keep-alive\n\n"),
        ("\u{FEFF}id: 7\ndata: 1\n\n|", "\u{FEFF}id: 7\ndata: 1\n\n: keep-alive\n"),
        ("data: 1\r|\ndata: 2\r\n\r\n", "data: 1\r: keep-alive\ndata: 2\r\n\r\n"),
        ("data: 1\r\n\r|\ndata: 2\r\n\r\n", "data: 1\r\n\r: keep-alive\n\ndata: 2\r\n\r\n"),
        ("data: 1\r\r|data: 2\r\r", "data: 1\r\r: keep-alive\n\ndata: 2\r\r"),
        ("|\u{FEFF}data: 1\n\n", ": keep-alive\n\ndata: 1\n\n"),
        ("\u{FEFF}|data: 1\n\n", "\u{FEFF}data: 1\n\n"),
    ] {
        assert_eq!(framed(script), out, "{script:?}");
    }
}

#[test]
fn positions_of_other_frames() {
    for (form, script, out) in [
        (
            Frame::CommentLine,
            "|data: 1\n|\n|data: 2\n\n|",
            ": keep-alive\ndata: 1\n: keep-alive\n\n: keep-alive\ndata: 2\n\n: keep-alive\n",
        ),
        (Frame::BlankLine, "|data: 1\n|\n|da|ta: 2\n\n|", "\ndata: 1\n\n\ndata: 2\n\n\n"),
        (Frame::BlankLine, "data: 1\r|\r|data: 2", "data: 1\r\r\ndata: 2"),
        (Frame::Event(b"E\n\n"), "|data: 1\n|\n|data: 2\n\n|", "E\n\ndata: 1\n\nE\n\ndata: 2\n\nE\n\n"),
    ] {
        assert_eq!(framed_by(script, form), out, "{form:?} {script:?}");
    }
}

#[test]
fn bom_in_chunks_after_a_frame() {
    let run = |chunks: &[&[u8]]| {
        let chunks: Vec<_> = chunks.iter().enumerate().map(|(i, p)| (p.to_vec(), i == 0)).collect();
        with_frames(&chunks, true, Frame::Comment).0
    };
    assert_eq!(run(&[b"\xEF", b"\xBB", b"\xBFdata: 1\n\n"]), b": keep-alive\n\ndata: 1\n\n: keep-alive\n\n");
    assert_eq!(run(&[b"\xEF", b"\xBBx\n"]), b": keep-alive\n\n\xEF\xBBx\n: keep-alive\n");
    assert_eq!(run(&[b"\xEF\xBB"]), b": keep-alive\n\n\xEF\xBB");
}
