//! `keylatch check`: parses and compiles a configuration and resolves every reference. It opens and starts nothing.

use std::path::Path;

use crate::cli::terminal::outln;
use crate::compile::{Compiler, check_ports};
use crate::config::{Files, parse_file};

pub fn check(path: &Path) -> Result<(), String> {
    let parsed = parse_file(path).map_err(|report| report.to_string())?;
    let snapshot = Compiler::new(check_ports()).compile(parsed).map_err(|report| report.to_string())?;
    crate::bindings::check(&snapshot.settings.secrets, &Files::beside(path))?;
    outln!("{} is valid: {} routes, {} upstreams", path.display(), snapshot.routes.len(), snapshot.upstreams.len())?;
    Ok(())
}
