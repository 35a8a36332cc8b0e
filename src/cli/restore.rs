//! `keylatch restore`: restores a backup of the SQLite database, completely or not at all.
//!
//! For PostgreSQL it changes nothing and prints the steps with the server's own tools.

use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use clap::Args;
use prometheus::Registry;

use super::backup::{CONFIGURATION, DATABASE, SECRET, beside, steps};
use super::terminal::outln;
use super::{ConfigFile, on_runtime};
use crate::bindings::{self, Purpose};
use crate::config::model::{Sqlite, Storage};
use crate::config::{Files, Settings, parse_file};
use crate::util::secure_fs;
use crate::{compile, control, sql};

#[derive(Args)]
pub struct Restore {
    #[command(flatten)]
    file: ConfigFile,
    /// The folder that `keylatch backup` created
    from: PathBuf,
    /// Move the existing database into a folder beside it, from which it can be restored as a backup
    #[arg(long)]
    replace: bool,
}

/// The suffixes of the files of a database, here and in a backup. `-wal` is part of the data; `-shm` is only its index.
const PARTS: [&str; 4] = ["", "-wal", "-shm", ".secret"];

/// Restores the backup.
pub fn restore(args: &Restore) -> Result<(), String> {
    let settings = parse_file(&args.file.config).and_then(compile::settings).map_err(|report| report.to_string())?;
    let Storage::Sqlite(sqlite) = &settings.storage else { return Err(format!("nothing was changed. {}", steps(&settings))) };
    if control::is_running(&args.file.config) {
        return Err(format!("a process runs {}; stop it first", args.file.config.display()));
    }
    let sqlite = &with_absolute_path(sqlite)?;
    let target = PathBuf::from(&sqlite.path);
    let folder = secure_fs::folder_of(&target);
    let keeps_secret = settings.secrets.key_hmac.is_none();
    // The files are opened as the calling user, before the process becomes the owner of the database.
    let backup = BackupFiles::open(&args.from, keeps_secret)?;
    if target.metadata().is_ok_and(|existing| backup.is_same_file(&existing)) {
        return Err(format!("{} is the database itself and not a backup", args.from.display()));
    }
    secure_fs::act_as_owner(folder)?;
    // Excludes processes with another configuration file that use the same database.
    let alone = target.exists().then(|| sql::sqlite::alone(&target)).transpose()?;
    let parts = || PARTS.into_iter().filter(|end| keeps_secret || *end != ".secret");
    let there: Vec<&str> = parts().filter(|end| beside(sqlite, end).exists()).collect();
    if let Some(first) = there.first().filter(|_| !args.replace) {
        return Err(format!("{} exists already; use --replace to move it aside", beside(sqlite, first).display()));
    }
    secure_fs::make_folder(folder).map_err(|e| format!("{}: {e}", folder.display()))?;
    let staged = stage(args, &backup, &settings, sqlite)?;
    let aside = if there.is_empty() { None } else { Some(new_aside_folder(sqlite)?) };
    if let Err(error) = swap(sqlite, &staged, &there, aside.as_deref(), keeps_secret) {
        let back = aside.as_deref().map_or(Ok(()), |aside| undo(sqlite, &there, aside));
        return Err(format!("{}: {error}; {}", target.display(), back.err().unwrap_or_else(|| "nothing was changed".into())));
    }
    drop(alone);
    outln!("{} was restored from {}.", target.display(), args.from.display())?;
    if let Some(aside) = aside {
        outln!("The previous database is in {} and can be restored from there.", aside.display())?;
    }
    outln!("The configuration was not changed. The backup has its own copy: {}.", args.from.join(CONFIGURATION).display())
}

