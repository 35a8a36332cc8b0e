//! One webhook: the form its receiver wants, its signature, and whether he took it.

use std::time::{Duration, SystemTime};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, KeyInit, Mac};
use keylatch_filters::contract::{Invalid, Resolve};
use reqwest::{Client, Url};
use serde_json::{Value, json};
use sha2::Sha256;

use crate::config::Files;
use crate::config::model::{Webhook as Config, WebhookFormat};
use crate::outbound::{self, Answered, Reach};
use crate::util::outbound_url;

/// How long one attempt may take where nobody says.
const USUAL_TIME_MAX: Duration = Duration::from_secs(10);

/// A webhook that can be used.
pub struct Webhook {
    /// Its name.
    pub name: String,
    format: WebhookFormat,
    url: Url,
    secret: Option<Vec<u8>>,
    client: Client,
}

/// Why it was not taken, and when it may be worth trying again.
pub struct Refused {
    /// Why.
    pub why: String,
    /// Not before this, if the receiver has said so.
    pub retry_after: Option<Duration>,
}

impl Webhook {
    /// One that stands in no file.
    pub fn new(name: &str, format: WebhookFormat, url: &str, secret: Option<&str>, private: bool) -> Result<Self, Invalid> {
        let url = outbound_url::target(url, private).map_err(|says| Invalid::new(says).at("url"))?;
        let secret = secret.map(|text| secret_bytes(text, format)).transpose().map_err(|says| Invalid::new(says).at("secret"))?;
        let client = outbound::client(&Reach { private, ca: None, timeout: USUAL_TIME_MAX }).map_err(Invalid::new)?;
        Ok(Self { name: name.to_owned(), format, url, secret, client })
    }

    /// What is wrong with it holds no part of the URL.
    pub fn compile(config: &Config, files: &Files) -> Result<Self, Invalid> {
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
        let reach = Reach { private: config.allow_private, ca, timeout: config.timeout.0 };
        let client = outbound::client(&reach).map_err(Invalid::new)?;
        Ok(Self { name: config.name.clone(), format: config.format, url, secret, client })
    }

    /// Sends an event. What the receiver takes for a success is one.
    pub async fn send(&self, id: &str, event: &Value, now: SystemTime) -> Result<(), Refused> {
        let since = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let (body, url, headers) = self.form(id, event, since);
        let again = |why: String| Refused { why, retry_after: None };
        let answer = outbound::post(&self.client, url, &headers, body).await.map_err(again)?;
        self.judge(&answer).map_err(|why| Refused { why, retry_after: answer.retry_after })
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
            // What stands between < and > means something there: mentions, links.
            WebhookFormat::Slack => json!({ "text": text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;") }),
            WebhookFormat::Discord => json!({ "content": text, "allowed_mentions": { "parse": [] } }),
            WebhookFormat::Feishu => {
                let text = text.replace('<', "‹").replace('>', "›");
                let mut body = json!({ "msg_type": "text", "content": { "text": text } });
                if let Some(secret) = &self.secret {
                    // The secret is part of the key, and what is signed is nothing.
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

    /// Some answer 200 whatever happened, and say in the body what did.
    fn judge(&self, answer: &Answered) -> Result<(), String> {
        if !(200..300).contains(&answer.status) {
            return Err(format!("it answered with {}", answer.status));
        }
        let says = match self.format {
            WebhookFormat::Feishu => ["code", "StatusCode"].as_slice(),
            WebhookFormat::Dingtalk | WebhookFormat::Wecom => &["errcode"],
            _ => return Ok(()),
        };
        let body: Value = serde_json::from_slice(&answer.body).unwrap_or_default();
        match says.iter().find_map(|name| body.get(name)?.as_i64()) {
            Some(0) => Ok(()),
            Some(code) => Err(format!("it answered with its code {code}")),
            None => Err("it answered with 200 and not with what its service says".into()),
        }
    }
}

fn signed(key: &[u8], text: &str) -> String {
    // HMAC takes keys of any length.
    let mut mac = Hmac::<Sha256>::new_from_slice(key).unwrap_or_else(|_| unreachable!("any length is fine"));
    mac.update(text.as_bytes());
    STANDARD.encode(mac.finalize().into_bytes())
}

fn secret_bytes(text: &str, format: WebhookFormat) -> Result<Vec<u8>, String> {
    match text.strip_prefix("whsec_").filter(|_| format == WebhookFormat::Json) {
        Some(encoded) => STANDARD.decode(encoded).map_err(|_| "begins with `whsec_`, and what follows is not base64".into()),
        None if text.is_empty() => Err("is empty".into()),
        None => Ok(text.as_bytes().to_vec()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn webhook(format: WebhookFormat, secret: Option<&str>) -> Webhook {
        let reach = Reach { private: true, ca: None, timeout: Duration::from_secs(1) };
        Webhook {
            name: "w".into(),
            format,
            url: Url::parse("https://example.com/hook?token=t").unwrap(),
            secret: secret.map(|text| secret_bytes(text, format).unwrap()),
            client: outbound::client(&reach).unwrap(),
        }
    }

    /// The example that Standard Webhooks' libraries are tested with.
    #[test]
    fn a_known_signature() {
        let key = secret_bytes("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", WebhookFormat::Json).unwrap();
        let text = r#"msg_p5jXN8AQM9LWM0D4loKWxJek.1614265330.{"test": 2432232314}"#;
        assert_eq!(signed(&key, text), "g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=");
        assert!(secret_bytes("whsec_?", WebhookFormat::Json).is_err() && secret_bytes("", WebhookFormat::Json).is_err());
    }

    #[test]
    fn who_says_no_with_200() {
        let answer = |status, body: &str| Answered { status, retry_after: None, body: body.as_bytes().to_vec() };
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
