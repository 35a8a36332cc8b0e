//! `keylatch settings`: what can be changed while it runs. It works on the store itself; processes that run hear of it.

use clap::{Args, Subcommand};
use prometheus::Registry;

use super::{ConfigFile, on_runtime};
use crate::config::model::Storage;
use crate::config::{Files, Parsed, Settings as Configured, parse_file};
use crate::live::{self, Origin, Shown};
use crate::store::settings::Stored;
use crate::store::{self, Purpose, Store};

#[derive(Args)]
pub struct Settings {
    #[command(flatten)]
    file: ConfigFile,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// List them: what is in force, and where it comes from
    List {
        /// One JSON object a line
        #[arg(long)]
        json: bool,
    },
    /// Set one, on every replica, until it is given back to the file
    Set {
        /// Its name
        name: String,
        /// What to set it to: `true`, `20`, `90days`
        value: String,
    },
    /// Give one back to the file
    Revert {
        /// Its name
        name: String,
    },
}

pub fn settings(asked: &Settings) -> Result<(), String> {
    let parsed = parse_file(&asked.file.config).map_err(|report| report.to_string())?;
    let written: Vec<bool> = live::ALL.iter().map(|setting| parsed.says(setting.name)).collect();
    let settings = Parsed::settings(parsed).map_err(|report| report.to_string())?;
    if settings.storage == Storage::Memory {
        return Err("storage is memory: its settings are those of the file".into());
    }
    on_runtime(async {
        let opened = store::open(&settings, &Files::beside(&asked.file.config), &Registry::new(), Purpose::Command, None).await?;
        let store = &opened.store;
        match &asked.command {
            Command::List { json } => list(store, &settings, &written, *json).await,
            Command::Set { name, value } => {
                let setting = live::named(name)?;
                let value = setting.kind.read(value).map_err(|says| format!("{name}: {says}"))?;
                change(asked, &settings, store, name, Some(value)).await
            }
            Command::Revert { name } => {
                live::named(name)?;
                change(asked, &settings, store, name, None).await
            }
        }
    })
}

async fn change(
    asked: &Settings,
    settings: &Configured,
    store: &Store,
    name: &str,
    value: Option<serde_json::Value>,
) -> Result<(), String> {
    store.set_setting(name, value, super::actor()).await.map_err(|error| error.to_string())?;
    // Where the store does not tell, the process on this machine is told; that none runs is no mistake.
    let told = crate::control::ask(&asked.file.config, "settings changed");
    if told.is_err() && matches!(settings.storage, Storage::Sqlite(_)) {
        eprintln!("no running process was told; one that runs sees the change within 5s");
    }
    Ok(())
}

async fn list(store: &Store, settings: &Configured, written: &[bool], json: bool) -> Result<(), String> {
    let stored = store.settings().await.map_err(|error| error.to_string())?;
    for (setting, written) in live::ALL.iter().zip(written) {
        let set: Option<&Stored> = stored.iter().find(|one| one.name == setting.name && setting.kind.check(&one.value).is_ok());
        let file = (setting.file)(settings);
        let shown = Shown {
            name: setting.name,
            value: set.map_or_else(|| file.clone(), |one| one.value.clone()),
            origin: match (set, written) {
                (Some(_), _) => Origin::Live,
                (None, true) => Origin::File,
                (None, false) => Origin::Default,
            },
            file,
            changed_by: set.map(|one| one.changed_by.clone()),
            changed_at: set.map(|one| humantime::format_rfc3339_seconds(one.changed_at).to_string()),
            means: setting.means,
        };
        if json {
            println!("{}", serde_json::to_string(&shown).map_err(|e| e.to_string())?);
        } else {
            let value = shown.value.as_str().map_or_else(|| shown.value.to_string(), str::to_owned);
            let origin = format!("{:?}", shown.origin).to_lowercase();
            println!("{:<26} {value:<12} {origin:<8} {}", shown.name, shown.means);
        }
    }
    Ok(())
}
