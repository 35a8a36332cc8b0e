//! Creates files that only their owner can read, whatever the umask. Created by root, they get the
//! owner of their folder, so that the service can open what an operator's command has created.

use std::fs::{DirBuilder, File, Metadata, OpenOptions, Permissions};
use std::io::{Error, ErrorKind, Result};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt, fchown};
use std::path::{Path, PathBuf};

use nix::fcntl::OFlag;
use nix::unistd::{Gid, Uid, geteuid, setegid, seteuid};

/// The folder of a file.
pub fn folder_of(file: &Path) -> &Path {
    file.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// The path with this ending appended to the file name.
pub fn beside(path: &Path, end: &str) -> PathBuf {
    let mut name = path.to_owned().into_os_string();
    name.push(end);
    name.into()
}

/// Creates the folder and its missing parents, with mode 0700.
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

/// Creates an empty file with mode 0600. The file must not exist.
pub fn make(path: &Path) -> Result<File> {
    let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    belongs(&file, folder_of(path))?;
    Ok(file)
}

/// Copies a file and syncs it to the disk. The target must not exist.
pub fn copy(from: &Path, to: &Path) -> Result<()> {
    let from = File::open(from).map_err(|e| Error::new(e.kind(), format!("{}: {e}", from.display())))?;
    fill(&from, to).map_err(|e| Error::new(e.kind(), format!("{}: {e}", to.display())))
}

/// Creates a file with the rest of another.
pub fn fill(mut from: &File, to: &Path) -> Result<()> {
    let mut made = make(to)?;
    std::io::copy(&mut from, &mut made).and_then(|_| made.sync_all())
}

/// Gives an existing file mode 0600 and the owner of its folder.
pub fn keep(path: &Path) -> Result<()> {
    let file = unfollowed(path, OFlag::empty())?;
    let about = file.metadata()?;
    if !about.is_file() || about.nlink() != 1 {
        return Err(Error::other("is not a regular file with a single link"));
    }
    file.set_permissions(Permissions::from_mode(0o600))?;
    belongs(&file, folder_of(path))
}

/// Gives a file the mode of another and, by root, its owner.
pub fn as_before(file: &File, before: &Metadata) -> Result<()> {
    file.set_permissions(Permissions::from_mode(before.mode() & 0o777))?;
    given(file, before)
}

/// Opens a file without following a link: the owner of a folder can put a link there at any time.
fn unfollowed(path: &Path, more: OFlag) -> Result<File> {
    OpenOptions::new().read(true).custom_flags((OFlag::O_NOFOLLOW | more).bits()).open(path)
}

/// From here on, a process of root acts as the owner of the folder, so that a link in the folder
/// cannot lead to files of another user.
pub fn act_as_owner(folder: &Path) -> std::result::Result<(), String> {
    let wrong = |e: &dyn std::fmt::Display| format!("{}: cannot act as the owner of the folder: {e}", folder.display());
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

/// Gives a file the owner of its folder, if this process is root's.
fn belongs(file: &File, folder: &Path) -> Result<()> {
    if !geteuid().is_root() {
        return Ok(());
    }
    given(file, &folder.metadata()?)
}

/// Gives a file the owner of another, if this process is root's. Without CAP_CHOWN root keeps its
/// own files.
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
    fn files_are_private_and_get_the_owner_of_the_folder() {
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
        std::fs::write(&other, "content").unwrap();
        std::fs::set_permissions(&other, Permissions::from_mode(0o644)).unwrap();
        keep(&other).unwrap();
        for (path, mode) in [(&deep, 0o700), (&file, 0o600), (&other, 0o600)] {
            let found = path.metadata().unwrap();
            assert_eq!((found.mode() & 0o777, found.uid(), found.gid()), (mode, owner.uid(), owner.gid()), "{}", path.display());
        }
        // Symbolic links are not followed, and files with a second hard link are refused.
        let (link, twice) = (deep.join("link"), deep.join("twice"));
        std::os::unix::fs::symlink(&other, &link).unwrap();
        std::fs::hard_link(&other, &twice).unwrap();
        keep(&link).unwrap_err();
        keep(&twice).unwrap_err();
        assert_eq!(make(&file).unwrap_err().kind(), ErrorKind::AlreadyExists);
        assert!(copy(&other, &file).unwrap_err().to_string().contains("/a/b/f: "));
        copy(&other, &deep.join("h")).unwrap();
        assert_eq!(std::fs::read_to_string(deep.join("h")).unwrap(), "content");
    }
}
