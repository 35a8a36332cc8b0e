//! Live settings: what operators change while it runs, in force on every replica within a second, and given back to the
//! file whenever they like. The file says what holds where nobody has said anything else.

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
use crate::sql::record::Tending;
use crate::util::aead::Sealer;
pub use values::{Kind, Origin, Shown};

/// What can be set.
pub struct Setting {
    /// Its name; what stands in the file has its place there as its name.
    pub name: &'static str,
    /// What it means.
    pub means: &'static str,
    /// What it may be.
    pub kind: Kind,
    /// What the file, or its default, says; it is given the name.
    pub file: fn(&Settings, &str) -> Value,
}

/// As people write it: in the largest unit of which it is so many.
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

/// Whether requests are refused.
pub const MAINTENANCE: &str = "maintenance";
const ALERT_COUNT: &str = "alerts.intercepts.count";
const ALERT_WINDOW: &str = "alerts.intercepts.window";
const ARCHIVE_AFTER: &str = "retention.archive_after";
const INTERCEPTS: &str = "retention.intercepts";
const AUDIT: &str = "retention.audit";
const LEVEL: &str = "log.level";

/// All of them.
pub const ALL: &[Setting] = &[
    Setting {
        name: MAINTENANCE,
        means: "every request gets 503; streams that are open go on",
        kind: Kind::Bool,
        file: |_, _| false.into(),
    },
    Setting {
        name: ALERT_COUNT,
        means: "from how many intercepts of one key on somebody is told",
        kind: Kind::Count { least: 1, most: 1_000_000 },
        file: |settings, _| settings.alerts.as_ref().map_or(20, |alerts| alerts.intercepts.count).into(),
    },
    Setting {
        name: ALERT_WINDOW,
        means: "within which time they count, and how often one key is told of",
        kind: Kind::Duration { least_s: MINUTE_S, most_s: 7 * DAY_S },
        file: |settings, _| {
            settings.alerts.as_ref().map_or(duration(HumanDuration::secs(600)), |alerts| duration(alerts.intercepts.window))
        },
    },
    Setting {
        name: webhook::URL,
        means: "where alerts go instead of to the file's webhooks: an https URL",
        kind: Kind::Secret { url: true },
        file: webhook::of_file,
    },
    Setting {
        name: webhook::FORMAT,
        means: "in which form alerts go there",
        kind: Kind::Choice { of: webhook::FORMATS },
        file: |_, _| "json".into(),
    },
    Setting {
        name: webhook::SECRET,
        means: "signs what goes there, where the form can be signed",
        kind: Kind::Secret { url: false },
        file: |_, _| Value::Null,
    },
    Setting {
        name: webhook::PRIVATE,
        means: "it may be http, or an address that is not public",
        kind: Kind::Bool,
        file: |_, _| false.into(),
    },
    Setting {
        name: ARCHIVE_AFTER,
        means: "bindings that were unused for so long are archived",
        // Shorter, keys that are in use would bind anew from wherever they are used next.
        kind: Kind::Duration { least_s: DAY_S, most_s: YEAR_S },
        file: |settings, _| duration(settings.retention.archive_after),
    },
    Setting {
        name: INTERCEPTS,
        means: "intercepts are kept for so long",
        kind: Kind::Duration { least_s: MINUTE_S, most_s: YEAR_S },
        file: |settings, _| duration(settings.retention.intercepts),
    },
    Setting {
        name: AUDIT,
        means: "the audit is kept for so long",
        // Whoever may change settings must not wipe out who did what.
        kind: Kind::Duration { least_s: 30 * DAY_S, most_s: YEAR_S },
        file: |settings, _| duration(settings.retention.audit),
    },
    Setting {
        name: LEVEL,
        means: "the least level that is told on standard error",
        kind: Kind::Choice { of: &["error", "warn", "info", "debug"] },
        file: |settings, _| serde_json::to_value(settings.log.level).unwrap_or_default(),
    },
    Setting {
        name: FAILURE,
        means: "what becomes of unknown keys while the store is away: refused, or let through unjudged",
        kind: Kind::Choice { of: &["closed", "open"] },
        file: overrides::on_store_failure,
    },
    shadow("shadow.allowed_hosts"),
    shadow("shadow.bearer"),
    shadow("shadow.body_limit"),
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
];

/// Whether all filters of a kind only decide, count and log.
const fn shadow(name: &'static str) -> Setting {
    Setting { name, means: "this filter decides, counts and logs, and changes nothing", kind: Kind::Bool, file: overrides::shadowed }
}

