//! The handover protocol: a new process takes over the listening sockets of this one without a gap in accepting connections.
//!
//! 1. The old process starts the new one, which opens its stores, compiles its configuration, and sends `ready`.
//! 2. The old process sends the descriptors of its listening sockets.
//! 3. The new process serves on them and sends `serving`. Only then does the old one stop accepting connections.
//!
//! A failure at any step leaves the old process as it was. Messages are lines of JSON over a Unix socket, which is the
//! standard input of the new process. A launcher process starts the new one and exits at once, so that the new one is a child
//! of the service manager and not of the old process. What happens around a handover is in [`super::upgrade`].

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags};
use serde::{Deserialize, Serialize};

use super::sockets::{SocketPurpose, Sockets};

/// The longest wait for each message of the new process: its database may be slow to answer.
pub const TIME_MAX: Duration = Duration::from_secs(90);
/// The longest run time of the launcher, which only starts a process.
const LAUNCH_TIME_MAX: Duration = Duration::from_secs(10);
/// The interval at which a blocking wait checks for cancellation.
const CANCEL_CHECK_INTERVAL: Duration = Duration::from_millis(50);
const MESSAGE_BYTES_MAX: usize = 64 << 10;
const SOCKETS_MAX: usize = 64;

/// A message between the old and the new process.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum HandoverMessage {
    /// From the new process: it is ready to take the sockets. Its process id.
    Ready(u32),
    /// From the new process: it cannot serve, and why.
    Failed(String),
    /// From the old process: descriptions of the sockets, in the order of the descriptors that come with the message.
    Sockets(Vec<(SocketPurpose, SocketAddr)>),
    /// From the new process: it serves.
    Serving,
}

/// Reads a message and the descriptors that came with it. Fails with `TimedOut` after [`TIME_MAX`], or on cancellation.
fn read(stream: &UnixStream, is_cancelled: &dyn Fn() -> bool) -> io::Result<(HandoverMessage, Vec<OwnedFd>)> {
    stream.set_read_timeout(Some(CANCEL_CHECK_INTERVAL))?;
    let until = Instant::now() + TIME_MAX;
    let (mut line, mut received) = (Vec::new(), Vec::new());
    while !line.ends_with(b"\n") && line.len() < MESSAGE_BYTES_MAX {
        let mut piece = [0; 4096];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(SOCKETS_MAX))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let got = match rustix::net::recvmsg(stream, &mut [IoSliceMut::new(&mut piece)], &mut control, RecvFlags::empty()) {
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) if Instant::now() < until && !is_cancelled() => continue,
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => return Err(io::ErrorKind::TimedOut.into()),
            got => got?,
        };
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(descriptors) = message {
                received.extend(descriptors);
            }
        }
        if got.bytes == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        line.extend_from_slice(piece.get(..got.bytes).unwrap_or_default());
    }
    // Child processes that are started later must not inherit the descriptors and keep the sockets open.
    received.iter().try_for_each(|fd| rustix::io::fcntl_setfd(fd, rustix::io::FdFlags::CLOEXEC))?;
    Ok((serde_json::from_slice(&line)?, received))
}

fn write(stream: &UnixStream, message: &HandoverMessage, sockets: &Sockets) -> io::Result<()> {
    let mut text = serde_json::to_vec(message)?;
    text.push(b'\n');
    let descriptors: Vec<_> = sockets.all.iter().map(|socket| socket.listener.as_fd()).collect();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(SOCKETS_MAX))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() && !control.push(SendAncillaryMessage::ScmRights(&descriptors)) {
        return Err(io::Error::other(format!("more than {SOCKETS_MAX} listeners")));
    }
    let sent = rustix::net::sendmsg(stream, &[IoSlice::new(&text)], &mut control, SendFlags::empty())?;
    if sent == text.len() { Ok(()) } else { Err(io::ErrorKind::WriteZero.into()) }
}

/// The connection of a new process to the one that it takes over from.
pub struct Predecessor(UnixStream);

