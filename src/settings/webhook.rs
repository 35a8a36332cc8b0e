//! The webhook that operators set while it runs: alerts go there instead of to those of the file.

use std::sync::Arc;

use serde_json::Value;

use super::values::open;
use crate::alerts::{Alerts, Webhook};
use crate::config::Settings;
use crate::config::model::WebhookFormat;
use crate::util::aead::Sealer;

/// Where to.
pub const URL: &str = "alerts.webhook.url";
/// In which form.
pub const FORMAT: &str = "alerts.webhook.format";
/// What signs it.
pub const SECRET: &str = "alerts.webhook.secret";
/// Whether it may lead inside.
pub const PRIVATE: &str = "alerts.webhook.allow_private";
/// The forms.
pub const FORMATS: &[&str] = &["json", "slack", "discord", "feishu", "dingtalk", "wecom"];
/// No webhook of a file can be called so.
const NAME: &str = "live setting";

/// The names of the file's webhooks: their URLs are secrets.
pub fn of_file(settings: &Settings, _name: &str) -> Value {
    let names: Vec<&str> = settings.alerts.iter().flat_map(|alerts| &alerts.webhooks).map(|webhook| webhook.name.as_str()).collect();
    if names.is_empty() { Value::Null } else { names.join(", ").into() }
}

/// The webhook that is set; `None`: none is. What is wrong with it is said with the setting that is to blame.
pub fn compile(get: impl Fn(&str) -> Option<Value>, sealer: &Sealer) -> Option<Result<Webhook, (&'static str, String)>> {
    let stored = get(URL)?;
    let other_secret = "was encrypted under another secrets.admin (or key_hmac, where none is set); set it again";
    let text = |name: &'static str, value: &Value| open(sealer, name, value).ok_or_else(|| (name, other_secret.to_owned()));
    let webhook = || {
        let url = text(URL, &stored)?;
        let secret = get(SECRET).map(|value| text(SECRET, &value)).transpose()?;
        let format = get(FORMAT).and_then(|value| serde_json::from_value::<WebhookFormat>(value).ok()).unwrap_or_default();
        if secret.is_some() && !format.signs() {
            return Err((SECRET, "is of no use with this format, which signs nothing".to_owned()));
        }
        let private = get(PRIVATE) == Some(Value::Bool(true));
        let webhook = Webhook::new(NAME, format, &url, secret.as_deref(), private);
        webhook.map_err(|invalid| (if invalid.path.first().is_some_and(|at| at == "secret") { SECRET } else { URL }, invalid.message))
    };
    Some(webhook())
}

/// What is in force, kept for as long as neither the file's alerts nor what is set have changed.
#[derive(Default)]
pub struct Kept(Option<(Arc<Alerts>, Vec<Value>, Arc<Alerts>)>);

impl Kept {
    /// The alerts that are in force.
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
                // Nobody would hear of anything otherwise.
                tracing::error!(setting = name, why, "the webhook that is set cannot be used; alerts go to those of the file");
                Arc::clone(file)
            }
        };
        self.0 = Some((Arc::clone(file), set, Arc::clone(&alerts)));
        alerts
    }
}
