//! Tests of `usage` with requests as a chain passes them.

use std::time::Duration;

use bytes::Bytes;
use http::StatusCode;
use pingora_http::{RequestHeader, ResponseHeader};

use super::*;
use crate::contract::{CountSource, Facts, ModelPrice, Now, OtherUnits, PricesConfig, TokenCounts, UsageRecord};
use crate::testing::with_site;

const CHAT: &str = r#"{"id":"c","model":"gpt-x-2","choices":[{"message":{"content":"Hello there"},"finish_reason":"stop"}],"usage":{"prompt_tokens":9,"completion_tokens":4,"total_tokens":13}}"#;
const ASKED: &str = r#"{"model":"gpt-x","messages":[{"role":"user","content":"Say hello, please."}]}"#;

fn filter(config: serde_json::Value) -> Usage {
    with_site(|site| {
        let price = ModelPrice { model: "gpt-*".into(), input: serde_json::from_str("2").ok(), ..ModelPrice::default() };
        let prices = PricesConfig { models: vec![price], ..PricesConfig::default() };
        site.prices = Arc::new(PriceTable::compile(&prices, &[]).unwrap());
        Usage::compile(serde_json::from_value(config).unwrap(), site).unwrap()
    })
}

/// One request with its answer.
struct Exchange {
    path: &'static str,
    body: &'static str,
    status: u16,
    content_type: &'static str,
    coding: Option<&'static str>,
    answer: &'static str,
}

impl Default for Exchange {
    fn default() -> Self {
        Self { path: "/v1/chat/completions", body: ASKED, status: 200, content_type: "application/json", coding: None, answer: CHAT }
    }
}

impl Exchange {
    fn run(&self, filter: &Usage) -> UsageRecord {
        let mut request = RequestHeader::build("POST", self.path.as_bytes(), None).unwrap();
        request.insert_header("authorization", "Bearer sk-test-0001").unwrap();
        request.insert_header("content-type", "application/json").unwrap();
        request.insert_header("accept-encoding", "gzip, br").unwrap();
        let (mut upstream, mut facts, now, mut state) = (request.clone(), Facts::default(), Now::read(), UsageState::default());
        let peer = [127, 0, 0, 1].into();
        let mut cx = UpstreamCx { upstream: &mut upstream, request: &request, facts: &mut facts, peer };
        filter.upstream_request(&mut cx, &mut state).unwrap();
        assert_eq!(upstream.headers["accept-encoding"], "identity");
        let body = |text: &'static str, facts: &mut Facts, state: &mut UsageState, is_request: bool| {
            let mut chunk = Some(Bytes::from(text));
            let mut cx = BodyCx { body: &mut chunk, end: true, facts, begun: Now::read().instant };
            let hook = if is_request { filter.request_body(&mut cx, state) } else { filter.response_body(&mut cx, state) };
            hook.unwrap();
            assert_eq!(chunk, Some(Bytes::from(text)), "bodies are unchanged");
        };
        body(self.body, &mut facts, &mut state, true);
        let mut response = ResponseHeader::build(self.status, None).unwrap();
        response.insert_header("content-type", self.content_type).unwrap();
        self.coding.iter().for_each(|coding| response.insert_header("content-encoding", *coding).unwrap());
        let mut cx = ResponseCx { response: &mut response, request: &request, facts: &mut facts, source: Source::Upstream, now };
        filter.response(&mut cx, &mut state).unwrap();
        body(self.answer, &mut facts, &mut state, false);
        let (route, upstream) = ("api".into(), "models".into());
        let status = StatusCode::from_u16(self.status).ok();
        let mut cx =
            LogCx { request: &request, status, facts: &mut facts, route: &route, upstream: &upstream, now, duration: Duration::ZERO };
        filter.log(&mut cx, &mut state);
        facts.get::<UsageRecord>().unwrap().clone()
    }
}

