//! How a new process takes the place of this one without a moment in which nobody listens.
//!
//! The old process starts the new one, which opens its stores and compiles its configuration and then says so; only then is
//! it handed the sockets, and only when it serves on them does the old one take no more connections. Whatever goes wrong
//! before that leaves the old one as it was. They talk over a socket that is the new one's standard input, a line of JSON
//! each time. The new one is started by a process that ends at once, so that it is nobody's child but the service manager's.

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

use super::sockets::{For, Sockets};

/// How long a new process may take to be ready: its database may be slow to answer.
pub const TIME_MAX: Duration = Duration::from_secs(90);
/// How long the program may take to start a process, and nothing else.
const LAUNCH_TIME_MAX: Duration = Duration::from_secs(10);
/// How often whoever waits looks whether there is still anything to wait for.
const LOOK_EVERY: Duration = Duration::from_millis(50);
const LINE_BYTES_MAX: usize = 64 << 10;
const SOCKETS_MAX: usize = 64;

/// What is said.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Line {
    /// The new one: it could serve. Its number.
    Ready(u32),
    /// The new one: it cannot, and why.
    Failed(String),
    /// The old one: these are the sockets, in this order.
    Sockets(Vec<(For, SocketAddr)>),
    /// The new one: it serves.
    Serving,
}

/// A line, and the descriptors that came with it. `TimedOut`: after [`TIME_MAX`], or as soon as it is given up.
fn read(stream: &UnixStream, given_up: &dyn Fn() -> bool) -> io::Result<(Line, Vec<OwnedFd>)> {
    stream.set_read_timeout(Some(LOOK_EVERY))?;
    let until = Instant::now() + TIME_MAX;
    let (mut line, mut handed) = (Vec::new(), Vec::new());
    while !line.ends_with(b"\n") && line.len() < LINE_BYTES_MAX {
        let mut piece = [0; 4096];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(SOCKETS_MAX))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let got = match rustix::net::recvmsg(stream, &mut [IoSliceMut::new(&mut piece)], &mut control, RecvFlags::empty()) {
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) if Instant::now() < until && !given_up() => continue,
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => return Err(io::ErrorKind::TimedOut.into()),
            got => got?,
        };
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(descriptors) = message {
                handed.extend(descriptors);
            }
        }
        if got.bytes == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        line.extend_from_slice(piece.get(..got.bytes).unwrap_or_default());
    }
    // Not before they are ours: what one is exec'ed with later must not keep them open.
    handed.iter().try_for_each(|fd| rustix::io::fcntl_setfd(fd, rustix::io::FdFlags::CLOEXEC))?;
    Ok((serde_json::from_slice(&line)?, handed))
}

fn write(stream: &UnixStream, line: &Line, sockets: &Sockets) -> io::Result<()> {
    let mut text = serde_json::to_vec(line)?;
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

/// Whom this process takes the place of.
pub struct Predecessor(UnixStream);

impl Predecessor {
    /// Who has started this process: its standard input is the line to him.
    pub fn find() -> Result<Self, String> {
        let line = io::stdin().as_fd().try_clone_to_owned().map(UnixStream::from);
        line.map(Self).map_err(|e| format!("this process was not started by one that it could take the place of: {e}"))
    }

    /// Says that this one cannot.
    pub fn fail(&self, why: &str) {
        // He sees this process end as well.
        let _ = write(&self.0, &Line::Failed(why.to_owned()), &Sockets::default());
    }

    /// Says that this one could serve, and waits for the sockets.
    pub fn take(&self) -> Result<Sockets, String> {
        let lost = |e: io::Error| format!("the process before this one has gone: {e}");
        write(&self.0, &Line::Ready(std::process::id()), &Sockets::default()).map_err(lost)?;
        match read(&self.0, &|| false).map_err(lost)? {
            (Line::Sockets(said), handed) if said.len() == handed.len() => Ok(Sockets::adopt(said, handed)),
            _ => Err("the process before this one has handed over something else than its sockets".into()),
        }
    }

    /// Says that this one serves.
    pub fn serving(&self) {
        let _ = write(&self.0, &Line::Serving, &Sockets::default());
    }
}

/// Starts the process whose standard input leads to the one before, and ends: called in between the two.
pub fn launch(config: &Path) -> Result<(), String> {
    let program = std::env::current_exe().map_err(|e| format!("this program is not to be found: {e}"))?;
    command(&program, config, "serve").spawn().map(|_| ()).map_err(|e| format!("no process could be started: {e}"))
}

fn command(program: &Path, config: &Path, step: &str) -> Command {
    let mut command = Command::new(program);
    // It has a number of its own, and looks after itself.
    command.arg("run").arg("--config").arg(config).arg("--successor").arg(step).env_remove("WATCHDOG_PID");
    command
}

/// A process that is ready to take this one's place.
pub struct Successor {
    line: UnixStream,
    /// Its number.
    pub pid: u32,
}

impl Successor {
    /// Starts one, and waits until it is ready, or it is given up. Blocks.
    pub fn start(program: &Path, config: &Path, given_up: &dyn Fn() -> bool) -> Result<Self, String> {
        let (line, its) = UnixStream::pair().map_err(|e| format!("no socket to be had: {e}"))?;
        let launched = command(program, config, "launch")
            .stdin(Stdio::from(OwnedFd::from(its)))
            .spawn()
            .map_err(|e| format!("{} could not be started: {e}", program.display()))?;
        let ended = end_of(launched, given_up).map_err(|why| format!("{} could not be started: {why}", program.display()))?;
        if !ended.success() {
            return Err(format!("{} could not be started: it has ended at once ({ended})", program.display()));
        }
        match read(&line, given_up) {
            Ok((Line::Ready(pid), _)) => Ok(Self { line, pid }),
            Ok((Line::Failed(why), _)) => Err(format!("the new process could not begin, and this one goes on:\n{why}")),
            Ok(_) => Err("the new process talks in a way that is not known here, and this one goes on".into()),
            Err(e) if e.kind() == io::ErrorKind::TimedOut && !given_up() => {
                Err(format!("the new process was not ready within {}s, and this one goes on", TIME_MAX.as_secs()))
            }
            Err(e) if e.kind() == io::ErrorKind::TimedOut => Err(STOPPED.into()),
            Err(e) => Err(format!("the new process has ended before it was ready, and this one goes on: {e}")),
        }
    }

    /// Hands over the sockets, and waits until they are served on, or it is given up. Blocks.
    pub fn hand_over(self, sockets: &Sockets, given_up: &dyn Fn() -> bool) -> Result<(), String> {
        let said = sockets.all.iter().map(|socket| (socket.of, socket.address)).collect();
        let failed = |e: io::Error| format!("the new process did not take the sockets, and this one goes on: {e}");
        if given_up() {
            // It sees that nobody is there to hand it anything, and ends.
            return Err(STOPPED.into());
        }
        let answer = write(&self.line, &Line::Sockets(said), sockets).and_then(|()| read(&self.line, given_up));
        let error = match answer {
            Ok((Line::Serving, _)) => return Ok(()),
            Ok((Line::Failed(why), _)) => format!("the new process could not begin, and this one goes on:\n{why}"),
            Ok(_) => "the new process talks in a way that is not known here, and this one goes on".into(),
            // It has ended, and its number may be another's.
            Err(e) if has_ended(&e) => return Err(if given_up() { STOPPED.into() } else { failed(e) }),
            Err(_) if given_up() => STOPPED.into(),
            Err(e) => failed(e),
        };
        // It may hold the sockets, and begin to serve at last when nobody expects it.
        let _ = i32::try_from(self.pid).map(|pid| kill(Pid::from_raw(pid), Signal::SIGKILL));
        Err(error)
    }
}

/// Whether nobody holds the other end of the line any more.
fn has_ended(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe)
}

