//! `keylatch upgrade`: asks the running process to hand over to a new one, and prints the outcome.

use std::path::Path;

use super::terminal::outln;
use crate::control;

pub fn upgrade(config: &Path) -> Result<(), String> {
    let answer = control::send_command(config, "upgrade")?;
    if answer.ok { outln!("{}", answer.message) } else { Err(answer.message) }
}
