//! Checks the bounds of numbers, and that listen addresses do not overlap. Checks of a single
//! section's meaning belong to that section.

use std::net::{IpAddr, SocketAddr};

use keylatch_filters::contract::Invalid;

use super::model::{Acme, Settings, Storage};

/// Values out of bounds. `partial`: something could not be parsed and has its default instead.
pub fn check(settings: &Settings, partial: bool) -> Vec<Invalid> {
    let mut wrong = listeners(settings);
    wrong.extend(admin(settings, partial));
    wrong.extend(settings.acme.iter().flat_map(Acme::mistakes));
    if settings.acme.is_some() && settings.storage == Storage::Memory {
        let says =
            "needs a persistent store: with `storage: memory` each start would request new certificates, and CAs limit these per week";
        wrong.push(Invalid::new(says).at("acme"));
    }
    wrong.extend(rest(settings));
    wrong
}

fn listeners(settings: &Settings) -> Vec<Invalid> {
    let mut wrong = Vec::new();
    for (index, listener) in settings.listeners.iter().enumerate() {
        let limits = &listener.limits;
        let mut check = |ok: bool, key: &str, says: &str| {
            if !ok {
                wrong.push(Invalid::new(says).at(key).at("limits").index(index).at("listeners"));
            }
        };
        check((1024..=512 * 1024).contains(&limits.header_bytes.0), "header_bytes", "must be between 1KiB and 512KiB");
        check((1..=256).contains(&limits.headers), "headers", "must be between 1 and 256");
        check((100..=600_000).contains(&limits.header_timeout.0.as_millis()), "header_timeout", "must be between 100ms and 10min");
        check((1024..=64 << 20).contains(&limits.read_ahead_bytes.0), "read_ahead_bytes", "must be between 1KiB and 64MiB");
        check(
            limits.read_ahead_total_bytes.0 >= limits.read_ahead_bytes.0,
            "read_ahead_total_bytes",
            "must be at least `read_ahead_bytes`",
        );
        check((100..=3_600_000).contains(&limits.body_timeout.0.as_millis()), "body_timeout", "must be between 100ms and 1h");
        check(limits.body_min_rate.0 <= 1024 * 1024, "body_min_rate", "must be at most 1MiB per second; 0 disables it");
        check((100..=3_600_000).contains(&limits.write_timeout.0.as_millis()), "write_timeout", "must be between 100ms and 1h");
        check((1000..=3_600_000).contains(&limits.idle_timeout.0.as_millis()), "idle_timeout", "must be between 1s and 1h");
        check((1..=86_400).contains(&limits.upgrade_idle_timeout.0.as_secs()), "upgrade_idle_timeout", "must be between 1s and 24h");
        check(limits.client_retry_max.0.as_secs() <= 86_400, "client_retry_max", "must be at most 24h");
        for (key, time) in [("lingering_time", limits.lingering_time), ("lingering_timeout", limits.lingering_timeout)] {
            check((100..=600_000).contains(&time.0.as_millis()), key, "must be between 100ms and 10min");
        }
        check(limits.connections > 0, "connections", "must be at least 1");
        check(limits.connections_per_peer > 0, "connections_per_peer", "must be at least 1");
        check(limits.requests_per_connection > 0, "requests_per_connection", "must be at least 1");
    }
    wrong
}

/// The admin listener, and overlapping listen addresses.
fn admin(settings: &Settings, partial: bool) -> Vec<Invalid> {
    let mut wrong = Vec::new();
    let addresses: Vec<_> = settings.listeners.iter().map(|listener| listener.address).collect();
    for (index, address) in addresses.iter().enumerate() {
        let admins = Some(&settings.admin.address).filter(|_| !partial);
        let other = addresses.iter().take(index).chain(admins).find(|other| overlap(address, other));
        let message = match other {
            Some(other) if other == address => format!("{address} is used by two listeners"),
            Some(other) => {
                format!("{address} overlaps with {other}: 0.0.0.0 includes all IPv4 addresses, and [::] all addresses")
            }
            None => continue,
        };
        wrong.push(Invalid::new(message).at("address").index(index).at("listeners"));
    }
    let admin = &settings.admin;
    if !(60..=30 * 86_400).contains(&admin.session.0.as_secs()) {
        wrong.push(Invalid::new("must be between 1m and 30days").at("session").at("admin"));
    }
    if !(10..=3600).contains(&admin.token.0.as_secs()) {
        wrong.push(Invalid::new("must be between 10s and 1h").at("token").at("admin"));
    }
    if admin.public_origin.as_deref().is_some_and(|origin| !is_origin(origin)) {
        let says = "must be an origin such as `https://console.example.com`, without a path";
        wrong.push(Invalid::new(says).at("public_origin").at("admin"));
    }
    wrong
}

/// Whether the text has the form of an `Origin` header.
fn is_origin(text: &str) -> bool {
    let host = text.strip_prefix("https://").or_else(|| text.strip_prefix("http://"));
    host.is_some_and(|host| !host.is_empty() && host.bytes().all(|byte| byte.is_ascii_alphanumeric() || b".-:[]".contains(&byte)))
}

/// Whether the system would refuse to bind the second address.
fn overlap(one: &SocketAddr, other: &SocketAddr) -> bool {
    let takes = |all: IpAddr, ip: IpAddr| all.is_unspecified() && (all.is_ipv6() || ip.is_ipv4());
    let (first, second) = (one.ip().to_canonical(), other.ip().to_canonical());
    one.port() == other.port() && (first == second || takes(first, second) || takes(second, first))
}

/// Stores, retention and threads.
fn rest(settings: &Settings) -> Vec<Invalid> {
    let mut wrong = Vec::new();
    let mut stored = |kind: &str, ok: bool, key: &str, says: &str| {
        if !ok {
            wrong.push(Invalid::new(says).at(key).at(kind).at("storage"));
        }
    };
    match &settings.storage {
        Storage::Sqlite(sqlite) => {
            stored("sqlite", sqlite.flush_every.0.as_millis() >= 10, "flush_every", "must be at least 10ms");
            stored("sqlite", sqlite.cache_max >= 16, "cache_max", "must be at least 16");
        }
        Storage::Postgres(postgres) => {
            stored("postgres", postgres.flush_every.0.as_millis() >= 10, "flush_every", "must be at least 10ms");
            stored("postgres", postgres.cache_max >= 16, "cache_max", "must be at least 16");
            stored("postgres", (2..=500).contains(&postgres.connections_max), "connections_max", "must be between 2 and 500");
            let timeout = (50..=60_000).contains(&postgres.timeout.0.as_millis());
            stored("postgres", timeout, "timeout", "must be between 50ms and 1min");
        }
        Storage::Memory => {}
    }
    if let Some(redis) = &settings.redis {
        wrong.extend(redis.mistakes());
    }
    if let Some(alerts) = &settings.alerts {
        wrong.extend(alerts.mistakes());
    }
    wrong.extend(settings.usage.mistakes());
    let retention = &settings.retention;
    for (key, age, least_s) in [
        ("archive_after", retention.archive_after, 60),
        ("unconfirmed", retention.unconfirmed, 1),
        ("intercepts", retention.intercepts, 60),
        ("archive", retention.archive, 60),
        ("audit", retention.audit, 60),
        ("every", retention.every, 1),
    ] {
        if age.0.as_secs() < least_s {
            wrong.push(Invalid::new(format!("must be at least {least_s}s")).at(key).at("retention"));
        }
    }
    if settings.workers > 1024 {
        wrong.push(Invalid::new("must be at most 1024").at("workers"));
    }
    wrong
}