/// Links the existing files into the folder aside and moves the staged files into place. The database comes last, so that one
/// exists at every moment. Until then the file `.restoring` keeps other processes from opening a half-restored database.
fn swap(sqlite: &Sqlite, staged: &Staged, there: &[&str], aside: Option<&Path>, keeps_secret: bool) -> std::io::Result<()> {
    let target = PathBuf::from(&sqlite.path);
    let restoring = sql::sqlite::restoring(&target);
    if let Some(aside) = aside {
        there.iter().try_for_each(|end| std::fs::hard_link(beside(sqlite, end), aside.join(format!("{DATABASE}{end}"))))?;
        File::open(aside)?.sync_all()?;
    }
    std::fs::rename(staged.with(""), &restoring)?;
    let last = || {
        for end in ["-wal", "-shm"].iter().filter(|end| there.contains(*end)) {
            std::fs::remove_file(beside(sqlite, end))?;
        }
        if keeps_secret {
            std::fs::rename(staged.with(".secret"), beside(sqlite, ".secret"))?;
        }
        std::fs::rename(&restoring, &target)?;
        File::open(secure_fs::folder_of(&target))?.sync_all()
    };
    last().inspect_err(|_| drop(std::fs::remove_file(&restoring)))
}

/// Moves all files back from the folder aside. An error names the file that stays there.
fn undo(sqlite: &Sqlite, there: &[&str], aside: &Path) -> Result<(), String> {
    for end in there {
        let (from, to) = (aside.join(format!("{DATABASE}{end}")), beside(sqlite, end));
        // A rename between two links of one file leaves both.
        let back = if from.exists() { std::fs::rename(&from, &to).and_then(|()| remove(&from)) } else { Ok(()) };
        back.map_err(|e| format!("{} could not be moved back to {}: {e}", from.display(), to.display()))?;
    }
    std::fs::remove_dir(aside).map_err(|e| format!("{}: {e}", aside.display()))
}

fn remove(path: &Path) -> std::io::Result<()> {
    match std::fs::remove_file(path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    }
}

/// The files of a backup, open.
struct BackupFiles {
    database: File,
    /// A database that was moved aside has a write-ahead log; a backup has none.
    log: Option<File>,
    secret: Option<File>,
}

impl BackupFiles {
    fn open(folder: &Path, keeps_secret: bool) -> Result<Self, String> {
        let open = |name: String| {
            let path = folder.join(name);
            File::open(&path).map_err(|e| format!("{} cannot be restored; nothing was changed: {}: {e}", folder.display(), path.display()))
        };
        Ok(Self {
            database: open(DATABASE.into())?,
            log: folder.join(format!("{DATABASE}-wal")).exists().then(|| open(format!("{DATABASE}-wal"))).transpose()?,
            secret: keeps_secret.then(|| open(SECRET.into())).transpose()?,
        })
    }

    /// Whether the database of the backup is this file.
    fn is_same_file(&self, other: &std::fs::Metadata) -> bool {
        self.database.metadata().is_ok_and(|own| (own.dev(), own.ino()) == (other.dev(), other.ino()))
    }
}

/// The settings with an absolute path.
fn with_absolute_path(sqlite: &Sqlite) -> Result<Sqlite, String> {
    let path = std::path::absolute(&sqlite.path).map_err(|e| format!("{}: {e}", sqlite.path))?;
    // The files beside the target of a symbolic link matter, not those beside the link.
    let path = path.canonicalize().unwrap_or(path);
    let path = path.into_os_string().into_string().map_err(|_| "storage.sqlite.path is not UTF-8")?;
    Ok(Sqlite { path, ..sqlite.clone() })
}

/// Creates a folder for the existing database, under a name that is not in use.
fn new_aside_folder(sqlite: &Sqlite) -> Result<PathBuf, String> {
    let now = humantime::format_rfc3339_seconds(SystemTime::now()).to_string().replace([':', '-'], "");
    let mut folder = beside(sqlite, &format!(".before-{now}"));
    for n in 2.. {
        if !folder.exists() {
            break;
        }
        folder = beside(sqlite, &format!(".before-{now}-{n}"));
    }
    secure_fs::make_folder(&folder).map_err(|e| format!("{}: {e}", folder.display()))?;
    Ok(folder)
}

/// The staged copy of a backup, by the path of its database. Dropping it removes the files that are left.
struct Staged(PathBuf);

