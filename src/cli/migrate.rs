//! `keylatch migrate`: updates the schema of the store before the replicas of a new version start.

use std::path::Path;

use crate::cli::terminal::outln;
use crate::compile;
use crate::config::model::Storage;
use crate::config::{Files, parse_file};
use crate::util::secure_fs;

pub fn migrate(path: &Path) -> Result<(), String> {
    let settings = parse_file(path).and_then(compile::settings).map_err(|report| report.to_string())?;
    if let Storage::Sqlite(sqlite) = &settings.storage {
        secure_fs::act_as_owner(secure_fs::folder_of(Path::new(&sqlite.path)))?;
    }
    super::on_runtime(async {
        crate::bindings::migrate(&settings.storage, &Files::beside(path)).await?;
        outln!("The schema is up to date.")?;
        Ok(())
    })
}
