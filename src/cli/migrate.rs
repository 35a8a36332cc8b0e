//! `keylatch migrate`: the schema, up to date, before the replicas of a new version start.

use std::path::Path;

use crate::cli::terminal::say;
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
        say!("the schema is up to date")?;
        Ok(())
    })
}
