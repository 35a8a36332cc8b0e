//! An upstream's error that came too late to be passed on as it is: what it says, read from whatever it sent.

use std::borrow::Cow;

use http::{HeaderMap, StatusCode, header};
use serde_json::{Map, Value};

use super::Fault;

/// The most of a text that is passed on.
const MESSAGE_BYTES_MAX: usize = 2048;

/// What an upstream has said by a status, fields and a body.
pub fn of_upstream<'a>(status: StatusCode, headers: &HeaderMap, body: &'a [u8]) -> Fault<'a> {
    let retry_after_s = headers.get(header::RETRY_AFTER).and_then(|value| value.to_str().ok()).and_then(|text| text.trim().parse().ok());
    // What succeeds and cannot be told within a stream is a failure of the upstream's to stream.
    let told = if status.is_success() { StatusCode::BAD_GATEWAY } else { status };
    let own = serde_json::from_slice::<Map<String, Value>>(body).ok();
    let message = match &own {
        Some(own) => message_of(own).map(Cow::Owned),
        None => plain_text(headers, body),
    };
    let code = own.as_ref().and_then(code_of).map_or(Cow::Borrowed("upstream_error"), Cow::Owned);
    Fault {
        status: told,
        code,
        message: message.unwrap_or_else(|| format!("The server behind this API answered with status {}.", status.as_u16()).into()),
        retry_after_s,
        own: own.filter(|_| !status.is_success()),
    }
}

/// The message of an error in any of the shapes that are in use.
fn message_of(own: &Map<String, Value>) -> Option<String> {
    let text = |value: &Value| value.as_str().map(str::to_owned);
    let error = own.get("error");
    let nested = error.and_then(|error| error.get("message")).and_then(text);
    let found = nested.or_else(|| error.and_then(text)).or_else(|| own.get("message").and_then(text));
    let found = found.or_else(|| own.get("detail").and_then(text)).or_else(|| own.get("msg").and_then(text));
    found.filter(|message| !message.is_empty())
}

fn code_of(own: &Map<String, Value>) -> Option<String> {
    let code = own.get("error").and_then(|error| error.get("code")).or_else(|| own.get("code"))?;
    code.as_str().map(str::to_owned).or_else(|| code.as_u64().map(|number| number.to_string()))
}

/// A body of plain text; pages of HTML say nothing to a program.
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
        let long = "é".repeat(2000);
        assert_eq!(of_upstream(StatusCode::BAD_GATEWAY, &HeaderMap::new(), long.as_bytes()).message.len(), MESSAGE_BYTES_MAX);
        assert_eq!(of_upstream(StatusCode::OK, &HeaderMap::new(), b"audio").status, StatusCode::BAD_GATEWAY);
    }
}
