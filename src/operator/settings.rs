//! Live settings: lists them with their origin, and changes them on all replicas.

use serde_json::Value;

use super::Fault;
use crate::bindings::Store;
use crate::config::{Settings as Configured, Written};
use crate::settings::{self, Origin, Shown};
use crate::sql::audit::Actor;
use crate::sql::settings::Stored;
use crate::util::aead::Sealer;

/// All settings and their common version. `written`: the settings that the configuration file contains.
pub async fn list(store: &Store, file: &Configured, written: &Written) -> Result<(Vec<Shown>, i64), Fault> {
    let (stored, version) = store.admin_store().settings().await?;
    let shown = |setting: &settings::Setting| {
        let set: Option<&Stored> = stored.iter().find(|one| one.name == setting.name && setting.kind.check_stored(&one.value).is_ok());
        let said = (setting.file)(file, setting.name);
        Shown {
            name: setting.name,
            value: set.map_or_else(|| said.clone(), |one| setting.kind.shown(&one.value)),
            origin: match (set, written.has(setting.name) || settings::overrides_file(setting.name, &said)) {
                (Some(_), _) => Origin::Live,
                (None, true) => Origin::File,
                (None, false) => Origin::Default,
            },
            file: said,
            changed_by: set.map(|one| one.changed_by.clone()),
            changed_at: set.map(|one| humantime::format_rfc3339_seconds(one.changed_at).to_string()),
            means: setting.means,
            kind: setting.kind,
        }
    };
    Ok((settings::ALL.iter().map(shown).collect(), version))
}

/// Changes settings on every replica, all or none. `null` reverts a setting to the configuration file.
/// `expects`: the version that the caller has read.
pub async fn change(store: &Store, sealer: &Sealer, values: &[(String, Value)], expects: Option<i64>, actor: &Actor) -> Result<(), Fault> {
    let mut changes = Vec::new();
    for (name, value) in values {
        let wrong = |why: String| Fault::invalid(format!("values.{name}"), why);
        let setting = settings::named(name).map_err(wrong)?;
        let value = match value {
            Value::Null => None,
            value => {
                setting.kind.check(value).map_err(wrong)?;
                Some(setting.kind.stored(sealer, setting.name, value).map_err(Fault::Unavailable)?)
            }
        };
        changes.push((name.clone(), value));
    }
    if changes.iter().any(|(name, _)| name.starts_with("alerts.webhook.")) {
        let (stored, _) = store.admin_store().settings().await?;
        let get = |name: &str| match changes.iter().find(|(changed, _)| changed == name) {
            Some((_, value)) => value.clone(),
            None => stored.iter().find(|one| one.name == name).map(|one| one.value.clone()),
        };
        let known = |name: &str| stored.iter().find(|one| one.name == name).map(|one| one.value.clone());
        if let Some(Err((name, why))) = settings::webhook::compile(get, sealer) {
            // A fault that existed before must not block changes of other settings.
            let before = settings::webhook::compile(known, sealer).and_then(Result::err);
            if before.is_none_or(|(known, says)| (known, &says) != (name, &why)) {
                return Err(Fault::invalid(format!("values.{name}"), why));
            }
        }
    }
    match store.set_settings(&changes, expects, actor).await? {
        true => Ok(()),
        false => Err(Fault::Conflict("the settings were changed meanwhile; load the current version and try again".into())),
    }
}
