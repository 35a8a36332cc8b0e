//! `keylatch settings`: lists and changes runtime settings in the store itself. Running processes are notified.

use clap::{Args, Subcommand};
use prometheus::Registry;
use serde_json::Value;

use super::{ConfigFile, actor, on_runtime};
use crate::bindings::{self, Opened, Purpose};
use crate::cli::terminal::{outln, read_stdin};
use crate::config::model::Storage;
use crate::config::{Files, Settings as Configured, parse_file};
use crate::operator::{Fault, settings as service};
use crate::util::aead::Sealer;
use crate::{compile, settings};

/// The longest value on standard input, in bytes.
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
    /// List the settings with the values in force and their origin
    List {
        /// Print one JSON object per line
        #[arg(long)]
        json: bool,
    },
    /// Override a setting on every replica until it is reverted
    Set {
        /// The name of the setting
        name: String,
        /// The value: `true`, `20`, `90days`; `-` reads it from standard input, as is advised for secrets
        value: String,
    },
    /// Revert a setting to the value of the configuration file
    Revert {
        /// The name of the setting
        name: String,
    },
}

pub fn settings(args: &Settings) -> Result<(), String> {
    let parsed = parse_file(&args.file.config).map_err(|report| report.to_string())?;
    let written = parsed.written();
    let settings = compile::settings(parsed).map_err(|report| report.to_string())?;
    if settings.storage == Storage::Memory {
        return Err("storage is memory: settings exist only in the running process; use its admin API".into());
    }
    on_runtime(async {
        let opened = bindings::open(&settings, &Files::beside(&args.file.config), &Registry::new(), Purpose::Command, None).await?;
        let store = &opened.store;
        match &args.command {
            Command::List { json } => service::list(store, &settings, &written).await?.0.iter().try_for_each(|shown| show(shown, *json)),
            Command::Set { name, value } => {
                let value = if value == "-" { &read_stdin(TYPED_BYTES_MAX)? } else { value };
                let value = settings::named(name)?.kind.read(value).map_err(|says| format!("{name}: {says}"))?;
                change(&opened, name, value).await?;
                notify(args, &settings);
                Ok(())
            }
            Command::Revert { name } => {
                settings::named(name)?;
                change(&opened, name, Value::Null).await?;
                notify(args, &settings);
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

/// Notifies the process on this machine, for stores without notifications. It is no error if none runs.
fn notify(args: &Settings, settings: &Configured) {
    let notified = crate::control::send_command(&args.file.config, "settings changed");
    if notified.is_err() && matches!(settings.storage, Storage::Sqlite(_)) {
        eprintln!("no running process was notified; one that runs sees the change within 5 s");
    }
}

fn show(shown: &settings::Shown, json: bool) -> Result<(), String> {
    if json {
        outln!("{}", serde_json::to_string(shown).map_err(|e| e.to_string())?)?;
    } else {
        let value = shown.value.as_str().map_or_else(|| shown.value.to_string(), str::to_owned);
        let origin = format!("{:?}", shown.origin).to_lowercase();
        outln!("{:<26} {value:<12} {origin:<8} {}", shown.name, shown.means)?;
    }
    Ok(())
}
