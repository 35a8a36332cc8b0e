//! One webhook: the format of its service, its signature, and whether the receiver accepted an
//! event. Retries are decided by its caller.

use std::time::{Duration, SystemTime};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, KeyInit, Mac};
use keylatch_filters::contract::{Invalid, Resolve};
use reqwest::{Client, Url};
use serde_json::{Value, json};
use sha2::Sha256;

use crate::config::Files;
use crate::config::model::{Webhook as WebhookConfig, WebhookFormat};
use crate::outbound::{self, ClientOptions, Response};
use crate::util::outbound_url;

/// The timeout of an attempt for webhooks that set none.
const TIMEOUT_DEFAULT: Duration = Duration::from_secs(10);

/// A compiled webhook.
pub struct Webhook {
    /// Its name.
    pub name: String,
    format: WebhookFormat,
    url: Url,
    secret: Option<Vec<u8>>,
    client: Client,
}

/// Why a delivery failed, and when to retry.
pub struct DeliveryError {
    /// The reason, without the URL.
    pub why: String,
    /// The receiver's `Retry-After`, if it sent one.
    pub retry_after: Option<Duration>,
}

impl Webhook {
    /// A webhook from live settings, not from the file.
    pub fn new(name: &str, format: WebhookFormat, url: &str, secret: Option<&str>, private: bool) -> Result<Self, Invalid> {
        let url = outbound_url::target(url, private).map_err(|says| Invalid::new(says).at("url"))?;
        let secret = secret.map(|text| secret_bytes(text, format)).transpose().map_err(|says| Invalid::new(says).at("secret"))?;
        let client = outbound::client(&ClientOptions { private, ca: None, timeout: TIMEOUT_DEFAULT }).map_err(Invalid::new)?;
        Ok(Self { name: name.to_owned(), format, url, secret, client })
    }

    /// Compiles a webhook of the file. Errors contain no part of the URL.
    pub fn compile(config: &WebhookConfig, files: &Files) -> Result<Self, Invalid> {
        let url = files.secret(&config.url).map_err(|invalid| invalid.at("url"))?;
        let url = outbound_url::target(&url, config.allow_private).map_err(|says| Invalid::new(says).at("url"))?;
        let secret = match &config.secret {
            Some(secret) => {
                let text = files.secret(secret).map_err(|invalid| invalid.at("secret"))?;
                Some(secret_bytes(&text, config.format).map_err(|says| Invalid::new(says).at("secret"))?)
            }
            None => None,
        };
        let ca = config.ca_file.as_ref().map(|path| files.file(path)).transpose().map_err(|invalid| invalid.at("ca_file"))?;
        let options = ClientOptions { private: config.allow_private, ca, timeout: config.timeout.0 };
        let client = outbound::client(&options).map_err(Invalid::new)?;
        Ok(Self { name: config.name.clone(), format: config.format, url, secret, client })
    }

    /// Sends an event once. Each format defines success; see `judge`.
    pub async fn send(&self, id: &str, event: &Value, now: SystemTime) -> Result<(), DeliveryError> {
        let since = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let (body, url, headers) = self.form(id, event, since);
        let failed = |why: String| DeliveryError { why, retry_after: None };
        let answer = outbound::post(&self.client, url, &headers, body).await.map_err(failed)?;
        self.judge(&answer).map_err(|why| DeliveryError { why, retry_after: answer.retry_after })
    }

