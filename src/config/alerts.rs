//! The `alerts` section of [`super::model`]. Sends nothing; `crate::alerts` does.

use keylatch_filters::contract::{HumanDuration, Invalid, SecretRef};
use schemars::JsonSchema;
use serde::Deserialize;

/// Alerts when a key is refused too often.
#[derive(Clone, Debug, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Alerts {
    /// The number of intercepts of one key, over all replicas, that raises an alert. An alert is
    /// logged and sent to all webhooks.
    #[serde(default)]
    pub intercepts: InterceptAlert,
    /// The webhooks that alerts are sent to.
    #[serde(default)]
    pub webhooks: Vec<Webhook>,
}

/// `intercepts`
#[derive(Clone, Debug, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct InterceptAlert {
    /// The number of intercepts. Default: 20.
    pub count: u64,
    /// The window in which they count, to the minute. A key raises at most one alert per window.
    /// Default: 10min.
    pub window: HumanDuration,
    /// Whether intercepts of filters in shadow mode count. Default: false.
    pub shadow: bool,
}

impl Default for InterceptAlert {
    fn default() -> Self {
        Self { count: 20, window: HumanDuration::secs(600), shadow: false }
    }
}

/// A webhook, called by HTTP POST. A failed delivery is retried with growing pauses for a day.
#[derive(Clone, Debug, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Webhook {
    /// The name in logs, metrics and the database.
    pub name: String,
    /// The URL: `https://…`. It is a secret (`${ENV}` or `file:PATH`), because it usually is the
    /// only credential.
    pub url: SecretRef,
    /// The format of the body. Default: `json`.
    #[serde(default)]
    pub format: WebhookFormat,
    /// The secret that signs the body: for `json` as in Standard Webhooks (text, or `whsec_` and
    /// base64), for `feishu` and `dingtalk` as they define.
    pub secret: Option<SecretRef>,
    /// Whether the target may use HTTP or a private address. Default: false.
    #[serde(default)]
    pub allow_private: bool,
    /// CA certificates (PEM) that the server is verified with. Default: the system's.
    pub ca_file: Option<String>,
    /// The time limit of one attempt. Default: 10s.
    #[serde(default = "ten_seconds")]
    pub timeout: HumanDuration,
}

fn ten_seconds() -> HumanDuration {
    HumanDuration::secs(10)
}

/// The format of the body.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum WebhookFormat {
    /// The event as JSON, signed as in Standard Webhooks.
    #[default]
    Json,
    /// Slack and Mattermost incoming webhooks.
    Slack,
    /// Discord webhooks.
    Discord,
    /// Feishu and Lark custom bots.
    Feishu,
    /// DingTalk custom robots.
    Dingtalk,
    /// WeCom group robots.
    Wecom,
}

impl WebhookFormat {
    /// Whether the format supports signatures.
    pub fn signs(self) -> bool {
        matches!(self, WebhookFormat::Json | WebhookFormat::Feishu | WebhookFormat::Dingtalk)
    }
}

impl Alerts {
    /// Errors that can be found without reading files.
    pub fn mistakes(&self) -> Vec<Invalid> {
        let mut wrong = Vec::new();
        let mut check = |ok: bool, key: &str, says: &str| {
            if !ok {
                wrong.push(Invalid::new(says).at(key).at("intercepts").at("alerts"));
            }
        };
        check(self.intercepts.count >= 1, "count", "must be at least 1");
        check((60..=7 * 86_400).contains(&self.intercepts.window.0.as_secs()), "window", "must be between 1min and 7days");
        for (index, webhook) in self.webhooks.iter().enumerate() {
            let mut check = |ok: bool, key: &str, says: String| {
                if !ok {
                    wrong.push(Invalid::new(says).at(key).index(index).at("webhooks").at("alerts"));
                }
            };
            let name = &webhook.name;
            let fine = (1..=64).contains(&name.len()) && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte));
            check(fine, "name", "must have 1 to 64 letters, digits and `-_.`".into());
            let first = self.webhooks.iter().position(|other| other.name == *name).unwrap_or(index);
            check(first == index, "name", format!("the name `{name}` is already used by webhooks[{first}]"));
            check((1..=60).contains(&webhook.timeout.0.as_secs()), "timeout", "must be between 1s and 1min".into());
            check(
                webhook.secret.is_none() || webhook.format.signs(),
                "secret",
                "has no effect with this format, which is not signed".into(),
            );
        }
        wrong
    }
}
