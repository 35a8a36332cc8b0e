//! The usage of an answer and the parameters of a request are the same however the body is cut. The first byte of each piece gives its
//! length.
#![no_main]

use keylatch_filters::usage_scan::{AnswerFormat, AnswerScan, AnswerUsage, RequestParameters, RequestScan};
use libfuzzer_sys::fuzz_target;

fn answer(format: AnswerFormat, pieces: &[&[u8]]) -> AnswerUsage {
    let mut scan = AnswerScan::new(format);
    pieces.iter().for_each(|piece| scan.feed(piece));
    scan.finish()
}

fn request(pieces: &[&[u8]]) -> RequestParameters {
    let mut scan = RequestScan::new();
    pieces.iter().for_each(|piece| scan.feed(piece));
    scan.finish()
}

fuzz_target!(|data: &[u8]| {
    let (mut pieces, mut rest) = (Vec::new(), data);
    while let Some((control, after)) = rest.split_first() {
        let (piece, after) = after.split_at(usize::from(control & 0x3f).min(after.len()));
        pieces.push(piece);
        rest = after;
    }
    let body = pieces.concat();
    for format in [AnswerFormat::Json, AnswerFormat::EventStream, AnswerFormat::JsonLines] {
        let usage = answer(format, &pieces);
        assert_eq!(usage, answer(format, &[&body]));
        assert!(usage.reasoning_chars <= usage.text_chars && usage.text_chars <= body.len() as u64);
        let tokens = usage.reported.unwrap_or_default().tokens;
        assert!(tokens.cached_input + tokens.cache_write <= tokens.input && tokens.reasoning <= tokens.output);
    }
    let parameters = request(&pieces);
    assert_eq!(parameters, request(&[&body]));
    assert!(parameters.input_chars <= parameters.prompt_chars && parameters.choices > 0);
    // What a parser takes is complete.
    if serde_json::from_slice::<serde_json::Value>(&body).is_ok_and(|value| value.is_object() || value.is_array()) {
        assert!(parameters.is_complete && answer(AnswerFormat::Json, &pieces).ended);
    }
});
