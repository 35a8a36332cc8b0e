//! `keylatch reload`: asks the running process to reload its configuration, and prints the outcome.

use std::path::Path;

use crate::cli::terminal::outln;

pub fn reload(path: &Path) -> Result<(), String> {
    let answer = crate::control::send_command(path, "reload")?;
    if answer.ok {
        outln!("{}", answer.message)?;
        Ok(())
    } else {
        Err(format!("{}\nthe configuration was not reloaded; the old configuration stays in force", answer.message))
    }
}
