//! Errors in the dialect of each API: as a response of its own, and as the last event of a stream.
//!
//! | dialect | response | in a stream |
//! | --- | --- | --- |
//! | OpenAI | `{"error":{message,type,param,code}}` | `data:` with the same |
//! | OpenAI Responses | the same | `event: error` with `{"type":"error","sequence_number":n,"error":{…}}` |
//! | Anthropic | `{"type":"error","error":{type,message}}` | `event: error` with the same |
//! | Gemini | `{"error":{code,message,status}}` | `data:` with the same |
//! | Cohere v2 | `{"message"}` | `event: message-end` with `finish_reason: "ERROR"` |
//! | Mistral | `{"object":"error",message,type,param,code}` | `data:` with `{"error":{…}}` |
//! | Ollama | `{"error":"text"}` | the same as a line |
//! | MCP | JSON-RPC error with `id: null` | `event: message` with the request's `id` |
//! | DashScope | `{code,message,request_id}` | `event: error` with the same |
//!
//! This module knows no session: `stream_state` and `reply` decide what is written where.

mod late;
mod upstream;

use std::borrow::Cow;

use bytes::Bytes;
use http::StatusCode;
use keylatch_filters::contract::Dialect;
use serde_json::{Map, Value, json};

pub use late::{Collected, LateAnswer};
pub use upstream::of_upstream;

/// An error, independent of the dialect.
#[derive(Clone, Debug)]
pub struct Fault<'a> {
    /// The HTTP status, whether or not it can still be sent.
    pub status: StatusCode,
    /// A stable code for programs.
    pub code: Cow<'a, str>,
    /// A sentence for people.
    pub message: Cow<'a, str>,
    /// The retry delay, in seconds.
    pub retry_after_s: Option<u64>,
    /// The JSON error of the upstream.
    pub own: Option<Map<String, Value>>,
    /// The header has already been sent, so the error itself carries status and retry delay.
    pub late: bool,
}

/// The request that an error belongs to.
#[derive(Clone, Copy, Debug, Default)]
pub struct ErrorContext<'a> {
    /// The request id, as in the logs.
    pub request_id: Option<&'a str>,
    /// The `id` of the JSON-RPC request, as JSON.
    pub rpc_id: Option<&'a str>,
    /// The number of events in the stream so far.
    pub sequence: u64,
}

/// The `error.type` of OpenAI and of Anthropic.
fn types(status: StatusCode) -> (&'static str, &'static str) {
    match status.as_u16() {
        401 => ("authentication_error", "authentication_error"),
        403 => ("permission_error", "permission_error"),
        404 => ("invalid_request_error", "not_found_error"),
        413 => ("invalid_request_error", "request_too_large"),
        429 => ("rate_limit_error", "rate_limit_error"),
        400..=499 => ("invalid_request_error", "invalid_request_error"),
        503 => ("server_error", "overloaded_error"),
        _ => ("server_error", "api_error"),
    }
}

/// The `error.status` of Google's APIs (google.rpc.Code).
fn google_status(status: StatusCode) -> &'static str {
    match status.as_u16() {
        401 => "UNAUTHENTICATED",
        403 => "PERMISSION_DENIED",
        404 => "NOT_FOUND",
        409 => "ABORTED",
        429 => "RESOURCE_EXHAUSTED",
        400..=499 => "INVALID_ARGUMENT",
        501 => "UNIMPLEMENTED",
        502 | 503 => "UNAVAILABLE",
        504 => "DEADLINE_EXCEEDED",
        _ => "INTERNAL",
    }
}

/// The `error.code` of JSON-RPC 2.0 (section 5.1). -32000 is the first code for servers.
fn rpc_code(status: StatusCode) -> i32 {
    match status.as_u16() {
        400 | 413 | 422 => -32600,
        401..=499 => -32000,
        _ => -32603,
    }
}

/// The error as the body of a response.
pub fn body(dialect: Dialect, fault: &Fault<'_>, place: &ErrorContext<'_>) -> Bytes {
    shape(dialect, fault, place).to_string().into()
}

