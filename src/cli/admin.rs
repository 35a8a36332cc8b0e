//! `keylatch admin`: who may sign in to the admin API, from the machine itself. Whoever can read the configuration and the
//! store has a way in; what he does stands in the audit.

use std::sync::Arc;

use clap::{Args, Subcommand, ValueEnum};
use prometheus::Registry;
use serde::Deserialize;

use super::{ConfigFile, actor, on_runtime};
use crate::bindings::{self, Opened, Purpose};
use crate::cli::terminal::{read_stdin, say};
use crate::compile;
use crate::config::model::Storage;
use crate::config::{Files, parse_file};
use crate::operator::access::Role;
use crate::operator::accounts::{self, Change};
use crate::operator::oidc::Oidc;
use crate::operator::oidc::provider::Settings;
use crate::operator::passwords::{BYTES_MAX, Passwords};
use crate::outbound::Services;
use crate::sql::providers::Expects;

/// The largest description of a provider.
const PROVIDER_BYTES_MAX: usize = 128 << 10;

#[derive(Args)]
pub struct Admin {
    #[command(flatten)]
    file: ConfigFile,
    #[command(subcommand)]
    command: Command,
}

#[derive(Clone, Copy, ValueEnum)]
enum RoleName {
    /// Looks
    Viewer,
    /// Changes bindings and ends streams, too
    Operator,
    /// Does everything
    Admin,
}

#[derive(Subcommand)]
enum Command {
    /// List accounts
    List {
        /// One JSON object a line
        #[arg(long)]
        json: bool,
    },
    /// Make an account; prints its first password, which must be changed
    Make {
        /// Its name
        name: String,
        /// What he may do
        #[arg(long, default_value = "viewer")]
        role: RoleName,
    },
    /// Give an account a new password, and let it sign in again if it was locked or disabled. Prints the password, which must be
    /// changed, or reads one from standard input with `--stdin`. Ends its sign-ins
    ResetPassword {
        /// The account; it is made, as an admin, if there is none at all
        #[arg(default_value = accounts::FIRST)]
        name: String,
        /// Read the password instead of making one up
        #[arg(long)]
        stdin: bool,
    },
    /// Forget the wrong passwords that have locked an account
    Unlock {
        /// The account
        name: String,
    },
    /// Remove an account with its sign-ins and tokens
    Remove {
        /// The account
        name: String,
    },
    /// List the OpenID Connect providers through which people sign in, one JSON object a line
    Providers,
    /// Make a provider or change it. Reads JSON from standard input, as the admin API takes it:
    /// {"settings": {"issuer": …, "client_id": …, "roles": {"admin": ["…"]}}, "client_secret": "…"}
    SetProvider {
        /// Its name
        name: String,
    },
    /// Remove a provider with the accounts of those who sign in there
    RemoveProvider {
        /// The provider
        name: String,
    },
}

/// A provider, as it is read.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ProviderGiven {
    settings: Settings,
    client_secret: Option<String>,
}

pub fn admin(asked: &Admin) -> Result<(), String> {
    let settings = parse_file(&asked.file.config).and_then(compile::settings).map_err(|report| report.to_string())?;
    if settings.storage == Storage::Memory {
        return Err("storage is memory: its accounts are in the running process alone, and go with it".into());
    }
    on_runtime(async {
        let opened = bindings::open(&settings, &Files::beside(&asked.file.config), &Registry::new(), Purpose::Command, None).await?;
        carry_out(&opened, &asked.command).await
    })
}

async fn carry_out(opened: &Opened, command: &Command) -> Result<(), String> {
    let (store, actor) = (&opened.store, actor());
    match command {
        Command::List { json } => {
            for account in store.desk().accounts().await.map_err(|e| e.to_string())? {
                let last = account.signed_in_ms.map(|ms| humantime::format_rfc3339_seconds(crate::util::time::time(ms)).to_string());
                if *json {
                    let row = serde_json::json!({ "name": account.name, "role": account.role, "disabled": account.disabled,
                        "must_change_password": account.must_change, "signed_in_at": last });
                    say!("{row}")?;
                } else {
                    let state = if account.disabled { "disabled" } else { "" };
                    say!("{:<24} {:<9} {:<21} {state}", account.name, account.role, last.unwrap_or_else(|| "never".into()))?;
                }
            }
            Ok(())
        }
        Command::Make { name, role } => {
            let role = match role {
                RoleName::Viewer => Role::Viewer,
                RoleName::Operator => Role::Operator,
                RoleName::Admin => Role::Admin,
            };
            let password = accounts::random_password()?;
            accounts::make(store, &Passwords::new()?, name, role, &password, &actor).await?;
            show(name, &password)
        }
        Command::ResetPassword { name, stdin } => {
            let password = if *stdin { read_stdin(BYTES_MAX)? } else { accounts::random_password()? };
            let passwords = Passwords::new()?;
            if store.desk().accounts().await.map_err(|e| e.to_string())?.is_empty() {
                accounts::make(store, &passwords, name, Role::Admin, &password, &actor).await?;
            } else {
                let change = Change { password: Some(password.clone()), disabled: Some(false), role: None };
                accounts::change(store, &passwords, &name.to_ascii_lowercase(), &change, None, &actor).await?;
            }
            store.desk().unlock(&name.to_ascii_lowercase(), &actor).await.map_err(|e| e.to_string())?;
            if *stdin { Ok(()) } else { show(name, &password) }
        }
        Command::Unlock { name } => {
            let account = accounts::get(store, name).await?;
            store.desk().unlock(&account.name, &actor).await.map_err(|e| e.to_string())
        }
        Command::Remove { name } => {
            let account = accounts::get(store, name).await?;
            let removed = store.desk().remove_account(&account.name, Some(account.version), &actor).await.map_err(|e| e.to_string())?;
            Ok(accounts::change_result(removed, &account.name)?)
        }
        Command::Providers => {
            for provider in store.desk().providers().await.map_err(|e| e.to_string())? {
                let row = serde_json::json!({ "name": provider.name, "settings": provider.settings, "has_client_secret": provider.secret.is_some() });
                say!("{row}")?;
            }
            Ok(())
        }
        Command::SetProvider { name } => {
            let given: ProviderGiven =
                serde_json::from_str(&read_stdin(PROVIDER_BYTES_MAX)?).map_err(|e| format!("standard input: {e}"))?;
            let oidc = Oidc::new(&opened.admin_secret, Arc::new(Services::here()))?;
            oidc.put(store, name, &given.settings, given.client_secret.as_deref(), Expects::Anything, &actor).await?;
            Ok(())
        }
        Command::RemoveProvider { name } => {
            let oidc = Oidc::new(&opened.admin_secret, Arc::new(Services::here()))?;
            Ok(oidc.remove(store, name, None, &actor).await?)
        }
    }
}

/// The password alone on standard output, so that it can be handed on.
fn show(name: &str, password: &str) -> Result<(), String> {
    eprintln!("The password of `{name}`, which is shown this once and must be changed:");
    say!("{password}")
}