impl Staged {
    fn with(&self, end: &str) -> PathBuf {
        secure_fs::beside(&self.0, end)
    }

    fn clear(&self) {
        PARTS.iter().chain(&[".whole", ".whole-journal"]).for_each(|end| drop(std::fs::remove_file(self.with(end))));
    }
}

impl Drop for Staged {
    fn drop(&mut self) {
        self.clear();
    }
}

/// Copies the backup to a place beside its destination and opens it there. This proves that it is complete, matches its secret,
/// and has the schema of this program.
fn stage(args: &Restore, backup: &BackupFiles, settings: &Settings, sqlite: &Sqlite) -> Result<Staged, String> {
    let staged = Staged(beside(sqlite, ".staged"));
    staged.clear();
    let copy =
        |from: &File, end: &str| secure_fs::fill(from, &staged.with(end)).map_err(|e| format!("{}: {e}", staged.with(end).display()));
    let work = || {
        copy(&backup.database, "")?;
        backup.log.iter().try_for_each(|log| copy(log, "-wal"))?;
        backup.secret.iter().try_for_each(|secret| copy(secret, ".secret"))?;
        let storage = Storage::Sqlite(Sqlite { path: staged.with("").display().to_string(), ..sqlite.clone() });
        let settings = Settings { storage, ..settings.clone() };
        on_runtime(async {
            let opened = bindings::open(&settings, &Files::beside(&args.file.config), &Registry::new(), Purpose::Serve, None).await?;
            opened.store.copy(staged.with(".whole")).await
        })?;
        use_compact_copy(&staged).map_err(|e| format!("{}: {e}", staged.with("").display()))
    };
    work().map_err(|error| format!("{} cannot be restored; nothing was changed: {error}", args.from.display()))?;
    Ok(staged)
}

/// Replaces the opened copy by the one without a write-ahead log.
fn use_compact_copy(staged: &Staged) -> std::io::Result<()> {
    let copied: &Path = &staged.with(".whole");
    secure_fs::keep(copied)?;
    File::open(copied)?.sync_all()?;
    ["-wal", "-shm"].iter().try_for_each(|end| remove(&staged.with(end)))?;
    std::fs::rename(copied, staged.with(""))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_swap_is_undone() {
        let folder = tempfile::tempdir().unwrap();
        let sqlite = Sqlite { path: folder.path().join("k.db").display().to_string(), ..Sqlite::default() };
        let (staged, aside) = (Staged(beside(&sqlite, ".staged")), folder.path().join("aside"));
        let all = || {
            let read = |entry: std::io::Result<std::fs::DirEntry>| {
                let path = entry.unwrap().path();
                (path.file_name().unwrap().to_owned(), std::fs::read_to_string(path).unwrap_or_default())
            };
            std::fs::read_dir(folder.path()).unwrap().map(read).collect::<std::collections::BTreeMap<_, _>>()
        };
        for end in PARTS {
            std::fs::write(beside(&sqlite, end), format!("old{end}")).unwrap();
        }
        let before = all();
        std::fs::create_dir(&aside).unwrap();
        std::fs::write(staged.with(""), "new").unwrap();
        // The staged secret is missing, so the last step but one fails.
        swap(&sqlite, &staged, &PARTS, Some(&aside), true).unwrap_err();
        undo(&sqlite, &PARTS, &aside).unwrap();
        assert_eq!(all(), before);
        std::fs::create_dir(&aside).unwrap();
        std::fs::write(staged.with(""), "new").unwrap();
        std::fs::write(staged.with(".secret"), "new").unwrap();
        swap(&sqlite, &staged, &PARTS, Some(&aside), true).unwrap();
        let read = |path: PathBuf| std::fs::read_to_string(path).unwrap();
        assert_eq!((read(beside(&sqlite, "")), read(beside(&sqlite, ".secret"))), ("new".to_owned(), "new".to_owned()));
        assert_eq!(read(aside.join("keylatch.db-wal")), "old-wal");
        assert!(!beside(&sqlite, "-wal").exists() && !sql::sqlite::restoring(Path::new(&sqlite.path)).exists());
    }
}
