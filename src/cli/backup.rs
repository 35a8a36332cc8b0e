//! `keylatch backup`: copies the SQLite database, its secret and the configuration into a new folder.
//!
//! For PostgreSQL it copies nothing and prints the steps with the server's own tools.

use std::fs::{DirBuilder, File};
use std::os::unix::fs::DirBuilderExt;
use std::path::PathBuf;

use clap::Args;
use prometheus::Registry;

use super::terminal::outln;
use super::{ConfigFile, on_runtime};
use crate::bindings::{self, Purpose};
use crate::compile;
use crate::config::model::{Sqlite, Storage};
use crate::config::{Files, Settings, parse_file};
use crate::util::secure_fs;

pub const DATABASE: &str = "keylatch.db";
pub const SECRET: &str = "keylatch.db.secret";
pub const CONFIGURATION: &str = "keylatch.yaml";

#[derive(Args)]
pub struct Backup {
    #[command(flatten)]
    file: ConfigFile,
    /// The folder to create; it must not exist
    to: PathBuf,
}

/// Creates the backup. The process may run meanwhile.
pub fn backup(args: &Backup) -> Result<(), String> {
    let settings = parse_file(&args.file.config).and_then(compile::settings).map_err(|report| report.to_string())?;
    let Storage::Sqlite(sqlite) = &settings.storage else { return Err(format!("nothing was copied. {}", steps(&settings))) };
    let wrong = |e: std::io::Error| format!("{}: {e}", args.to.display());
    DirBuilder::new().recursive(false).mode(0o700).create(&args.to).map_err(wrong)?;
    let made = fill(args, &settings, sqlite);
    if made.is_err() {
        [DATABASE, SECRET, CONFIGURATION].iter().for_each(|name| drop(std::fs::remove_file(args.to.join(name))));
        let _ = std::fs::remove_dir(&args.to);
    }
    made?;
    outln!(
        "{} holds the database, {}and the configuration file.",
        args.to.display(),
        if settings.secrets.key_hmac.is_none() { "its secret " } else { "" }
    )?;
    outln!("Keep it as safe as the keys: it allows to test guessed keys. Files that the configuration refers to are not in it.")
}

fn fill(args: &Backup, settings: &Settings, sqlite: &Sqlite) -> Result<(), String> {
    let database = args.to.join(DATABASE);
    let wrong = |e: std::io::Error| format!("{}: {e}", args.to.display());
    on_runtime(async {
        let opened = bindings::open(settings, &Files::beside(&args.file.config), &Registry::new(), Purpose::Command, None).await?;
        opened.store.copy(database.clone()).await
    })?;
    secure_fs::keep(&database).and_then(|()| File::open(&database)?.sync_all()).map_err(wrong)?;
    if settings.secrets.key_hmac.is_none() {
        secure_fs::copy(&beside(sqlite, ".secret"), &args.to.join(SECRET)).map_err(wrong)?;
    }
    secure_fs::copy(&args.file.config, &args.to.join(CONFIGURATION)).map_err(wrong)
}

/// The path of the database with this suffix.
pub fn beside(sqlite: &Sqlite, end: &str) -> PathBuf {
    PathBuf::from(format!("{}{end}", sqlite.path))
}

/// The steps to back up and restore a store that is a server.
pub fn steps(settings: &Settings) -> String {
    let Storage::Postgres(_) = &settings.storage else { return "Storage is memory: nothing outlives the process".into() };
    let mut lines = vec![
        "The data is in PostgreSQL; use its own tools, with the URL of storage.postgres in DATABASE_URL:".to_owned(),
        "  backup:   pg_dump --format=custom --no-owner --file=keylatch.dump \"$DATABASE_URL\"".into(),
        "  restore:  stop every replica, then".into(),
        "            pg_restore --clean --if-exists --no-owner --single-transaction --dbname=\"$DATABASE_URL\" keylatch.dump".into(),
        "  secrets:  keep secrets.key_hmac (and secrets.admin, if set) as they are: without key_hmac every key is unknown,".into(),
        "            and the database refuses another one. Store them apart from the dump: both together allow to test keys.".into(),
    ];
    if let Some(redis) = &settings.redis {
        let scan = format!("redis-cli -u \"$REDIS_URL\" --scan --pattern '{}:*'", redis.prefix);
        lines.push(
            "  Redis:    needs no backup: it holds a cache and the counts of limits, which restart from zero. After a restore,".into(),
        );
        lines.push("            clear the cache, with the URL of redis in REDIS_URL:".into());
        lines.push(format!("            {scan} | xargs -r redis-cli -u \"$REDIS_URL\" unlink"));
    }
    lines.push("  files:    back up the configuration and the files that it refers to.".into());
    lines.join("\n")
}
