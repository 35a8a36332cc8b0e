//! The files a configuration refers to: certificates that are renewed, ranges that are fetched. When one of them has changed,
//! the configuration in force is compiled with it, as a reload would; the configuration's own file waits for a reload.

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

/// How often it is looked. A file must look the same twice: whoever writes may not have finished.
pub const EVERY: Duration = Duration::from_secs(2);

type Held = BTreeMap<PathBuf, Option<Digest>>;
/// By which a file that was not touched is known without reading it: which file it is, how long, and when it was changed, in
/// nanoseconds since 1970. Whoever writes can set back every other time, but not that.
type Stamp = Option<(u64, u64, i128)>;

/// What was seen so far.
pub struct Watch {
    shared: Arc<ProxyState>,
    reloader: Arc<Reloader>,
    seen: Mutex<Seen>,
}

#[derive(Default)]
struct Seen {
    read: BTreeMap<PathBuf, (Stamp, Option<Digest>)>,
    /// At the last look.
    last: Held,
    /// What was compiled last, or could not be.
    tried: Held,
}

impl Watch {
    /// Over the files of whatever is in force.
    pub fn new(shared: Arc<ProxyState>, reloader: Arc<Reloader>) -> Self {
        Self { shared, reloader, seen: Mutex::default() }
    }

    /// Looks once.
    pub async fn look(&self) {
        let in_force: Held = self.shared.snapshot.load().files.iter().map(|(path, digest)| (path.clone(), *digest)).collect();
        let Some(changed) = self.changed(&in_force) else { return };
        let names: Vec<String> = changed.iter().map(|path| path.display().to_string()).collect();
        self.reloader.again(&names.join(", ")).await;
    }

    /// The files that hold something else than what is in force, have held it for two looks, and were not tried like that.
    fn changed(&self, in_force: &Held) -> Option<Vec<PathBuf>> {
        let mut seen = self.seen.lock();
        let now: Held = in_force.keys().map(|path| (path.clone(), seen.digest(path))).collect();
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
            .map(|about| (about.ino(), about.len(), i128::from(about.ctime()) * 1_000_000_000 + i128::from(about.ctime_nsec())));
        // Soon after it was written, it may be written again within the same tick of its clock.
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let since = |at: i128| i128::try_from(now.as_nanos()).unwrap_or_default() - at;
        let fresh = stamp.is_none_or(|(_, _, changed)| since(changed) < i128::from((2 * EVERY).as_secs()) * 1_000_000_000);
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
