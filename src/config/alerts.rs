//! The part of [`super::model`] about alerts.

use keylatch_filters::contract::{HumanDuration, Invalid, SecretRef};
use schemars::JsonSchema;
use serde::Deserialize;

/// Who is told when a key is refused too often.
#[derive(Clone, Debug, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Alerts {
    /// From how many intercepts of one key on, over all replicas. An alert is in the log, and goes to all webhooks.
    #[serde(default)]
    pub intercepts: InterceptAlert,
    /// Where alerts go.
    #[serde(default)]
    pub webhooks: Vec<Webhook>,
}

/// `intercepts`
#[derive(Clone, Debug, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct InterceptAlert {
    /// So many. Default: 20.
    pub count: u64,
    /// Within this time, to the minute; and of one key once in it. Default: 10min.
    pub window: HumanDuration,
    /// Whether intercepts of filters in shadow mode count as well. Default: false.
    pub shadow: bool,
}

impl Default for InterceptAlert {
    fn default() -> Self {
        Self { count: 20, window: HumanDuration::secs(600), shadow: false }
    }
}

/// A place where alerts are sent to, as HTTP POST. An alert that does not arrive is tried again, later and later, for a day.
#[derive(Clone, Debug, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Webhook {
    /// Its name in logs, metrics and the database.
    pub name: String,
    /// Where: `https://…`; from `${ENV}` or `file:PATH`, since whoever has it can post there.
    pub url: SecretRef,
    /// The form of what is sent. Default: `json`.
    #[serde(default)]
    pub format: WebhookFormat,
    /// Signs what is sent: for `json` as Standard Webhooks writes it (text, or `whsec_` and base64), for `feishu` and `dingtalk` as they do.
    pub secret: Option<SecretRef>,
    /// Whether the target may be http, or an address that is not public. Default: false.
    #[serde(default)]
    pub allow_private: bool,
    /// The certificates that may sign the server's, as PEM. Default: the system's.
    pub ca_file: Option<String>,
    /// How long one attempt may take. Default: 10s.
    #[serde(default = "ten_seconds")]
    pub timeout: HumanDuration,
}

fn ten_seconds() -> HumanDuration {
    HumanDuration::secs(10)
}

/// The form of what is sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum WebhookFormat {
    /// The event itself, signed as Standard Webhooks writes it.
    #[default]
    Json,
    /// Slack's incoming webhooks, and Mattermost's.
    Slack,
    /// Discord's webhooks.
    Discord,
    /// Feishu's and Lark's custom bots.
    Feishu,
    /// DingTalk's custom robots.
    Dingtalk,
    /// WeCom's group robots.
    Wecom,
}

impl WebhookFormat {
    /// Whether a secret is of use.
    pub fn signs(self) -> bool {
        matches!(self, WebhookFormat::Json | WebhookFormat::Feishu | WebhookFormat::Dingtalk)
    }
}

impl Alerts {
    /// What makes no sense, without reading files.
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
            check(fine, "name", "must be 1 to 64 letters, digits and `-_.`".into());
            let first = self.webhooks.iter().position(|other| other.name == *name).unwrap_or(index);
            check(first == index, "name", format!("`{name}` is the name of webhooks[{first}] already"));
            check((1..=60).contains(&webhook.timeout.0.as_secs()), "timeout", "must be between 1s and 1min".into());
            check(
                webhook.secret.is_none() || webhook.format.signs(),
                "secret",
                "is of no use with this format, which signs nothing".into(),
            );
        }
        wrong
    }
}
