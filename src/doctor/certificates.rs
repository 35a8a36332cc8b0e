//! Checks the end of certificates, and revocation lists that are outdated.

use std::time::SystemTime;

use super::Findings;
use crate::compile::Snapshot;
use crate::config::{Files, read};
use crate::util::pem::{certificates as certificates_of, lists_end_s, parsed};
use crate::util::time::millis;

/// A certificate that ends within this number of days should have been renewed.
const ENDS_SOON_DAYS: i64 = 14;

pub fn check(snapshot: &Snapshot, files: &Files, found: &mut Findings) {
    for (index, entry) in snapshot.entries.iter().enumerate() {
        for shown in entry.shown() {
            let name = shown.names.first().map_or("-", String::as_str);
            certificate(&format!("listeners[{index}].tls.certificates"), name, shown.not_after_s, found);
        }
    }
    for (index, listener) in snapshot.settings.listeners.iter().enumerate() {
        let clients = listener.tls.as_ref().and_then(|tls| tls.client_certificates.as_ref());
        if let Some(file) = clients.and_then(|clients| clients.revoked_file.as_ref()) {
            lists(&format!("listeners[{index}].tls.client_certificates.revoked_file"), file, files, found);
        }
    }
    for (index, upstream) in snapshot.settings.upstreams.iter().enumerate() {
        let Some(tls) = &upstream.tls else { continue };
        if let Some(file) = &tls.revoked_file {
            lists(&format!("upstreams[{index}].tls.revoked_file"), file, files, found);
        }
        let shown = tls.client_certificate.as_ref().and_then(|shown| read(&files.path(&shown.chain_file)).ok());
        let first = shown.and_then(|text| certificates_of(&text).ok()).and_then(|all| all.into_iter().next());
        if let Some(parsed) = first.as_ref().and_then(|first| parsed(first).ok()) {
            let (place, name) = (format!("upstreams[{index}].tls.client_certificate"), parsed.subject().to_string());
            certificate(&place, &name, parsed.validity().not_after.timestamp(), found);
        }
    }
}

fn now_s() -> i64 {
    millis(SystemTime::now()) / 1000
}

fn certificate(place: &str, name: &str, not_after_s: i64, found: &mut Findings) {
    let days = (not_after_s - now_s()) / 86_400;
    if not_after_s <= now_s() {
        found.bad(place, format!("the certificate of {name} has expired"), "renew it; the process reads the new file by itself");
    } else if days < ENDS_SOON_DAYS {
        found.warn(
            place,
            format!("the certificate of {name} expires in {days} days"),
            "renew it; the process reads the new file by itself",
        );
    }
}

fn lists(place: &str, file: &str, files: &Files, found: &mut Findings) {
    let ends = read(&files.path(file)).ok().and_then(|text| lists_end_s(&text));
    if ends.is_some_and(|ends| ends <= now_s()) {
        let what = "a revocation list is past its next update, so later revocations are unknown";
        found.bad(place, what, "fetch the current list, and repair its update job; the process reads the new file by itself");
    }
}
