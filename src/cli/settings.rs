//! `keylatch settings`: what can be changed while it runs. It works on the store itself; processes that run hear of it.

use clap::{Args, Subcommand};
use prometheus::Registry;
use serde_json::Value;

use super::{ConfigFile, actor, on_runtime};
use crate::bindings::{self, Opened, Purpose};
use crate::cli::terminal::{read_stdin, say};
use crate::config::model::Storage;
use crate::config::{Files, Settings as Configured, parse_file};
use crate::operator::{Fault, settings as service};
use crate::util::aead::Sealer;
use crate::{compile, settings};

/// The longest value that is read.
const TYPED_BYTES_MAX: usize = 8 << 10;

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
        /// What to set it to: `true`, `20`, `90days`; `-`: what is read from standard input, as secrets should be
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
    let written = parsed.written();
    let settings = compile::settings(parsed).map_err(|report| report.to_string())?;
    if settings.storage == Storage::Memory {
        return Err("storage is memory: its settings are in the running process alone; its admin API changes them".into());
    }
    on_runtime(async {
        let opened = bindings::open(&settings, &Files::beside(&asked.file.config), &Registry::new(), Purpose::Command, None).await?;
        let store = &opened.store;
        match &asked.command {
            Command::List { json } => service::list(store, &settings, &written).await?.0.iter().try_for_each(|shown| show(shown, *json)),
            Command::Set { name, value } => {
                let value = if value == "-" { &read_stdin(TYPED_BYTES_MAX)? } else { value };
                let value = settings::named(name)?.kind.read(value).map_err(|says| format!("{name}: {says}"))?;
                change(&opened, name, value).await?;
                tell(asked, &settings);
                Ok(())
            }
            Command::Revert { name } => {
                settings::named(name)?;
                change(&opened, name, Value::Null).await?;
                tell(asked, &settings);
                Ok(())
            }
        }
    })
}

async fn change(opened: &Opened, name: &str, value: Value) -> Result<(), String> {
    let sealer = Sealer::new(&opened.admin_secret)?;
    let changed = service::change(&opened.store, &sealer, &[(name.to_owned(), value)], None, &actor()).await;
    changed.map_err(|fault| match fault {
        Fault::Invalid { field, why } => format!("{}: {why}", field.trim_start_matches("values.")),
        other => other.to_string(),
    })
}

/// Where the store does not tell, the process on this machine is told; that none runs is no mistake.
fn tell(asked: &Settings, settings: &Configured) {
    let told = crate::control::send_command(&asked.file.config, "settings changed");
    if told.is_err() && matches!(settings.storage, Storage::Sqlite(_)) {
        eprintln!("no running process was told; one that runs sees the change within 5s");
    }
}

fn show(shown: &settings::Shown, json: bool) -> Result<(), String> {
    if json {
        say!("{}", serde_json::to_string(shown).map_err(|e| e.to_string())?)?;
    } else {
        let value = shown.value.as_str().map_or_else(|| shown.value.to_string(), str::to_owned);
        let origin = format!("{:?}", shown.origin).to_lowercase();
        say!("{:<26} {value:<12} {origin:<8} {}", shown.name, shown.means)?;
    }
    Ok(())
}
