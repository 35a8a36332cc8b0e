//! `keylatch reload`: ask the running process, and say what came of it.

use std::path::Path;

use crate::cli::terminal::say;

pub fn reload(path: &Path) -> Result<(), String> {
    let answer = crate::control::send_command(path, "reload")?;
    if answer.ok {
        say!("{}", answer.message)?;
        Ok(())
    } else {
        Err(format!("{}\nnothing was reloaded; the old configuration stays in force", answer.message))
    }
}
