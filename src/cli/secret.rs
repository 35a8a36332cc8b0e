//! `keylatch secret rotate`: the next secret, and what to write where.

use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use clap::{Args, Subcommand};

use super::ConfigFile;
use crate::bindings::fresh_secret;
use crate::cli::terminal::say;
use crate::compile;
use crate::config::model::Storage;
use crate::config::{Files, parse_file};

#[derive(Args)]
pub struct Secret {
    #[command(flatten)]
    file: ConfigFile,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Make the secret that takes the place of secrets.key_hmac, beside the one in use, and say what to do. Changes nothing else
    Rotate,
}

pub fn secret(asked: &Secret) -> Result<(), String> {
    let Command::Rotate = asked.command;
    let settings = parse_file(&asked.file.config).and_then(compile::settings).map_err(|report| report.to_string())?;
    // Where nothing is configured it lies beside the SQLite file.
    let in_use = match (&settings.secrets.key_hmac, &settings.storage) {
        (Some(secret), _) => secret.file().map(str::to_owned),
        (None, Storage::Sqlite(sqlite)) => {
            // As a whole: the configuration's paths begin elsewhere.
            let database = std::path::absolute(&sqlite.path).map_err(|e| format!("{}: {e}", sqlite.path))?;
            Some(format!("{}.secret", database.display()))
        }
        (None, _) => return Err("secrets.key_hmac is not configured, and with this storage there is no other place for it".into()),
    };
    let fresh = fresh_secret()?;
    let current = match &in_use {
        Some(path) => format!("file:{path}"),
        None => "the one that is key_hmac now, such as ${KEYLATCH_KEY_HMAC_OLD}".to_owned(),
    };
    let next = match &in_use {
        Some(path) => {
            let next = format!("{path}.next");
            write(&asked.file.config, &next, &fresh)?;
            format!("file:{next}")
        }
        None => {
            eprintln!("The new secret, which is shown this once and stored nowhere:");
            eprintln!("{fresh}");
            "the new one, such as ${KEYLATCH_KEY_HMAC}".to_owned()
        }
    };
    let mut previous = vec![current];
    previous.extend(settings.secrets.previous.iter().map(|secret| match secret.file() {
        Some(path) => format!("file:{path}"),
        None => "(as before)".to_owned(),
    }));
    say!("1. Stop every process that uses this storage.")?;
    say!("2. In the configuration of each:")?;
    say!("     secrets:")?;
    say!("       key_hmac: {next}")?;
    say!("       previous: [{}]", previous.join(", "))?;
    say!("3. Start them. What is bound holds, and moves to the new secret as keys are used.")?;
    say!("4. When every key that counts has been used once, take the last of `previous` away. Bans of keys that were not")?;
    say!("   used meanwhile go with it: `keylatch bindings list --banned` shows them; `ban` them once more, or keep it.")?;
    say!("Back the secret up with the database.")?;
    Ok(())
}

fn write(config: &Path, name: &str, secret: &str) -> Result<(), String> {
    let path = Files::beside(config).path(name);
    let wrong = |e: std::io::Error| match e.kind() {
        std::io::ErrorKind::AlreadyExists => {
            format!("{} is there already: a rotation was begun; end it, or remove the file", path.display())
        }
        _ => format!("{} cannot be written: {e}", path.display()),
    };
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path).map_err(wrong)?;
    file.write_all(secret.as_bytes()).and_then(|()| file.sync_all()).map_err(wrong)?;
    say!("Made {}.", path.display())?;
    Ok(())
}
