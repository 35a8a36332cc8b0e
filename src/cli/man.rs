//! `keylatch man`: prints the manual page, or writes one page for each command into a folder.

use std::io;
use std::path::{Path, PathBuf};

use clap::{Args, Command, CommandFactory};
use clap_mangen::Man as Page;

use crate::cli::Cli;
use crate::cli::terminal::write_line;

#[derive(Args)]
pub struct Man {
    /// Write keylatch.1 and a page for each command into this folder, which must exist
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
}

pub fn man(man: &Man) -> Result<(), String> {
    let mut command = Cli::command().disable_help_subcommand(true);
    command.build();
    if let Some(folder) = &man.out {
        return write_pages(command, folder).map_err(|e| format!("{}: {e}", folder.display()));
    }
    let mut text = Vec::new();
    page(command).render(&mut text).map_err(|e| e.to_string())?;
    write_line(format_args!("{}", String::from_utf8_lossy(&text).trim_end()))
}

fn write_pages(command: Command, folder: &Path) -> io::Result<()> {
    for each in command.get_subcommands().filter(|each| !each.is_hide_set()) {
        write_pages(each.clone(), folder)?;
    }
    page(command).generate_to(folder).map(drop)
}

fn page(command: Command) -> Page {
    // The footer would otherwise name a subcommand without a version.
    Page::new(command).source(concat!("Keylatch ", env!("CARGO_PKG_VERSION"))).manual("Keylatch commands")
}
