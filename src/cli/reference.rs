//! `keylatch reference`: writes the reference pages of the manual into a folder.

use std::path::PathBuf;

use clap::{Args, CommandFactory};

use crate::cli::Cli;
use crate::cli::terminal::outln;
use crate::reference::pages;

#[derive(Args)]
pub struct Reference {
    /// The folder to write into; it must exist
    #[arg(long, value_name = "DIR", default_value = "docs/reference")]
    out: PathBuf,
}

pub fn reference(reference: &Reference) -> Result<(), String> {
    for page in pages(Cli::command()) {
        let path = reference.out.join(page.file);
        std::fs::write(&path, page.text).map_err(|e| format!("{}: {e}", path.display()))?;
        outln!("{}", path.display())?;
    }
    Ok(())
}
