//! Live settings: which there are, what holds, and since when.

use serde_json::Value;

use super::Fault;
use crate::config::{Settings as Configured, Written};
use crate::live::{self, Origin, Shown};
use crate::store::Store;
use crate::store::audit::Actor;
use crate::store::settings::Stored;

/// All of them. `written`: which stand in the file.
pub async fn list(store: &Store, file: &Configured, written: &Written) -> Result<Vec<Shown>, Fault> {
    let stored = store.settings().await?;
    let shown = |setting: &live::Setting| {
        let set: Option<&Stored> = stored.iter().find(|one| one.name == setting.name && setting.kind.check(&one.value).is_ok());
        let said = (setting.file)(file, setting.name);
        Shown {
            name: setting.name,
            value: set.map_or_else(|| said.clone(), |one| one.value.clone()),
            origin: match (set, written.has(setting.name) || live::overrides_file(setting.name, &said)) {
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
    Ok(live::ALL.iter().map(shown).collect())
}

/// Sets one on every replica, until it is given back to the file.
pub async fn set(store: &Store, name: &str, value: Value, actor: &Actor) -> Result<(), Fault> {
    let setting = live::named(name).map_err(Fault::Missing)?;
    setting.kind.check(&value).map_err(|why| Fault::invalid("value", format!("{name}: {why}")))?;
    Ok(store.set_setting(setting.name, Some(value), actor.clone()).await?)
}

/// Gives one back to the file.
pub async fn revert(store: &Store, name: &str, actor: &Actor) -> Result<(), Fault> {
    let setting = live::named(name).map_err(Fault::Missing)?;
    Ok(store.set_setting(setting.name, None, actor.clone()).await?)
}
