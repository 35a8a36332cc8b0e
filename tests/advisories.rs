//! No version in `Cargo.lock` has a known advisory, except those that `deny.toml` ignores with a reason.
//!
//! `scripts/advisories` updates the list from the RustSec database. The test itself needs no network.

#![expect(clippy::unwrap_used, reason = "a panic fails the test")]

use std::collections::BTreeSet;
use std::path::Path;

use regex::Regex;
use semver::{Version, VersionReq};
use serde::Deserialize;

#[derive(Deserialize)]
struct Database {
    advisories: Vec<Advisory>,
    crates: BTreeSet<String>,
}

#[derive(Deserialize)]
struct Advisory {
    id: String,
    package: String,
    kind: String,
    patched: Vec<VersionReq>,
    unaffected: Vec<VersionReq>,
    url: String,
}

impl Advisory {
    fn affects(&self, package: &str, version: &Version) -> bool {
        self.package == package && !self.patched.iter().chain(&self.unaffected).any(|range| range.matches(version))
    }
}

fn read(file: &str) -> String {
    std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(file)).unwrap()
}

fn database() -> Database {
    serde_json::from_str(&read("tests/advisories.json")).unwrap()
}

/// Names and versions of all crates but our own. The patched crates in `vendor/` have no `source`.
fn locked() -> Vec<(String, Version)> {
    let pattern = Regex::new(r#"(?m)^name = "(.+)"\nversion = "(.+)"$"#).unwrap();
    let lock = read("Cargo.lock");
    let found: Vec<_> = pattern.captures_iter(&lock).map(|found| (found[1].to_owned(), found[2].parse().unwrap())).collect();
    for name in ["pingora", "pingora-core", "pingora-proxy"] {
        assert!(found.iter().any(|(locked, _)| locked == name), "{name} is not in Cargo.lock");
    }
    found.into_iter().filter(|(name, _)| !name.starts_with("keylatch")).collect()
}

#[test]
fn no_locked_version_has_an_advisory() {
    let ignored: BTreeSet<String> = Regex::new(r#"\{ id = "(RUSTSEC-\d{4}-\d{4})", reason = ".+" \}"#)
        .unwrap()
        .captures_iter(&read("deny.toml"))
        .map(|found| found[1].to_owned())
        .collect();
    let (database, locked) = (database(), locked());
    let mut met = BTreeSet::new();
    let mut affected = Vec::new();
    for (name, version) in &locked {
        for advisory in database.advisories.iter().filter(|advisory| advisory.affects(name, version)) {
            if ignored.contains(&advisory.id) {
                met.insert(advisory.id.clone());
            } else {
                affected.push(format!("{name} {version}: {} ({}), {}", advisory.id, advisory.kind, advisory.url));
            }
        }
    }
    assert!(affected.is_empty(), "update these crates, or ignore the advisory in deny.toml with a reason:\n{}", affected.join("\n"));
    assert_eq!(met, ignored, "deny.toml ignores advisories that affect no locked version");
}

#[test]
fn the_list_covers_every_locked_crate() {
    let covered = database().crates;
    let missing: BTreeSet<String> = locked().into_iter().map(|(name, _)| name).filter(|name| !covered.contains(name)).collect();
    assert!(missing.is_empty(), "`scripts/advisories` has not seen {missing:?}; run it");
}

#[test]
fn patched_and_unaffected_versions_are_not_affected() {
    let range = |text: &str| text.parse().unwrap();
    let advisory = Advisory {
        id: "RUSTSEC-2025-0023".into(),
        package: "tokio".into(),
        kind: "unsound".into(),
        patched: vec![range(">= 1.38.2, < 1.39.0"), range(">= 1.44.2")],
        unaffected: vec![range("< 0.2.5")],
        url: String::new(),
    };
    for (version, affected) in [("0.2.4", false), ("0.2.5", true), ("1.38.1", true), ("1.38.2", false), ("1.40.0", true), ("1.44.2", false)]
    {
        assert_eq!(advisory.affects("tokio", &version.parse().unwrap()), affected, "{version}");
    }
    assert!(!advisory.affects("tokio-util", &Version::new(1, 0, 0)));
}
