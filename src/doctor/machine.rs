//! Checks the machine: descriptor limit, clock synchronisation, and the user of the process.

use std::path::Path;
use std::process::{Command, Stdio};

use nix::sys::resource::{Resource, getrlimit};
use nix::unistd::geteuid;

use super::Findings;
use crate::compile::Snapshot;
use crate::control;

/// Descriptors for everything but client and upstream connections: stores, logs, files, the console.
const SPARE: u64 = 1024;

/// The running process, or the one that this user would start.
struct Process {
    files: u64,
    is_root: bool,
    what: &'static str,
}

pub fn check(snapshot: &Snapshot, config: &Path, found: &mut Findings) {
    let process = running(config).unwrap_or_else(|| Process {
        files: getrlimit(Resource::RLIMIT_NOFILE).map_or(u64::MAX, |(soft, _)| soft),
        is_root: geteuid().is_root(),
        what: "a process that this user starts",
    });
    let connections: u64 = snapshot.settings.listeners.iter().map(|listener| listener.limits.connections as u64).sum();
    // Each client connection may need one to a server.
    let wanted = connections * 2 + SPARE;
    if process.files < wanted {
        let what = format!(
            "{} may open {} files, but the {connections} connections of the listeners may need {wanted}",
            process.what, process.files
        );
        found.warn(
            "descriptors",
            what,
            "raise LimitNOFILE= in the unit or `ulimit -n`, or lower `limits.connections`; the shipped unit has 262144",
        );
    }
    if is_clock_unsynchronised() {
        let what = "the clock is not synchronised: certificates, tokens and calendar limits depend on it";
        found.warn("clock", what, "run chrony, or systemd-timesyncd: timedatectl set-ntp true");
    }
    if process.is_root {
        let what = format!("{} runs as root; it needs only CAP_NET_BIND_SERVICE, for ports below 1024", process.what);
        found.note("user", what, "run it as its own user, as the shipped unit and container do");
    }
}

/// Whether systemd reports that the clock is not synchronised. False on systems without systemd.
fn is_clock_unsynchronised() -> bool {
    // Without systemd, `timedatectl` would wait for it.
    let managed = Path::new("/run/systemd/system").is_dir();
    let query = || Command::new("timedatectl").args(["show", "--property=NTPSynchronized", "--value"]).stderr(Stdio::null()).output().ok();
    managed && query().is_some_and(|output| output.status.success() && output.stdout.trim_ascii() == b"no")
}

/// The limits and the user of the running process, from `/proc`.
fn running(config: &Path) -> Option<Process> {
    let pid = control::running_pid(config)?;
    let limits = std::fs::read_to_string(format!("/proc/{pid}/limits")).ok()?;
    let soft = limits.lines().find_map(|line| line.strip_prefix("Max open files"))?.split_whitespace().next()?.parse().unwrap_or(u64::MAX);
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let user = status.lines().find_map(|line| line.strip_prefix("Uid:"))?.split_whitespace().nth(1)?.to_owned();
    Some(Process { files: soft, is_root: user == "0", what: "the running process" })
}
