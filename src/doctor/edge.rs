//! Checks the network boundary: which addresses listeners, the admin API and upstream servers expose, and what bypasses Keylatch.

use std::net::{IpAddr, SocketAddr};

use keylatch_filters::contract::TrustConfig;

use super::{Findings, Level, cleartext_severity, is_reachable, is_this_machine};
use crate::compile::Snapshot;
use crate::config::model::{ClientCertificates, Listener, Presented, Storage};
use crate::config::{Files, read};
use crate::util::pem::{certificates as certificates_of, parsed};

/// The name in Cloudflare's CA for Authenticated Origin Pulls, which all of its customers share.
const SHARED_BY_ALL: &str = "origin-pull.cloudflare.net";

pub fn check(snapshot: &Snapshot, files: &Files, found: &mut Findings) {
    let settings = &snapshot.settings;
    for (index, listener) in settings.listeners.iter().enumerate() {
        self::listener(listener, &format!("listeners[{index}]"), &settings.trusted_proxies, files, found);
    }
    let admin = settings.admin.address;
    if is_reachable(admin.ip()) {
        let what = format!("{admin} is reachable from other networks: the console, and the metrics, which need no password");
        found.bad("admin.address", what, "listen on 127.0.0.1, or on the WireGuard address");
    } else if !admin.ip().is_loopback() {
        found.note("admin.address", format!("{admin} is reachable from its whole network"), "listen on 127.0.0.1, unless this is intended");
    }
    upstreams(snapshot, found);
    if settings.storage == Storage::Memory {
        found.bad(
            "storage",
            "is memory: bindings and accounts are lost when the process ends",
            "set `storage: {sqlite: {path: /var/lib/keylatch/keylatch.db}}`, or `postgres`",
        );
    }
    let binds = |name| name == "key_binding" || name == "bearer" || name == "client_certificate";
    for route in snapshot.routes.iter().filter(|route| !route.chain.names().any(|(name, _)| binds(name))) {
        let what = "requires no key, token or certificate: every client may use it";
        found.note(format!("routes: {}", route.name), what, "add `key_binding`, `bearer` or `client_certificate`, unless this is intended");
    }
    for route in &snapshot.routes {
        for (name, _) in route.chain.names().filter(|(_, shadow)| *shadow) {
            found.note(
                format!("routes: {}", route.name),
                format!("`{name}` is in shadow mode: it decides, but refuses no request"),
                "remove `shadow: true` once its decisions are right",
            );
        }
    }
}

fn listener(listener: &Listener, place: &str, trusted: &TrustConfig, files: &Files, found: &mut Findings) {
    let public = is_reachable(listener.address.ip());
    let behind_cloudflare = trusted.networks.iter().any(|name| name == "cloudflare");
    let clients = listener.tls.as_ref().and_then(|tls| tls.client_certificates.as_ref());
    let proven = listener.origin_secret.is_some() || clients.is_some_and(|clients| are_own(clients, files));
    if public && listener.tls.is_none() {
        let what = format!("{} is reachable from other networks without TLS: keys are sent in cleartext", listener.address);
        found.warn(format!("{place}.tls"), what, "set `tls`, or listen on 127.0.0.1 (or a private address) behind a proxy with TLS");
    }
    if public && behind_cloudflare && !proven {
        let what = "any customer of Cloudflare can send requests here through it, and set the client address";
        found.warn(
            format!("{place}.origin_secret"),
            what,
            "set `origin_secret`, or `tls.client_certificates` with a CA of your own (Authenticated Origin Pulls per hostname)",
        );
    }
}

/// Whether every client needs a certificate, from a CA of one's own.
fn are_own(clients: &ClientCertificates, files: &Files) -> bool {
    let shared = || {
        let text = read(&files.path(&clients.ca_file)).unwrap_or_default();
        let all = certificates_of(&text).unwrap_or_default();
        all.iter().any(|one| parsed(one).is_ok_and(|one| one.subject().to_string().contains(SHARED_BY_ALL)))
    };
    clients.presented == Presented::Required && !shared()
}