impl Predecessor {
    /// The process that started this one. Standard input is the connection to it.
    pub fn find() -> Result<Self, String> {
        let stream = io::stdin().as_fd().try_clone_to_owned().map(UnixStream::from);
        stream.map(Self).map_err(|e| format!("standard input is no connection to a process to take over from: {e}"))
    }

    /// Reports that this process cannot serve.
    pub fn report_failure(&self, error: &str) {
        // If this fails, the predecessor sees the end of this process.
        let _ = write(&self.0, &HandoverMessage::Failed(error.to_owned()), &Sockets::default());
    }

    /// Reports that this process is ready, and waits for the sockets.
    pub fn receive_sockets(&self) -> Result<Sockets, String> {
        let lost = |e: io::Error| format!("the connection to the predecessor is lost: {e}");
        write(&self.0, &HandoverMessage::Ready(std::process::id()), &Sockets::default()).map_err(lost)?;
        match read(&self.0, &|| false).map_err(lost)? {
            (HandoverMessage::Sockets(descriptions), descriptors) if descriptions.len() == descriptors.len() => {
                Ok(Sockets::adopt(descriptions, descriptors))
            }
            _ => Err("the predecessor sent an unexpected message instead of its sockets".into()),
        }
    }

    /// Reports that this process serves.
    pub fn report_serving(&self) {
        let _ = write(&self.0, &HandoverMessage::Serving, &Sockets::default());
    }
}

/// The launcher: starts the new process with the standard input of this one, and exits.
pub fn launch(config: &Path) -> Result<(), String> {
    let program = std::env::current_exe().map_err(|e| format!("cannot find the path of this program: {e}"))?;
    command(&program, config, "serve").spawn().map(|_| ()).map_err(|e| format!("cannot start the new process: {e}"))
}

fn command(program: &Path, config: &Path, step: &str) -> Command {
    let mut command = Command::new(program);
    // The watchdog variable names the old process; the new one has its own process id.
    command.arg("run").arg("--config").arg(config).arg("--successor").arg(step).env_remove("WATCHDOG_PID");
    command
}

/// A new process that is ready to take over.
pub struct Successor {
    stream: UnixStream,
    /// Its process id.
    pub pid: u32,
}

impl Successor {
    /// Starts a process and waits until it is ready, or until cancellation. Blocks.
    pub fn start(program: &Path, config: &Path, is_cancelled: &dyn Fn() -> bool) -> Result<Self, String> {
        let (stream, its_end) = UnixStream::pair().map_err(|e| format!("cannot create a socket for the handover: {e}"))?;
        let launched = command(program, config, "launch")
            .stdin(Stdio::from(OwnedFd::from(its_end)))
            .spawn()
            .map_err(|e| format!("{} could not be started: {e}", program.display()))?;
        let status = wait_for_exit(launched, is_cancelled).map_err(|e| format!("{} could not be started: {e}", program.display()))?;
        if !status.success() {
            return Err(format!("{} could not be started: it exited at once ({status})", program.display()));
        }
        match read(&stream, is_cancelled) {
            Ok((HandoverMessage::Ready(pid), _)) => Ok(Self { stream, pid }),
            Ok((HandoverMessage::Failed(error), _)) => Err(format!("the new process failed to start; this one keeps serving:\n{error}")),
            Ok(_) => Err("the new process sent an unexpected message; this one keeps serving".into()),
            Err(e) if e.kind() == io::ErrorKind::TimedOut && !is_cancelled() => {
                Err(format!("the new process was not ready within {} s; this one keeps serving", TIME_MAX.as_secs()))
            }
            Err(e) if e.kind() == io::ErrorKind::TimedOut => Err(STOPPED.into()),
            Err(e) => Err(format!("the new process ended before it was ready; this one keeps serving: {e}")),
        }
    }

