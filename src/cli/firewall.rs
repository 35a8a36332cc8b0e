//! `keylatch firewall`: rules for the machine's own firewall, which let only Cloudflare reach the listeners, and everybody only SSH
//! and WireGuard. They are printed and never applied: whoever locks himself out should have read them.

use std::fmt::Write;

use clap::{Args, ValueEnum};
use ipnet::IpNet;

use super::ConfigFile;
use super::terminal::say;
use crate::config::{Files, Parsed, Settings, parse_file};
use crate::service::ranges;

#[derive(Args)]
pub struct Firewall {
    #[command(flatten)]
    file: ConfigFile,
    /// For which program: `nft -f`, a shell with ufw, or a shell with iptables and ip6tables
    #[arg(long, value_enum, default_value = "nft")]
    format: Format,
    /// A TCP port that Cloudflare may reach, as often as you like. Default: those of the configuration's listeners that others can reach
    #[arg(long, value_name = "PORT")]
    port: Vec<u16>,
    /// The TCP port of SSH
    #[arg(long, value_name = "PORT", default_value = "22")]
    ssh: u16,
    /// Where SSH may come from, as often as you like. Default: from everywhere
    #[arg(long, value_name = "CIDR")]
    ssh_from: Vec<IpNet>,
    /// The UDP port of WireGuard
    #[arg(long, value_name = "PORT", default_value = "51820")]
    wireguard: u16,
    /// The interface of WireGuard, from which everything is let in
    #[arg(long, value_name = "NAME", default_value = "wg0")]
    interface: String,
}

#[derive(Clone, Copy, PartialEq, ValueEnum)]
enum Format {
    Nft,
    Ufw,
    Iptables,
}

pub fn firewall(asked: &Firewall) -> Result<(), String> {
    let settings = parse_file(&asked.file.config).and_then(Parsed::settings).map_err(|report| report.to_string())?;
    let (ranges, about) = ranges::in_force(&settings.trusted_proxies, &Files::beside(&asked.file.config))?;
    let name_ok = |name: &str| (1..=15).contains(&name.len()) && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b));
    if !name_ok(&asked.interface) {
        return Err(format!("`{}` is not the name of an interface", asked.interface));
    }
    let ports = ports(asked, &settings)?;
    let rules = match asked.format {
        Format::Nft => nft(asked, &ranges, &ports),
        Format::Ufw => ufw(asked, &ranges, &ports),
        Format::Iptables => iptables(asked, &ranges, &ports),
    };
    let rules = rules.map_err(|e| e.to_string())?;
    let (first, rest) = rules.split_once('\n').unwrap_or((&rules, ""));
    say!("{first}\n# Lets only Cloudflare reach Keylatch, and everybody SSH and WireGuard. {about}\n{}", rest.trim_end())
}

fn ports(asked: &Firewall, settings: &Settings) -> Result<Vec<u16>, String> {
    let mut ports = asked.port.clone();
    if ports.is_empty() {
        ports.extend(settings.listeners.iter().map(|listener| listener.address).filter(|at| !at.ip().is_loopback()).map(|at| at.port()));
    }
    ports.sort_unstable();
    ports.dedup();
    if ports.is_empty() {
        return Err("all listeners are on loopback, where nobody from outside comes; name what Cloudflare reaches: --port 443".into());
    }
    Ok(ports)
}

/// Those of one version of IP.
fn of(networks: &[IpNet], v6: bool) -> impl Iterator<Item = &IpNet> {
    networks.iter().filter(move |network| matches!(network, IpNet::V6(_)) == v6)
}

fn list(of: impl Iterator<Item = impl ToString>) -> String {
    of.map(|one| one.to_string()).collect::<Vec<_>>().join(", ")
}

