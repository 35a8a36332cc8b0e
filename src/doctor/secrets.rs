//! Checks secrets: weak ones, repeated ones, and files that other users can read or change.

use std::collections::BTreeSet;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use keylatch_filters::contract::SecretRef;
use percent_encoding::percent_decode_str;
use reqwest::Url;

use super::{Findings, is_this_machine};
use crate::compile::Snapshot;
use crate::config::model::Storage;
use crate::config::store_url::{self, PostgresUrl};
use crate::config::{Files, Settings};
use crate::util::secure_fs::folder_of;

/// Words of placeholder secrets in examples.
const WORDS: [&str; 8] = ["changeme", "change_me", "change-me", "password", "secret", "example", "keylatch", "12345678"];
/// The minimum number of distinct bytes in a strong secret of at least 16 bytes.
const DIFFERENT_MIN: usize = 8;

/// Header fields with a secret value.
const SECRET_FIELDS: [&str; 5] = ["authorization", "proxy-authorization", "x-api-key", "api-key", "x-goog-api-key"];

/// Checks all secrets. `all` has every configured secret or its reference, with its place.
pub fn check(snapshot: &Snapshot, all: &[(String, SecretRef)], config: &Path, files: &Files, found: &mut Findings) {
    let settings = &snapshot.settings;
    let read =
        |(place, secret): &(String, SecretRef)| Some((place.clone(), files.secret(secret).ok()?)).filter(|(place, _)| is_ours(place));
    let known: Vec<(String, String)> = all.iter().filter_map(read).collect();
    for (index, (place, secret)) in known.iter().enumerate() {
        let lower = secret.to_ascii_lowercase();
        let different = secret.bytes().collect::<BTreeSet<_>>().len();
        if different < DIFFERENT_MIN || WORDS.iter().any(|word| lower.contains(word)) {
            found.bad(place, "is easily guessed", "generate a random secret: openssl rand -hex 32");
        }
        // Filters of several routes may share the credentials of one service or provider.
        let twice = |(other, text): &&(String, String)| text == secret && !(in_filter(other) && in_filter(place));
        if let Some((other, _)) = known.iter().take(index).find(twice) {
            found.bad(
                place,
                format!("is the same as {other}: a leak of one reveals both"),
                "generate a separate secret for each: openssl rand -hex 32",
            );
        }
    }
    passwords(settings, files, found);
    modes(snapshot, all, config, files, found);
}

fn in_filter(place: &str) -> bool {
    place.contains("filters[")
}

/// Whether the operator chooses the secret and it must be hard to guess. URLs with a password of another service, public keys,
/// and public header fields do not count.
fn is_ours(place: &str) -> bool {
    let (above, last) = place.rsplit_once('.').unwrap_or(("", place));
    let field = above.ends_with(".set") || above.ends_with(".add");
    let public = ["pem", "jwks", "url", "listen_url"].contains(&last) || last.starts_with("sentinels");
    if field { SECRET_FIELDS.contains(&last.to_ascii_lowercase().as_str()) } else { !public }
}

/// Checks the passwords of stores; a store on this machine may have none.
fn passwords(settings: &Settings, files: &Files, found: &mut Findings) {
    for (place, url) in urls(settings) {
        let Some((user, password, hosts)) = files.secret(url).ok().and_then(|text| credentials(&text)) else { continue };
        if hosts.iter().all(|host| is_this_machine(host)) && password.is_empty() {
            continue;
        }
        let lower = password.to_ascii_lowercase();
        if password.is_empty() {
            found.warn(place, "has no password, and the server is on another machine", "set a password, or use client certificates");
        } else if password == user || WORDS.iter().any(|word| lower.contains(word)) || password.len() < 8 {
            found.warn(place, "has a password that is easily guessed", "generate a random password: openssl rand -hex 24");
        }
    }
}

/// The user, the password and the hosts in the URL of a store.
fn credentials(url: &str) -> Option<(String, String, Vec<String>)> {
    if let Ok(url) = PostgresUrl::parse(url) {
        let hosts = url.hosts.into_iter().map(|host| host.name).collect();
        return Some((url.user.unwrap_or_default(), url.password.unwrap_or_default(), hosts));
    }
    let url = Url::parse(&store_url::redis(url).ok()?).ok()?;
    let password = percent_decode_str(url.password().unwrap_or_default()).decode_utf8_lossy().into_owned();
    Some((url.username().to_owned(), password, vec![url.host_str().unwrap_or_default().to_owned()]))
}

