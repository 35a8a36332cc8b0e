//! Where requests come in and where they go: who may reach what, and past whom.

use std::net::{IpAddr, SocketAddr};

use keylatch_filters::contract::TrustConfig;

use super::{Findings, Level, in_clear, is_here, is_reached};
use crate::compile::Snapshot;
use crate::config::model::{ClientCertificates, Listener, Presented, Storage};
use crate::config::{Files, read};
use crate::util::pem::{certificates as certificates_of, parsed};

/// Who stands in Cloudflare's CA for Authenticated Origin Pulls, which all of its customers share.
const SHARED_BY_ALL: &str = "origin-pull.cloudflare.net";

pub fn look(snapshot: &Snapshot, files: &Files, found: &mut Findings) {
    let settings = &snapshot.settings;
    for (index, listener) in settings.listeners.iter().enumerate() {
        self::listener(listener, &format!("listeners[{index}]"), &settings.trusted_proxies, files, found);
    }
    let admin = settings.admin.address;
    if is_reached(admin.ip()) {
        let what = format!("{admin} can be reached from elsewhere: the console, and the metrics without any password");
        found.bad("admin.address", what, "listen on 127.0.0.1, or on the address of WireGuard");
    } else if !admin.ip().is_loopback() {
        found.note("admin.address", format!("{admin} can be reached by whoever is in that network"), "127.0.0.1, if that is not meant");
    }
    upstreams(snapshot, found);
    if settings.storage == Storage::Memory {
        found.bad(
            "storage",
            "is memory: bindings and accounts are gone with the process",
            "storage: {sqlite: {path: /var/lib/keylatch/keylatch.db}}, or postgres",
        );
    }
    let binds = |name| name == "key_binding" || name == "bearer" || name == "client_certificate";
    for route in snapshot.routes.iter().filter(|route| !route.chain.names().any(|(name, _)| binds(name))) {
        let what = "asks for no key, token or certificate: whoever finds it uses it";
        found.note(format!("routes: {}", route.name), what, "`key_binding`, `bearer` or `client_certificate`, if that is not meant");
    }
    for route in &snapshot.routes {
        for (name, _) in route.chain.names().filter(|(_, shadow)| *shadow) {
            found.note(
                format!("routes: {}", route.name),
                format!("`{name}` is in shadow: it decides and lets pass"),
                "take `shadow: true` away once its decisions are right",
            );
        }
    }
}

fn listener(listener: &Listener, place: &str, trusted: &TrustConfig, files: &Files, found: &mut Findings) {
    let public = is_reached(listener.address.ip());
    let behind_cloudflare = trusted.networks.iter().any(|name| name == "cloudflare");
    let clients = listener.tls.as_ref().and_then(|tls| tls.client_certificates.as_ref());
    let proven = listener.origin_secret.is_some() || clients.is_some_and(|clients| are_own(clients, files));
    if public && listener.tls.is_none() {
        let what = format!("{} can be reached from elsewhere, and speaks no TLS: keys travel in clear", listener.address);
        found.warn(format!("{place}.tls"), what, "`tls`, or listen on 127.0.0.1 (or a private address) behind a proxy that speaks it");
    }
    if public && behind_cloudflare && !proven {
        let what = "whoever has an account at Cloudflare may send requests here through it, and say of himself what he likes";
        found.warn(
            format!("{place}.origin_secret"),
            what,
            "`origin_secret`, or `tls.client_certificates` with a CA of your own (Authenticated Origin Pulls per hostname)",
        );
    }
}

/// Whether certificates are asked of all, and are of a CA of one's own.
fn are_own(clients: &ClientCertificates, files: &Files) -> bool {
    let shared = || {
        let text = read(&files.path(&clients.ca_file)).unwrap_or_default();
        let all = certificates_of(&text).unwrap_or_default();
        all.iter().any(|one| parsed(one).is_ok_and(|one| one.subject().to_string().contains(SHARED_BY_ALL)))
    };
    clients.presented == Presented::Required && !shared()
}

/// Servers to which others could go without us, or on the way to which others read along.
fn upstreams(snapshot: &Snapshot, found: &mut Findings) {
    for (index, upstream) in snapshot.settings.upstreams.iter().enumerate() {
        for (at, server) in upstream.servers.iter().enumerate() {
            let place = format!("upstreams[{index}].servers[{at}]");
            if server.address.starts_with("unix:") {
                continue;
            }
            let Some((host, port)) = server.address.rsplit_once(':') else { continue };
            if let Some(level) = in_clear(host).filter(|_| upstream.tls.is_none()) {
                let what = format!("{} is elsewhere, and no TLS is spoken to it: keys and answers travel in clear", server.address);
                found.add(level, &place, what, "`tls: {}`, or reach it by WireGuard and accept this");
            }
            let Some(port) = port.parse::<u16>().ok().filter(|_| is_here(host)) else { continue };
            let Some(open) = listens_openly(port) else { continue };
            let what = format!(
                "the server on port {port} of this machine listens on {open}: who reaches that goes around Keylatch, its bindings and its limits"
            );
            let remedy = format!(
                "have it listen on 127.0.0.1 (in Compose: `127.0.0.1:{port}:{port}`); whether a firewall closes the port is not seen"
            );
            let level = if is_reached(open.ip()) { Level::Bad } else { Level::Note };
            found.add(level, &place, what, remedy);
        }
    }
}

/// An address other than loopback on which somebody listens at this port here, as Linux tells.
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
    // The one that most can reach.
    open.filter(|address| !address.is_loopback()).max_by_key(|address| is_reached(*address)).map(|address| SocketAddr::new(address, port))
}

/// Linux writes addresses as words in the machine's own order.
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
    fn addresses_as_linux_writes_them() {
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
