//! `keylatch firewall`: rules for the machine's own firewall, which let only Cloudflare reach the listeners, and everybody only SSH
//! and WireGuard. They are printed and never applied: whoever locks himself out should have read them.

use std::fmt::{Error, Write};

use clap::{Args, ValueEnum, value_parser};
use ipnet::IpNet;

use super::ConfigFile;
use super::terminal::say;
use crate::config::{Files, Parsed, Settings, parse_file};
use crate::doctor::is_reached;
use crate::service::ranges;

#[derive(Args)]
pub struct Firewall {
    #[command(flatten)]
    file: ConfigFile,
    /// For which program: `nft -f`, a shell with ufw, or a shell with iptables and ip6tables
    #[arg(long, value_enum, default_value = "nft")]
    format: Format,
    /// A TCP port that Cloudflare may reach, as often as you like. Default: those of the configuration's listeners at public addresses, or
    /// at all
    #[arg(long, value_name = "PORT", value_parser = value_parser!(u16).range(1..))]
    port: Vec<u16>,
    /// The TCP port of SSH
    #[arg(long, value_name = "PORT", default_value = "22", value_parser = value_parser!(u16).range(1..))]
    ssh: u16,
    /// Where SSH may come from, as often as you like. Default: from everywhere
    #[arg(long, value_name = "CIDR")]
    ssh_from: Vec<IpNet>,
    /// The UDP port of WireGuard
    #[arg(long, value_name = "PORT", default_value = "51820", value_parser = value_parser!(u16).range(1..))]
    wireguard: u16,
    /// An interface from which everything is let in, as often as you like: that of WireGuard, the bridge of containers that ask this host
    #[arg(long, value_name = "NAME", default_value = "wg0")]
    interface: Vec<String>,
}

#[derive(Clone, Copy, PartialEq, ValueEnum)]
enum Format {
    Nft,
    Ufw,
    Iptables,
}

/// Who is let in.
struct Rules<'a> {
    asked: &'a Firewall,
    ranges: Vec<IpNet>,
    /// What Cloudflare reaches.
    ports: Vec<u16>,
}

pub fn firewall(asked: &Firewall) -> Result<(), String> {
    let settings = parse_file(&asked.file.config).and_then(Parsed::settings).map_err(|report| report.to_string())?;
    let (ranges, about) = ranges::in_force(&settings.trusted_proxies, &Files::beside(&asked.file.config))?;
    let name_ok = |name: &str| (1..=15).contains(&name.len()) && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b));
    if let Some(wrong) = asked.interface.iter().find(|name| !name_ok(name)) {
        return Err(format!("`{wrong}` is not the name of an interface"));
    }
    let (ports, private) = ports(asked, &settings)?;
    let rules = Rules { asked, ranges, ports };
    let text = match asked.format {
        Format::Nft => rules.nft(),
        Format::Ufw => rules.ufw(),
        Format::Iptables => rules.iptables(),
    };
    let text = text.map_err(|e| e.to_string())?;
    let (first, rest) = text.split_once('\n').unwrap_or((&text, ""));
    say!("{first}\n# Lets only Cloudflare reach Keylatch, and everybody SSH and WireGuard. {about}")?;
    if !private.is_empty() {
        let open = list(private.iter());
        say!("# Not opened to Cloudflare, as the address is private: {open}. If it is reached there: --port PORT")?;
    }
    say!(
        "# Ports that Docker publishes do not come by here: publish them on 127.0.0.1 or on the address of WireGuard. Containers that ask"
    )?;
    say!("# this host are let in where their bridge is named: --interface docker0\n{}", rest.trim_end())
}

/// Those that Cloudflare reaches, and what is left out since others than Cloudflare reach it.
fn ports(asked: &Firewall, settings: &Settings) -> Result<(Vec<u16>, Vec<std::net::SocketAddr>), String> {
    if !asked.port.is_empty() {
        return Ok((asked.port.clone(), Vec::new()));
    }
    let outside = settings.listeners.iter().map(|listener| listener.address).filter(|at| !at.ip().is_loopback());
    let (public, private): (Vec<_>, Vec<_>) = outside.partition(|at| is_reached(at.ip()));
    if public.is_empty() && private.is_empty() {
        return Err("all listeners are on loopback, where nobody from outside comes; name what Cloudflare reaches: --port 443".into());
    }
    let mut ports: Vec<u16> = public.iter().map(std::net::SocketAddr::port).collect();
    ports.sort_unstable();
    ports.dedup();
    Ok((ports, private))
}

/// Those of one version of IP.
fn of(networks: &[IpNet], v6: bool) -> impl Iterator<Item = &IpNet> {
    networks.iter().filter(move |network| matches!(network, IpNet::V6(_)) == v6)
}

fn list(of: impl Iterator<Item = impl ToString>) -> String {
    of.map(|one| one.to_string()).collect::<Vec<_>>().join(", ")
}