/// Nobody's place is to be taken.
const STOPPED: &str = "the process was told to stop meanwhile";

#[expect(clippy::disallowed_methods, reason = "the thread is for waiting, and no worker")]
/// How a process has ended that has little to do; it is ended after [`LAUNCH_TIME_MAX`], or when it is given up.
fn end_of(mut process: Child, given_up: &dyn Fn() -> bool) -> Result<ExitStatus, String> {
    let until = Instant::now() + LAUNCH_TIME_MAX;
    while Instant::now() < until && !given_up() {
        if let Some(ended) = process.try_wait().map_err(|e| e.to_string())? {
            return Ok(ended);
        }
        // The standard library knows no wait for a process that ends by itself.
        std::thread::sleep(LOOK_EVERY / 10);
    }
    let _ = process.kill().and_then(|()| process.wait());
    let seconds = LAUNCH_TIME_MAX.as_secs();
    Err(if given_up() { STOPPED.into() } else { format!("it has started nothing within {seconds}s, and this one goes on") })
}

/// The program that was started, as it was called: what takes its place there is what is started next. A link may lead to
/// another program by then.
pub fn program() -> Result<PathBuf, String> {
    let here = std::env::current_exe().map_err(|e| format!("this program is not to be found: {e}"))?;
    let called = std::env::args_os().next().filter(|name| Path::new(name).components().count() > 1);
    let called = called.and_then(|name| std::path::absolute(name).ok());
    let is_it = |called: &PathBuf| called.canonicalize().is_ok_and(|called| here.canonicalize().is_ok_and(|here| called == here));
    Ok(called.filter(is_it).unwrap_or(here))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{TcpListener, TcpStream};

    use crate::process::sockets::Socket;

    #[test]
    fn sockets_go_from_one_to_the_other() {
        let (old, new) = UnixStream::pair().unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let sockets = Sockets { all: vec![Socket { of: For::Admin, address, listener }], were_handed: false };
        let said = Line::Sockets(vec![(For::Admin, address)]);
        write(&old, &said, &sockets).unwrap();
        // Somebody connects while nobody accepts, and the old one closes its own.
        let waiting = TcpStream::connect(address).unwrap();
        drop(sockets);
        let (line, handed) = read(&new, &|| false).unwrap();
        assert_eq!(line, said);
        let Sockets { all: taken, .. } = Sockets::adopt(vec![(For::Admin, address)], handed);
        let (_, peer) = taken[0].listener.accept().unwrap();
        assert_eq!(peer, waiting.local_addr().unwrap());
        assert_eq!(read(&new, &|| true).unwrap_err().kind(), io::ErrorKind::TimedOut);
        drop(old);
        assert_eq!(read(&new, &|| false).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }
}
