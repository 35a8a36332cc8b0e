//! `keylatch completions`: prints the completion script of a shell.

use clap::{Args, Command, CommandFactory};
use clap_complete::Shell;

use crate::cli::Cli;
use crate::cli::terminal::write_line;

#[derive(Args)]
pub struct Completions {
    /// The shell
    shell: Shell,
}

pub fn completions(completions: &Completions) -> Result<(), String> {
    let mut command = visible(&Cli::command());
    let mut script = Vec::new();
    // Into memory first: the generator panics if its writer fails.
    clap_complete::generate(completions.shell, &mut command, "keylatch", &mut script);
    write_line(format_args!("{}", String::from_utf8_lossy(&script).trim_end()))
}

/// The command tree without hidden commands and options, which the generators would offer.
fn visible(command: &Command) -> Command {
    let arguments = command.get_arguments().filter(|each| !each.is_hide_set()).cloned();
    let commands = command.get_subcommands().filter(|each| !each.is_hide_set()).map(visible);
    let mut shown = Command::new(command.get_name().to_owned()).args(arguments).subcommands(commands);
    if let Some(about) = command.get_about() {
        shown = shown.about(about.clone());
    }
    match command.get_version() {
        Some(version) => shown.version(version.to_owned()),
        None => shown,
    }
}
