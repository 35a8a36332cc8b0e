//! The machine: descriptors, and as whom this runs.

use std::path::Path;
use std::process::{Command, Stdio};

use nix::sys::resource::{Resource, getrlimit};
use nix::unistd::geteuid;

use super::Findings;
use crate::compile::Snapshot;
use crate::control;

/// Beside connections of clients: stores, logs, files, the console.
const SPARE: u64 = 1024;

/// The process that runs here, or the one that would if it were started as this command was.
struct Process {
    files: u64,
    is_root: bool,
    what: &'static str,
}

pub fn look(snapshot: &Snapshot, config: &Path, found: &mut Findings) {
    let process = running(config).unwrap_or_else(|| Process {
        files: getrlimit(Resource::RLIMIT_NOFILE).map_or(u64::MAX, |(soft, _)| soft),
        is_root: geteuid().is_root(),
        what: "a process that is started here",
    });
    let connections: u64 = snapshot.settings.listeners.iter().map(|listener| listener.limits.connections as u64).sum();
    // Each request has a connection to a server, too.
    let wanted = connections * 2 + SPARE;
    if process.files < wanted {
        let what = format!(
            "{} may have {} files open, and the listeners' {connections} connections may need {wanted}",
            process.what, process.files
        );
        found.warn(
            "descriptors",
            what,
            "LimitNOFILE= in the unit, `ulimit -n`, or fewer `limits.connections`; the unit that is shipped has 262144",
        );
    }
    if clock_runs_alone() {
        let what = "nothing sets this machine's clock: certificates, tokens and limits by the calendar go by it";
        found.warn("clock", what, "chrony, or systemd-timesyncd: timedatectl set-ntp true");
    }
    if process.is_root {
        let what = format!("{} is root; it needs nothing but CAP_NET_BIND_SERVICE, for ports below 1024", process.what);
        found.note("user", what, "run it as a user of its own, as the unit and the container do");
    }
}

/// Whether the system knows that its clock is set by nobody. Where it is no systemd, it is not known.
fn clock_runs_alone() -> bool {
    // Without a manager it would wait for one.
    let managed = Path::new("/run/systemd/system").is_dir();
    let asked = || Command::new("timedatectl").args(["show", "--property=NTPSynchronized", "--value"]).stderr(Stdio::null()).output().ok();
    managed && asked().is_some_and(|said| said.status.success() && said.stdout.trim_ascii() == b"no")
}

/// As Linux tells of it.
fn running(config: &Path) -> Option<Process> {
    let pid = control::running_pid(config)?;
    let limits = std::fs::read_to_string(format!("/proc/{pid}/limits")).ok()?;
    let soft = limits.lines().find_map(|line| line.strip_prefix("Max open files"))?.split_whitespace().next()?.parse().unwrap_or(u64::MAX);
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let user = status.lines().find_map(|line| line.strip_prefix("Uid:"))?.split_whitespace().nth(1)?.to_owned();
    Some(Process { files: soft, is_root: user == "0", what: "the process that runs" })
}