fn nft(asked: &Firewall, ranges: &[IpNet], ports: &[u16]) -> Result<String, std::fmt::Error> {
    let mut out =
        String::from("#!/usr/sbin/nft -f\n# Load it with `nft -f FILE`; it takes the place of what it made before, and of nothing else.\n");
    let (ports, ssh) = (list(ports.iter()), asked.ssh);
    writeln!(out, "table inet keylatch\ndelete table inet keylatch\n\ntable inet keylatch {{")?;
    for (name, kind, v6) in [("cloudflare4", "ipv4_addr", false), ("cloudflare6", "ipv6_addr", true)] {
        writeln!(out, "    set {name} {{\n        type {kind}\n        flags interval")?;
        if of(ranges, v6).next().is_some() {
            writeln!(out, "        elements = {{ {} }}", list(of(ranges, v6)))?;
        }
        writeln!(out, "    }}")?;
    }
    writeln!(out, "    chain input {{\n        type filter hook input priority filter; policy drop;")?;
    writeln!(out, "        ct state established,related accept\n        ct state invalid drop\n        iif \"lo\" accept")?;
    writeln!(out, "        meta l4proto {{ icmp, ipv6-icmp }} accept")?;
    match asked.ssh_from.is_empty() {
        true => writeln!(out, "        tcp dport {ssh} accept")?,
        false => {
            for network in &asked.ssh_from {
                let family = if matches!(network, IpNet::V6(_)) { "ip6" } else { "ip" };
                writeln!(out, "        {family} saddr {network} tcp dport {ssh} accept")?;
            }
        }
    }
    writeln!(out, "        udp dport {} accept\n        iifname \"{}\" accept", asked.wireguard, asked.interface)?;
    writeln!(
        out,
        "        ip saddr @cloudflare4 tcp dport {{ {ports} }} accept\n        ip6 saddr @cloudflare6 tcp dport {{ {ports} }} accept"
    )?;
    // What a container engine forwards never meets the chain for input.
    writeln!(
        out,
        "    }}\n}}\n# Ports that Docker publishes do not come by here: publish them on 127.0.0.1 or on the address of WireGuard."
    )?;
    Ok(out)
}

fn ufw(asked: &Firewall, ranges: &[IpNet], ports: &[u16]) -> Result<String, std::fmt::Error> {
    let mut out = String::from("#!/bin/sh\nset -eu\n# SSH first: whoever enables ufw by SSH goes on being let in.\n");
    match asked.ssh_from.is_empty() {
        true => writeln!(out, "ufw allow {}/tcp", asked.ssh)?,
        false => {
            asked.ssh_from.iter().try_for_each(|network| writeln!(out, "ufw allow proto tcp from {network} to any port {}", asked.ssh))?
        }
    }
    writeln!(out, "ufw allow {}/udp\nufw allow in on {}", asked.wireguard, asked.interface)?;
    for port in ports {
        for network in ranges {
            writeln!(out, "ufw allow proto tcp from {network} to any port {port}")?;
        }
    }
    writeln!(out, "ufw default deny incoming\nufw --force enable")?;
    Ok(out)
}

fn iptables(asked: &Firewall, ranges: &[IpNet], ports: &[u16]) -> Result<String, std::fmt::Error> {
    let mut out = String::from("#!/bin/sh\nset -eu\n# It takes the place of what it made before; chains of others stay.\n");
    let ports = ports.iter().map(u16::to_string).collect::<Vec<_>>().join(",");
    for (program, icmp, v6) in [("iptables", "icmp", false), ("ip6tables", "ipv6-icmp", true)] {
        writeln!(out, "{program} -N KEYLATCH 2>/dev/null || {program} -F KEYLATCH")?;
        writeln!(out, "{program} -A KEYLATCH -m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT")?;
        writeln!(out, "{program} -A KEYLATCH -i lo -j ACCEPT\n{program} -A KEYLATCH -p {icmp} -j ACCEPT")?;
        match asked.ssh_from.is_empty() {
            true => writeln!(out, "{program} -A KEYLATCH -p tcp --dport {} -j ACCEPT", asked.ssh)?,
            false => of(&asked.ssh_from, v6)
                .try_for_each(|network| writeln!(out, "{program} -A KEYLATCH -p tcp -s {network} --dport {} -j ACCEPT", asked.ssh))?,
        }
        writeln!(out, "{program} -A KEYLATCH -p udp --dport {} -j ACCEPT", asked.wireguard)?;
        writeln!(out, "{program} -A KEYLATCH -i {} -j ACCEPT", asked.interface)?;
        for network in of(ranges, v6) {
            writeln!(out, "{program} -A KEYLATCH -p tcp -s {network} -m multiport --dports {ports} -j ACCEPT")?;
        }
        writeln!(out, "{program} -A KEYLATCH -j DROP")?;
        writeln!(out, "{program} -C INPUT -j KEYLATCH 2>/dev/null || {program} -I INPUT 1 -j KEYLATCH")?;
    }
    Ok(out)
}
