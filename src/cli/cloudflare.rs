//! `keylatch cloudflare`: prints and refreshes Cloudflare's address ranges of a configuration.

use clap::{Args, Subcommand};

use super::terminal::outln;
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
    /// Print the ranges in force and their date
    Ranges,
    /// Fetch the ranges and write `trusted_proxies.cloudflare_file`, which a running process watches. An error leaves the file unchanged
    Refresh {
        /// A URL or file to read; may be repeated. Default: `trusted_proxies.cloudflare_refresh`, or else Cloudflare's URLs
        #[arg(long)]
        from: Vec<String>,
        /// Accept the new ranges even if most of the known ranges are missing
        #[arg(long)]
        force: bool,
    },
}

pub fn cloudflare(args: &Cloudflare) -> Result<(), String> {
    let settings = parse_file(&args.file.config).and_then(compile::settings).map_err(|report| report.to_string())?;
    let (config, files) = (&settings.trusted_proxies, Files::beside(&args.file.config));
    match &args.command {
        Command::Ranges => {
            let (ranges, about) = ranges::in_force(config, &files)?;
            outln!("# {about}")?;
            ranges.iter().try_for_each(|network| outln!("{network}"))
        }
        Command::Refresh { from, force } => {
            let mut sources = config.cloudflare_refresh.clone().unwrap_or_default();
            if !from.is_empty() {
                sources.from = from.iter().map(|source| absolute_source(source)).collect::<Result<_, _>>()?;
            }
            let outcome = on_runtime(ranges::refresh(config, &files, &sources, *force))?;
            outln!("{outcome}")
        }
    }
}

/// Makes a file path absolute: on the command line it is relative to the working directory, not to the configuration.
fn absolute_source(source: &str) -> Result<String, String> {
    if source.contains("://") {
        return Ok(source.to_owned());
    }
    let path = std::path::absolute(source).map_err(|e| format!("{source}: {e}"))?;
    path.into_os_string().into_string().map_err(|_| format!("{source}: the path is not UTF-8"))
}
