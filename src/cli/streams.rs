//! `keylatch streams`: event streams that are open, on all replicas.

use clap::{Args, Subcommand};
use http::Method;

use super::ConfigFile;
use super::admin_client::{self, key, text};
use crate::cli::terminal::say;

#[derive(Args)]
pub struct Streams {
    #[command(flatten)]
    file: ConfigFile,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// List them, the oldest first
    List {
        /// At most so many
        #[arg(long, default_value_t = 100)]
        limit: u32,
        /// One JSON object a line
        #[arg(long)]
        json: bool,
    },
    /// End one; its client gets an error event
    End {
        /// Its number
        id: u64,
        /// The replica it is open on; must be said where there are several
        #[arg(long)]
        replica: Option<String>,
        /// What it was, as JSON
        #[arg(long)]
        json: bool,
    },
}

pub fn streams(asked: &Streams) -> Result<(), String> {
    let config = &asked.file.config;
    match &asked.command {
        Command::List { limit, json } => {
            let mut is_first = !json;
            let pages = admin_client::list(config, "/streams", &[], *limit, |row| {
                if std::mem::take(&mut is_first) {
                    say!("{:>6} {:<24} {:>7} {:<39} {:<12} ROUTE, PATH", "ID", "REPLICA", "AGE", "CLIENT", "KEY")?;
                }
                let line = if *json {
                    row.to_string()
                } else {
                    let (id, replica, age, client, route) =
                        (text(row, "id"), text(row, "replica"), text(row, "age_s"), text(row, "client"), text(row, "route"));
                    format!("{id:>6} {replica:<24} {age:>6}s {client:<39} {:<12} {route} {}", key(row), text(row, "path"))
                };
                say!("{line}")
            })?;
            if is_first {
                eprintln!("No stream is open.");
            }
            admin_client::warn_of_silent(&pages.iter().collect::<Vec<_>>());
            Ok(())
        }
        Command::End { id, replica, json } => {
            let ended = admin_client::call(config, Method::DELETE, &format!("/streams/{id}"), &[("replica", replica.clone())], None)?;
            let plain = || format!("{} was cut off on {}", text(&ended, "client"), text(&ended, "replica"));
            say!("{}", if *json { ended.to_string() } else { plain() })
        }
    }
}
