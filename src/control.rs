//! How commands reach the running process: Unix sockets whose place follows from the configuration file's path alone, so
//! that they are found even when the file is broken. One is for what is asked with a line, such as `reload`; the admin API
//! is served on the other.
//!
//! The folder is `$KEYLATCH_RUNTIME_DIR`, else `/run/keylatch` for root, else `$XDG_RUNTIME_DIR/keylatch`, else
//! `/tmp/keylatch-UID`; nobody but its owner can enter it. One line asks, one line of JSON answers.

use std::io::{BufRead, BufReader, Write};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use keylatch_filters::contract::hex;
use nix::unistd::geteuid;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{mpsc, oneshot, watch};

use crate::bindings::Store;
use crate::reload::Reloader;
use crate::sql::StoreEvent;
use crate::util::secure_fs;

/// A new process may take a while to be ready, and to serve.
const ANSWER_TIME_MAX: Duration = Duration::from_secs(200);
/// How long the end of the process waits for answers that are on their way.
const LAST_ANSWERS: Duration = Duration::from_secs(2);

/// Somebody asks for a new process in the place of this one, and where the answer goes.
pub type Upgrade = oneshot::Sender<Result<String, String>>;
const QUESTION_BYTES_MAX: u64 = 256;

/// What a question is answered with.
#[derive(Debug, Serialize, Deserialize)]
pub struct Answer {
    /// Whether it was done.
    pub ok: bool,
    /// What happened.
    pub message: String,
}

fn folder() -> PathBuf {
    let user = geteuid();
    match (std::env::var_os("KEYLATCH_RUNTIME_DIR"), std::env::var_os("XDG_RUNTIME_DIR")) {
        (Some(folder), _) => folder.into(),
        (None, _) if user.is_root() => "/run/keylatch".into(),
        (None, Some(folder)) => Path::new(&folder).join("keylatch"),
        (None, None) => format!("/tmp/keylatch-{user}").into(),
    }
}

/// The socket of the process that runs `config`.
pub fn socket(config: &Path) -> Result<PathBuf, String> {
    let config = config.canonicalize().map_err(|e| format!("{}: {e}", config.display()))?;
    let hash = Sha256::digest(config.as_os_str().as_bytes());
    Ok(folder().join(format!("{}.sock", hex(&hash[..8]))))
}

/// The socket on which the process that runs `config` serves its admin API to commands.
pub fn api_socket(config: &Path) -> Result<PathBuf, String> {
    socket(config).map(|path| path.with_extension("api"))
}

/// Where a process has a socket for as long as it lives. In the place where commands look it is by another name, and so can be put
/// there again after another process's.
fn own(path: &Path) -> PathBuf {
    of(path, std::process::id())
}

fn of(path: &Path, pid: u32) -> PathBuf {
    secure_fs::beside(path, &format!(".{pid}"))
}

/// A socket that only its owner can open, not yet in its place; and which file it is.
fn bind(path: &Path) -> std::io::Result<(UnixListener, Own)> {
    let at = own(path);
    let _ = std::fs::remove_file(&at);
    let listener = UnixListener::bind(&at)?;
    std::fs::set_permissions(&at, std::fs::Permissions::from_mode(0o600))?;
    let own = Own { inode: inode(&at)?, _held: hold(&at)? };
    Ok((listener, own))
}

/// Removes what processes that have crashed have left in the folder.
fn sweep(path: &Path) {
    let Some((folder, name)) = path.parent().zip(path.file_name()) else { return };
    let Ok(entries) = std::fs::read_dir(folder) else { return };
    for entry in entries.flatten() {
        let is_one = entry.file_name().as_bytes().strip_prefix(name.as_bytes()).is_some_and(|end| end.starts_with(b"."));
        let answers = || std::os::unix::net::UnixStream::connect(entry.path());
        if is_one && answers().is_err_and(|error| error.kind() == std::io::ErrorKind::ConnectionRefused) {
            let _ = std::fs::remove_file(entry.path());
        }
    }
}

/// A file, whatever it is called: its device and number.
type Inode = (u64, u64);

/// The file of a socket of this process. The number of a file that is gone is given to the next one, a successor's socket for
/// example: as long as the file is held, it is nobody else's.
struct Own {
    inode: Inode,
    _held: Option<OwnedFd>,
}

/// The file, and not the socket: that would go on listening.
#[cfg(target_os = "linux")]
fn hold(path: &Path) -> std::io::Result<Option<OwnedFd>> {
    use nix::fcntl::OFlag;
    let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    Ok(Some(nix::fcntl::open(path, flags, nix::sys::stat::Mode::empty())?))
}

