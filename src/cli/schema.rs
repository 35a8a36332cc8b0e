//! `keylatch schema`: prints the JSON Schema of the configuration.

use crate::cli::terminal::outln;

pub fn schema() -> Result<(), String> {
    let text = serde_json::to_string_pretty(&crate::config::schema()).map_err(|e| e.to_string())?;
    outln!("{text}")?;
    Ok(())
}