/// The error as the last event of a stream; for Ollama, a line of JSON.
pub fn event(dialect: Dialect, fault: &Fault<'_>, place: &ErrorContext<'_>) -> Bytes {
    let value = shape(dialect, fault, place);
    match dialect {
        Dialect::OpenAi | Dialect::Gemini => format!("data: {value}\n\n"),
        Dialect::OpenAiResponses => format!("event: error\ndata: {}\n\n", responses_event(&value, place)),
        Dialect::Anthropic => format!("event: error\ndata: {value}\n\n"),
        Dialect::Cohere => {
            let mut delta = json!({ "finish_reason": "ERROR", "error": fault.message });
            note(Some(&mut delta), fault);
            format!("event: message-end\ndata: {}\n\n", json!({ "type": "message-end", "delta": delta }))
        }
        Dialect::Mistral => format!("data: {}\n\n", json!({ "error": value })),
        Dialect::Ollama => format!("{value}\n"),
        Dialect::Mcp => format!("event: message\ndata: {value}\n\n"),
        Dialect::DashScope => format!("event: error\n:HTTP_STATUS/{}\ndata: {value}\n\n", fault.status.as_u16()),
    }
    .into()
}

/// OpenAI documents these members beside the type, and its libraries read them from `error`; both
/// are written.
fn responses_event(shape: &Value, place: &ErrorContext<'_>) -> Value {
    let error = shape.get("error").cloned().unwrap_or_default();
    let member = |name: &str| error.get(name).cloned().unwrap_or_default();
    json!({
        "type": "error", "sequence_number": place.sequence, "code": member("code"), "message": member("message"),
        "param": member("param"), "error": error,
    })
}

/// The error of the upstream if it has the shape of the dialect, otherwise one of Keylatch.
fn shape(dialect: Dialect, fault: &Fault<'_>, place: &ErrorContext<'_>) -> Value {
    let own = |fits: fn(&Map<String, Value>) -> bool| fault.own.clone().filter(fits).map(Value::Object);
    let (openai, anthropic) = types(fault.status);
    match dialect {
        Dialect::OpenAi | Dialect::OpenAiResponses => {
            let ours = || {
                json!({ "error": {
                    "message": fault.message, "type": openai, "param": null, "code": fault.code, "request_id": place.request_id,
                }})
            };
            let mut value = own(|own| own.get("error").is_some_and(Value::is_object)).unwrap_or_else(ours);
            note(value.get_mut("error"), fault);
            value
        }
        Dialect::Anthropic => {
            let ours =
                || json!({ "type": "error", "error": { "type": anthropic, "message": fault.message }, "request_id": place.request_id });
            let mut value = own(|own| own.get("type").is_some_and(|kind| kind == "error")).unwrap_or_else(ours);
            note(value.get_mut("error"), fault);
            value
        }
        Dialect::Gemini => {
            let ours = || {
                json!({ "error": {
                    "code": fault.status.as_u16(), "message": fault.message, "status": google_status(fault.status), "details": [
                        { "@type": "type.googleapis.com/google.rpc.ErrorInfo", "reason": fault.code, "domain": "keylatch" },
                    ],
                }})
            };
            let mut value = own(|own| own.get("error").and_then(|error| error.get("status")).is_some()).unwrap_or_else(ours);
            retry_info(value.get_mut("error"), fault);
            value
        }
        Dialect::Cohere => json!({ "message": fault.message, "id": place.request_id }),
        Dialect::Mistral => {
            let ours = || {
                json!({
                    "object": "error", "message": fault.message, "type": openai, "param": null, "code": fault.code,
                    "request_id": place.request_id,
                })
            };
            let mut value = own(|own| own.get("object").is_some_and(|kind| kind == "error")).unwrap_or_else(ours);
            note(Some(&mut value), fault);
            value
        }
        Dialect::Ollama => json!({ "error": fault.message }),
        Dialect::Mcp => rpc_error(fault, place),
        Dialect::DashScope => {
            let ours = || json!({ "code": fault.code, "message": fault.message, "request_id": place.request_id });
            let mut value = own(|own| own.contains_key("code") && own.contains_key("message")).unwrap_or_else(ours);
            note(Some(&mut value), fault);
            value
        }
    }
}

fn rpc_error(fault: &Fault<'_>, place: &ErrorContext<'_>) -> Value {
    let id: Value = place.rpc_id.and_then(|id| serde_json::from_str(id).ok()).unwrap_or_default();
    let own = fault.own.as_ref().filter(|own| own.contains_key("jsonrpc")).and_then(|own| own.get("error")).cloned();
    let error = own.unwrap_or_else(|| {
        json!({
            "code": rpc_code(fault.status), "message": fault.message,
            "data": { "status": fault.status.as_u16(), "code": fault.code, "request_id": place.request_id },
        })
    });
    let mut value = json!({ "jsonrpc": "2.0", "id": id, "error": error });
    note(value.get_mut("error").and_then(|error| error.get_mut("data")), fault);
    value
}

