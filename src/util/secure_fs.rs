//! Files that nobody else may read, whatever the mask, and that belong to whom their folder belongs to, also where root makes them:
//! a service opens what an operator's command has left.

use std::fs::{DirBuilder, File, Metadata, OpenOptions, Permissions};
use std::io::{Error, ErrorKind, Result};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt, fchown};
use std::path::{Path, PathBuf};

use nix::fcntl::OFlag;
use nix::unistd::{Gid, Uid, geteuid, setegid, seteuid};

/// The folder that a file is in.
pub fn folder_of(file: &Path) -> &Path {
    file.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// The file beside another whose name is that one's, and ends so.
pub fn beside(path: &Path, end: &str) -> PathBuf {
    let mut name = path.to_owned().into_os_string();
    name.push(end);
    name.into()
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
        Ok(()) => belongs(&unfollowed(folder, OFlag::O_DIRECTORY)?, folder_of(folder)),
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
    let from = File::open(from).map_err(|e| Error::new(e.kind(), format!("{}: {e}", from.display())))?;
    fill(&from, to).map_err(|e| Error::new(e.kind(), format!("{}: {e}", to.display())))
}

/// Makes a file of what is left to read of another.
pub fn fill(mut from: &File, to: &Path) -> Result<()> {
    let mut made = make(to)?;
    std::io::copy(&mut from, &mut made).and_then(|_| made.sync_all())
}

/// Makes it one of these, where something else has made it.
pub fn keep(path: &Path) -> Result<()> {
    let file = unfollowed(path, OFlag::empty())?;
    let about = file.metadata()?;
    if !about.is_file() || about.nlink() != 1 {
        return Err(Error::other("is not a file of its own"));
    }
    file.set_permissions(Permissions::from_mode(0o600))?;
    belongs(&file, folder_of(path))
}

/// Makes it as another was: that one's mode and, by root, its owner.
pub fn as_before(file: &File, before: &Metadata) -> Result<()> {
    file.set_permissions(Permissions::from_mode(before.mode() & 0o777))?;
    given(file, before)
}

/// Opens what is there, and not what a link leads to: in a folder that is not root's, its owner may put one there at any time.
fn unfollowed(path: &Path, more: OFlag) -> Result<File> {
    OpenOptions::new().read(true).custom_flags((OFlag::O_NOFOLLOW | more).bits()).open(path)
}

/// From here on, root does what it does in a folder as its owner: nobody else's files are then touched, whatever links lie there.
pub fn act_as_owner(folder: &Path) -> std::result::Result<(), String> {
    let wrong = |e: &dyn std::fmt::Display| format!("{}: its owner's part cannot be taken: {e}", folder.display());
    if !geteuid().is_root() {
        return Ok(());
    }
    let whole = std::path::absolute(folder).map_err(|e| wrong(&e))?;
    let there = whole.ancestors().find(|above| above.is_dir()).unwrap_or(folder);
    let owner = there.metadata().map_err(|e| wrong(&e))?;
    if owner.uid() != 0 {
        setegid(Gid::from_raw(owner.gid())).map_err(|e| wrong(&e))?;
        seteuid(Uid::from_raw(owner.uid())).map_err(|e| wrong(&e))?;
    }
    Ok(())
}

/// Root gives it to whom the folder belongs to.
fn belongs(file: &File, folder: &Path) -> Result<()> {
    if !geteuid().is_root() {
        return Ok(());
    }
    given(file, &folder.metadata()?)
}

/// By root, to whom something else belongs. Root without leave to give away (CAP_CHOWN) keeps what is its own.
fn given(file: &File, owner: &Metadata) -> Result<()> {
    let about = file.metadata()?;
    if !geteuid().is_root() || (about.uid(), about.gid()) == (owner.uid(), owner.gid()) {
        return Ok(());
    }
    match fchown(file, Some(owner.uid()), Some(owner.gid())) {
        Err(e) if e.kind() == ErrorKind::PermissionDenied && about.uid() == owner.uid() => Ok(()),
        given => given,
    }
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
        // A link is not followed, and nothing that has another name elsewhere is given away.
        let (link, twice) = (deep.join("link"), deep.join("twice"));
        std::os::unix::fs::symlink(&other, &link).unwrap();
        std::fs::hard_link(&other, &twice).unwrap();
        keep(&link).unwrap_err();
        keep(&twice).unwrap_err();
        assert_eq!(make(&file).unwrap_err().kind(), ErrorKind::AlreadyExists);
        assert!(copy(&other, &file).unwrap_err().to_string().contains("/a/b/f: "));
        copy(&other, &deep.join("h")).unwrap();
        assert_eq!(std::fs::read_to_string(deep.join("h")).unwrap(), "of somebody else's");
    }
}
