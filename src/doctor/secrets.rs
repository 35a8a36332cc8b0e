//! Secrets: too weak, used twice, or readable by others.

use std::collections::BTreeSet;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use keylatch_filters::contract::SecretRef;
use reqwest::Url;

use super::{Findings, is_here};
use crate::config::model::Storage;
use crate::config::{Files, Settings, Snapshot};

/// What stands in examples.
const WORDS: [&str; 8] = ["changeme", "change_me", "change-me", "password", "secret", "example", "keylatch", "12345678"];
/// What a good one of 16 bytes and more has at least.
const DIFFERENT_MIN: usize = 8;

pub fn look(snapshot: &Snapshot, config: &Path, files: &Files, found: &mut Findings) {
    let settings = &snapshot.settings;
    let all = named(settings, files);
    for (index, (place, secret)) in all.iter().enumerate() {
        let lower = secret.to_ascii_lowercase();
        let different = secret.bytes().collect::<BTreeSet<_>>().len();
        if different < DIFFERENT_MIN || WORDS.iter().any(|word| lower.contains(word)) {
            found.bad(place, "is easily guessed", "make one that nobody can guess: openssl rand -hex 32");
        }
        if let Some((other, _)) = all.iter().take(index).find(|(_, known)| known == secret) {
            found.bad(
                place,
                format!("is the same as {other}: who knows one knows both"),
                "give each a secret of its own: openssl rand -hex 32",
            );
        }
    }
    passwords(settings, files, found);
    modes(snapshot, config, files, found);
}

/// The secrets that are no passwords of somebody else's, each with its place.
fn named(settings: &Settings, files: &Files) -> Vec<(String, String)> {
    let mut all: Vec<(String, &SecretRef)> = Vec::new();
    all.extend(settings.secrets.key_hmac.iter().map(|secret| ("secrets.key_hmac".into(), secret)));
    all.extend(settings.secrets.admin.iter().map(|secret| ("secrets.admin".into(), secret)));
    all.extend(settings.secrets.previous.iter().enumerate().map(|(index, secret)| (format!("secrets.previous[{index}]"), secret)));
    for (at, listener) in settings.listeners.iter().enumerate() {
        let values = listener.origin_secret.iter().flat_map(|origin| origin.values.iter().enumerate());
        all.extend(values.map(|(index, secret)| (format!("listeners[{at}].origin_secret.values[{index}]"), secret)));
    }
    let webhooks = settings.alerts.iter().flat_map(|alerts| alerts.webhooks.iter().enumerate());
    all.extend(webhooks.filter_map(|(index, webhook)| Some((format!("alerts.webhooks[{index}].secret"), webhook.secret.as_ref()?))));
    all.into_iter().filter_map(|(place, secret)| Some((place, files.secret(secret).ok()?))).collect()
}

/// Passwords of servers that are elsewhere.
fn passwords(settings: &Settings, files: &Files, found: &mut Findings) {
    for (place, url) in urls(settings) {
        let Some(url) = files.secret(url).ok().and_then(|text| Url::parse(&text).ok()) else { continue };
        let password = url.password().unwrap_or_default();
        if is_here(url.host_str().unwrap_or_default()) && password.is_empty() {
            continue;
        }
        let lower = password.to_ascii_lowercase();
        if password.is_empty() {
            found.warn(place, "has no password, and the server is elsewhere", "give the server a password, or client certificates");
        } else if password == url.username() || WORDS.iter().any(|word| lower.contains(word)) || password.len() < 8 {
            found.warn(place, "has a password that is easily guessed", "give it one that nobody can guess: openssl rand -hex 24");
        }
    }
}

/// Who may read and write the files.
fn modes(snapshot: &Snapshot, config: &Path, files: &Files, found: &mut Findings) {
    let mut secret = snapshot.secret_files.clone();
    let settings = &snapshot.settings;
    let own = [settings.secrets.key_hmac.as_ref(), settings.secrets.admin.as_ref()];
    secret.extend(
        own.into_iter().flatten().chain(&settings.secrets.previous).filter_map(|secret| secret.file()).map(|path| files.path(path)),
    );
    if let Storage::Sqlite(sqlite) = &settings.storage {
        // With their journals: each holds the hashes of keys and passwords.
        secret.extend(["", ".secret", "-wal", "-shm"].map(|end| PathBuf::from(format!("{}{end}", sqlite.path))));
    }
    let mode = |path: &Path| std::fs::metadata(path).ok().map(|about| about.permissions().mode());
    for path in &secret {
        if let Some(mode) = mode(path).filter(|mode| mode & 0o007 != 0) {
            let what = format!("holds secrets, and everybody on this machine may open it (mode {:04o})", mode & 0o7777);
            found.bad(path.display().to_string(), what, format!("chmod o= {}", path.display()));
        }
    }
    let others = snapshot.files.keys().filter(|path| !secret.contains(*path)).cloned().chain([config.to_owned()]);
    for path in others {
        if let Some(mode) = mode(&path).filter(|mode| mode & 0o022 != 0) {
            let what = format!("may be changed by others than its owner (mode {:04o})", mode & 0o7777);
            found.bad(path.display().to_string(), what, format!("chmod go-w {}", path.display()));
        }
    }
    let text = std::fs::read_to_string(config).unwrap_or_default();
    let urls = urls(settings).into_iter().filter_map(|(place, url)| {
        let password = Url::parse(&files.secret(url).ok()?).ok()?.password().map(str::to_owned);
        Some((place.to_owned(), password.filter(|password| !password.is_empty())?))
    });
    let inside = named(settings, files).into_iter().chain(urls).find(|(_, secret)| text.contains(secret.as_str()));
    if let (Some((place, _)), Some(mode)) = (inside, mode(config).filter(|mode| mode & 0o004 != 0)) {
        let what = format!("{place} stands in it, and everybody on this machine may read it (mode {:04o})", mode & 0o7777);
        let remedy = format!("chmod o= {}, or put the secret into a file: `file:PATH`", config.display());
        found.bad(config.display().to_string(), what, remedy);
    }
}

/// The addresses of servers, which may hold passwords.
fn urls(settings: &Settings) -> Vec<(&'static str, &SecretRef)> {
    let postgres = match &settings.storage {
        Storage::Postgres(postgres) => Some(("storage.postgres.url", &postgres.url)),
        _ => None,
    };
    postgres.into_iter().chain(settings.redis.iter().map(|redis| ("redis.url", &redis.url))).collect()
}
