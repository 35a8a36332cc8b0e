//! `keylatch streams`: lists and ends open streams of all replicas.

use clap::{Args, Subcommand};
use http::Method;

use super::ConfigFile;
use super::admin_client::{self, key, text};
use crate::cli::terminal::outln;

#[derive(Args)]
pub struct Streams {
    #[command(flatten)]
    file: ConfigFile,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// List open streams, the oldest first
    List {
        /// The maximum number of rows
        #[arg(long, default_value_t = 100)]
        limit: u32,
        /// Print one JSON object per line
        #[arg(long)]
        json: bool,
    },
    /// End a stream. Its client gets an error event
    End {
        /// The id of the stream
        id: u64,
        /// The replica on which the stream is open; required with several replicas
        #[arg(long)]
        replica: Option<String>,
        /// Print the ended stream as JSON
        #[arg(long)]
        json: bool,
    },
}

pub fn streams(args: &Streams) -> Result<(), String> {
    let config = &args.file.config;
    match &args.command {
        Command::List { limit, json } => {
            let mut is_first = !json;
            let pages = admin_client::list(config, "/streams", &[], *limit, |row| {
                if std::mem::take(&mut is_first) {
                    outln!("{:>6} {:<24} {:>7} {:<39} {:<12} ROUTE, PATH", "ID", "REPLICA", "AGE", "CLIENT", "KEY")?;
                }
                let line = if *json {
                    row.to_string()
                } else {
                    let (id, replica, age, client, route) =
                        (text(row, "id"), text(row, "replica"), text(row, "age_s"), text(row, "client"), text(row, "route"));
                    format!("{id:>6} {replica:<24} {age:>6}s {client:<39} {:<12} {route} {}", key(row), text(row, "path"))
                };
                outln!("{line}")
            })?;
            if is_first {
                eprintln!("No stream is open.");
            }
            admin_client::warn_of_silent(&pages.iter().collect::<Vec<_>>());
            Ok(())
        }
        Command::End { id, replica, json } => {
            let ended = admin_client::call(config, Method::DELETE, &format!("/streams/{id}"), &[("replica", replica.clone())], None)?;
            let plain = || format!("Ended the stream of {} on {}.", text(&ended, "client"), text(&ended, "replica"));
            outln!("{}", if *json { ended.to_string() } else { plain() })
        }
    }
}