/// Whether a value that has no place of its own in the file stands there all the same: what filters say of themselves.
pub fn overrides_file(name: &str, said: &Value) -> bool {
    name.starts_with("shadow.") && *said == Value::Bool(true) || name == FAILURE && said != "closed"
}

/// The setting of this name.
pub fn named(name: &str) -> Result<&'static Setting, String> {
    ALL.iter().find(|setting| setting.name == name).ok_or_else(|| {
        let names: Vec<String> = ALL.iter().map(|setting| format!("`{}`", setting.name)).collect();
        format!("`{name}` cannot be set while it runs; there are {}", names.join(", "))
    })
}

/// The settings that are set apart from the file, in this process.
pub struct Live {
    /// Looked at by every request.
    maintenance: AtomicBool,
    set: Mutex<Vec<(&'static str, Value)>>,
    /// What is wrong with stored ones, so that it is told once.
    wrong: Mutex<Vec<String>>,
    sealer: Sealer,
    webhook: Mutex<webhook::Kept>,
}

impl Live {
    /// None is set so far. `secret`: the admin API's.
    pub fn new(secret: &[u8]) -> Result<Self, String> {
        let (maintenance, set, wrong) = (AtomicBool::new(false), Mutex::default(), Mutex::default());
        Ok(Self { maintenance, set, wrong, sealer: Sealer::new(secret)?, webhook: Mutex::default() })
    }

    /// Encrypts what must not be read.
    pub fn sealer(&self) -> &Sealer {
        &self.sealer
    }

    /// Whether every request is refused.
    pub fn in_maintenance(&self) -> bool {
        self.maintenance.load(Ordering::Relaxed)
    }

    /// Reads them anew. While the store is away what was known holds.
    pub async fn refresh(&self, store: &Store) {
        let Ok((stored, _)) = store.desk().settings().await else { return };
        let (mut set, mut wrong) = (Vec::new(), Vec::new());
        for one in stored {
            // Rows that somebody else has written may be anything.
            match named(&one.name).and_then(|setting| setting.kind.check_stored(&one.value).map(|()| setting)) {
                Ok(setting) => set.push((setting.name, one.value)),
                Err(why) => wrong.push(format!("{}: {why}", one.name)),
            }
        }
        let told = std::mem::replace(&mut *self.wrong.lock(), wrong.clone());
        for why in wrong.iter().filter(|why| !told.contains(why)) {
            tracing::warn!(why, "a stored setting makes no sense; the file's holds");
        }
        let maintenance = set.iter().any(|(name, value)| *name == MAINTENANCE && *value == Value::Bool(true));
        if self.maintenance.swap(maintenance, Ordering::Relaxed) != maintenance {
            tracing::warn!(maintenance, "maintenance mode has changed");
        }
        let level = set.iter().find(|(name, _)| *name == LEVEL).and_then(|(_, value)| value.as_str());
        crate::telemetry::logs::set_level(level);
        *self.set.lock() = set;
    }

    /// What stands in the place of what the file says of filters.
    pub fn overrides(&self) -> Overrides {
        Overrides::of(&self.set.lock())
    }

    /// The alerts that are in force, with where they go.
    pub fn alerts(&self, file: &Arc<Alerts>) -> (Arc<Alerts>, Option<Threshold>) {
        let alerts = self.webhook.lock().alerts(file, |name| self.get(name), &self.sealer);
        let threshold = alerts.threshold.map(|file| Threshold {
            count: self.count(ALERT_COUNT).unwrap_or(file.count),
            window: self.time(ALERT_WINDOW).unwrap_or(file.window),
            ..file
        });
        (alerts, threshold)
    }

    /// When rows go.
    pub fn tending(&self, file: Tending) -> Tending {
        Tending {
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

/// Keeps them as they are stored: at once where the store tells of changes, and every few seconds where it may not.
/// `changed` is told when filters are to be compiled anew.
pub fn follow<W: Future<Output = ()> + Send>(live: Arc<Live>, store: Arc<Store>, changed: impl Fn(Overrides) -> W + Send + 'static) {
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

    /// What the file says of each is something that could be set.
    #[test]
    fn each_is_whole() {
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
            assert!(named(&format!("shadow.{}", kind.name)).is_ok(), "{} cannot be put in shadow while it runs", kind.name);
        }
    }
}