/// Where numbers are given once: so do the file systems of macOS.
#[cfg(not(target_os = "linux"))]
fn hold(_path: &Path) -> std::io::Result<Option<OwnedFd>> {
    Ok(None)
}

fn inode(path: &Path) -> std::io::Result<Inode> {
    std::fs::symlink_metadata(path).map(|found| (found.dev(), found.ino()))
}

/// Whether the other end is this user's, or root's: a folder or a mask that lets others in does not matter then.
pub fn is_owner(stream: &UnixStream) -> bool {
    stream.peer_cred().is_ok_and(|peer| peer.uid() == geteuid().as_raw() || peer.uid() == 0)
}

/// Listens on the sockets, for as long as the process lives. The listener is for the admin API. `succeeds`: there is a process
/// whose place this one takes, once [`Guard::take_place`] is called; otherwise two are one too many, and it has its place.
pub fn listen(
    config: &Path,
    succeeds: bool,
    reloader: Arc<Reloader>,
    store: Arc<Store>,
    upgrades: mpsc::Sender<Upgrade>,
) -> Result<(Guard, UnixListener), String> {
    let path = socket(config)?;
    let folder = folder();
    let wrong = |what: &str, e: &dyn std::fmt::Display| format!("the control socket {}: {what}: {e}", path.display());
    if !folder.exists() {
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&folder).map_err(|e| wrong("no folder", &e))?;
    }
    let owner = std::fs::symlink_metadata(&folder).map_err(|e| wrong("no folder", &e))?;
    if owner.uid() != geteuid().as_raw() || owner.permissions().mode() & 0o022 != 0 {
        return Err(wrong("the folder", &"belongs to somebody else or is open to others; set KEYLATCH_RUNTIME_DIR to one of your own"));
    }
    if !succeeds && is_there(config) {
        return Err(format!("a process that runs {} is there already", config.display()));
    }
    if !succeeds {
        sweep(&path);
        sweep(&api_socket(config)?);
    }
    let (listener, own) = bind(&path).map_err(|e| wrong("cannot listen", &e))?;
    let (api, own_api) = bind(&api_socket(config)?).map_err(|e| wrong("cannot listen beside it", &e))?;
    let answering = watch::Sender::new(0);
    let guard = Guard { path, own: [own, own_api], answering: answering.clone() };
    tokio::spawn(async move {
        loop {
            match listener.accept().await {
                Ok((stream, _)) if !is_owner(&stream) => drop(stream),
                Ok((stream, _)) => {
                    let (reloader, store, upgrades) = (Arc::clone(&reloader), Arc::clone(&store), upgrades.clone());
                    let answering = answering.clone();
                    answering.send_modify(|under_way| *under_way += 1);
                    tokio::spawn(async move {
                        // Whoever asked may be gone; what he asked for is done all the same.
                        let _ = tokio::time::timeout(ANSWER_TIME_MAX, answer(stream, &reloader, &store, &upgrades)).await;
                        answering.send_modify(|under_way| *under_way -= 1);
                    });
                }
                Err(error) => {
                    tracing::error!(%error, "the control socket takes no connection");
                    // Out of descriptors, most likely: trying at once would only keep a processor busy.
                    tokio::time::sleep(Duration::from_secs(1)).await;
                }
            }
        }
    });
    if !succeeds {
        guard.take_place()?;
    }
    Ok((guard, api))
}

/// Puts this process's socket into its place in one step: there is one at each moment.
fn put(path: &Path) -> std::io::Result<()> {
    let (at, staged) = (own(path), secure_fs::beside(&own(path), ".new"));
    let _ = std::fs::remove_file(&staged);
    if std::fs::hard_link(&at, &staged).is_err() {
        // Not all that guards files allows names of sockets: it has its place then, but cannot have it twice.
        let is_there = inode(path).ok().zip(inode(&at).ok()).is_some_and(|(there, own)| there == own);
        return if is_there { Ok(()) } else { std::fs::rename(at, path) };
    }
    std::fs::rename(&staged, path)?;
    // A name of the file that has the place already is not taken away by that.
    let _ = std::fs::remove_file(&staged);
    Ok(())
}

/// Removes the sockets when the process ends, where they are this process's still.
pub struct Guard {
    path: PathBuf,
    own: [Own; 2],
    /// Questions that are not answered yet.
    answering: watch::Sender<usize>,
}

impl Guard {
    /// Commands find this process from now on, whichever they have found before.
    pub fn take_place(&self) -> Result<(), String> {
        let put = |path: &PathBuf| put(path).map_err(|e| format!("the control socket {}: {e}", path.display()));
        // Where one cannot be put there, the other is.
        let [one, other] = self.paths().each_ref().map(put);
        one.and(other)
    }

