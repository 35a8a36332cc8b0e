//! What one would look at before strangers come: the production checklist, as far as a program can look. Nothing is changed.

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
    let parsed = parse_file(path);
    let secrets = parsed.as_ref().map(Parsed::secrets).unwrap_or_default();
    match parsed.and_then(|parsed| Compiler::new(check_ports()).compile(parsed)) {
        Ok(snapshot) => {
            let files = Files::beside(path);
            secrets::look(&snapshot, &secrets, path, &files, &mut found);
            certificates::look(&snapshot, &files, &mut found);
            credentials::look(&snapshot, &mut found);
            edge::look(&snapshot, &files, &mut found);
            trust::look(&snapshot.settings, &files, &mut found);
            machine::look(&snapshot, path, &mut found);
            stores::look(&snapshot.settings, &files, &mut found).await;
            upstreams::look(&snapshot, &mut found).await;
        }
        // Nothing else can be said of it then, and nobody can mean it so.
        Err(report) => {
            found.bad(path.display().to_string(), format!("it cannot be used:\n{report}"), "mend it; `keylatch check` tells the same");
            return found.0;
        }
    }
    for place in accepted {
        let mut there = found.0.iter_mut().filter(|finding| finding.place == *place).peekable();
        if there.peek().is_none() {
            found.note(place, "is accepted, and nothing was found there", "take it out of what is accepted, or look at how it is written");
            continue;
        }
        there.for_each(|finding| finding.level = Level::Note);
    }
    found.0.sort_by_key(|finding| finding.level);
    found.0
}

/// Whether somebody elsewhere may come to this address: everywhere is elsewhere, too.
pub fn is_reached(address: IpAddr) -> bool {
    address.is_unspecified() || is_public(address)
}

/// How bad it is if nothing is encrypted on the way to a host; `None`: it is this machine. A name of one word is known in a network of
/// one's own alone, such as that of containers; a private network may be shared with others all the same.
fn in_clear(host: &str) -> Option<Level> {
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    match bare.parse::<IpAddr>() {
        _ if is_here(host) => None,
        Ok(address) if is_public(address) => Some(Level::Bad),
        Ok(_) => Some(Level::Warn),
        Err(_) => Some(if bare.contains('.') { Level::Bad } else { Level::Note }),
    }
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
    fn who_reads_along() {
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
            assert_eq!(in_clear(host), level, "{host}");
        }
    }
}
