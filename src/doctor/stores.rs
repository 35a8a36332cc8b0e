//! The stores: whether they answer, their versions and clocks, and who may read along on the way to them.

use std::time::SystemTime;

use prometheus::Registry;
use reqwest::Url;

use super::{Findings, in_clear};
use crate::bindings::{self, Purpose};
use crate::config::model::{PostgresTls, Storage};
use crate::config::store_url::{self, PostgresUrl};
use crate::config::{Files, Settings};
use crate::sql::ServerInfo;
use crate::util::time::millis;

/// Clocks that differ more mix up what was first.
const CLOCKS_MS: i64 = 2000;
const POSTGRES_MIN: u32 = 13;
const REDIS_MIN: u32 = 6;

pub async fn look(settings: &Settings, files: &Files, found: &mut Findings) {
    on_the_way(settings, files, found);
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
            Err(error) => found.bad(place, format!("does not answer: {error}"), "see to the server"),
        },
        Err(error) => found.bad(place, error, "see to it before requests come: until then unknown keys are refused"),
    }
    if settings.redis.is_some() {
        match bindings::open_redis(settings, files, &registry).await {
            Ok(Some(redis)) => match redis.server_info().await {
                Ok(about) => version("redis", &about, REDIS_MIN, found),
                Err(error) => {
                    found.warn("redis", format!("does not answer: {error}"), "see to the server; until then replicas count for themselves")
                }
            },
            Ok(None) => {}
            Err(error) => found.bad("redis", error, "mend its section"),
        }
    }
}

/// Whether it takes writes and delivers notifications.
async fn works(place: &str, store: &bindings::Store, found: &mut Findings) {
    if let Err(error) = store.try_write().await {
        found.bad(place, format!("takes no writes: {error}"), "name the server that does; until then unknown keys are refused");
    }
    if let Err(error) = store.test_notifications().await {
        let what = format!("{error}. Bans and other changes take up to 30 s to reach replicas");
        found.warn("storage.postgres.listen_url", what, "see docs/how-to/postgres.md");
    }
}

fn version(place: &str, about: &ServerInfo, least: u32, found: &mut Findings) {
    if about.major < least {
        found.bad(place, format!("{} is too old", about.version), format!("at least version {least} is needed"));
    }
    let apart = (about.now_ms - millis(SystemTime::now())).abs();
    if apart > CLOCKS_MS {
        let what =
            format!("its clock and this machine's are {:.1} s apart", std::time::Duration::from_millis(apart.unsigned_abs()).as_secs_f64());
        found.warn(place, what, "set them by NTP (chrony, systemd-timesyncd)");
    }
}

/// Whether somebody may still come in with what was printed at the first start.
async fn accounts(store: &bindings::Store, found: &mut Findings) {
    let Ok(accounts) = store.admin_store().accounts().await else { return };
    for account in accounts.iter().filter(|account| account.must_change && !account.disabled) {
        let what = format!("the account `{}` has a password that somebody else has made, and was not changed", account.name);
        found.warn("accounts", what, "sign in and change it, or `keylatch admin remove`");
    }
}

/// TLS to servers that are elsewhere.
fn on_the_way(settings: &Settings, files: &Files, found: &mut Findings) {
    let host = |secret| {
        let url = files.secret(secret).ok().and_then(|text| store_url::redis(&text).ok()).and_then(|text| Url::parse(&text).ok());
        url.map(|url| (url.scheme().to_owned(), url.host_str().unwrap_or_default().to_owned()))
    };
    let travels = "its password, and who may use which key, travel in clear";
    if let Storage::Postgres(postgres) = &settings.storage
        && let Some(url) = files.secret(&postgres.url).ok().and_then(|text| PostgresUrl::parse(&text).ok())
        && let Some((level, host)) = url.hosts.iter().filter_map(|host| Some((in_clear(&host.name)?, &host.name))).min()
    {
        let place = "storage.postgres.tls";
        match url.verification(postgres.tls) {
            Ok(PostgresTls::Off) => {
                let what = format!("is off, and {host} is elsewhere: {travels}");
                found.add(level, place, what, "leave it at verify_full, with `ca_file` for a CA of your own");
            }
            Ok(PostgresTls::VerifyCa) => {
                let what = "does not look at the server's name: any server with a certificate of that CA will do";
                found.note(place, what, "verify_full");
            }
            _ => {}
        }
    }
    if let Some(redis) = &settings.redis
        && let Some((scheme, host)) = host(&redis.url)
        && scheme != "rediss"
        && let Some(level) = in_clear(&host)
    {
        let what = format!("speaks no TLS, and {host} is elsewhere: {travels}");
        found.add(level, "redis.url", what, "`rediss://`, with `ca_file` for a CA of your own");
    }
}