/// Servers that clients can reach without Keylatch, and servers to which the connection is unencrypted.
fn upstreams(snapshot: &Snapshot, found: &mut Findings) {
    for (index, upstream) in snapshot.settings.upstreams.iter().enumerate() {
        for (at, server) in upstream.servers.iter().enumerate() {
            let place = format!("upstreams[{index}].servers[{at}]");
            if server.address.starts_with("unix:") {
                continue;
            }
            let Some((host, port)) = server.address.rsplit_once(':') else { continue };
            if let Some(level) = cleartext_severity(host).filter(|_| upstream.tls.is_none()) {
                let what = format!("{} is on another machine and has no TLS: keys and responses are sent in cleartext", server.address);
                found.add(level, &place, what, "set `tls: {}`, or connect by WireGuard and accept this finding");
            }
            let Some(port) = port.parse::<u16>().ok().filter(|_| is_this_machine(host)) else { continue };
            let Some(open) = listens_openly(port) else { continue };
            let what = format!(
                "the server on port {port} of this machine listens on {open}: clients that reach it bypass Keylatch, its bindings and its limits"
            );
            let remedy = format!(
                "let it listen on 127.0.0.1 (in Compose: `127.0.0.1:{port}:{port}`); a firewall that closes the port is not detected"
            );
            let level = if is_reachable(open.ip()) { Level::Bad } else { Level::Note };
            found.add(level, &place, what, remedy);
        }
    }
}

/// An address other than loopback on which a process of this machine listens at this port, from `/proc`.
fn listens_openly(port: u16) -> Option<SocketAddr> {
    const LISTEN: &str = "0A";
    let tables = ["/proc/net/tcp", "/proc/net/tcp6"].map(|path| std::fs::read_to_string(path).unwrap_or_default());
    let rows = tables.iter().flat_map(|table| table.lines().skip(1));
    let open = rows.filter_map(|row| {
        let mut fields = row.split_whitespace().skip(1);
        let (local, state) = (fields.next()?, fields.nth(1)?);
        let (address, at) = local.split_once(':')?;
        let same = state == LISTEN && u16::from_str_radix(at, 16).ok()? == port;
        same.then(|| address_of(address)).flatten()
    });
    // A reachable address takes precedence over a private one.
    open.filter(|address| !address.is_loopback()).max_by_key(|address| is_reachable(*address)).map(|address| SocketAddr::new(address, port))
}

/// Parses an address of `/proc/net/tcp`: 32-bit words in the byte order of the machine.
fn address_of(hex: &str) -> Option<IpAddr> {
    let words: Option<Vec<[u8; 4]>> =
        (0..hex.len() / 8).map(|at| Some(u32::from_str_radix(hex.get(at * 8..at * 8 + 8)?, 16).ok()?.to_ne_bytes())).collect();
    let bytes: Vec<u8> = words?.concat();
    let address = match bytes.len() {
        4 => IpAddr::from(<[u8; 4]>::try_from(bytes).ok()?),
        16 => IpAddr::from(<[u8; 16]>::try_from(bytes).ok()?),
        _ => return None,
    };
    Some(keylatch_filters::contract::canonical(address))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg(target_endian = "little")]
    fn addresses_of_proc_net_tcp() {
        for (hex, address) in [
            ("0100007F", "127.0.0.1"),
            ("00000000", "0.0.0.0"),
            ("00000000000000000000000000000000", "::"),
            ("00000000000000000000000001000000", "::1"),
            ("0000000000000000FFFF00000100007F", "127.0.0.1"),
        ] {
            assert_eq!(address_of(hex), Some(address.parse().unwrap()), "{hex}");
        }
        assert_eq!((address_of("zz"), address_of("")), (None, None));
    }
}
