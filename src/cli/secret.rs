//! `keylatch secret rotate`: creates the next HMAC secret and prints the steps of the rotation. It changes no configuration.

use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use clap::{Args, Subcommand};

use super::ConfigFile;
use crate::bindings::fresh_secret;
use crate::cli::terminal::outln;
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
    /// Create a new secret for `secrets.key_hmac` beside the one in use, and print the remaining steps. Changes nothing else
    Rotate,
}

pub fn secret(args: &Secret) -> Result<(), String> {
    let Command::Rotate = args.command;
    let settings = parse_file(&args.file.config).and_then(compile::settings).map_err(|report| report.to_string())?;
    // Without `secrets.key_hmac` the secret is in a file beside the SQLite database.
    let in_use = match (&settings.secrets.key_hmac, &settings.storage) {
        (Some(secret), _) => secret.file().map(str::to_owned),
        (None, Storage::Sqlite(sqlite)) => {
            // Absolute, because paths in the configuration are relative to its folder.
            let database = std::path::absolute(&sqlite.path).map_err(|e| format!("{}: {e}", sqlite.path))?;
            Some(format!("{}.secret", database.display()))
        }
        (None, _) => return Err("secrets.key_hmac is not configured, but this storage needs it; set it first".into()),
    };
    let fresh = fresh_secret()?;
    let current = match &in_use {
        Some(path) => format!("file:{path}"),
        None => "the present key_hmac, such as ${KEYLATCH_KEY_HMAC_OLD}".to_owned(),
    };
    let next = match &in_use {
        Some(path) => {
            let next = format!("{path}.next");
            write(&args.file.config, &next, &fresh)?;
            format!("file:{next}")
        }
        None => {
            eprintln!("The new secret is shown only once and stored nowhere:");
            eprintln!("{fresh}");
            "the new secret, such as ${KEYLATCH_KEY_HMAC}".to_owned()
        }
    };
    let mut previous = vec![current];
    previous.extend(settings.secrets.previous.iter().map(|secret| match secret.file() {
        Some(path) => format!("file:{path}"),
        None => "(as before)".to_owned(),
    }));
    outln!("1. Stop every process that uses this storage.")?;
    outln!("2. In the configuration of each:")?;
    outln!("     secrets:")?;
    outln!("       key_hmac: {next}")?;
    outln!("       previous: [{}]", previous.join(", "))?;
    outln!("3. Start them. Bindings stay valid, and each moves to the new secret when its key is next used.")?;
    outln!("4. When every key that matters has been used once, remove the last entry of `previous`. This also drops the bans of")?;
    outln!("   keys that were not used since: list them with `keylatch bindings list --banned`, and ban them again or keep the entry.")?;
    outln!("Back up the secret with the database.")?;
    Ok(())
}

fn write(config: &Path, name: &str, secret: &str) -> Result<(), String> {
    let path = Files::beside(config).path(name);
    let wrong = |e: std::io::Error| match e.kind() {
        std::io::ErrorKind::AlreadyExists => {
            format!("{} exists already: a rotation was begun; finish it, or remove the file", path.display())
        }
        _ => format!("{} cannot be written: {e}", path.display()),
    };
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path).map_err(wrong)?;
    file.write_all(secret.as_bytes()).and_then(|()| file.sync_all()).map_err(wrong)?;
    outln!("Created {}.", path.display())?;
    Ok(())
}
