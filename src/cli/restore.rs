//! `keylatch restore`: puts a backup back, whole or not at all.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use clap::Args;
use prometheus::Registry;

use super::backup::{CONFIGURATION, DATABASE, SECRET, beside, steps};
use super::terminal::say;
use super::{ConfigFile, on_runtime};
use crate::config::model::{Sqlite, Storage};
use crate::config::{Files, Parsed, Settings, parse_file};
use crate::control;
use crate::store::{self, Purpose, private};

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

/// What a database consists of: how the names of its files end, here and in a backup.
const PARTS: [&str; 4] = ["", "-wal", "-shm", ".secret"];

/// Puts back what a backup holds.
pub fn restore(asked: &Restore) -> Result<(), String> {
    let settings = parse_file(&asked.file.config).and_then(Parsed::settings).map_err(|report| report.to_string())?;
    let Storage::Sqlite(sqlite) = &settings.storage else { return Err(format!("nothing was changed. {}", steps(&settings))) };
    if control::is_there(&asked.file.config) {
        return Err(format!("a process that runs {} is there: stop it first", asked.file.config.display()));
    }
    let sqlite = &at_home(sqlite)?;
    let target = PathBuf::from(&sqlite.path);
    // Nor one that runs another configuration, or was started elsewhere.
    let alone = target.exists().then(|| store::sqlite_alone(&target)).transpose()?;
    let keeps_secret = settings.secrets.key_hmac.is_none();
    let parts = || PARTS.into_iter().filter(|end| keeps_secret || *end != ".secret");
    let there: Vec<&str> = parts().filter(|end| beside(sqlite, end).exists()).collect();
    if let Some(first) = there.first().filter(|_| !asked.replace) {
        return Err(format!("{} is there already; --replace puts it aside", beside(sqlite, first).display()));
    }
    let folder = private::folder_of(&target);
    private::make_folder(folder).map_err(|e| format!("{}: {e}", folder.display()))?;
    let staged = stage(asked, &settings, sqlite)?;
    let aside = if there.is_empty() { None } else { Some(aside(sqlite)?) };
    let mut moved = Moved::default();
    let swap = |moved: &mut Moved| {
        if let Some(aside) = &aside {
            there.iter().try_for_each(|end| moved.rename(beside(sqlite, end), aside.join(format!("{DATABASE}{end}"))))?;
        }
        if keeps_secret {
            moved.rename(staged.with(".secret"), beside(sqlite, ".secret"))?;
        }
        moved.rename(staged.with(""), target.clone())?;
        File::open(folder)?.sync_all()
    };
    if let Err(error) = swap(&mut moved) {
        let back = moved.back();
        let _ = aside.map(std::fs::remove_dir);
        return Err(format!("{}: {error}; {}", target.display(), back.err().unwrap_or_else(|| "everything is as it was".into())));
    }
    drop(alone);
    say!("{} is as it was when {} was made.", target.display(), asked.from.display())?;
    if let Some(aside) = aside {
        say!("What was there before is in {}, and can be restored from there.", aside.display())?;
    }
    say!("The configuration stays as it is; the one of then is {}.", asked.from.join(CONFIGURATION).display())
}

/// With a path that is the same from everywhere. A relative one is meant from where the service runs, so that typed elsewhere it leads
/// to where nothing is.
fn at_home(sqlite: &Sqlite) -> Result<Sqlite, String> {
    let said = Path::new(&sqlite.path);
    let path = std::path::absolute(said).map_err(|e| format!("{}: {e}", sqlite.path))?;
    if said.is_relative() && !private::folder_of(&path).is_dir() {
        let says = "is relative, and there is no such folder here: go to where Keylatch runs (WorkingDirectory= of its unit) first, or make the folder";
        return Err(format!("storage.sqlite.path: {} {says}", sqlite.path));
    }
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
    private::make_folder(&folder).map_err(|e| format!("{}: {e}", folder.display()))?;
    Ok(folder)
}

/// Files that have got other names, and can have their old ones back.
#[derive(Default)]
struct Moved(Vec<(PathBuf, PathBuf)>);

impl Moved {
    fn rename(&mut self, from: PathBuf, to: PathBuf) -> std::io::Result<()> {
        std::fs::rename(&from, &to)?;
        self.0.push((from, to));
        Ok(())
    }

    /// The last first. An error says what stays where.
    fn back(self) -> Result<(), String> {
        let back = |(from, to): (PathBuf, PathBuf)| {
            std::fs::rename(&to, &from).map_err(|e| format!("{} could not be moved back to {}: {e}", to.display(), from.display()))
        };
        let wrong: Vec<String> = self.0.into_iter().rev().filter_map(|one| back(one).err()).collect();
        if wrong.is_empty() { Ok(()) } else { Err(wrong.join("; ")) }
    }
}

/// A backup that is about to be put back. What of it is left is removed at the end.
struct Staged(PathBuf);

impl Staged {
    fn with(&self, end: &str) -> PathBuf {
        let mut path = self.0.clone().into_os_string();
        path.push(end);
        path.into()
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
fn stage(asked: &Restore, settings: &Settings, sqlite: &Sqlite) -> Result<Staged, String> {
    let staged = Staged(beside(sqlite, ".restoring"));
    staged.clear();
    let copy = |end: &str| private::copy(&asked.from.join(format!("{DATABASE}{end}")), &staged.with(end)).map_err(|e| e.to_string());
    let work = || {
        copy("")?;
        // What was put aside has one; a backup has none.
        if asked.from.join(format!("{DATABASE}-wal")).exists() {
            copy("-wal")?;
        }
        if settings.secrets.key_hmac.is_none() {
            private::copy(&asked.from.join(SECRET), &staged.with(".secret")).map_err(|e| e.to_string())?;
        }
        let storage = Storage::Sqlite(Sqlite { path: staged.with("").display().to_string(), ..sqlite.clone() });
        let settings = Settings { storage, ..settings.clone() };
        on_runtime(async {
            let opened = store::open(&settings, &Files::beside(&asked.file.config), &Registry::new(), Purpose::Serve, None).await?;
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
    private::keep(copied)?;
    File::open(copied)?.sync_all()?;
    for end in ["-wal", "-shm"] {
        match std::fs::remove_file(staged.with(end)) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
    }
    std::fs::rename(copied, staged.with(""))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_moved_can_be_moved_back() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        std::fs::write(at("a"), "one").unwrap();
        std::fs::write(at("b"), "two").unwrap();
        let mut moved = Moved::default();
        moved.rename(at("a"), at("aside")).unwrap();
        moved.rename(at("b"), at("a")).unwrap();
        moved.rename(at("missing"), at("c")).unwrap_err();
        moved.back().unwrap();
        assert_eq!([at("a"), at("b")].map(|path| std::fs::read_to_string(path).unwrap()), ["one", "two"]);
        let mut moved = Moved::default();
        moved.rename(at("a"), at("aside")).unwrap();
        std::fs::remove_file(at("aside")).unwrap();
        let stays = moved.back().unwrap_err();
        assert!(stays.contains("/aside could not be moved back to ") && stays.contains("/a: "), "{stays}");
    }
}
