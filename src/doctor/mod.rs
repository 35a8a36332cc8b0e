//! The checks of `keylatch doctor`: the part of the production checklist that a program can check.
//!
//! Checks read the configuration, this machine and the servers it uses. They change nothing.

mod certificates;
mod credentials;
mod edge;
mod machine;
mod secrets;
mod stores;
mod trust;
mod upstreams;

use std::net::IpAddr;
use std::path::Path;

use serde::Serialize;

use crate::compile::{Compiler, check_ports};
use crate::config::{Files, Parsed, parse_file};
use crate::util::public_address::is_public;

/// The severity of a finding.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// Unauthorised access or loss of data is possible.
    Bad,
    /// It becomes a problem later, or together with another failure.
    Warn,
    /// It may be intended.
    Note,
}

/// A finding.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// The severity.
    pub level: Level,
    /// The place: a path in the configuration, a file, or a server.
    pub place: String,
    /// The problem.
    pub what: String,
    /// The remedy.
    pub remedy: String,
}

/// Collects findings.
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

/// Runs all checks of a configuration. The findings are sorted by severity, the worst first. Those at `accepted` places become
/// notes.
pub async fn run_checks(path: &Path, accepted: &[String]) -> Vec<Finding> {
    let mut found = Findings::default();
    let parsed = parse_file(path);
    let secrets = parsed.as_ref().map(Parsed::secrets).unwrap_or_default();
    match parsed.and_then(|parsed| Compiler::new(check_ports()).compile(parsed)) {
        Ok(snapshot) => {
            let files = Files::beside(path);
            secrets::check(&snapshot, &secrets, path, &files, &mut found);
            certificates::check(&snapshot, &files, &mut found);
            credentials::check(&snapshot, &mut found);
            edge::check(&snapshot, &files, &mut found);
            trust::check(&snapshot.settings, &files, &mut found);
            machine::check(&snapshot, path, &mut found);
            stores::check(&snapshot.settings, &files, &mut found).await;
            upstreams::check(&snapshot, &mut found).await;
        }
        // An invalid configuration allows no other check, and cannot be accepted.
        Err(report) => {
            found.bad(
                path.display().to_string(),
                format!("the configuration is invalid:\n{report}"),
                "correct it; `keylatch check` prints the same errors",
            );
            return found.0;
        }
    }
    for place in accepted {
        let mut there = found.0.iter_mut().filter(|finding| finding.place == *place).peekable();
        if there.peek().is_none() {
            found.note(place, "is accepted, but has no finding", "remove this `--accept`, or correct its spelling");
            continue;
        }
        there.for_each(|finding| finding.level = Level::Note);
    }
    found.0.sort_by_key(|finding| finding.level);
    found.0
}

/// Whether other networks may reach this address: it is public, or the wildcard address.
pub fn is_reachable(address: IpAddr) -> bool {
    address.is_unspecified() || is_public(address)
}

/// The severity of an unencrypted connection to a host; `None` if the host is this machine. A name without a dot exists only in
/// a network of one's own, such as that of containers. A private address may still be in a shared network.
fn cleartext_severity(host: &str) -> Option<Level> {
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    match bare.parse::<IpAddr>() {
        _ if is_this_machine(host) => None,
        Ok(address) if is_public(address) => Some(Level::Bad),
        Ok(_) => Some(Level::Warn),
        Err(_) => Some(if bare.contains('.') { Level::Bad } else { Level::Note }),
    }
}

/// Whether a host is this machine.
fn is_this_machine(host: &str) -> bool {
    let host = host.trim_start_matches('[').trim_end_matches(']');
    host.is_empty() || host == "localhost" || host.starts_with('/') || host.parse().is_ok_and(|ip: IpAddr| ip.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn severities_of_cleartext_connections() {
        for (host, level) in [
            ("db.example.com", Some(Level::Bad)),
            ("postgres", Some(Level::Note)),
            ("localhost", None),
            ("", None),
            ("/run/postgresql", None),
            ("[::1]", None),
            ("8.8.8.8", Some(Level::Bad)),
            ("[2606:4700::1]", Some(Level::Bad)),
            ("10.8.0.2", Some(Level::Warn)),
            ("100.64.0.7", Some(Level::Warn)),
            ("[fd00::2]", Some(Level::Warn)),
        ] {
            assert_eq!(cleartext_severity(host), level, "{host}");
        }
    }
}
