//! `keylatch upgrade`: a new process takes the place of the running one.

use std::path::Path;

use super::terminal::say;
use crate::control;

pub fn upgrade(config: &Path) -> Result<(), String> {
    let answer = control::send_command(config, "upgrade")?;
    if answer.ok { say!("{}", answer.message) } else { Err(answer.message) }
}