/// Checks the modes of secret files, of other files, and of their folders.
fn modes(snapshot: &Snapshot, all: &[(String, SecretRef)], config: &Path, files: &Files, found: &mut Findings) {
    let mut secret = snapshot.secret_files.clone();
    let settings = &snapshot.settings;
    secret.extend(all.iter().filter_map(|(_, secret)| secret.file()).map(|path| files.path(path)));
    if let Storage::Sqlite(sqlite) = &settings.storage {
        // The database and its journals hold hashes of keys and passwords.
        secret.extend(["", ".secret", "-wal", "-shm"].map(|end| PathBuf::from(format!("{}{end}", sqlite.path))));
    }
    let mode = |path: &Path| std::fs::metadata(path).ok().map(|about| about.permissions().mode());
    for path in &secret {
        if let Some(mode) = mode(path).filter(|mode| mode & 0o027 != 0) {
            let who = if mode & 0o007 != 0 { "every user of this machine may open it" } else { "its group may change it" };
            found.bad(
                path.display().to_string(),
                format!("holds secrets, and {who} (mode {:04o})", mode & 0o7777),
                format!("chmod g-w,o= {}", path.display()),
            );
        }
    }
    let others = snapshot.files.keys().filter(|path| !secret.contains(*path)).cloned().chain([config.to_owned()]);
    let mut folders: BTreeSet<PathBuf> = secret.iter().map(|path| folder_of(path).to_owned()).collect();
    for path in others {
        folders.insert(folder_of(&path).to_owned());
        if let Some(mode) = mode(&path).filter(|mode| mode & 0o022 != 0) {
            let what = format!("is writable by users other than its owner (mode {:04o})", mode & 0o7777);
            found.bad(path.display().to_string(), what, format!("chmod go-w {}", path.display()));
        }
    }
    // Write access to the folder allows to replace its files, unless the sticky bit is set, as on /tmp.
    for folder in folders {
        if let Some(mode) = mode(&folder).filter(|mode| mode & 0o002 != 0 && mode & 0o1000 == 0) {
            let what = format!("every user of this machine may replace the files in it (mode {:04o})", mode & 0o7777);
            found.bad(folder.display().to_string(), what, format!("chmod o-w {}", folder.display()));
        }
    }
    let text = std::fs::read_to_string(config).unwrap_or_default();
    let urls = urls(settings).into_iter().filter_map(|(place, url)| {
        let password = Url::parse(&files.secret(url).ok()?).ok()?.password().map(str::to_owned);
        Some((place.to_owned(), password.filter(|password| !password.is_empty())?))
    });
    let written = all.iter().filter(|(place, secret)| is_ours(place) && secret.file().is_none());
    let written = written.map(|(place, secret)| (place.clone(), secret.text().to_owned()));
    let inside = written.chain(urls).find(|(_, secret)| text.contains(secret.as_str()));
    if let (Some((place, _)), Some(mode)) = (inside, mode(config).filter(|mode| mode & 0o004 != 0)) {
        let what = format!("it contains {place}, and every user of this machine may read it (mode {:04o})", mode & 0o7777);
        let remedy = format!("chmod o= {}, or move the secret to a file: `file:PATH`", config.display());
        found.bad(config.display().to_string(), what, remedy);
    }
}

/// The URLs of stores, which may contain passwords.
fn urls(settings: &Settings) -> Vec<(&'static str, &SecretRef)> {
    let (postgres, listens) = match &settings.storage {
        Storage::Postgres(postgres) => (Some(&postgres.url), postgres.listen_url.as_ref()),
        _ => (None, None),
    };
    let postgres = postgres.map(|url| ("storage.postgres.url", url));
    postgres
        .into_iter()
        .chain(listens.map(|url| ("storage.postgres.listen_url", url)))
        .chain(settings.redis.iter().map(|redis| ("redis.url", &redis.url)))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::is_ours;

    #[test]
    fn secrets_that_must_be_hard_to_guess() {
        for (place, is) in [
            ("secrets.key_hmac", true),
            ("secrets.previous[0]", true),
            ("acme.external_account.key", true),
            ("filters[0].bearer.jwt[0].key.secret", true),
            ("filters[0].bearer.jwt[0].key.pem", false),
            ("routes[1].filters[0].headers.request.set.Authorization", true),
            ("routes[1].filters[0].headers.request.set.X-Env", false),
            ("redis.url", false),
            ("redis.sentinels[0]", false),
            ("alerts.webhooks[0].url", false),
        ] {
            assert_eq!(is_ours(place), is, "{place}");
        }
    }
}
