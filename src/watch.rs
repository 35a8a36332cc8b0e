//! Watches the files that the configuration in force refers to, such as certificates and address ranges, and recompiles the
//! configuration when one of them changes.
//!
//! The configuration file itself is not watched: it takes effect by a reload.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use parking_lot::Mutex;
use sha2::{Digest as _, Sha256};

use crate::config::{self, Digest};
use crate::http_proxy::ProxyState;
use crate::reload::Reloader;

/// The interval between two polls. A change counts once two polls have seen the same content: a write may be unfinished.
pub const POLL_INTERVAL: Duration = Duration::from_secs(2);

type FileDigests = BTreeMap<PathBuf, Option<Digest>>;
/// Detects an unchanged file without reading it: inode number, size in bytes, and change time (ctime) in nanoseconds since
/// 1970. A program can set the modification time of a file, but not its change time.
type Stamp = Option<(u64, u64, i128)>;

/// The watch over the files of the configuration in force.
pub struct FileWatch {
    shared: Arc<ProxyState>,
    reloader: Arc<Reloader>,
    seen: Mutex<Seen>,
}

#[derive(Default)]
struct Seen {
    read: BTreeMap<PathBuf, (Stamp, Option<Digest>)>,
    /// The contents at the last poll.
    last: FileDigests,
    /// The contents of the last recompilation, whether it succeeded or not.
    tried: FileDigests,
}

impl FileWatch {
    /// A watch over the files of each snapshot that comes into force.
    pub fn new(shared: Arc<ProxyState>, reloader: Arc<Reloader>) -> Self {
        Self { shared, reloader, seen: Mutex::default() }
    }

    /// Compares the files with the snapshot once, and recompiles if they have changed.
    pub async fn poll(&self) {
        let in_force: FileDigests = self.shared.snapshot.load().files.iter().map(|(path, digest)| (path.clone(), *digest)).collect();
        let Some(changed) = self.changed(&in_force) else { return };
        let names: Vec<String> = changed.iter().map(|path| path.display().to_string()).collect();
        self.reloader.recompile(&names.join(", ")).await;
    }

    /// The files that differ from those in force, if two polls saw the same contents and these were not tried before.
    fn changed(&self, in_force: &FileDigests) -> Option<Vec<PathBuf>> {
        let mut seen = self.seen.lock();
        let now: FileDigests = in_force.keys().map(|path| (path.clone(), seen.digest(path))).collect();
        seen.read.retain(|path, _| in_force.contains_key(path));
        let settled = std::mem::replace(&mut seen.last, now.clone()) == now;
        if now == *in_force || !settled || seen.tried == now {
            return None;
        }
        seen.tried.clone_from(&now);
        Some(now.into_iter().filter(|(path, digest)| in_force.get(path) != Some(digest)).map(|(path, _)| path).collect())
    }
}

impl Seen {
    fn digest(&mut self, path: &Path) -> Option<Digest> {
        let stamp: Stamp = std::fs::metadata(path)
            .ok()
            .map(|file| (file.ino(), file.len(), i128::from(file.ctime()) * 1_000_000_000 + i128::from(file.ctime_nsec())));
        // A second write within the resolution of the change time leaves the stamp as it is, so a fresh file is always read.
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let since = |at: i128| i128::try_from(now.as_nanos()).unwrap_or_default() - at;
        let fresh = stamp.is_none_or(|(_, _, changed)| since(changed) < i128::from((2 * POLL_INTERVAL).as_secs()) * 1_000_000_000);
        match self.read.get(path) {
            Some((known, digest)) if *known == stamp && !fresh => *digest,
            _ => {
                let digest = config::read(path).ok().map(|text| Sha256::digest(text).into());
                self.read.insert(path.to_owned(), (stamp, digest));
                digest
            }
        }
    }
}
