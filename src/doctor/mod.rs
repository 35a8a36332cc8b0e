//! What one would look at before strangers come: the production checklist, as far as a program can look. Nothing is changed.

mod edge;
mod machine;
mod secrets;
mod stores;

use std::net::IpAddr;
use std::path::Path;

use serde::Serialize;

use crate::config::{Compiler, Files, check_ports, parse_file};

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// Somebody gets in, or what is stored is lost.
    Bad,
    /// It will be bad one day, or where one thing more goes wrong.
    Warn,
    /// It may be meant.
    Note,
}

/// One thing that was found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// How bad it is.
    pub level: Level,
    /// Where: a place in the configuration, a file, a server.
    pub place: String,
    /// What.
    pub what: String,
    /// What to do.
    pub remedy: String,
}

/// What is found, as it is found.
#[derive(Default)]
pub struct Findings(Vec<Finding>);

impl Findings {
    fn add(&mut self, level: Level, place: impl Into<String>, what: impl Into<String>, remedy: impl Into<String>) {
        self.0.push(Finding { level, place: place.into(), what: what.into(), remedy: remedy.into() });
    }
    fn bad(&mut self, place: impl Into<String>, what: impl Into<String>, remedy: impl Into<String>) {
        self.add(Level::Bad, place, what, remedy);
    }
    fn warn(&mut self, place: impl Into<String>, what: impl Into<String>, remedy: impl Into<String>) {
        self.add(Level::Warn, place, what, remedy);
    }
    fn note(&mut self, place: impl Into<String>, what: impl Into<String>, remedy: impl Into<String>) {
        self.add(Level::Note, place, what, remedy);
    }
}

/// Looks at a configuration, the machine it is on and the servers it names; the worst first.
pub async fn look(path: &Path) -> Vec<Finding> {
    let mut found = Findings::default();
    let snapshot = parse_file(path).and_then(|parsed| Compiler::new(check_ports()).compile(parsed));
    match snapshot {
        Ok(snapshot) => {
            let files = Files::beside(path);
            secrets::look(&snapshot, path, &files, &mut found);
            edge::look(&snapshot, &files, &mut found);
            machine::look(&snapshot, path, &mut found);
            stores::look(&snapshot.settings, &files, &mut found).await;
        }
        Err(report) => {
            found.bad(path.display().to_string(), format!("it cannot be used:\n{report}"), "mend it; `keylatch check` tells the same")
        }
    }
    found.0.sort_by_key(|finding| finding.level);
    found.0
}

/// Whether an address is this machine's alone, or of a network that is nobody else's.
fn is_inside(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => v4.is_loopback() || v4.is_private() || v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_loopback() || v6.is_unique_local() || v6.is_unicast_link_local(),
    }
}

/// Whether a host is this machine.
fn is_here(host: &str) -> bool {
    let host = host.trim_start_matches('[').trim_end_matches(']');
    host.is_empty() || host == "localhost" || host.starts_with('/') || host.parse().is_ok_and(|ip: IpAddr| ip.is_loopback())
}
