//! Files that nobody else may read, whatever the mask, and that belong to whom their folder belongs to, also where root makes them:
//! a service opens what an operator's command has left.

use std::fs::{DirBuilder, File, Metadata, OpenOptions, Permissions};
use std::io::{Error, ErrorKind, Result};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt, fchown};
use std::path::Path;

use nix::unistd::geteuid;

/// The folder that a file is in.
pub fn folder_of(file: &Path) -> &Path {
    file.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Makes the folder, and those above it that are not there.
pub fn make_folder(folder: &Path) -> Result<()> {
    if folder.is_dir() {
        return Ok(());
    }
    make_folder(folder_of(folder))?;
    match DirBuilder::new().mode(0o700).create(folder) {
        Err(e) if e.kind() == ErrorKind::AlreadyExists && folder.is_dir() => Ok(()),
        Err(e) => Err(e),
        Ok(()) => belongs(&File::open(folder)?, folder_of(folder)),
    }
}

/// Makes an empty file. It must not be there.
pub fn make(path: &Path) -> Result<File> {
    let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    belongs(&file, folder_of(path))?;
    Ok(file)
}

/// Copies a file, which is on the disk then. It must not be there.
pub fn copy(from: &Path, to: &Path) -> Result<()> {
    let mut from = File::open(from).map_err(|e| Error::new(e.kind(), format!("{}: {e}", from.display())))?;
    let mut copied = make(to).map_err(|e| Error::new(e.kind(), format!("{}: {e}", to.display())))?;
    std::io::copy(&mut from, &mut copied).and_then(|_| copied.sync_all())
}

/// Makes it one of these, where something else has made it.
pub fn keep(path: &Path) -> Result<()> {
    let file = File::open(path)?;
    file.set_permissions(Permissions::from_mode(0o600))?;
    belongs(&file, folder_of(path))
}

/// Makes it as another was: that one's mode and, by root, its owner.
pub fn as_before(file: &File, before: &Metadata) -> Result<()> {
    file.set_permissions(before.permissions())?;
    if geteuid().is_root() { fchown(file, Some(before.uid()), Some(before.gid())) } else { Ok(()) }
}

/// Root gives it to whom the folder belongs to.
fn belongs(file: &File, folder: &Path) -> Result<()> {
    if !geteuid().is_root() {
        return Ok(());
    }
    let owner = folder.metadata()?;
    fchown(file, Some(owner.uid()), Some(owner.gid()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn they_are_private_and_belong_to_the_folder() {
        let folder = tempfile::tempdir().unwrap();
        if geteuid().is_root() {
            std::os::unix::fs::chown(folder.path(), Some(12_345), Some(12_346)).unwrap();
        }
        let owner = folder.path().metadata().unwrap();
        let deep = folder.path().join("a/b");
        make_folder(&deep).unwrap();
        make_folder(&deep).unwrap();
        let (file, other) = (deep.join("f"), deep.join("g"));
        drop(make(&file).unwrap());
        std::fs::write(&other, "of somebody else's").unwrap();
        std::fs::set_permissions(&other, Permissions::from_mode(0o644)).unwrap();
        keep(&other).unwrap();
        for (path, mode) in [(&deep, 0o700), (&file, 0o600), (&other, 0o600)] {
            let found = path.metadata().unwrap();
            assert_eq!((found.mode() & 0o777, found.uid(), found.gid()), (mode, owner.uid(), owner.gid()), "{}", path.display());
        }
        assert_eq!(make(&file).unwrap_err().kind(), ErrorKind::AlreadyExists);
        assert!(copy(&other, &file).unwrap_err().to_string().contains("/a/b/f: "));
        copy(&other, &deep.join("h")).unwrap();
        assert_eq!(std::fs::read_to_string(deep.join("h")).unwrap(), "of somebody else's");
    }
}
