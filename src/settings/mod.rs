//! Live settings: values that operators change at run time, in effect on every replica within a
//! second. A setting that is removed falls back to the file. Storage belongs to `sql`.

mod values;
pub mod webhook;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use keylatch_filters::contract::HumanDuration;
use parking_lot::Mutex;
use serde_json::Value;

use crate::alerts::Alerts;
use crate::bindings::Store;
use crate::config::overrides::{self, FAILURE};
use crate::config::{Overrides, Settings};
use crate::sql::outbox::Threshold;
use crate::sql::record::RetentionPolicy;
use crate::util::aead::Sealer;
pub use values::{Kind, Origin, Shown};

/// A setting that can be changed at run time.
pub struct Setting {
    /// The name: the place in the file, if it has one there.
    pub name: &'static str,
    /// The description.
    pub means: &'static str,
    /// The allowed values.
    pub kind: Kind,
    /// The value from the file or its default, for the setting of this name.
    pub file: fn(&Settings, &str) -> Value,
}

/// A duration in its largest whole unit.
fn duration(duration: HumanDuration) -> Value {
    let seconds = duration.0.as_secs();
    let unit = [(DAY_S, "days"), (3600, "h"), (MINUTE_S, "m")]
        .into_iter()
        .find(|(length, _)| seconds >= *length && seconds.is_multiple_of(*length));
    match unit {
        Some((length, name)) => format!("{}{name}", seconds / length).into(),
        None => duration.to_string().into(),
    }
}

const MINUTE_S: u64 = 60;
const DAY_S: u64 = 86_400;
const YEAR_S: u64 = 366 * DAY_S;

/// The setting of maintenance mode.
pub const MAINTENANCE: &str = "maintenance";
const ALERT_COUNT: &str = "alerts.intercepts.count";
const ALERT_WINDOW: &str = "alerts.intercepts.window";
const ARCHIVE_AFTER: &str = "retention.archive_after";
const INTERCEPTS: &str = "retention.intercepts";
const AUDIT: &str = "retention.audit";
const LEVEL: &str = "log.level";

/// All settings.
pub const ALL: &[Setting] = &[
    Setting { name: MAINTENANCE, means: "All requests get 503. Open streams continue.", kind: Kind::Bool, file: |_, _| false.into() },
    Setting {
        name: ALERT_COUNT,
        means: "Number of intercepts of one key that raises an alert.",
        kind: Kind::Count { least: 1, most: 1_000_000 },
        file: |settings, _| settings.alerts.as_ref().map_or(20, |alerts| alerts.intercepts.count).into(),
    },
    Setting {
        name: ALERT_WINDOW,
        means: "Window in which intercepts count. Each key raises at most one alert per window.",
        kind: Kind::Duration { least_s: MINUTE_S, most_s: 7 * DAY_S },
        file: |settings, _| {
            settings.alerts.as_ref().map_or(duration(HumanDuration::secs(600)), |alerts| duration(alerts.intercepts.window))
        },
    },
    Setting {
        name: webhook::URL,
        means: "Webhook (HTTPS URL) that replaces the webhooks of the file.",
        kind: Kind::Secret { url: true },
        file: webhook::file_webhook_names,
    },
    Setting {
        name: webhook::FORMAT,
        means: "Format of the alerts sent to this webhook.",
        kind: Kind::Choice { of: webhook::FORMATS },
        file: |_, _| "json".into(),
    },
    Setting {
        name: webhook::SECRET,
        means: "Secret that signs the alerts, for formats that support signatures.",
        kind: Kind::Secret { url: false },
        file: |_, _| Value::Null,
    },
    Setting {
        name: webhook::PRIVATE,
        means: "Whether the webhook may use HTTP or a private address.",
        kind: Kind::Bool,
        file: |_, _| false.into(),
    },
    Setting {
        name: ARCHIVE_AFTER,
        means: "Bindings that are unused for this long are archived.",
        // A shorter time would archive keys in use, which then bind again wherever they are used
        // next.
        kind: Kind::Duration { least_s: DAY_S, most_s: YEAR_S },
        file: |settings, _| duration(settings.retention.archive_after),
    },
    Setting {
        name: INTERCEPTS,
        means: "Intercepts are kept for this long.",
        kind: Kind::Duration { least_s: MINUTE_S, most_s: YEAR_S },
        file: |settings, _| duration(settings.retention.intercepts),
    },
    Setting {
        name: AUDIT,
        means: "Audit entries are kept for this long.",
        // An operator who may change settings must not be able to erase the audit log.
        kind: Kind::Duration { least_s: 30 * DAY_S, most_s: YEAR_S },
        file: |settings, _| duration(settings.retention.audit),
    },
    Setting {
        name: LEVEL,
        means: "Lowest level that is logged on standard error.",
        kind: Kind::Choice { of: &["error", "warn", "info", "debug"] },
        file: |settings, _| serde_json::to_value(settings.log.level).unwrap_or_default(),
    },
    Setting {
        name: FAILURE,
        means: "Unknown keys while the store is away: `closed` refuses them, `open` admits them.",
        kind: Kind::Choice { of: &["closed", "open"] },
        file: overrides::on_store_failure,
    },
    shadow("shadow.allowed_hosts"),
    shadow("shadow.bearer"),
    shadow("shadow.body_limit"),
    shadow("shadow.budget"),
    shadow("shadow.client_certificate"),
    shadow("shadow.client_ip"),
    shadow("shadow.concurrency_limit"),
    shadow("shadow.cors"),
    shadow("shadow.flood_guard"),
    shadow("shadow.headers"),
    shadow("shadow.key_binding"),
    shadow("shadow.rate_limit"),
    shadow("shadow.request_id"),
    shadow("shadow.rules"),
    shadow("shadow.security_headers"),
    shadow("shadow.sse_keepalive"),
    shadow("shadow.usage"),
];

