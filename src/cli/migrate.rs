//! `keylatch migrate`: the schema, up to date, before the replicas of a new version start.

use std::path::Path;

use crate::cli::terminal::say;
use crate::config::model::Storage;
use crate::config::{Files, Parsed, parse_file};
use crate::store::private;

pub fn migrate(path: &Path) -> Result<(), String> {
    let settings = parse_file(path).and_then(Parsed::settings).map_err(|report| report.to_string())?;
    if let Storage::Sqlite(sqlite) = &settings.storage {
        private::act_as_owner(private::folder_of(Path::new(&sqlite.path)))?;
    }
    super::on_runtime(async {
        crate::store::migrate(&settings.storage, &Files::beside(path)).await?;
        say!("the schema is up to date")?;
        Ok(())
    })
}
