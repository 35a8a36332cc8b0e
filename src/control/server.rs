//! The server side of the control sockets: it binds them, puts them in place, and answers commands.
//!
//! During a handover two processes have sockets for the same configuration. Each binds its own under a name with its process
//! id, and one of them is linked to the path at which commands look. The admin API itself is not served here.

use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use nix::unistd::geteuid;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{mpsc, oneshot, watch};

use super::client::is_running;
use super::paths::{api_socket, control_socket, folder};
use super::protocol::{COMMAND_BYTES_MAX, ControlReply, REPLY_TIME_MAX};
use crate::bindings::Store;
use crate::reload::Reloader;
use crate::sql::StoreEvent;
use crate::util::secure_fs;

/// The longest wait for pending replies when the process ends.
const LAST_REPLIES_WAIT_MAX: Duration = Duration::from_secs(2);

/// A request to replace this process by a new one: the channel takes the outcome.
pub type UpgradeRequest = oneshot::Sender<Result<String, String>>;

/// The path under which this process has a socket while it lives. It outlasts a replacement of the public path, so this
/// process can publish its socket again.
fn own_path(path: &Path) -> PathBuf {
    path_of_process(path, std::process::id())
}

fn path_of_process(path: &Path, pid: u32) -> PathBuf {
    secure_fs::beside(path, &format!(".{pid}"))
}

/// Binds a socket that only its owner may open. Commands do not find it until it is published.
fn bind(path: &Path) -> std::io::Result<(UnixListener, OwnSocket)> {
    let at = own_path(path);
    let _ = std::fs::remove_file(&at);
    let listener = UnixListener::bind(&at)?;
    std::fs::set_permissions(&at, std::fs::Permissions::from_mode(0o600))?;
    let own = OwnSocket { inode: inode(&at)?, _file: open_path(&at)? };
    Ok((listener, own))
}

/// Removes the sockets of processes that crashed.
fn remove_stale_sockets(path: &Path) {
    let Some((folder, name)) = path.parent().zip(path.file_name()) else { return };
    let Ok(entries) = std::fs::read_dir(folder) else { return };
    for entry in entries.flatten() {
        let is_socket = entry.file_name().as_bytes().strip_prefix(name.as_bytes()).is_some_and(|end| end.starts_with(b"."));
        let connect = || std::os::unix::net::UnixStream::connect(entry.path());
        if is_socket && connect().is_err_and(|error| error.kind() == std::io::ErrorKind::ConnectionRefused) {
            let _ = std::fs::remove_file(entry.path());
        }
    }
}

/// The identity of a file: device and inode number.
type Inode = (u64, u64);

/// The file of a socket of this process. The open descriptor keeps the inode number from being reused, for example by the
/// socket of a successor.
struct OwnSocket {
    inode: Inode,
    _file: Option<OwnedFd>,
}

/// Opens the file and not the socket (`O_PATH`): an open socket would go on listening.
#[cfg(target_os = "linux")]
fn open_path(path: &Path) -> std::io::Result<Option<OwnedFd>> {
    use nix::fcntl::OFlag;
    let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    Ok(Some(nix::fcntl::open(path, flags, nix::sys::stat::Mode::empty())?))
}

/// Not needed where inode numbers are never reused, as on the file systems of macOS.
#[cfg(not(target_os = "linux"))]
fn open_path(_path: &Path) -> std::io::Result<Option<OwnedFd>> {
    Ok(None)
}

fn inode(path: &Path) -> std::io::Result<Inode> {
    std::fs::symlink_metadata(path).map(|metadata| (metadata.dev(), metadata.ino()))
}

/// Whether the peer is this user or root. Checked for each connection, so permissions of the folder or a umask that are too
/// wide give no access.
pub fn is_owner(stream: &UnixStream) -> bool {
    stream.peer_cred().is_ok_and(|peer| peer.uid() == geteuid().as_raw() || peer.uid() == 0)
}

/// Listens on the control socket until the process ends, and returns the listener for the admin API.
///
/// With `succeeds`, another process serves the configuration, and commands find it until [`ControlSockets::publish`].
/// Otherwise a running process is an error, and the sockets are published at once.
pub fn listen(
    config: &Path,
    succeeds: bool,
    reloader: Arc<Reloader>,
    store: Arc<Store>,
    upgrades: mpsc::Sender<UpgradeRequest>,
) -> Result<(ControlSockets, UnixListener), String> {
    let path = control_socket(config)?;
    let folder = folder();
    let wrong = |what: &str, e: &dyn std::fmt::Display| format!("the control socket {}: {what}: {e}", path.display());
    if !folder.exists() {
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&folder).map_err(|e| wrong("cannot create its folder", &e))?;
    }
    let owner = std::fs::symlink_metadata(&folder).map_err(|e| wrong("cannot read its folder", &e))?;
    if owner.uid() != geteuid().as_raw() || owner.permissions().mode() & 0o022 != 0 {
        let why = "belongs to another user or is writable by others; set KEYLATCH_RUNTIME_DIR to a folder of your own";
        return Err(wrong("its folder", &why));
    }
    if !succeeds && is_running(config) {
        return Err(format!("a process that runs {} exists already; stop it first, or use `keylatch upgrade`", config.display()));
    }
    if !succeeds {
        remove_stale_sockets(&path);
        remove_stale_sockets(&api_socket(config)?);
    }
    let (listener, own) = bind(&path).map_err(|e| wrong("cannot listen", &e))?;
    let (api, own_api) = bind(&api_socket(config)?).map_err(|e| wrong("cannot listen for the admin API", &e))?;
    let pending_replies = watch::Sender::new(0);
    let sockets = ControlSockets { path, own: [own, own_api], pending_replies: pending_replies.clone() };
    tokio::spawn(accept(listener, reloader, store, upgrades, pending_replies));
    if !succeeds {
        sockets.publish()?;
    }
    Ok((sockets, api))
}

