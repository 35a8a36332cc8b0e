//! The machine: descriptors, and who runs this.

use nix::sys::resource::{Resource, getrlimit};
use nix::unistd::geteuid;

use super::Findings;
use crate::config::Snapshot;

/// Beside connections of clients: stores, logs, files, the console.
const SPARE: u64 = 1024;

pub fn look(snapshot: &Snapshot, found: &mut Findings) {
    let connections: u64 = snapshot.settings.listeners.iter().map(|listener| listener.limits.connections as u64).sum();
    // Each request has a connection to a server, too.
    let wanted = connections * 2 + SPARE;
    if let Ok((soft, _)) = getrlimit(Resource::RLIMIT_NOFILE)
        && soft < wanted
    {
        let what = format!("{soft} files may be open here, and the listeners' {connections} connections may need {wanted}");
        found.warn(
            "descriptors",
            what,
            "LimitNOFILE= in the unit, `ulimit -n`, or fewer `limits.connections`; the unit that is shipped has 262144",
        );
    }
    if geteuid().is_root() {
        let what = "this is root; a process that serves needs nothing but CAP_NET_BIND_SERVICE, for ports below 1024";
        found.note("user", what, "run it as a user of its own, as the unit and the container do");
    }
}
