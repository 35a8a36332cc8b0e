//! `keylatch migrate`: the schema, up to date, before the replicas of a new version start.

use std::path::Path;

use crate::cli::terminal::say;
use crate::config::{Files, Parsed, parse_file};

pub fn migrate(path: &Path) -> Result<(), String> {
    let settings = parse_file(path).and_then(Parsed::settings).map_err(|report| report.to_string())?;
    super::on_runtime(async {
        crate::store::migrate(&settings.storage, &Files::beside(path)).await?;
        say!("the schema is up to date")?;
        Ok(())
    })
}