async fn accept(
    listener: UnixListener,
    reloader: Arc<Reloader>,
    store: Arc<Store>,
    upgrades: mpsc::Sender<UpgradeRequest>,
    pending_replies: watch::Sender<usize>,
) {
    loop {
        match listener.accept().await {
            Ok((stream, _)) if !is_owner(&stream) => drop(stream),
            Ok((stream, _)) => {
                let (reloader, store, upgrades) = (Arc::clone(&reloader), Arc::clone(&store), upgrades.clone());
                let pending_replies = pending_replies.clone();
                pending_replies.send_modify(|pending| *pending += 1);
                tokio::spawn(async move {
                    // A client that has disconnected is no error: its command is carried out all the same.
                    let _ = tokio::time::timeout(REPLY_TIME_MAX, answer(stream, &reloader, &store, &upgrades)).await;
                    pending_replies.send_modify(|pending| *pending -= 1);
                });
            }
            Err(error) => {
                tracing::error!(%error, "the control socket cannot accept a connection");
                // Most likely no descriptor is free. Without a pause the loop would occupy a processor.
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        }
    }
}

/// Puts the socket of this process at the public path in one atomic step: at every moment there is a socket.
fn publish(path: &Path) -> std::io::Result<()> {
    let (at, staged) = (own_path(path), secure_fs::beside(&own_path(path), ".new"));
    let _ = std::fs::remove_file(&staged);
    if std::fs::hard_link(&at, &staged).is_err() {
        // Some security modules forbid hard links to sockets. The socket is moved then, and can be published only once.
        let is_published = inode(path).ok().zip(inode(&at).ok()).is_some_and(|(public, own)| public == own);
        return if is_published { Ok(()) } else { std::fs::rename(at, path) };
    }
    std::fs::rename(&staged, path)?;
    // A rename between two links of one file leaves both, so the staged link is removed here.
    let _ = std::fs::remove_file(&staged);
    Ok(())
}

/// The two sockets of this process. Dropping it removes them, unless another process has published its own.
pub struct ControlSockets {
    path: PathBuf,
    own: [OwnSocket; 2],
    /// Commands that have no reply yet.
    pending_replies: watch::Sender<usize>,
}

impl ControlSockets {
    /// Makes commands find this process from now on. Can be called again after another process has published its sockets.
    pub fn publish(&self) -> Result<(), String> {
        let publish = |path: &PathBuf| publish(path).map_err(|e| format!("the control socket {}: {e}", path.display()));
        // If one of them fails, the other is published all the same.
        let [control, api] = self.paths().each_ref().map(publish);
        control.and(api)
    }

    /// Removes the sockets of a successor that failed.
    pub fn remove_sockets_of(&self, pid: u32) {
        self.paths().iter().for_each(|path| {
            let _ = std::fs::remove_file(path_of_process(path, pid));
        });
    }

    fn paths(&self) -> [PathBuf; 2] {
        [self.path.clone(), self.path.with_extension("api")]
    }

    /// Waits until every command has its reply, for at most two seconds.
    pub async fn flush_replies(&self) {
        let mut pending = self.pending_replies.subscribe();
        let _ = tokio::time::timeout(LAST_REPLIES_WAIT_MAX, pending.wait_for(|pending| *pending == 0)).await;
    }
}

impl Drop for ControlSockets {
    fn drop(&mut self) {
        for (path, own) in self.paths().into_iter().zip(&self.own) {
            for path in [own_path(&path), path] {
                // Another process that serves the same configuration may have published its socket at this path.
                if inode(&path).is_ok_and(|found| found == own.inode) {
                    let _ = std::fs::remove_file(path);
                }
            }
        }
    }
}

async fn answer(stream: UnixStream, reloader: &Reloader, store: &Store, upgrades: &mpsc::Sender<UpgradeRequest>) -> std::io::Result<()> {
    let (read, mut write) = stream.into_split();
    let mut command = String::new();
    let read = tokio::io::AsyncReadExt::take(read, COMMAND_BYTES_MAX);
    tokio::io::BufReader::new(read).read_line(&mut command).await?;
    let reply = match command.trim() {
        "reload" => match reloader.reload().await {
            Ok(message) => ControlReply { ok: true, message },
            Err(message) => ControlReply { ok: false, message },
        },
        "upgrade" => {
            let (sender, outcome) = oneshot::channel();
            let is_queued = upgrades.try_send(sender).is_ok();
            match if is_queued { outcome.await.ok() } else { None } {
                Some(Ok(message)) => ControlReply { ok: true, message },
                Some(Err(message)) => ControlReply { ok: false, message },
                None => ControlReply { ok: false, message: "the process is stopping, or another upgrade is in progress".into() },
            }
        }
        "settings changed" => {
            store.handle_event(StoreEvent::SettingsChanged);
            ControlReply { ok: true, message: "the settings are read again".into() }
        }
        "bindings changed" => {
            store.handle_event(StoreEvent::EventsLost);
            ControlReply { ok: true, message: "the bindings are read again".into() }
        }
        other => ControlReply { ok: false, message: format!("unknown command `{other}`") },
    };
    let mut line = serde_json::to_vec(&reply)?;
    line.push(b'\n');
    write.write_all(&line).await
}
