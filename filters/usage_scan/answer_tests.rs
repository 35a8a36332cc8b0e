//! Reads the answers in `cases/`, whole and cut at every byte, and hostile ones.

use super::json_text::TEXT_BYTES_MAX;
use super::{AnswerFormat, AnswerScan, AnswerUsage, Reported, RequestScan};
use crate::contract::{OtherUnits, TokenCounts};

/// An answer and what is expected of it.
struct Case {
    name: String,
    format: AnswerFormat,
    expected: AnswerUsage,
    body: Vec<u8>,
}

const FILES: [&str; 10] = [
    include_str!("cases/openai_chat.txt"),
    include_str!("cases/compatible.txt"),
    include_str!("cases/openai_responses.txt"),
    include_str!("cases/openai_media.txt"),
    include_str!("cases/anthropic.txt"),
    include_str!("cases/gemini.txt"),
    include_str!("cases/cohere.txt"),
    include_str!("cases/ollama.txt"),
    include_str!("cases/bedrock_dashscope.txt"),
    include_str!("cases/event_streams.txt"),
];

fn cases() -> Vec<Case> {
    FILES.iter().flat_map(|file| file.split("\n=== ").skip(1).map(case)).collect()
}

fn case(text: &str) -> Case {
    let (header, body) = text.split_once('\n').unwrap_or((text, ""));
    let mut parts = header.split(" | ");
    let mut part = || parts.next().unwrap_or_else(|| panic!("a header has four parts: {header}"));
    let (name, _source, format, expected) = (part().to_owned(), part(), part(), part());
    let format = match format {
        "json" => AnswerFormat::Json,
        "event-stream" => AnswerFormat::EventStream,
        "json-lines" => AnswerFormat::JsonLines,
        _ => panic!("{name}: unknown format {format}"),
    };
    // Only this file has these escapes outside JSON strings.
    let body = match name.starts_with("lines with CR") || name == "byte-order mark" {
        true => body.replace("\\r", "\r").replace("\\u{feff}", "\u{feff}"),
        false => body.to_owned(),
    };
    Case { name, format, expected: usage(expected), body: body.into_bytes() }
}

fn usage(text: &str) -> AnswerUsage {
    let (mut tokens, mut units, mut usage) = (TokenCounts::default(), OtherUnits::default(), AnswerUsage::default());
    for word in text.split_whitespace() {
        let (name, value) = word.split_once('=').unwrap_or((word, ""));
        let count = || value.parse().unwrap_or_else(|_| panic!("{text}: {word}"));
        match name {
            "in" => tokens.input = count(),
            "cached" => tokens.cached_input = count(),
            "write" => tokens.cache_write = count(),
            "out" => tokens.output = count(),
            "reasoning" => tokens.reasoning = count(),
            "images" => units.images = count(),
            "audio_ms" => units.audio_ms = count(),
            "chars" => usage.text_chars = count(),
            "thoughts" => usage.reasoning_chars = count(),
            "model" => usage.model = Some(value.into()),
            "ended" => usage.ended = true,
            _ => panic!("{text}: {word}"),
        }
    }
    usage.images = units.images;
    let reported = Reported { tokens, units };
    usage.reported = (reported != Reported::default()).then_some(reported);
    usage
}

fn scan<'a>(format: AnswerFormat, pieces: impl IntoIterator<Item = &'a [u8]>) -> AnswerUsage {
    let mut scan = AnswerScan::new(format);
    pieces.into_iter().for_each(|piece| scan.feed(piece));
    let text_seen = scan.text_seen();
    let usage = scan.finish();
    // Audio counts as seen, and has no text.
    assert!(!text_seen || usage.text_chars > 0 || format == AnswerFormat::EventStream);
    usage
}

/// Whole, and byte by byte.
fn json(body: &str) -> AnswerUsage {
    let usage = scan(AnswerFormat::Json, [body.as_bytes()]);
    assert_eq!(scan(AnswerFormat::Json, body.as_bytes().chunks(1)), usage, "byte by byte: {body}");
    usage
}

fn input(body: &str) -> u64 {
    json(body).reported.unwrap_or_default().tokens.input
}

