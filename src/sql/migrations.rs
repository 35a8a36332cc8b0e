//! The migrations of both databases, embedded in the program. A plain list instead of a macro of
//! the driver: that macro builds the driver and both databases a second time, for the compiler.

use std::sync::LazyLock;

use sqlx::SqlStr;
use sqlx::migrate::{Migration, MigrationType, Migrator};

macro_rules! files {
    ($folder:literal: $($name:literal),+ $(,)?) => {
        LazyLock::new(|| migrator(&[$(($name, include_str!(concat!("migrations/", $folder, "/", $name, ".sql")))),+]))
    };
}

/// The migrations of PostgreSQL.
pub static POSTGRES: LazyLock<Migrator> = files!("postgres":
    "0001_foundation", "0002_alerts", "0003_audit", "0004_settings", "0005_operating", "0006_providers", "0007_questions",
    "0008_settings", "0009_tops", "0010_vault", "0011_notify", "0012_shadow", "0013_usage", "0014_budgets",
);

/// The migrations of SQLite.
pub static SQLITE: LazyLock<Migrator> = files!("sqlite":
    "0001_foundation", "0002_bindings", "0003_alerts", "0004_audit", "0005_settings", "0006_operating", "0007_providers",
    "0008_questions", "0009_tops", "0010_vault", "0011_shadow", "0012_usage", "0013_budgets",
);

/// A file name is the version, `_` and the description.
fn migrator(files: &[(&str, &'static str)]) -> Migrator {
    let migration = |(name, sql): &(&str, &'static str)| {
        let (version, description) = name.split_once('_')?;
        let description = description.replace('_', " ").into();
        Some(Migration::new(version.parse().ok()?, description, MigrationType::Simple, SqlStr::from_static(sql), false))
    };
    Migrator::with_migrations(files.iter().filter_map(migration).collect())
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[tokio::test]
    async fn all_files_are_listed() {
        for (folder, listed) in [("postgres", &*POSTGRES), ("sqlite", &*SQLITE)] {
            let found = Migrator::new(Path::new("src/sql/migrations").join(folder)).await.unwrap();
            let parts = |migrator: &Migrator| {
                migrator.iter().map(|m| (m.version, m.description.to_string(), m.checksum.to_vec(), m.no_tx)).collect::<Vec<_>>()
            };
            assert_eq!(parts(listed), parts(&found), "{folder}");
        }
    }
}