    /// Hands over the sockets and waits until the new process serves on them, or until cancellation. Blocks.
    pub fn hand_over(self, sockets: &Sockets, is_cancelled: &dyn Fn() -> bool) -> Result<(), String> {
        let descriptions = sockets.all.iter().map(|socket| (socket.purpose, socket.address)).collect();
        let failed = |e: io::Error| format!("the new process did not take the sockets; this one keeps serving: {e}");
        if is_cancelled() {
            // The new process sees the closed connection and exits.
            return Err(STOPPED.into());
        }
        let message = HandoverMessage::Sockets(descriptions);
        let answer = write(&self.stream, &message, sockets).and_then(|()| read(&self.stream, is_cancelled));
        let error = match answer {
            Ok((HandoverMessage::Serving, _)) => return Ok(()),
            Ok((HandoverMessage::Failed(error), _)) => format!("the new process failed to start; this one keeps serving:\n{error}"),
            Ok(_) => "the new process sent an unexpected message; this one keeps serving".into(),
            // The new process has ended. Another process may have its id by now, so none is killed.
            Err(e) if has_ended(&e) => return Err(if is_cancelled() { STOPPED.into() } else { failed(e) }),
            Err(_) if is_cancelled() => STOPPED.into(),
            Err(e) => failed(e),
        };
        // The new process may have the sockets and could start to serve later, so it is killed.
        let _ = i32::try_from(self.pid).map(|pid| kill(Pid::from_raw(pid), Signal::SIGKILL));
        Err(error)
    }
}

/// Whether the error means that the peer process has ended.
fn has_ended(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe)
}

/// The upgrade is cancelled because the process stops.
const STOPPED: &str = "the process was told to stop during the upgrade";

#[expect(clippy::disallowed_methods, reason = "this blocking thread only waits; it is no worker of the runtime")]
/// Waits for the exit of the launcher. It is killed after [`LAUNCH_TIME_MAX`], or on cancellation.
fn wait_for_exit(mut process: Child, is_cancelled: &dyn Fn() -> bool) -> Result<ExitStatus, String> {
    let until = Instant::now() + LAUNCH_TIME_MAX;
    while Instant::now() < until && !is_cancelled() {
        if let Some(status) = process.try_wait().map_err(|e| e.to_string())? {
            return Ok(status);
        }
        // The standard library has no wait with a timeout, so this polls.
        std::thread::sleep(CANCEL_CHECK_INTERVAL / 10);
    }
    let _ = process.kill().and_then(|()| process.wait());
    let seconds = LAUNCH_TIME_MAX.as_secs();
    Err(if is_cancelled() { STOPPED.into() } else { format!("it started no process within {seconds} s; this one keeps serving") })
}

/// The path by which this program was started. An upgrade starts what is at this path by then; if it is a symbolic link, it
/// may lead to another program.
pub fn program() -> Result<PathBuf, String> {
    let executable = std::env::current_exe().map_err(|e| format!("cannot find the path of this program: {e}"))?;
    let called = std::env::args_os().next().filter(|name| Path::new(name).components().count() > 1);
    let called = called.and_then(|name| std::path::absolute(name).ok());
    let is_it =
        |called: &PathBuf| called.canonicalize().is_ok_and(|called| executable.canonicalize().is_ok_and(|executable| called == executable));
    Ok(called.filter(is_it).unwrap_or(executable))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{TcpListener, TcpStream};

    use crate::process::sockets::Socket;

    #[test]
    fn sockets_are_handed_over() {
        let (old, new) = UnixStream::pair().unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let sockets = Sockets { all: vec![Socket { purpose: SocketPurpose::Admin, address, listener }], were_inherited: false };
        let sent = HandoverMessage::Sockets(vec![(SocketPurpose::Admin, address)]);
        write(&old, &sent, &sockets).unwrap();
        // A connection that waits in the queue survives the close of the old descriptor.
        let waiting = TcpStream::connect(address).unwrap();
        drop(sockets);
        let (received, descriptors) = read(&new, &|| false).unwrap();
        assert_eq!(received, sent);
        let Sockets { all: taken, .. } = Sockets::adopt(vec![(SocketPurpose::Admin, address)], descriptors);
        let (_, peer) = taken[0].listener.accept().unwrap();
        assert_eq!(peer, waiting.local_addr().unwrap());
        assert_eq!(read(&new, &|| true).unwrap_err().kind(), io::ErrorKind::TimedOut);
        drop(old);
        assert_eq!(read(&new, &|| false).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }
}
