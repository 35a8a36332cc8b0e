//! Reads the error in an upstream response that is too late to be forwarded. It writes no dialect.

use std::borrow::Cow;
use std::time::SystemTime;

use http::{HeaderMap, StatusCode, header};
use serde_json::{Map, Value};

use super::Fault;

/// The most bytes of a message that are forwarded.
const MESSAGE_BYTES_MAX: usize = 2048;

/// The error that a status, fields and a body express.
pub fn of_upstream<'a>(status: StatusCode, headers: &HeaderMap, body: &'a [u8]) -> Fault<'a> {
    let retry_after_s = headers.get(header::RETRY_AFTER).and_then(|value| value.to_str().ok()).and_then(seconds);
    // A success that cannot become part of the stream is an upstream failure.
    let reported = if status.is_success() { StatusCode::BAD_GATEWAY } else { status };
    let own = object(body);
    let message = match &own {
        Some(own) => message_of(own).map(Cow::Owned),
        None => plain_text(headers, body),
    };
    let code = own.as_ref().and_then(code_of).map_or(Cow::Borrowed("upstream_error"), Cow::Owned);
    Fault {
        status: reported,
        code,
        message: message.unwrap_or_else(|| format!("The server behind this API answered with status {}.", status.as_u16()).into()),
        retry_after_s,
        own: own.filter(|_| !status.is_success()),
        late: true,
    }
}

/// Parses `Retry-After` in seconds; it may be a date (RFC 9110, section 10.2.3).
fn seconds(retry_after: &str) -> Option<u64> {
    let date = || httpdate::parse_http_date(retry_after.trim()).ok();
    let until = || Some(date()?.duration_since(SystemTime::now()).map_or(0, |wait| wait.as_secs() + 1));
    retry_after.trim().parse().ok().or_else(until)
}

/// A JSON object. Google's APIs send it as the only item of a list for streaming requests.
fn object(body: &[u8]) -> Option<Map<String, Value>> {
    match serde_json::from_slice(body).ok()? {
        Value::Object(own) => Some(own),
        Value::Array(items) if items.len() == 1 => match items.into_iter().next() {
            Some(Value::Object(own)) => Some(own),
            _ => None,
        },
        _ => None,
    }
}

/// The message of an error, in any shape in use.
fn message_of(own: &Map<String, Value>) -> Option<String> {
    let text = |value: &Value| value.as_str().map(str::to_owned);
    let error = own.get("error");
    let nested = error.and_then(|error| error.get("message")).and_then(text);
    let found = nested.or_else(|| error.and_then(text)).or_else(|| own.get("message").and_then(text));
    let found = found.or_else(|| own.get("detail").and_then(detail)).or_else(|| own.get("msg").and_then(text));
    found.filter(|message| !message.is_empty())
}

/// FastAPI's `detail`: a text, or a list of validation errors.
fn detail(detail: &Value) -> Option<String> {
    let each = |item: &Value| item.get("msg").and_then(Value::as_str).map(str::to_owned);
    match detail {
        Value::String(text) => Some(text.clone()),
        Value::Array(items) => Some(items.iter().filter_map(each).collect::<Vec<_>>().join("; ")),
        _ => None,
    }
}

fn code_of(own: &Map<String, Value>) -> Option<String> {
    let code = own.get("error").and_then(|error| error.get("code")).or_else(|| own.get("code"))?;
    code.as_str().map(str::to_owned).or_else(|| code.as_u64().map(|number| number.to_string()))
}

/// A plain text body. HTML pages are ignored.
fn plain_text<'a>(headers: &HeaderMap, body: &'a [u8]) -> Option<Cow<'a, str>> {
    let plain = headers.get(header::CONTENT_TYPE).is_none_or(|kind| kind.as_bytes().starts_with(b"text/plain"));
    let text = std::str::from_utf8(body).ok().map(str::trim).filter(|text| plain && !text.is_empty() && !text.starts_with('<'))?;
    let end = (0..=text.len().min(MESSAGE_BYTES_MAX)).rev().find(|end| text.is_char_boundary(*end))?;
    text.get(..end).map(Cow::Borrowed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_in_all_shapes() {
        for (body, message, code) in [
            (r#"{"error":{"message":"m","type":"t","code":"c"}}"#, "m", "c"),
            (r#"{"error":{"message":"m","code":429,"status":"X"}}"#, "m", "429"),
            (r#"{"error":"m"}"#, "m", "upstream_error"),
            (r#"{"object":"error","message":"m","code":40303}"#, "m", "40303"),
            (r#"{"detail":"m"}"#, "m", "upstream_error"),
            (r#"{"detail":[{"loc":["body"],"msg":"m"},{"msg":"n"}]}"#, "m; n", "upstream_error"),
            (r#"[{"error":{"code":429,"message":"m","status":"X"}}]"#, "m", "429"),
            (r#"{"code":"Throttling","message":"m"}"#, "m", "Throttling"),
            (" m\n", "m", "upstream_error"),
            ("<html>m</html>", "The server behind this API answered with status 429.", "upstream_error"),
            ("", "The server behind this API answered with status 429.", "upstream_error"),
            (r#"{"error":{}}"#, "The server behind this API answered with status 429.", "upstream_error"),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(header::RETRY_AFTER, "12".parse().unwrap());
            let fault = of_upstream(StatusCode::TOO_MANY_REQUESTS, &headers, body.as_bytes());
            assert_eq!(
                (&*fault.message, &*fault.code, fault.status.as_u16(), fault.retry_after_s),
                (message, code, 429, Some(12)),
                "{body}"
            );
        }
        assert_eq!(seconds("Sun, 06 Nov 1994 08:49:37 GMT"), Some(0));
        let later = httpdate::fmt_http_date(SystemTime::now() + std::time::Duration::from_secs(100));
        assert!(seconds(&later).is_some_and(|seconds| (90..=101).contains(&seconds)));
        assert_eq!(seconds("soon"), None);
        let long = "é".repeat(2000);
        assert_eq!(of_upstream(StatusCode::BAD_GATEWAY, &HeaderMap::new(), long.as_bytes()).message.len(), MESSAGE_BYTES_MAX);
        assert_eq!(of_upstream(StatusCode::OK, &HeaderMap::new(), b"audio").status, StatusCode::BAD_GATEWAY);
    }
}
