//! The client of the control socket: sends a command to the running process and waits for its reply.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;

use super::paths::trusted_socket;
use super::protocol::{ControlReply, REPLY_TIME_MAX};

/// Whether a process that runs `config` accepts connections on its control socket.
pub fn is_running(config: &Path) -> bool {
    trusted_socket(config).is_ok_and(|path| UnixStream::connect(path).is_ok())
}

/// The process id of the process that runs `config`; `None` if it does not run or the system does not report it. Must be called
/// within a Tokio runtime.
pub fn running_pid(config: &Path) -> Option<i32> {
    let stream = UnixStream::connect(trusted_socket(config).ok()?).ok()?;
    stream.set_nonblocking(true).ok()?;
    tokio::net::UnixStream::from_std(stream).ok()?.peer_cred().ok()?.pid()
}

/// Sends a command to the process that runs `config` and waits for the reply. Blocks.
pub fn send_command(config: &Path, command: &str) -> Result<ControlReply, String> {
    let path = trusted_socket(config)?;
    let stream = UnixStream::connect(&path)
        .map_err(|e| format!("no process that runs {} was found (expected socket: {}): {e}", config.display(), path.display()))?;
    let lost = |e: std::io::Error| format!("the running process did not answer: {e}");
    stream.set_read_timeout(Some(REPLY_TIME_MAX)).map_err(lost)?;
    (&stream).write_all(format!("{command}\n").as_bytes()).map_err(lost)?;
    let mut line = String::new();
    BufReader::new(&stream).read_line(&mut line).map_err(lost)?;
    serde_json::from_str(&line).map_err(|e| format!("the running process sent an invalid reply: {e}"))
}
