//! Checks the stores: availability, versions, clocks, default passwords, and the encryption of their connections.

use std::time::SystemTime;

use prometheus::Registry;
use reqwest::Url;

use super::{Findings, cleartext_severity};
use crate::bindings::{self, Purpose};
use crate::config::model::{PostgresTls, Storage};
use crate::config::store_url::{self, PostgresUrl};
use crate::config::{Files, Settings};
use crate::sql::ServerInfo;
use crate::util::time::millis;

/// The largest tolerated difference of clocks, in milliseconds. Beyond it the order of events is unreliable.
const CLOCKS_MS: i64 = 2000;
const POSTGRES_MIN: u32 = 13;
const REDIS_MIN: u32 = 6;

pub async fn check(settings: &Settings, files: &Files, found: &mut Findings) {
    encryption(settings, files, found);
    let registry = Registry::new();
    let place = match &settings.storage {
        Storage::Postgres(_) => "storage.postgres",
        Storage::Sqlite(_) => "storage.sqlite",
        Storage::Memory => return,
    };
    match bindings::open(settings, files, &registry, Purpose::Command, None).await {
        Ok(opened) => match opened.store.server_info().await {
            Ok(about) => {
                version(place, &about, if place == "storage.postgres" { POSTGRES_MIN } else { 0 }, found);
                works(place, &opened.store, found).await;
                accounts(&opened.store, found).await;
            }
            Err(error) => found.bad(place, format!("does not answer: {error}"), "check the server"),
        },
        Err(error) => found.bad(place, error, "correct it; until then unknown keys are refused"),
    }
    if settings.redis.is_some() {
        match bindings::open_redis(settings, files, &registry).await {
            Ok(Some(redis)) => match redis.server_info().await {
                Ok(about) => version("redis", &about, REDIS_MIN, found),
                Err(error) => {
                    found.warn("redis", format!("does not answer: {error}"), "check the server; until then each replica counts alone")
                }
            },
            Ok(None) => {}
            Err(error) => found.bad("redis", error, "correct the section `redis`"),
        }
    }
}

/// Checks that the store accepts writes and delivers notifications.
async fn works(place: &str, store: &bindings::Store, found: &mut Findings) {
    if let Err(error) = store.try_write().await {
        found.bad(place, format!("accepts no writes: {error}"), "use the primary server; until then unknown keys are refused");
    }
    if let Err(error) = store.test_notifications().await {
        let what = format!("{error}. Bans and other changes take up to 30 s to reach all replicas");
        found.warn("storage.postgres.listen_url", what, "see docs/how-to/postgres.md");
    }
}

fn version(place: &str, about: &ServerInfo, least: u32, found: &mut Findings) {
    if about.major < least {
        found.bad(place, format!("{} is too old", about.version), format!("use version {least} or later"));
    }
    let apart = (about.now_ms - millis(SystemTime::now())).abs();
    if apart > CLOCKS_MS {
        let what = format!(
            "its clock differs from the clock of this machine by {:.1} s",
            std::time::Duration::from_millis(apart.unsigned_abs()).as_secs_f64()
        );
        found.warn(place, what, "synchronise both by NTP (chrony, systemd-timesyncd)");
    }
}

/// Checks for accounts that still have a generated password.
async fn accounts(store: &bindings::Store, found: &mut Findings) {
    let Ok(accounts) = store.admin_store().accounts().await else { return };
    for account in accounts.iter().filter(|account| account.must_change && !account.disabled) {
        let what = format!("the account `{}` still has its first password", account.name);
        found.warn("accounts", what, "sign in and change it, or remove the account with `keylatch admin remove`");
    }
}

/// Checks the encryption of connections to stores on other machines.
fn encryption(settings: &Settings, files: &Files, found: &mut Findings) {
    let host = |secret| {
        let url = files.secret(secret).ok().and_then(|text| store_url::redis(&text).ok()).and_then(|text| Url::parse(&text).ok());
        url.map(|url| (url.scheme().to_owned(), url.host_str().unwrap_or_default().to_owned()))
    };
    let travels = "its password and the bindings are sent in cleartext";
    if let Storage::Postgres(postgres) = &settings.storage
        && let Some(url) = files.secret(&postgres.url).ok().and_then(|text| PostgresUrl::parse(&text).ok())
        && let Some((level, host)) = url.hosts.iter().filter_map(|host| Some((cleartext_severity(&host.name)?, &host.name))).min()
    {
        let place = "storage.postgres.tls";
        match url.verification(postgres.tls) {
            Ok(PostgresTls::Off) => {
                let what = format!("is off, and {host} is on another machine: {travels}");
                found.add(level, place, what, "use verify_full, with `ca_file` for a CA of your own");
            }
            Ok(PostgresTls::VerifyCa) => {
                let what = "does not verify the name of the server: any server with a certificate of that CA is accepted";
                found.note(place, what, "use verify_full");
            }
            _ => {}
        }
    }
    if let Some(redis) = &settings.redis
        && let Some((scheme, host)) = host(&redis.url)
        && scheme != "rediss"
        && let Some(level) = cleartext_severity(&host)
    {
        let what = format!("uses no TLS, and {host} is on another machine: {travels}");
        found.add(level, "redis.url", what, "use `rediss://`, with `ca_file` for a CA of your own");
    }
}
