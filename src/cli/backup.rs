//! `keylatch backup`: what is stored, with the secret that goes with it and the configuration, as one folder. For servers, which
//! have their own ways, the exact steps.

use std::fs::{DirBuilder, File};
use std::os::unix::fs::DirBuilderExt;
use std::path::PathBuf;

use clap::Args;
use prometheus::Registry;

use super::terminal::say;
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
    /// The folder to make; it must not be there yet
    to: PathBuf,
}

/// Copies what is stored while it is in use.
pub fn backup(asked: &Backup) -> Result<(), String> {
    let settings = parse_file(&asked.file.config).and_then(compile::settings).map_err(|report| report.to_string())?;
    let Storage::Sqlite(sqlite) = &settings.storage else { return Err(format!("nothing was copied. {}", steps(&settings))) };
    let wrong = |e: std::io::Error| format!("{}: {e}", asked.to.display());
    DirBuilder::new().recursive(false).mode(0o700).create(&asked.to).map_err(wrong)?;
    let made = fill(asked, &settings, sqlite);
    if made.is_err() {
        [DATABASE, SECRET, CONFIGURATION].iter().for_each(|name| drop(std::fs::remove_file(asked.to.join(name))));
        let _ = std::fs::remove_dir(&asked.to);
    }
    made?;
    say!(
        "{} holds the database, {}and the configuration file.",
        asked.to.display(),
        if settings.secrets.key_hmac.is_none() { "its secret " } else { "" }
    )?;
    say!("Whoever has it can try out keys against it: keep it as safe as the keys. Files that the configuration refers to are not in it.")
}

fn fill(asked: &Backup, settings: &Settings, sqlite: &Sqlite) -> Result<(), String> {
    let database = asked.to.join(DATABASE);
    let wrong = |e: std::io::Error| format!("{}: {e}", asked.to.display());
    on_runtime(async {
        let opened = bindings::open(settings, &Files::beside(&asked.file.config), &Registry::new(), Purpose::Command, None).await?;
        opened.store.copy(database.clone()).await
    })?;
    secure_fs::keep(&database).and_then(|()| File::open(&database)?.sync_all()).map_err(wrong)?;
    if settings.secrets.key_hmac.is_none() {
        secure_fs::copy(&beside(sqlite, ".secret"), &asked.to.join(SECRET)).map_err(wrong)?;
    }
    secure_fs::copy(&asked.file.config, &asked.to.join(CONFIGURATION)).map_err(wrong)
}

/// A file beside the database, whose name ends like this.
pub fn beside(sqlite: &Sqlite, end: &str) -> PathBuf {
    PathBuf::from(format!("{}{end}", sqlite.path))
}

/// What there is to do where a server has the data.
pub fn steps(settings: &Settings) -> String {
    let Storage::Postgres(_) = &settings.storage else { return "Storage is memory: there is nothing that outlives the process".into() };
    let mut lines = vec![
        "The data is PostgreSQL's, which has its own ways; with the URL of storage.postgres in DATABASE_URL:".to_owned(),
        "  backup:   pg_dump --format=custom --no-owner --file=keylatch.dump \"$DATABASE_URL\"".into(),
        "  restore:  stop every replica, then".into(),
        "            pg_restore --clean --if-exists --no-owner --single-transaction --dbname=\"$DATABASE_URL\" keylatch.dump".into(),
        "  secrets:  secrets.key_hmac (and secrets.admin, if it is set) as they were; without key_hmac every key looks new,".into(),
        "            and the database refuses any other. Keep them apart from the dump: who has both can try out keys.".into(),
    ];
    if let Some(redis) = &settings.redis {
        let scan = format!("redis-cli -u \"$REDIS_URL\" --scan --pattern '{}:*'", redis.prefix);
        lines.push(
            "  Redis:    holds nothing that must be kept: a cache, and the counts of limits, which begin anew. After a restore,".into(),
        );
        lines.push("            forget what it remembers, with the URL of redis in REDIS_URL:".into());
        lines.push(format!("            {scan} | xargs -r redis-cli -u \"$REDIS_URL\" unlink"));
    }
    lines.push("  and:      the configuration, and the files that it refers to.".into());
    lines.join("\n")
}
