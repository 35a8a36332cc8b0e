//! The committed reference pages are the generated ones, and their tables are complete.
//!
//! After a change, `UPDATE=1 cargo test --test reference` writes the pages and `config/schema.json`.

#![expect(clippy::unwrap_used, reason = "a panic fails the test")]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use clap::CommandFactory;
use keylatch::cli::Cli;
use keylatch::reference::{ERRORS, FIELDS, METRICS, pages, schema_file};
use regex::Regex;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Compares a file with its generated text; with `UPDATE` set, writes it first.
fn compare(path: &Path, text: &str) -> Option<PathBuf> {
    if std::env::var_os("UPDATE").is_some() {
        std::fs::write(path, text).unwrap();
    }
    let committed = std::fs::read_to_string(path).unwrap_or_default();
    (committed != text).then(|| path.strip_prefix(root()).unwrap().to_owned())
}

#[test]
fn committed_pages_are_the_generated_ones() {
    let folder = root().join("docs/reference");
    let pages = pages(Cli::command());
    let mut stale: Vec<PathBuf> = pages.iter().filter_map(|page| compare(&folder.join(page.file), &page.text)).collect();
    stale.extend(compare(&root().join("config/schema.json"), &schema_file()));
    assert!(stale.is_empty(), "not up to date: {stale:?}; `UPDATE=1 cargo test --test reference` writes them");
}

/// The code of all Rust files of these folders, without tests and comments.
fn sources(folders: &[&str]) -> Vec<String> {
    fn walk(folder: &Path, found: &mut Vec<String>) {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_str().unwrap();
            if path.is_dir() && name != "reference" {
                walk(&path, found);
            } else if name.ends_with(".rs") && !name.ends_with("tests.rs") && name != "testing.rs" {
                let text = std::fs::read_to_string(&path).unwrap();
                let code = text.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default();
                found.push(code.lines().filter(|line| !line.trim_start().starts_with("//")).collect::<Vec<_>>().join("\n"));
            }
        }
    }
    let mut found = Vec::new();
    folders.iter().for_each(|folder| walk(&root().join(folder), &mut found));
    found
}

/// All matches of the first group of a pattern in the sources.
fn found(sources: &[String], pattern: &str) -> BTreeSet<String> {
    let pattern = Regex::new(pattern).unwrap();
    sources.iter().flat_map(|text| pattern.captures_iter(text).map(|found| found[1].to_owned()).collect::<Vec<_>>()).collect()
}

fn differences(in_code: &BTreeSet<String>, in_table: &BTreeSet<String>) -> String {
    let only = |these: &BTreeSet<String>, those: &BTreeSet<String>| these.difference(those).cloned().collect::<Vec<_>>().join(", ");
    match in_code == in_table {
        true => String::new(),
        false => format!("only in the code: {}; only in the table: {}", only(in_code, in_table), only(in_table, in_code)),
    }
}

#[test]
fn every_metric_is_in_the_table() {
    let sources: Vec<String> =
        sources(&["src", "filters"]).into_iter().filter(|text| Regex::new("prometheus|site\\.").unwrap().is_match(text)).collect();
    let mut names = found(&sources, r#"(?:counters?|gauges?|histograms)\([ \n]*&(?:metrics\.)?registry,[ \n]*"([a-z_]+)""#);
    names.extend(found(&sources, r#"site[ \n]*\.counter(?:_by)?\([ \n]*"([a-z_]+)""#));
    let mut names: BTreeSet<String> = names.into_iter().map(|name| format!("keylatch_{name}")).collect();
    names.extend(found(&sources, r#"(?:Opts::new|IntCounter::new|IntGauge::new|counter|by)\([ \n]*"(keylatch_[a-z_]+)""#));
    names.extend(found(&sources, r#"gauge\([ \n]*metrics,[ \n]*"(keylatch_[a-z_]+)""#));
    let table: BTreeSet<String> = METRICS.iter().map(|metric| metric.name.to_owned()).collect();
    assert_eq!(differences(&names, &table), "");
    assert!(METRICS.is_sorted_by_key(|metric| metric.name));
}

#[test]
fn every_field_of_the_access_log_is_in_the_table() {
    let sources = sources(&["src"]);
    let writer = sources.iter().find(|text| text.contains("let mut object = Object {")).expect("the writer of access lines");
    let pattern = Regex::new(r#"object\.[a-z_]+\("([a-z_]+)""#).unwrap();
    let mut names: Vec<&str> = pattern.captures_iter(writer).map(|found| found.get(1).unwrap().as_str()).collect();
    names.dedup();
    assert_eq!(names, FIELDS.iter().map(|field| field.name).collect::<Vec<_>>());
}

#[test]
fn every_error_code_is_in_the_table() {
    let sources = sources(&["src", "filters"]);
    let mut codes = found(&sources, r#"Reply::new\([ \n]*[A-Za-z_:]+,[ \n]*"([a-z_]+)""#);
    codes.extend(found(&sources, r#"Answer::new\([ \n]*StatusCode::[A-Z_]+,[ \n]*"([a-z_]+)""#));
    // Findings in shadow mode, and answers to ACME challenges, are no errors.
    codes.retain(|code| !["shadow", "answered"].contains(&code.as_str()));
    let table = ERRORS.iter().filter(|each| !each.code.is_empty()).map(|each| each.code.to_owned()).collect();
    assert_eq!(differences(&codes, &table), "");
}

#[test]
fn every_reason_of_the_gate_is_in_the_table() {
    let sources = sources(&["src"]);
    // Other files use these function names for other purposes.
    let checks: Vec<String> = sources.iter().filter(|text| text.contains("Refused")).cloned().collect();
    let mut reasons = found(&checks, r#"[^a-z_](?:bad|too_large)\([ \n]*"([a-z_0-9]+)""#);
    reasons.extend(found(&sources, r#"Refused \{[^}]*reason: "([a-z_0-9]+)""#));
    reasons.extend(found(&sources, r#"BadPath::[A-Za-z0-9]+ => "([a-z_0-9]+)""#));
    reasons.extend(found(&sources, r#"\.refuse\("[0-9A-Za-z ]+", "([a-z_0-9]+)""#));
    let table =
        ERRORS.iter().filter(|each| each.code.is_empty()).flat_map(|each| each.reasons).map(|reason| (*reason).to_owned()).collect();
    assert_eq!(differences(&reasons, &table), "");
}

#[test]
fn every_reason_of_a_filter_is_in_the_table() {
    let sources = sources(&["filters"]);
    let mut reasons = found(&sources, r#"Reply::new\([ \n]*[A-Za-z_:]+,[ \n]*"[a-z_]+",[ \n]*"([a-z_]+)""#);
    reasons.extend(found(&sources, r#"(?:Rejected|KeyError)::[A-Za-z]+(?:\(_\))? => "([a-z_]+)""#));
    reasons.extend(found(&sources, r#"(?:refusal|forbidden)\("([a-z_]+)"\)"#));
    reasons.retain(|reason| reason != "found");
    let in_table: BTreeSet<String> =
        ERRORS.iter().filter(|each| each.by != "gate").flat_map(|each| each.reasons).map(|reason| (*reason).to_owned()).collect();
    let missing: Vec<&String> = reasons.difference(&in_table).collect();
    assert!(missing.is_empty(), "not in the table: {missing:?}");
}