/// Shadow mode for all filters of a kind.
const fn shadow(name: &'static str) -> Setting {
    Setting {
        name,
        means: "Shadow mode: the filter decides, counts and logs, but changes nothing.",
        kind: Kind::Bool,
        file: overrides::shadowed,
    }
}

/// Whether the file deviates from the default of a setting that has no single place in it: options
/// of filters.
pub fn overrides_file(name: &str, value: &Value) -> bool {
    name.starts_with("shadow.") && *value == Value::Bool(true) || name == FAILURE && value != "closed"
}

/// The setting of this name.
pub fn named(name: &str) -> Result<&'static Setting, String> {
    ALL.iter().find(|setting| setting.name == name).ok_or_else(|| {
        let names: Vec<String> = ALL.iter().map(|setting| format!("`{}`", setting.name)).collect();
        format!("`{name}` is not a live setting; known settings: {}", names.join(", "))
    })
}

/// The live settings of this process.
pub struct LiveSettings {
    /// Read by every request.
    maintenance: AtomicBool,
    set: Mutex<Vec<(&'static str, Value)>>,
    /// Errors of stored settings that have been logged.
    wrong: Mutex<Vec<String>>,
    sealer: Sealer,
    webhook: Mutex<webhook::WebhookCache>,
}

impl LiveSettings {
    /// Without any setting. `secret`: the secret of the admin API.
    pub fn new(secret: &[u8]) -> Result<Self, String> {
        let (maintenance, set, wrong) = (AtomicBool::new(false), Mutex::default(), Mutex::default());
        Ok(Self { maintenance, set, wrong, sealer: Sealer::new(secret)?, webhook: Mutex::default() })
    }

    /// Encrypts the secret settings.
    pub fn sealer(&self) -> &Sealer {
        &self.sealer
    }

    /// Whether maintenance mode is on.
    pub fn in_maintenance(&self) -> bool {
        self.maintenance.load(Ordering::Relaxed)
    }

