//! `keylatch backup` and `keylatch restore`: what is stored, with the secret that goes with it and the configuration, as one folder. For
//! servers, which have their own ways, the exact steps.

use std::fs::{DirBuilder, Permissions};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};

use clap::Args;
use prometheus::Registry;

use super::terminal::say;
use super::{ConfigFile, on_runtime};
use crate::config::model::{Sqlite, Storage};
use crate::config::{Files, Parsed, Settings, parse_file};
use crate::control;
use crate::store::{self, Purpose};

const DATABASE: &str = "keylatch.db";
const SECRET: &str = "keylatch.db.secret";
const CONFIGURATION: &str = "keylatch.yaml";

#[derive(Args)]
pub struct Backup {
    #[command(flatten)]
    file: ConfigFile,
    /// The folder to make; it must not be there yet
    to: PathBuf,
}

#[derive(Args)]
pub struct Restore {
    #[command(flatten)]
    file: ConfigFile,
    /// The folder that `keylatch backup` has made
    from: PathBuf,
    /// Put what is there now aside, under its name with `.before` behind it
    #[arg(long)]
    replace: bool,
}

/// Copies what is stored while it is in use.
pub fn backup(asked: &Backup) -> Result<(), String> {
    let settings = parse_file(&asked.file.config).and_then(Parsed::settings).map_err(|report| report.to_string())?;
    let Storage::Sqlite(sqlite) = &settings.storage else { return steps(&settings) };
    let wrong = |e: std::io::Error| format!("{}: {e}", asked.to.display());
    DirBuilder::new().recursive(false).mode(0o700).create(&asked.to).map_err(wrong)?;
    on_runtime(async {
        let opened = store::open(&settings, &Files::beside(&asked.file.config), &Registry::new(), Purpose::Command, None).await?;
        opened.store.copy(asked.to.join(DATABASE)).await
    })?;
    private(&asked.to.join(DATABASE)).map_err(wrong)?;
    let secret = secret_of(sqlite);
    if settings.secrets.key_hmac.is_none() {
        copy(&secret, &asked.to.join(SECRET))?;
    }
    copy(&asked.file.config, &asked.to.join(CONFIGURATION))?;
    say!(
        "{} holds the database, {}and the configuration file.",
        asked.to.display(),
        if settings.secrets.key_hmac.is_none() { "its secret " } else { "" }
    )?;
    say!("Whoever has it can try out keys against it: keep it as safe as the keys. Files that the configuration refers to are not in it.")
}

/// Puts back what a backup holds.
pub fn restore(asked: &Restore) -> Result<(), String> {
    let settings = parse_file(&asked.file.config).and_then(Parsed::settings).map_err(|report| report.to_string())?;
    let Storage::Sqlite(sqlite) = &settings.storage else { return steps(&settings) };
    if control::is_there(&asked.file.config) {
        return Err(format!("a process that runs {} is there: stop it first", asked.file.config.display()));
    }
    let target = PathBuf::from(&sqlite.path);
    let keeps_secret = settings.secrets.key_hmac.is_none();
    let ends: &[&str] = if keeps_secret { &["", ".secret", "-wal", "-shm"] } else { &["", "-wal", "-shm"] };
    let there: Vec<PathBuf> = ends.iter().map(|end| PathBuf::from(format!("{}{end}", sqlite.path))).filter(|path| path.exists()).collect();
    if !there.is_empty() && !asked.replace {
        return Err(format!("{} is there already; --replace puts it aside", there[0].display()));
    }
    if let Some(folder) = target.parent().filter(|folder| !folder.as_os_str().is_empty()) {
        std::fs::create_dir_all(folder).map_err(|e| format!("{}: {e}", folder.display()))?;
    }
    let staged = stage(asked, &settings, sqlite)?;
    for path in &there {
        let aside = PathBuf::from(format!("{}.before", path.display()));
        std::fs::rename(path, &aside).map_err(|e| format!("{}: {e}", aside.display()))?;
    }
    std::fs::rename(&staged, &target).map_err(|e| format!("{}: {e}", target.display()))?;
    if keeps_secret {
        copy(&asked.from.join(SECRET), &secret_of(sqlite))?;
    }
    say!("{} is as it was when {} was made.", target.display(), asked.from.display())?;
    say!("The configuration stays as it is; the one of then is {}.", asked.from.join(CONFIGURATION).display())
}

/// A copy of the backup beside where it is to be: opened, so that it is whole, goes with its secret, and is of this program's schema.
fn stage(asked: &Restore, settings: &Settings, sqlite: &Sqlite) -> Result<PathBuf, String> {
    let name = |end: &str| PathBuf::from(format!("{}.restoring{end}", sqlite.path));
    let clear = || ["", "-wal", "-shm", ".secret", ".whole"].map(name).iter().for_each(|path| drop(std::fs::remove_file(path)));
    clear();
    let work = || {
        copy(&asked.from.join(DATABASE), &name(""))?;
        if settings.secrets.key_hmac.is_none() {
            copy(&asked.from.join(SECRET), &name(".secret"))?;
        }
        let storage = Storage::Sqlite(Sqlite { path: name("").display().to_string(), ..sqlite.clone() });
        let settings = Settings { storage, ..settings.clone() };
        on_runtime(async {
            let opened = store::open(&settings, &Files::beside(&asked.file.config), &Registry::new(), Purpose::Serve, None).await?;
            opened.store.copy(name(".whole")).await
        })?;
        private(&name(".whole")).map_err(|e| e.to_string())?;
        let staged = name(".staged");
        std::fs::rename(name(".whole"), &staged).map_err(|e| format!("{}: {e}", staged.display()))?;
        Ok(staged)
    };
    let staged = work();
    clear();
    staged.map_err(|error: String| format!("{} cannot be put back, and nothing was changed: {error}", asked.from.display()))
}

fn secret_of(sqlite: &Sqlite) -> PathBuf {
    PathBuf::from(format!("{}.secret", sqlite.path))
}

fn private(path: &Path) -> std::io::Result<()> {
    std::fs::set_permissions(path, Permissions::from_mode(0o600))
}

fn copy(from: &Path, to: &Path) -> Result<(), String> {
    let copied = std::fs::copy(from, to).and_then(|_| private(to)).and_then(|()| std::fs::File::open(to)?.sync_all());
    copied.map_err(|e| format!("{} to {}: {e}", from.display(), to.display()))
}

/// What there is to do where a server has the data.
fn steps(settings: &Settings) -> Result<(), String> {
    match &settings.storage {
        Storage::Postgres(_) => {
            say!("The data is PostgreSQL's, which has its own ways; with the URL of storage.postgres in DATABASE_URL:")?;
            say!("  backup:   pg_dump --format=custom --no-owner --file=keylatch.dump \"$DATABASE_URL\"")?;
            say!("  restore:  stop every replica, then")?;
            say!("            pg_restore --clean --if-exists --no-owner --single-transaction --dbname=\"$DATABASE_URL\" keylatch.dump")?;
            say!("  secrets:  secrets.key_hmac (and secrets.admin, if it is set) as they were; without key_hmac every key looks new,")?;
            say!("            and the database refuses any other. Keep them apart from the dump: who has both can try out keys.")?;
            if settings.redis.is_some() {
                say!("  Redis:    holds nothing that must be kept: a cache, and the counts of limits, which begin anew. After a restore,")?;
                say!("            forget what it remembers: redis-cli --scan --pattern 'keylatch:*' | xargs -r redis-cli unlink")?;
            }
            say!("  and:      the configuration, and the files that it refers to.")
        }
        _ => Err("storage is memory: there is nothing that outlives the process".into()),
    }
}
