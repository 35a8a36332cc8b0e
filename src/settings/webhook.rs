//! The webhook that operators set at run time; it replaces the webhooks of the file. Sends nothing;
//! `alerts` does.

use std::sync::Arc;

use serde_json::Value;

use super::values::open;
use crate::alerts::{Alerts, Webhook};
use crate::config::Settings;
use crate::config::model::WebhookFormat;
use crate::util::aead::Sealer;

/// The URL.
pub const URL: &str = "alerts.webhook.url";
/// The format.
pub const FORMAT: &str = "alerts.webhook.format";
/// The secret that signs alerts.
pub const SECRET: &str = "alerts.webhook.secret";
/// Whether the target may be internal.
pub const PRIVATE: &str = "alerts.webhook.allow_private";
/// The formats.
pub const FORMATS: &[&str] = &["json", "slack", "discord", "feishu", "dingtalk", "wecom"];
/// Webhooks of a file cannot have this name.
const NAME: &str = "live setting";

/// The names of the file's webhooks. Their URLs are secrets.
pub fn file_webhook_names(settings: &Settings, _name: &str) -> Value {
    let names: Vec<&str> = settings.alerts.iter().flat_map(|alerts| &alerts.webhooks).map(|webhook| webhook.name.as_str()).collect();
    if names.is_empty() { Value::Null } else { names.join(", ").into() }
}

/// The webhook that is set; `None`: none is set. An error names the setting that causes it.
pub fn compile(get: impl Fn(&str) -> Option<Value>, sealer: &Sealer) -> Option<Result<Webhook, (&'static str, String)>> {
    let stored = get(URL)?;
    let other_secret = "was encrypted under another secrets.admin (or secrets.key_hmac, if that is not set); set it again";
    let text = |name: &'static str, value: &Value| open(sealer, name, value).ok_or_else(|| (name, other_secret.to_owned()));
    let webhook = || {
        let url = text(URL, &stored)?;
        let secret = get(SECRET).map(|value| text(SECRET, &value)).transpose()?;
        let format = get(FORMAT).and_then(|value| serde_json::from_value::<WebhookFormat>(value).ok()).unwrap_or_default();
        if secret.is_some() && !format.signs() {
            return Err((SECRET, "has no effect with this format, which is not signed".to_owned()));
        }
        let private = get(PRIVATE) == Some(Value::Bool(true));
        let webhook = Webhook::new(NAME, format, &url, secret.as_deref(), private);
        webhook.map_err(|invalid| (if invalid.path.first().is_some_and(|at| at == "secret") { SECRET } else { URL }, invalid.message))
    };
    Some(webhook())
}

/// The alerts in effect, cached until the file's alerts or the settings change.
#[derive(Default)]
pub struct WebhookCache(Option<(Arc<Alerts>, Vec<Value>, Arc<Alerts>)>);

impl WebhookCache {
    /// The alerts in effect.
    pub fn alerts(&mut self, file: &Arc<Alerts>, get: impl Fn(&str) -> Option<Value>, sealer: &Sealer) -> Arc<Alerts> {
        let set: Vec<Value> = [URL, FORMAT, SECRET, PRIVATE].map(|name| get(name).unwrap_or_default()).into();
        if let Some((known, values, alerts)) = &self.0
            && Arc::ptr_eq(known, file)
            && *values == set
        {
            return Arc::clone(alerts);
        }
        let alerts = match compile(get, sealer) {
            None => Arc::clone(file),
            Some(Ok(webhook)) => Arc::new(file.with_webhook(webhook)),
            Some(Err((name, why))) => {
                // Alerts must not be lost because of a broken setting.
                tracing::error!(setting = name, why, "the live webhook is invalid; alerts go to the webhooks of the file");
                Arc::clone(file)
            }
        };
        self.0 = Some((Arc::clone(file), set, Arc::clone(&alerts)));
        alerts
    }
}
