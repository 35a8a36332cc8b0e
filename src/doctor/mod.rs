//! What one would look at before strangers come: the production checklist, as far as a program can look. Nothing is changed.

mod edge;
mod machine;
mod secrets;
mod stores;
mod trust;

use std::net::IpAddr;
use std::path::Path;

use serde::Serialize;

use crate::config::{Compiler, Files, check_ports, parse_file};
use crate::outbound::is_public;

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

/// Looks at a configuration, the machine it is on and the servers it names; the worst first. What is found at `accepted` places is
/// worth a note.
pub async fn look(path: &Path, accepted: &[String]) -> Vec<Finding> {
    let mut found = Findings::default();
    let snapshot = parse_file(path).and_then(|parsed| Compiler::new(check_ports()).compile(parsed));
    match snapshot {
        Ok(snapshot) => {
            let files = Files::beside(path);
            secrets::look(&snapshot, path, &files, &mut found);
            edge::look(&snapshot, &files, &mut found);
            trust::look(&snapshot.settings, &files, &mut found);
            machine::look(&snapshot, path, &mut found);
            stores::look(&snapshot.settings, &files, &mut found).await;
        }
        Err(report) => {
            found.bad(path.display().to_string(), format!("it cannot be used:\n{report}"), "mend it; `keylatch check` tells the same")
        }
    }
    for finding in found.0.iter_mut().filter(|finding| accepted.contains(&finding.place)) {
        finding.level = Level::Note;
    }
    found.0.sort_by_key(|finding| finding.level);
    found.0
}

/// Whether somebody elsewhere may come to this address: everywhere is elsewhere, too.
pub fn is_reached(address: IpAddr) -> bool {
    address.is_unspecified() || is_public(address)
}

/// Whether a host is elsewhere on the internet. A name of one word is known in a network of one's own alone, such as that of containers.
fn is_elsewhere(host: &str) -> bool {
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    bare.parse().map_or(!is_here(host) && bare.contains('.'), is_public)
}

/// Whether a host is this machine.
fn is_here(host: &str) -> bool {
    let host = host.trim_start_matches('[').trim_end_matches(']');
    host.is_empty() || host == "localhost" || host.starts_with('/') || host.parse().is_ok_and(|ip: IpAddr| ip.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_elsewhere() {
        for (host, is) in [
            ("db.example.com", true),
            ("postgres", false),
            ("localhost", false),
            ("", false),
            ("/run/postgresql", false),
            ("[::1]", false),
            ("203.0.112.9", true),
            ("[2606:4700::1]", true),
            ("10.8.0.2", false),
            ("100.64.0.7", false),
            ("[fd00::2]", false),
        ] {
            assert_eq!(is_elsewhere(host), is, "{host}");
        }
    }
}
