//! `keylatch restore`: puts a backup back, whole or not at all.

use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use clap::Args;
use prometheus::Registry;

use super::backup::{CONFIGURATION, DATABASE, SECRET, beside, steps};
use super::terminal::say;
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
    /// The folder that `keylatch backup` has made
    from: PathBuf,
    /// Put what is there now aside, into a folder beside it that can be restored as a backup can
    #[arg(long)]
    replace: bool,
}

/// What a database consists of: how the names of its files end, here and in a backup. The log is part of it, its index is not.
const PARTS: [&str; 4] = ["", "-wal", "-shm", ".secret"];

/// Puts back what a backup holds.
pub fn restore(asked: &Restore) -> Result<(), String> {
    let settings = parse_file(&asked.file.config).and_then(compile::settings).map_err(|report| report.to_string())?;
    let Storage::Sqlite(sqlite) = &settings.storage else { return Err(format!("nothing was changed. {}", steps(&settings))) };
    if control::is_running(&asked.file.config) {
        return Err(format!("a process that runs {} is there: stop it first", asked.file.config.display()));
    }
    let sqlite = &at_home(sqlite)?;
    let target = PathBuf::from(&sqlite.path);
    let folder = secure_fs::folder_of(&target);
    let keeps_secret = settings.secrets.key_hmac.is_none();
    // Whoever types this may read the backup; what is written is the service's.
    let backup = Opened::of(&asked.from, keeps_secret)?;
    if target.metadata().is_ok_and(|there| backup.is(&there)) {
        return Err(format!("{} is the database itself, and no backup of it", asked.from.display()));
    }
    secure_fs::act_as_owner(folder)?;
    // Nor one that runs another configuration, or was started elsewhere.
    let alone = target.exists().then(|| sql::sqlite::alone(&target)).transpose()?;
    let parts = || PARTS.into_iter().filter(|end| keeps_secret || *end != ".secret");
    let there: Vec<&str> = parts().filter(|end| beside(sqlite, end).exists()).collect();
    if let Some(first) = there.first().filter(|_| !asked.replace) {
        return Err(format!("{} is there already; --replace puts it aside", beside(sqlite, first).display()));
    }
    secure_fs::make_folder(folder).map_err(|e| format!("{}: {e}", folder.display()))?;
    let staged = stage(asked, &backup, &settings, sqlite)?;
    let aside = if there.is_empty() { None } else { Some(aside(sqlite)?) };
    if let Err(error) = swap(sqlite, &staged, &there, aside.as_deref(), keeps_secret) {
        let back = aside.as_deref().map_or(Ok(()), |aside| undo(sqlite, &there, aside));
        return Err(format!("{}: {error}; {}", target.display(), back.err().unwrap_or_else(|| "everything is as it was".into())));
    }
    drop(alone);
    say!("{} is as it was when {} was made.", target.display(), asked.from.display())?;
    if let Some(aside) = aside {
        say!("What was there before is in {}, and can be restored from there.", aside.display())?;
    }
    say!("The configuration stays as it is; the one of then is {}.", asked.from.join(CONFIGURATION).display())
}

/// What is there gets a second name in the folder aside, and what was staged takes its place: the database last, so that there is one
/// at every moment. Until then the file `.restoring` keeps everybody from beginning with what is half there.
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

/// Everything gets its old name back. An error says what stays where.
fn undo(sqlite: &Sqlite, there: &[&str], aside: &Path) -> Result<(), String> {
    for end in there {
        let (from, to) = (aside.join(format!("{DATABASE}{end}")), beside(sqlite, end));
        // Two names of one file stay both.
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
struct Opened {
    database: File,
    /// What was put aside has a log; a backup has none.
    log: Option<File>,
    secret: Option<File>,
}

impl Opened {
    fn of(folder: &Path, keeps_secret: bool) -> Result<Self, String> {
        let open = |name: String| {
            let path = folder.join(name);
            File::open(&path)
                .map_err(|e| format!("{} cannot be put back, and nothing was changed: {}: {e}", folder.display(), path.display()))
        };
        Ok(Self {
            database: open(DATABASE.into())?,
            log: folder.join(format!("{DATABASE}-wal")).exists().then(|| open(format!("{DATABASE}-wal"))).transpose()?,
            secret: keeps_secret.then(|| open(SECRET.into())).transpose()?,
        })
    }

    /// Whether its database is this file.
    fn is(&self, there: &std::fs::Metadata) -> bool {
        self.database.metadata().is_ok_and(|own| (own.dev(), own.ino()) == (there.dev(), there.ino()))
    }
}

/// With a path that is the same from everywhere.
fn at_home(sqlite: &Sqlite) -> Result<Sqlite, String> {
    let path = std::path::absolute(&sqlite.path).map_err(|e| format!("{}: {e}", sqlite.path))?;
    // Where it is a link, what it leads to is what takes part in all this.
    let path = path.canonicalize().unwrap_or(path);
    let path = path.into_os_string().into_string().map_err(|_| "storage.sqlite.path is not UTF-8")?;
    Ok(Sqlite { path, ..sqlite.clone() })
}

/// A new folder for what is there now. Each has its own: none takes another's place.
fn aside(sqlite: &Sqlite) -> Result<PathBuf, String> {
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

/// A backup that is about to be put back. What of it is left is removed at the end.
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

/// A copy of the backup beside where it is to be: opened, so that it is whole, goes with its secret, and is of this program's schema.
fn stage(asked: &Restore, backup: &Opened, settings: &Settings, sqlite: &Sqlite) -> Result<Staged, String> {
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
            let opened = bindings::open(&settings, &Files::beside(&asked.file.config), &Registry::new(), Purpose::Serve, None).await?;
            opened.store.copy(staged.with(".whole")).await
        })?;
        whole(&staged).map_err(|e| format!("{}: {e}", staged.with("").display()))
    };
    work().map_err(|error| format!("{} cannot be put back, and nothing was changed: {error}", asked.from.display()))?;
    Ok(staged)
}

/// The copy that needs no log takes the place of the one that was opened.
fn whole(staged: &Staged) -> std::io::Result<()> {
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
    fn what_cannot_be_done_is_undone() {
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
        // There is no new secret, which comes last but one.
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
