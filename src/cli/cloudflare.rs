//! `keylatch cloudflare`: Cloudflare's address ranges, as a configuration knows them.

use clap::{Args, Subcommand};

use super::terminal::say;
use super::{ConfigFile, on_runtime};
use crate::compile;
use crate::config::{Files, parse_file};
use crate::operator::ranges;

#[derive(Args)]
pub struct Cloudflare {
    #[command(flatten)]
    file: ConfigFile,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Print the ranges that are in force, and from when they are
    Ranges,
    /// Read them anew and write trusted_proxies.cloudflare_file, which a running process sees. What is wrong leaves the file as it is
    Refresh {
        /// A URL or a file to read, as often as you like. Default: those of trusted_proxies.cloudflare_refresh, or Cloudflare's own
        #[arg(long)]
        from: Vec<String>,
        /// Even if most of the ranges that are known are not there any more
        #[arg(long)]
        force: bool,
    },
}

pub fn cloudflare(asked: &Cloudflare) -> Result<(), String> {
    let settings = parse_file(&asked.file.config).and_then(compile::settings).map_err(|report| report.to_string())?;
    let (config, files) = (&settings.trusted_proxies, Files::beside(&asked.file.config));
    match &asked.command {
        Command::Ranges => {
            let (ranges, about) = ranges::in_force(config, &files)?;
            say!("# {about}")?;
            ranges.iter().try_for_each(|network| say!("{network}"))
        }
        Command::Refresh { from, force } => {
            let mut sources = config.cloudflare_refresh.clone().unwrap_or_default();
            if !from.is_empty() {
                sources.from = from.iter().map(|source| here(source)).collect::<Result<_, _>>()?;
            }
            let said = on_runtime(ranges::refresh(config, &files, &sources, *force))?;
            say!("{said}")
        }
    }
}

/// A file is meant from where the command is typed, not from where the configuration is.
fn here(source: &str) -> Result<String, String> {
    if source.contains("://") {
        return Ok(source.to_owned());
    }
    let path = std::path::absolute(source).map_err(|e| format!("{source}: {e}"))?;
    path.into_os_string().into_string().map_err(|_| format!("{source}: the path is not UTF-8"))
}