    /// Removes what a successor that came to nothing has left.
    pub fn clear_of(&self, pid: u32) {
        self.paths().iter().for_each(|path| {
            let _ = std::fs::remove_file(of(path, pid));
        });
    }

    fn paths(&self) -> [PathBuf; 2] {
        [self.path.clone(), self.path.with_extension("api")]
    }

    /// Waits until all that was asked is answered, for a moment at most.
    pub async fn answered(&self) {
        let mut answering = self.answering.subscribe();
        let _ = tokio::time::timeout(LAST_ANSWERS, answering.wait_for(|under_way| *under_way == 0)).await;
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        for (path, mine) in self.paths().into_iter().zip(&self.own) {
            for path in [own(&path), path] {
                // Another process that serves the same configuration may have put its own there.
                if inode(&path).is_ok_and(|found| found == mine.inode) {
                    let _ = std::fs::remove_file(path);
                }
            }
        }
    }
}

async fn answer(stream: UnixStream, reloader: &Reloader, store: &Store, upgrades: &mpsc::Sender<Upgrade>) -> std::io::Result<()> {
    let (read, mut write) = stream.into_split();
    let mut question = String::new();
    let read = tokio::io::AsyncReadExt::take(read, QUESTION_BYTES_MAX);
    tokio::io::BufReader::new(read).read_line(&mut question).await?;
    let answer = match question.trim() {
        "reload" => match reloader.reload().await {
            Ok(message) => Answer { ok: true, message },
            Err(message) => Answer { ok: false, message },
        },
        "upgrade" => {
            let (tell, told) = oneshot::channel();
            let asked = upgrades.try_send(tell).is_ok();
            match if asked { told.await.ok() } else { None } {
                Some(Ok(message)) => Answer { ok: true, message },
                Some(Err(message)) => Answer { ok: false, message },
                None => Answer { ok: false, message: "the process is stopping, or another upgrade is under way".into() },
            }
        }
        "settings changed" => {
            store.handle_event(StoreEvent::SettingsChanged);
            Answer { ok: true, message: "settings are read anew".into() }
        }
        "bindings changed" => {
            store.handle_event(StoreEvent::EventsLost);
            Answer { ok: true, message: "bindings are read anew".into() }
        }
        other => Answer { ok: false, message: format!("`{other}` is nothing that can be asked") },
    };
    let mut line = serde_json::to_vec(&answer)?;
    line.push(b'\n');
    write.write_all(&line).await
}

/// Refuses a folder in which somebody else may have put the sockets: commands believe what they are told there. Root believes whoever
/// owns it.
pub fn trusted(config: &Path) -> Result<PathBuf, String> {
    let (path, own) = (socket(config)?, geteuid());
    let folder = folder();
    let strangers = std::fs::symlink_metadata(&folder).is_ok_and(|about| {
        let owner = about.uid();
        !about.is_dir() || (!own.is_root() && owner != own.as_raw() && owner != 0) || about.mode() & 0o022 != 0
    });
    match strangers {
        true => Err(format!("{} belongs to somebody else or is open to others: what is in it is not believed", folder.display())),
        false => Ok(path),
    }
}

/// Whether a process that runs `config` is there.
pub fn is_there(config: &Path) -> bool {
    trusted(config).is_ok_and(|path| std::os::unix::net::UnixStream::connect(path).is_ok())
}

/// The number of the process that runs `config`, if one is there and the system tells. Needs a runtime.
pub fn pid(config: &Path) -> Option<i32> {
    let stream = std::os::unix::net::UnixStream::connect(trusted(config).ok()?).ok()?;
    stream.set_nonblocking(true).ok()?;
    UnixStream::from_std(stream).ok()?.peer_cred().ok()?.pid()
}

/// Asks the process that runs `config`.
pub fn ask(config: &Path, question: &str) -> Result<Answer, String> {
    let path = trusted(config)?;
    let stream = std::os::unix::net::UnixStream::connect(&path)
        .map_err(|e| format!("no process that runs {} was found (its socket would be {}): {e}", config.display(), path.display()))?;
    let lost = |e: std::io::Error| format!("the running process did not answer: {e}");
    stream.set_read_timeout(Some(ANSWER_TIME_MAX)).map_err(lost)?;
    (&stream).write_all(format!("{question}\n").as_bytes()).map_err(lost)?;
    let mut line = String::new();
    BufReader::new(&stream).read_line(&mut line).map_err(lost)?;
    serde_json::from_str(&line).map_err(|e| format!("the running process gave an answer that makes no sense: {e}"))
}
