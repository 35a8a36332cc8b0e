//! `keylatch admin`: manages accounts and sign-in providers of the admin API in the store itself.
//!
//! It needs no sign-in: read access to the configuration and the store is enough. Every change is in the audit log.

use std::sync::Arc;

use clap::{Args, Subcommand, ValueEnum};
use prometheus::Registry;
use serde::Deserialize;

use super::{ConfigFile, actor, on_runtime};
use crate::bindings::{self, Opened, Purpose};
use crate::cli::terminal::{outln, read_stdin};
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

/// The largest provider description, in bytes.
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
    /// Reads
    Viewer,
    /// Reads, changes bindings, ends streams
    Operator,
    /// Has all permissions
    Admin,
}

#[derive(Subcommand)]
enum Command {
    /// List accounts
    List {
        /// Print one JSON object per line
        #[arg(long)]
        json: bool,
    },
    /// Create an account and print its first password, which must be changed at the first sign-in
    Make {
        /// The name of the account
        name: String,
        /// The role of the account
        #[arg(long, default_value = "viewer")]
        role: RoleName,
    },
    /// Set a new password, unlock and enable the account, and end its sessions. Prints a random password, which must be changed, or
    /// reads one with `--stdin`
    ResetPassword {
        /// The account. If no account exists at all, it is created with the role `admin`
        #[arg(default_value = accounts::FIRST)]
        name: String,
        /// Read the password from standard input
        #[arg(long)]
        stdin: bool,
    },
    /// Unlock an account that wrong passwords have locked
    Unlock {
        /// The name of the account
        name: String,
    },
    /// Remove an account with its sessions and tokens
    Remove {
        /// The name of the account
        name: String,
    },
    /// List the OpenID Connect providers, one JSON object per line
    Providers,
    /// Create or change an OpenID Connect provider. Reads JSON from standard input, as the admin API takes it:
    /// {"settings": {"issuer": …, "client_id": …, "roles": {"admin": ["…"]}}, "client_secret": "…"}
    SetProvider {
        /// The name of the provider
        name: String,
    },
    /// Remove a provider with the accounts that sign in through it
    RemoveProvider {
        /// The name of the provider
        name: String,
    },
}

/// The JSON of a provider on standard input.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ProviderInput {
    settings: Settings,
    client_secret: Option<String>,
}

pub fn admin(args: &Admin) -> Result<(), String> {
    let settings = parse_file(&args.file.config).and_then(compile::settings).map_err(|report| report.to_string())?;
    if settings.storage == Storage::Memory {
        return Err("storage is memory: accounts exist only in the running process and end with it; use its admin API".into());
    }
    on_runtime(async {
        let opened = bindings::open(&settings, &Files::beside(&args.file.config), &Registry::new(), Purpose::Command, None).await?;
        carry_out(&opened, &args.command).await
    })
}

async fn carry_out(opened: &Opened, command: &Command) -> Result<(), String> {
    let (store, actor) = (&opened.store, actor());
    match command {
        Command::List { json } => {
            for account in store.admin_store().accounts().await.map_err(|e| e.to_string())? {
                let last = account.signed_in_ms.map(|ms| humantime::format_rfc3339_seconds(crate::util::time::time(ms)).to_string());
                if *json {
                    let row = serde_json::json!({ "name": account.name, "role": account.role, "disabled": account.disabled,
                        "must_change_password": account.must_change, "signed_in_at": last });
                    outln!("{row}")?;
                } else {
                    let state = if account.disabled { "disabled" } else { "" };
                    outln!("{:<24} {:<9} {:<21} {state}", account.name, account.role, last.unwrap_or_else(|| "never".into()))?;
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
            if store.admin_store().accounts().await.map_err(|e| e.to_string())?.is_empty() {
                accounts::make(store, &passwords, name, Role::Admin, &password, &actor).await?;
            } else {
                let change = Change { password: Some(password.clone()), disabled: Some(false), role: None };
                accounts::change(store, &passwords, &name.to_ascii_lowercase(), &change, None, &actor).await?;
            }
            store.admin_store().unlock(&name.to_ascii_lowercase(), &actor).await.map_err(|e| e.to_string())?;
            if *stdin { Ok(()) } else { show(name, &password) }
        }
        Command::Unlock { name } => {
            let account = accounts::get(store, name).await?;
            store.admin_store().unlock(&account.name, &actor).await.map_err(|e| e.to_string())
        }
        Command::Remove { name } => {
            let account = accounts::get(store, name).await?;
            let removed =
                store.admin_store().remove_account(&account.name, Some(account.version), &actor).await.map_err(|e| e.to_string())?;
            Ok(accounts::change_result(removed, &account.name)?)
        }
        Command::Providers => {
            for provider in store.admin_store().providers().await.map_err(|e| e.to_string())? {
                let row = serde_json::json!({ "name": provider.name, "settings": provider.settings, "has_client_secret": provider.secret.is_some() });
                outln!("{row}")?;
            }
            Ok(())
        }
        Command::SetProvider { name } => {
            let given: ProviderInput =
                serde_json::from_str(&read_stdin(PROVIDER_BYTES_MAX)?).map_err(|e| format!("standard input: {e}"))?;
            let oidc = Oidc::new(&opened.admin_secret, Arc::new(Services::on_current_runtime()))?;
            oidc.put(store, name, &given.settings, given.client_secret.as_deref(), Expects::Anything, &actor).await?;
            Ok(())
        }
        Command::RemoveProvider { name } => {
            let oidc = Oidc::new(&opened.admin_secret, Arc::new(Services::on_current_runtime()))?;
            Ok(oidc.remove(store, name, None, &actor).await?)
        }
    }
}

/// Prints the password alone to standard output, so that it can be piped; the rest goes to standard error.
fn show(name: &str, password: &str) -> Result<(), String> {
    eprintln!("The password of `{name}` is shown only once and must be changed at the first sign-in:");
    outln!("{password}")
}