impl Rules<'_> {
    fn nft(&self) -> Result<String, Error> {
        let Self { asked, ranges, ports } = self;
        let mut out = String::from(
            "#!/usr/sbin/nft -f\n# Load it with `nft -f FILE`; it takes the place of what it made before, and of nothing else.\n",
        );
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
        // Answers to what was asked of everybody are of no connection.
        writeln!(out, "        udp sport 67 udp dport 68 accept\n        ip6 saddr fe80::/10 udp sport 547 udp dport 546 accept")?;
        match asked.ssh_from.is_empty() {
            true => writeln!(out, "        tcp dport {} accept", asked.ssh)?,
            false => {
                for network in &asked.ssh_from {
                    let family = if matches!(network, IpNet::V6(_)) { "ip6" } else { "ip" };
                    writeln!(out, "        {family} saddr {network} tcp dport {} accept", asked.ssh)?;
                }
            }
        }
        let interfaces = list(asked.interface.iter().map(|name| format!("\"{name}\"")));
        writeln!(out, "        udp dport {} accept\n        iifname {{ {interfaces} }} accept", asked.wireguard)?;
        if !ports.is_empty() {
            let ports = list(ports.iter());
            writeln!(out, "        ip saddr @cloudflare4 tcp dport {{ {ports} }} accept")?;
            writeln!(out, "        ip6 saddr @cloudflare6 tcp dport {{ {ports} }} accept")?;
        }
        writeln!(out, "    }}\n}}")?;
        Ok(out)
    }

    fn ufw(&self) -> Result<String, Error> {
        let Self { asked, ranges, ports } = self;
        let mut out = String::from("#!/bin/sh\nset -eu\n# SSH first: whoever enables ufw by SSH goes on being let in.\n");
        match asked.ssh_from.is_empty() {
            true => writeln!(out, "ufw allow {}/tcp", asked.ssh)?,
            false => {
                asked
                    .ssh_from
                    .iter()
                    .try_for_each(|network| writeln!(out, "ufw allow from {network} to any port {} proto tcp", asked.ssh))?;
            }
        }
        // As ufw itself writes them, so that what is not among them any more is found.
        writeln!(out, "rules='allow {}/udp", asked.wireguard)?;
        asked.interface.iter().try_for_each(|name| writeln!(out, "allow in on {name}"))?;
        for port in ports {
            ranges.iter().try_for_each(|network| writeln!(out, "allow from {network} to any port {port} proto tcp"))?;
        }
        out.truncate(out.trim_end().len());
        writeln!(out, "'")?;
        out.push_str(UFW_END);
        Ok(out)
    }

    fn iptables(&self) -> Result<String, Error> {
        let Self { asked, ranges, ports } = self;
        let mut out = String::from(
            "#!/bin/sh\nset -eu\n# Each list takes the place of what it was before in one step, or not at all; chains of others stay.\n",
        );
        let ports = ports.iter().map(u16::to_string).collect::<Vec<_>>().join(",");
        for (program, icmp, v6) in [("iptables", "icmp", false), ("ip6tables", "ipv6-icmp", true)] {
            writeln!(out, "{program}-restore --noflush <<'END'\n*filter\n:KEYLATCH - [0:0]")?;
            let mut rule = |text: String| writeln!(out, "-A KEYLATCH {text}");
            rule("-m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT".into())?;
            rule(format!("-i lo -j ACCEPT\n-A KEYLATCH -p {icmp} -j ACCEPT"))?;
            let answers = if v6 { "-s fe80::/10 --sport 547 --dport 546" } else { "--sport 67 --dport 68" };
            rule(format!("-p udp {answers} -j ACCEPT"))?;
            match asked.ssh_from.is_empty() {
                true => rule(format!("-p tcp --dport {} -j ACCEPT", asked.ssh))?,
                false => of(&asked.ssh_from, v6).try_for_each(|from| rule(format!("-p tcp -s {from} --dport {} -j ACCEPT", asked.ssh)))?,
            }
            rule(format!("-p udp --dport {} -j ACCEPT", asked.wireguard))?;
            asked.interface.iter().try_for_each(|name| rule(format!("-i {name} -j ACCEPT")))?;
            if !ports.is_empty() {
                of(ranges, v6).try_for_each(|from| rule(format!("-p tcp -s {from} -m multiport --dports {ports} -j ACCEPT")))?;
            }
            rule("-j DROP".into())?;
            writeln!(out, "COMMIT\nEND\n{program} -C INPUT -j KEYLATCH 2>/dev/null || {program} -I INPUT 1 -j KEYLATCH")?;
        }
        Ok(out)
    }
}

/// What is new comes first, and what is old goes then: nobody who belongs here is out meanwhile.
const UFW_END: &str = r#"printf '%s\n' "$rules" | while read -r rule; do
    ufw $rule comment keylatch
done
ufw show added | sed -n "s/^ufw \(.*\) comment 'keylatch'$/\1/p" | while read -r rule; do
    printf '%s\n' "$rules" | grep -qxF "$rule" || ufw delete $rule
done
ufw default deny incoming
ufw --force enable
if ufw show added | grep '^ufw \(allow\|limit\)' | grep -v "comment 'keylatch'$"; then
    echo 'These rules are not from here, and stay: see whether they let in others than SSH.' >&2
fi
"#;
