//! `keylatch demo-upstream`: serves a demo model API for experiments and tests.
//!
//! - `POST /v1/chat/completions`: OpenAI's chat completions; with `"stream": true` as events.
//! - `POST /v1/messages`: Anthropic's messages, the same way.
//! - `GET /v1/models`; and `/v1/echo`, which returns the request as it arrived.
//!
//! Query parameters: `pause=20s` pauses in the middle, `wait=20s` delays the header, `delay=50ms` is the time between words,
//! `words=100` sets their number, `die=3` ends the connection after that many words, `status=500` fails.

use std::convert::Infallible;
use std::net::SocketAddr;

use axum::body::{Body, Bytes};
use axum::extract::Query;
use axum::http::{HeaderMap, Method, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{any, get, post};
use axum::{Json, Router};
use clap::Args;
use futures::stream;
use serde::Deserialize;
use serde_json::{Value, json};

#[derive(Args)]
pub struct DemoUpstream {
    /// The address to listen on
    #[arg(long, default_value = "127.0.0.1:9000")]
    listen: SocketAddr,
}

pub fn serve(demo: &DemoUpstream) -> Result<(), String> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().map_err(|e| e.to_string())?;
    runtime.block_on(async {
        let listener = tokio::net::TcpListener::bind(demo.listen).await.map_err(|e| format!("cannot listen on {}: {e}", demo.listen))?;
        axum::serve(listener, router()).await.map_err(|e| e.to_string())
    })
}

fn router() -> Router {
    Router::new()
        .route("/v1/chat/completions", post(|query: Query<Behaviour>, body: Bytes| answer(query.0, body, Api::OpenAi)))
        .route("/v1/messages", post(|query: Query<Behaviour>, body: Bytes| answer(query.0, body, Api::Anthropic)))
        .route(
            "/v1/models",
            get(|| async {
                Json(json!({ "object": "list", "data": [{ "id": "demo", "object": "model", "created": 0, "owned_by": "keylatch" }] }))
            }),
        )
        .route("/v1/echo", any(echo))
}

#[derive(Clone, Copy, PartialEq)]
enum Api {
    OpenAi,
    Anthropic,
}

#[derive(Clone, Deserialize)]
#[serde(default)]
struct Behaviour {
    pause: String,
    wait: String,
    delay: String,
    words: usize,
    die: Option<usize>,
    status: u16,
}

impl Default for Behaviour {
    fn default() -> Self {
        Self { pause: "0s".into(), wait: "0s".into(), delay: "20ms".into(), words: 8, die: None, status: 200 }
    }
}

/// Sleeps as long as the request asks for: the delay itself is the feature, to try keep-alive frames and time limits.
async fn sleep_for(duration: &str) {
    tokio::time::sleep(humantime::parse_duration(duration).unwrap_or_default()).await;
}

async fn answer(behaviour: Behaviour, body: Bytes, api: Api) -> Response {
    let request: Value = match serde_json::from_slice(&body) {
        Ok(request) => request,
        Err(error) => return (StatusCode::BAD_REQUEST, Json(json!({ "error": { "message": error.to_string() } }))).into_response(),
    };
    sleep_for(&behaviour.wait).await;
    let status = StatusCode::from_u16(behaviour.status).unwrap_or(StatusCode::OK);
    if !status.is_success() {
        return (
            status,
            Json(json!({ "error": { "message": "the demo fails as requested", "type": "server_error", "param": null, "code": "demo" } })),
        )
            .into_response();
    }
    let words: Vec<String> = (0..behaviour.words.min(100_000)).map(|n| format!("word{n} ")).collect();
    if request["stream"] != true {
        return Json(whole(api, &words.concat())).into_response();
    }
    let events = events(api, &words);
    let half = events.len() / 2;
    let state = (events.into_iter().enumerate(), behaviour);
    let stream = stream::unfold(state, move |(mut events, behaviour)| async move {
        let (index, event) = events.next()?;
        if index == half {
            sleep_for(&behaviour.pause).await;
        } else if index > 0 {
            sleep_for(&behaviour.delay).await;
        }
        let item = if behaviour.die == Some(index) {
            Err(std::io::Error::other("the demo ends the connection as requested"))
        } else {
            Ok(Bytes::from(event))
        };
        Some((item, (events, behaviour)))
    });
    ([(header::CONTENT_TYPE, "text/event-stream; charset=utf-8")], Body::from_stream(stream)).into_response()
}

fn whole(api: Api, text: &str) -> Value {
    match api {
        Api::OpenAi => json!({
            "id": "chatcmpl-demo", "object": "chat.completion", "created": 1_700_000_000, "model": "demo",
            "choices": [{ "index": 0, "message": { "role": "assistant", "content": text }, "finish_reason": "stop" }],
            "usage": { "prompt_tokens": 1, "completion_tokens": 8, "total_tokens": 9 },
        }),
        Api::Anthropic => json!({
            "id": "msg_demo", "type": "message", "role": "assistant", "model": "demo", "content": [{ "type": "text", "text": text }],
            "stop_reason": "end_turn", "stop_sequence": null, "usage": { "input_tokens": 1, "output_tokens": 8 },
        }),
    }
}

fn events(api: Api, words: &[String]) -> Vec<String> {
    match api {
        Api::OpenAi => {
            let chunk = |delta: Value, finish: Value| {
                let chunk = json!({
                    "id": "chatcmpl-demo", "object": "chat.completion.chunk", "created": 1_700_000_000, "model": "demo",
                    "choices": [{ "index": 0, "delta": delta, "finish_reason": finish }],
                });
                format!("data: {chunk}\n\n")
            };
            let mut events: Vec<_> = words.iter().map(|word| chunk(json!({ "role": "assistant", "content": word }), Value::Null)).collect();
            events.push(chunk(json!({}), json!("stop")));
            events.push("data: [DONE]\n\n".into());
            events
        }
        Api::Anthropic => {
            let event = |name: &str, mut data: Value| {
                data["type"] = json!(name);
                format!("event: {name}\ndata: {data}\n\n")
            };
            let mut start = whole(api, "");
            start["content"] = json!([]);
            let mut events = vec![
                event("message_start", json!({ "message": start })),
                event("content_block_start", json!({ "index": 0, "content_block": { "type": "text", "text": "" } })),
            ];
            events.extend(
                words
                    .iter()
                    .map(|word| event("content_block_delta", json!({ "index": 0, "delta": { "type": "text_delta", "text": word } }))),
            );
            events.push(event("content_block_stop", json!({ "index": 0 })));
            events.push(event(
                "message_delta",
                json!({ "delta": { "stop_reason": "end_turn", "stop_sequence": null }, "usage": { "output_tokens": 8 } }),
            ));
            events.push(event("message_stop", json!({})));
            events
        }
    }
}

async fn echo(method: Method, uri: Uri, headers: HeaderMap, body: Bytes) -> Result<Json<Value>, Infallible> {
    let fields: Vec<Value> =
        headers.iter().map(|(name, value)| json!([name.as_str(), String::from_utf8_lossy(value.as_bytes())])).collect();
    Ok(Json(json!({ "method": method.as_str(), "target": uri.to_string(), "headers": fields, "body_bytes": body.len() })))
}