    fn form(&self, id: &str, event: &Value, since: Duration) -> (String, Url, Vec<(&'static str, String)>) {
        let mut url = self.url.clone();
        let mut headers = Vec::new();
        let text = super::event::text(event);
        let body = match self.format {
            WebhookFormat::Json => {
                // https://www.standardwebhooks.com
                let (body, seconds) = (event.to_string(), since.as_secs().to_string());
                headers.extend([("webhook-id", id.to_owned()), ("webhook-timestamp", seconds.clone())]);
                if let Some(secret) = &self.secret {
                    headers.push(("webhook-signature", format!("v1,{}", signed(secret, &format!("{id}.{seconds}.{body}")))));
                }
                return (body, url, headers);
            }
            // Slack reads text between `<` and `>` as mentions and links.
            WebhookFormat::Slack => json!({ "text": text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;") }),
            WebhookFormat::Discord => json!({ "content": text, "allowed_mentions": { "parse": [] } }),
            WebhookFormat::Feishu => {
                let text = text.replace('<', "‹").replace('>', "›");
                let mut body = json!({ "msg_type": "text", "content": { "text": text } });
                if let Some(secret) = &self.secret {
                    // Feishu's signature: the secret is part of the HMAC key, and the signed
                    // message is empty.
                    let key = [since.as_secs().to_string().as_bytes(), b"\n", secret].concat();
                    body["timestamp"] = json!(since.as_secs().to_string());
                    body["sign"] = json!(signed(&key, ""));
                }
                body
            }
            WebhookFormat::Dingtalk => {
                if let Some(secret) = &self.secret {
                    let (ms, text) = (since.as_millis(), String::from_utf8_lossy(secret));
                    let sign = signed(secret, &format!("{ms}\n{text}"));
                    url.query_pairs_mut().append_pair("timestamp", &ms.to_string()).append_pair("sign", &sign);
                }
                json!({ "msgtype": "text", "text": { "content": text } })
            }
            WebhookFormat::Wecom => json!({ "msgtype": "text", "text": { "content": text } }),
        };
        (body.to_string(), url, headers)
    }

    /// Some services answer errors with 200 and a code in the body.
    fn judge(&self, answer: &Response) -> Result<(), String> {
        if !(200..300).contains(&answer.status) {
            return Err(format!("the receiver answered with status {}", answer.status));
        }
        let says = match self.format {
            WebhookFormat::Feishu => ["code", "StatusCode"].as_slice(),
            WebhookFormat::Dingtalk | WebhookFormat::Wecom => &["errcode"],
            _ => return Ok(()),
        };
        let body: Value = serde_json::from_slice(&answer.body).unwrap_or_default();
        match says.iter().find_map(|name| body.get(name)?.as_i64()) {
            Some(0) => Ok(()),
            Some(code) => Err(format!("the receiver answered with error code {code}")),
            None => Err("the receiver answered 200 without the code that its service always sends".into()),
        }
    }
}

fn signed(key: &[u8], text: &str) -> String {
    // HMAC accepts keys of any length.
    let mut mac = Hmac::<Sha256>::new_from_slice(key).unwrap_or_else(|_| unreachable!("HMAC accepts any key length"));
    mac.update(text.as_bytes());
    STANDARD.encode(mac.finalize().into_bytes())
}

fn secret_bytes(text: &str, format: WebhookFormat) -> Result<Vec<u8>, String> {
    match text.strip_prefix("whsec_").filter(|_| format == WebhookFormat::Json) {
        Some(encoded) => STANDARD.decode(encoded).map_err(|_| "the text after `whsec_` is not base64".into()),
        None if text.is_empty() => Err("is empty".into()),
        None => Ok(text.as_bytes().to_vec()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn webhook(format: WebhookFormat, secret: Option<&str>) -> Webhook {
        let options = ClientOptions { private: true, ca: None, timeout: Duration::from_secs(1) };
        Webhook {
            name: "w".into(),
            format,
            url: Url::parse("https://example.com/hook?token=t").unwrap(),
            secret: secret.map(|text| secret_bytes(text, format).unwrap()),
            client: outbound::client(&options).unwrap(),
        }
    }

    /// The test vector of the Standard Webhooks libraries.
    #[test]
    fn a_known_signature() {
        let key = secret_bytes("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", WebhookFormat::Json).unwrap();
        let text = r#"msg_p5jXN8AQM9LWM0D4loKWxJek.1614265330.{"test": 2432232314}"#;
        assert_eq!(signed(&key, text), "g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=");
        assert!(secret_bytes("whsec_?", WebhookFormat::Json).is_err() && secret_bytes("", WebhookFormat::Json).is_err());
    }

    #[test]
    fn errors_in_a_200_response() {
        let answer = |status, body: &str| Response { status, retry_after: None, body: body.as_bytes().to_vec() };
        for (format, body, fine) in [
            (WebhookFormat::Json, "", true),
            (WebhookFormat::Slack, "ok", true),
            (WebhookFormat::Feishu, r#"{"code":0,"msg":"success"}"#, true),
            (WebhookFormat::Feishu, r#"{"StatusCode":0}"#, true),
            (WebhookFormat::Feishu, r#"{"code":19021,"msg":"sign match fail"}"#, false),
            (WebhookFormat::Dingtalk, r#"{"errcode":0,"errmsg":"ok"}"#, true),
            (WebhookFormat::Dingtalk, r#"{"errcode":310000,"errmsg":"sign not match"}"#, false),
            (WebhookFormat::Wecom, r#"{"errcode":93000}"#, false),
            (WebhookFormat::Wecom, "<html>", false),
        ] {
            assert_eq!(webhook(format, None).judge(&answer(200, body)).is_ok(), fine, "{format:?} {body}");
            assert!(webhook(format, None).judge(&answer(302, body)).is_err());
        }
    }
}