#[test]
fn reported_usage_has_its_cost() {
    let filter = filter(serde_json::json!({}));
    let record = Exchange::default().run(&filter);
    assert_eq!((record.tokens.input, record.tokens.output, record.source), (9, 4, CountSource::Reported));
    assert_eq!((record.model.as_deref(), record.cost.unwrap().micros), (Some("gpt-x"), 18));
    assert!(record.key.is_some() && !record.streamed);
    let other = Exchange { body: r#"{"model":"other"}"#, answer: r#"{"usage":{"prompt_tokens":1}}"#, ..Exchange::default() };
    let record = other.run(&filter);
    assert_eq!((record.source, record.cost), (CountSource::Reported, None), "a model without a price has no cost");
}

#[test]
fn missing_counts_are_estimated() {
    let stream = Exchange {
        content_type: "text/event-stream",
        answer: "data: {\"choices\":[{\"delta\":{\"content\":\"Hello there\"}}]}\n\ndata: [DONE]\n\n",
        ..Exchange::default()
    };
    let record = stream.run(&filter(serde_json::json!({})));
    assert_eq!((record.source, record.streamed, record.first_token.is_some()), (CountSource::Estimated, true, true));
    assert_eq!(record.tokens.output, 3, "eleven characters");
    assert!(record.tokens.input >= 5, "{record:?}");
    let record = stream.run(&filter(serde_json::json!({ "chars_per_token": 1 })));
    assert_eq!(record.tokens.output, 11);
    let record = stream.run(&filter(serde_json::json!({ "estimate": false })));
    assert_eq!((record.source, record.tokens), (CountSource::None, TokenCounts::default()));
}

#[test]
fn a_cut_answer_counts_what_was_sent() {
    let cut = Exchange {
        path: "/v1/messages",
        content_type: "text/event-stream",
        answer: concat!(
            "data: {\"type\":\"message_start\",\"message\":{\"usage\":{\"input_tokens\":50,\"output_tokens\":1}}}\n\n",
            "data: {\"type\":\"content_block_delta\",\"delta\":{\"type\":\"text_delta\",\"text\":\"Hello there, how are you\"}}\n\n",
        ),
        ..Exchange::default()
    };
    let record = cut.run(&filter(serde_json::json!({})));
    assert_eq!((record.tokens.input, record.tokens.output, record.source), (50, 6, CountSource::Estimated));
}

#[test]
fn answers_without_usage_count_nothing() {
    let filter = filter(serde_json::json!({}));
    for (exchange, why) in [
        (Exchange { status: 429, ..Exchange::default() }, "an error"),
        (Exchange { coding: Some("gzip"), ..Exchange::default() }, "compressed"),
        (Exchange { content_type: "text/html", ..Exchange::default() }, "no JSON"),
        (Exchange { path: "/v1/messages/count_tokens", answer: r#"{"input_tokens":7}"#, ..Exchange::default() }, "a count of tokens"),
    ] {
        let record = exchange.run(&filter);
        assert_eq!((record.source, record.cost, record.tokens), (CountSource::None, None, TokenCounts::default()), "{why}");
    }
    let refused = Exchange { status: 401, answer: "{}", ..Exchange::default() }.run(&filter);
    assert_eq!((refused.key, refused.status), (None, 401), "made-up keys have no accounts");
}

#[test]
fn other_units_and_other_places_of_the_model() {
    let filter = filter(serde_json::json!({}));
    let speech = Exchange {
        path: "/v1/audio/speech",
        body: r#"{"model":"gpt-tts","input":"Hello"}"#,
        content_type: "audio/mpeg",
        answer: "\u{1}",
        ..Exchange::default()
    };
    let record = speech.run(&filter);
    assert_eq!((record.units, record.source), (OtherUnits { characters: 5, ..OtherUnits::default() }, CountSource::Reported));
    let gemini = Exchange {
        path: "/v1beta/models/gemini-x:generateContent",
        body: r#"{"contents":[]}"#,
        answer: r#"{"usageMetadata":{"promptTokenCount":3,"candidatesTokenCount":2,"thoughtsTokenCount":1},"modelVersion":"gemini-x-001"}"#,
        ..Exchange::default()
    };
    let record = gemini.run(&filter);
    assert_eq!((record.model.as_deref(), record.tokens.output, record.tokens.reasoning), (Some("gemini-x"), 3, 1));
}