/// Adds status and retry delay to a late error that lacks them.
fn note(error: Option<&mut Value>, fault: &Fault<'_>) {
    let Some(Value::Object(error)) = error else { return };
    if fault.late {
        error.entry("status").or_insert_with(|| fault.status.as_u16().into());
        if let Some(seconds) = fault.retry_after_s {
            error.entry("retry_after").or_insert_with(|| seconds.into());
        }
    }
}

/// The retry delay in Google's form (google.rpc.RetryInfo); the status is part of the shape.
fn retry_info(error: Option<&mut Value>, fault: &Fault<'_>) {
    const KIND: &str = "type.googleapis.com/google.rpc.RetryInfo";
    let (Some(Value::Object(error)), Some(seconds), true) = (error, fault.retry_after_s, fault.late) else { return };
    let Value::Array(details) = error.entry("details").or_insert_with(|| json!([])) else { return };
    if !details.iter().any(|detail| detail.get("@type").is_some_and(|kind| kind == KIND)) {
        details.push(json!({ "@type": KIND, "retryDelay": format!("{seconds}s") }));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: [Dialect; 9] = [
        Dialect::OpenAi,
        Dialect::OpenAiResponses,
        Dialect::Anthropic,
        Dialect::Gemini,
        Dialect::Cohere,
        Dialect::Mistral,
        Dialect::Ollama,
        Dialect::Mcp,
        Dialect::DashScope,
    ];

    fn fault(status: u16) -> Fault<'static> {
        let status = StatusCode::from_u16(status).unwrap();
        Fault {
            status,
            code: "upstream_error".into(),
            message: "It \"failed\".\nTwice.".into(),
            retry_after_s: None,
            own: None,
            late: false,
        }
    }

    #[test]
    fn every_body_and_every_event_is_json_with_the_message() {
        let place = ErrorContext { request_id: Some("r1"), rpc_id: Some("7"), sequence: 4 };
        for dialect in ALL {
            let body = body(dialect, &fault(502), &place);
            assert!(serde_json::from_slice::<Value>(&body).unwrap().to_string().contains("It \\\"failed\\\".\\nTwice."), "{dialect:?}");
            let event = String::from_utf8(event(dialect, &fault(502), &place).to_vec()).unwrap();
            let data: Vec<&str> = event.lines().filter_map(|line| line.strip_prefix("data: ")).collect();
            let data = if dialect == Dialect::Ollama { event.trim_end() } else { data.first().unwrap() };
            assert!(serde_json::from_str::<Value>(data).unwrap().to_string().contains("It \\\"failed\\\".\\nTwice."), "{event}");
            assert!(event.ends_with(if dialect == Dialect::Ollama { "}\n" } else { "}\n\n" }), "{event:?}");
        }
    }

    #[test]
    fn late_errors_carry_status_and_retry_delay() {
        for dialect in ALL.into_iter().filter(|dialect| *dialect != Dialect::Ollama) {
            let late = Fault { late: true, retry_after_s: Some(7), ..fault(429) };
            let event = String::from_utf8(event(dialect, &late, &ErrorContext::default()).to_vec()).unwrap();
            assert!(event.contains("429"), "{dialect:?}: {event}");
            assert!(event.contains("\"retry_after\":7") || event.contains("\"retryDelay\":\"7s\""), "{dialect:?}: {event}");
        }
    }

    #[test]
    fn shapes() {
        let place = ErrorContext { request_id: Some("r1"), rpc_id: Some("\"a\""), sequence: 4 };
        for (dialect, text) in [
            (Dialect::OpenAi, r#""type":"rate_limit_error","param":null,"code":"upstream_error","request_id":"r1""#),
            (Dialect::OpenAiResponses, "event: error\ndata: {\"type\":\"error\",\"sequence_number\":4,\"code\":\"upstream_error\""),
            (Dialect::Anthropic, r#"{"type":"error","error":{"type":"rate_limit_error""#),
            (Dialect::Gemini, r#"{"error":{"code":429,"#),
            (Dialect::Gemini, r#""status":"RESOURCE_EXHAUSTED""#),
            (Dialect::Cohere, r#"{"type":"message-end","delta":{"finish_reason":"ERROR","error":"#),
            (Dialect::Mistral, r#"{"error":{"object":"error","#),
            (Dialect::Mcp, r#"{"jsonrpc":"2.0","id":"a","error":{"code":-32000,"#),
            (Dialect::DashScope, "event: error\n:HTTP_STATUS/429\ndata: {\"code\":\"upstream_error\""),
        ] {
            let event = String::from_utf8(event(dialect, &fault(429), &place).to_vec()).unwrap();
            assert!(event.contains(text), "{dialect:?}: {event}");
        }
        assert_eq!(google_status(StatusCode::BAD_GATEWAY), "UNAVAILABLE");
    }
}