#[test]
fn answers_of_all_dialects() {
    let cases = cases();
    assert!(cases.len() >= 60, "{} cases", cases.len());
    let mut wrong = Vec::new();
    for case in cases {
        let usage = scan(case.format, [&case.body[..]]);
        if usage != case.expected {
            wrong.push(format!("{}:\n  {usage:?}\ninstead of\n  {:?}", case.name, case.expected));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn answers_cut_at_every_byte() {
    for case in cases() {
        assert_eq!(scan(case.format, case.body.chunks(1)), case.expected, "byte by byte: {}", case.name);
        for at in 0..=case.body.len() {
            let (first, second) = case.body.split_at(at);
            assert_eq!(scan(case.format, [first, second]), case.expected, "cut at {at}: {}", case.name);
        }
    }
}

/// Reading a part of an answer never shows an end or a count that is not in it.
#[test]
fn answers_cut_short() {
    for case in cases() {
        for at in 0..case.body.len() {
            let usage = scan(case.format, [&case.body[..at]]);
            assert!(usage.text_chars <= case.expected.text_chars, "{at}: {}", case.name);
            assert!(usage.model.is_none() || usage.model == case.expected.model, "{at}: {}", case.name);
            // Only this one has more after an end.
            assert!(!usage.ended || case.expected.ended || case.name == "data that only begins as the end", "{at}: {}", case.name);
        }
    }
}

#[test]
fn large_answers() {
    let text = "Grüße 你好 ".repeat(20_000);
    let body = format!(r#"{{"choices":[{{"message":{{"content":"{text}"}}}}],"usage":{{"prompt_tokens":3,"completion_tokens":4}}}}"#);
    let usage = scan(AnswerFormat::Json, [body.as_bytes()]);
    assert_eq!((usage.text_chars, usage.ended), (180_000, true));
    assert_eq!(scan(AnswerFormat::Json, body.as_bytes().chunks(1)), usage);
    assert_eq!(scan(AnswerFormat::Json, body.as_bytes().chunks(1009)), usage);
}

#[test]
fn text_is_seen_as_soon_as_it_is_there() {
    let mut scan = AnswerScan::new(AnswerFormat::EventStream);
    scan.feed(b"data: {\"choices\":[{\"delta\":{\"role\":\"assistant\",\"content\":\"\"}}]}\n\n: comment\n\n");
    assert!(!scan.text_seen());
    scan.feed(b"data: {\"choices\":[{\"delta\":{\"content\":\"a\"");
    assert!(scan.text_seen());
}

#[test]
fn numbers_that_are_no_counts() {
    for (number, count) in [
        ("7", 7),
        ("7.0", 7),
        ("7e2", 700),
        ("0.2", 0),
        ("9007199254740992", 9_007_199_254_740_992),
        ("007", 7),
        ("0", 0),
        ("-7", 0),
        ("-0.0", 0),
        ("1e400", 0),
        ("1e-400", 0),
        ("18446744073709551616", 0),
        ("9007199254740994", 0),
        ("NaN", 0),
        ("Infinity", 0),
        ("inf", 0),
        ("null", 0),
        ("true", 0),
        ("\"7\"", 0),
        ("[]", 0),
        ("{}", 0),
        ("1.2.3", 0),
        ("0x10", 0),
    ] {
        assert_eq!(input(&format!("{{\"usage\":{{\"prompt_tokens\":{number}}}}}")), count, "{number}");
    }
    let digits = "1".repeat(100_000);
    assert_eq!(input(&format!("{{\"usage\":{{\"x\":{digits},\"prompt_tokens\":{digits},\"total_tokens\":5}}}}")), 5);
    let sums = json(r#"{"usage":{"input_tokens":9007199254740992,"cache_read_input_tokens":9007199254740992}}"#);
    assert_eq!(sums.reported.map(|reported| reported.tokens.input), Some(1 << 54));
}

#[test]
fn parts_are_not_larger_than_the_whole() {
    let usage = json(
        r#"{"usage":{"prompt_tokens":5,"completion_tokens":6,"prompt_tokens_details":{"cached_tokens":4,"cache_write_tokens":4},"completion_tokens_details":{"reasoning_tokens":9}}}"#,
    );
    let tokens = TokenCounts { input: 5, cached_input: 4, cache_write: 1, output: 6, reasoning: 6 };
    assert_eq!(usage.reported.map(|reported| reported.tokens), Some(tokens));
}

#[test]
fn the_last_of_repeated_keys_counts() {
    assert_eq!(input(r#"{"usage":{"prompt_tokens":5,"prompt_tokens":6},"usage":{"prompt_tokens":7}}"#), 7);
    assert_eq!(input(r#"{"usage":{"prompt_tokens":5},"usage":null}"#), 5);
}

#[test]
fn invalid_json() {
    for body in [
        r#"{"usage":{"prompt_tokens":5}]"#,
        r#"{"usage":{"prompt_tokens":5},,"#,
        r#"{"usage":{"prompt_tokens":5}"a""#,
        r#"{"usage":{"prompt_tokens":5}:"#,
        r#"{"usage":{"prompt_tokens":5},"a" "b"}"#,
        r#"{"usage":{"prompt_tokens":5},"a":"\x"}"#,
        r#"{"usage":{"prompt_tokens":5},"a":"\u12x4"}"#,
        r#"{"usage":{"prompt_tokens":5},}"#,
        r#"{"usage":{"prompt_tokens":5},[]}"#,
        r#"{"usage":{"prompt_tokens":5},'a':1}"#,
    ] {
        let body = format!("{body},\"usage\":{{\"prompt_tokens\":900}}}}");
        let usage = json(&body);
        assert_eq!(usage.reported.map(|reported| reported.tokens.input), Some(5), "{body}");
        assert!(!usage.ended, "{body}");
    }
    for body in ["", " ", "null", "\u{feff}", "\"usage\"", "prompt_tokens", "}", "]", "<html></html>", "\0\0"] {
        assert_eq!(json(body).reported, None, "{body}");
    }
    // Bytes that are not UTF-8.
    let usage = scan(AnswerFormat::Json, [&b"{\"model\":\"\xff\xfe\",\"choices\":[{\"message\":{\"content\":\"\xc3\xff\"}}]}"[..]]);
    assert_eq!((usage.model, usage.text_chars, usage.ended), (None, 2, true));
}

#[test]
fn deep_nesting() {
    for depth in [10, 62, 63, 64, 65, 200, 100_000] {
        for (open, close) in [("[", "]"), ("{\"usage\":", "}"), ("{\"\\\"\":[", "]}")] {
            let (open, close) = (open.repeat(depth), close.repeat(depth));
            let inner = r#"{"a]\"}":"]\\","usage":{"prompt_tokens":900}}"#;
            let body = format!("{{\"x\":{open}{inner}{close},\"usage\":{{\"prompt_tokens\":3}}}}");
            let usage = scan(AnswerFormat::Json, [body.as_bytes()]);
            assert_eq!(usage.reported.map(|reported| reported.tokens.input), Some(3), "{depth}");
            assert!(usage.ended);
            assert_eq!(scan(AnswerFormat::Json, body.as_bytes().chunks(7)), usage, "{depth}");
        }
    }
}

#[test]
fn models() {
    let long = "m".repeat(129);
    for (body, model) in [
        (r#"{"model":"a","model":"b"}"#.to_owned(), Some("a")),
        (r#"{"model":null}"#.to_owned(), None),
        (r#"{"model":{"model":"a"}}"#.to_owned(), None),
        (r#"{"model":""}"#.to_owned(), None),
        (r#"{"model":"a"#.to_owned(), None),
        (format!(r#"{{"model":"{long}"}}"#), None),
        (format!(r#"{{"model":"{}"}}"#, &long[1..]), Some(&long[1..])),
    ] {
        assert_eq!(json(&body).model.as_deref(), model, "{body}");
    }
}

/// What a scanner keeps is in its own size, but for the name of the model, which is short.
#[test]
fn memory_is_bounded() {
    for bytes in [size_of::<AnswerScan>(), size_of::<RequestScan>()] {
        assert!(bytes + TEXT_BYTES_MAX < 2048, "{bytes} bytes");
    }
    for source in [
        include_str!("answer.rs"),
        include_str!("answer_paths.rs"),
        include_str!("event_stream.rs"),
        include_str!("json_paths.rs"),
        include_str!("json_text.rs"),
        include_str!("reported.rs"),
        include_str!("request.rs"),
    ] {
        let code = source.split("#[cfg(test)]").next().unwrap_or_default();
        for grows in ["Vec", "Box", "Map<", " String", "to_owned", "format!", "collect("] {
            assert!(!code.contains(grows), "`{grows}` could grow with the input");
        }
    }
}