    /// Reads the settings from the store. If the store is away, the last ones stay.
    pub async fn refresh(&self, store: &Store) {
        let Ok((stored, _)) = store.admin_store().settings().await else { return };
        let (mut set, mut wrong) = (Vec::new(), Vec::new());
        for one in stored {
            // Rows may have been written by another version, or by hand.
            match named(&one.name).and_then(|setting| setting.kind.check_stored(&one.value).map(|()| setting)) {
                Ok(setting) => set.push((setting.name, one.value)),
                Err(why) => wrong.push(format!("{}: {why}", one.name)),
            }
        }
        let logged = std::mem::replace(&mut *self.wrong.lock(), wrong.clone());
        for why in wrong.iter().filter(|why| !logged.contains(why)) {
            tracing::warn!(why, "a stored setting is invalid; the value of the file is used");
        }
        let maintenance = set.iter().any(|(name, value)| *name == MAINTENANCE && *value == Value::Bool(true));
        if self.maintenance.swap(maintenance, Ordering::Relaxed) != maintenance {
            tracing::warn!(maintenance, "maintenance mode has changed");
        }
        let level = set.iter().find(|(name, _)| *name == LEVEL).and_then(|(_, value)| value.as_str());
        crate::telemetry::logs::set_level(level);
        *self.set.lock() = set;
    }

    /// The settings that override options of filters.
    pub fn overrides(&self) -> Overrides {
        Overrides::from_settings(&self.set.lock())
    }

    /// The alerts in effect, with the threshold.
    pub fn alerts(&self, file: &Arc<Alerts>) -> (Arc<Alerts>, Option<Threshold>) {
        let alerts = self.webhook.lock().alerts(file, |name| self.get(name), &self.sealer);
        let threshold = alerts.threshold.map(|file| Threshold {
            count: self.count(ALERT_COUNT).unwrap_or(file.count),
            window: self.time(ALERT_WINDOW).unwrap_or(file.window),
            ..file
        });
        (alerts, threshold)
    }

    /// The retention in effect.
    pub fn retention(&self, file: RetentionPolicy) -> RetentionPolicy {
        RetentionPolicy {
            archive_after: self.time(ARCHIVE_AFTER).unwrap_or(file.archive_after),
            intercepts: self.time(INTERCEPTS).unwrap_or(file.intercepts),
            audit: self.time(AUDIT).unwrap_or(file.audit),
            ..file
        }
    }

    fn get(&self, name: &str) -> Option<Value> {
        self.set.lock().iter().find(|(known, _)| *known == name).map(|(_, value)| value.clone())
    }

    fn count(&self, name: &str) -> Option<u64> {
        self.get(name)?.as_u64()
    }

    fn time(&self, name: &str) -> Option<Duration> {
        values::time(&self.get(name)?)
    }
}

/// Refreshes the settings: at once on an event of the store, and every few seconds in case one was
/// lost. Calls `changed` when filters must be compiled again.
pub fn follow<W: Future<Output = ()> + Send>(
    live: Arc<LiveSettings>,
    store: Arc<Store>,
    changed: impl Fn(Overrides) -> W + Send + 'static,
) {
    const AT_LATEST: Duration = Duration::from_secs(5);
    tokio::spawn(async move {
        let mut known = Overrides::default();
        loop {
            let overrides = live.overrides();
            if overrides != known {
                changed(overrides.clone()).await;
                known = overrides;
            }
            let _ = tokio::time::timeout(AT_LATEST, store.settings_changed()).await;
            live.refresh(&store).await;
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compile::{Compiler, check_ports};
    use crate::config::parse;

    /// The value from the file is valid for each setting.
    #[test]
    fn each_setting_is_valid() {
        let text = "listeners: [{address: \"127.0.0.1:1\"}]\nupstreams: [{name: u, servers: [{address: \"127.0.0.1:2\"}]}]\nroutes: [{name: r, upstream: u}]\n";
        let parsed = parse(std::path::Path::new("k.yaml"), text, &|_| None).unwrap();
        let settings = Compiler::new(check_ports()).compile(parsed).unwrap().settings;
        for setting in ALL {
            let said = (setting.file)(&settings, setting.name);
            let secret = matches!(setting.kind, Kind::Secret { .. });
            assert!(if secret { said.is_null() } else { setting.kind.check(&said).is_ok() }, "{}", setting.name);
            assert_eq!(ALL.iter().filter(|other| other.name == setting.name).count(), 1);
        }
        assert!(named("no.such").err().unwrap().contains("`maintenance`"));
        for kind in keylatch_filters::ALL {
            assert!(named(&format!("shadow.{}", kind.name)).is_ok(), "{} has no live setting for shadow mode", kind.name);
        }
    }
}
