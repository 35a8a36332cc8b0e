//! `keylatch firewall`: rules for the machine's own firewall, which let only Cloudflare reach the listeners, and everybody only SSH
//! and WireGuard. They are printed and never applied: whoever locks himself out should have read them.

use std::fmt::{Display, Error, Write};
use std::fs::OpenOptions;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use clap::{Args, Parser, ValueEnum, value_parser};
use ipnet::IpNet;

use super::ConfigFile;
use super::terminal::say;
use crate::compile;
use crate::config::{Files, Settings, parse_file};
use crate::doctor::is_reached;
use crate::operator::ranges;
use crate::util::secure_fs;

#[derive(Args)]
pub struct Firewall {
    #[command(flatten)]
    file: ConfigFile,
    /// Write it to this file, whole or not at all, in place of standard output
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// With the options by which this file was made, which stand in it
    #[arg(long, value_name = "FILE", conflicts_with_all = ["format", "port", "ssh", "ssh_from", "wireguard", "interface", "docker"])]
    like: Option<PathBuf>,
    #[command(flatten)]
    options: Options,
}

/// What a file of rules says of how it was made.
#[derive(Parser)]
struct Line {
    #[command(flatten)]
    options: Options,
}

#[derive(Args)]
struct Options {
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
    /// Also for the ports that Docker publishes, which do not come by what the rest of this is about; with nft
    #[arg(long)]
    docker: bool,
}

impl Options {
    /// As they would be typed.
    fn line(&self) -> String {
        let mut out = match self.format {
            Format::Nft => "--format nft",
            Format::Ufw => "--format ufw",
            Format::Iptables => "--format iptables",
        }
        .to_owned();
        let mut add = |name: &str, value: &dyn Display| out.push_str(&format!(" --{name} {value}"));
        self.port.iter().for_each(|port| add("port", port));
        add("ssh", &self.ssh);
        self.ssh_from.iter().for_each(|from| add("ssh-from", from));
        add("wireguard", &self.wireguard);
        self.interface.iter().for_each(|name| add("interface", name));
        if self.docker {
            out.push_str(" --docker");
        }
        out
    }

    /// Those by which a file was made.
    fn of(path: &Path) -> Result<Self, String> {
        let text = std::fs::read_to_string(path).map_err(|e| format!("{}: {e}", path.display()))?;
        let line = text.lines().find_map(|line| line.strip_prefix(MADE_BY));
        let line = line.ok_or_else(|| format!("{}: it does not say by which options it was made", path.display()))?;
        let words = ["keylatch firewall"].into_iter().chain(line.split_whitespace());
        let made = Line::try_parse_from(words).map_err(|e| format!("{}: {}", path.display(), e.kind()))?;
        Ok(made.options)
    }
}

/// Before the options in what is made.
const MADE_BY: &str = "# Made by: keylatch firewall ";

#[derive(Clone, Copy, PartialEq, ValueEnum)]
enum Format {
    Nft,
    Ufw,
    Iptables,
}

/// Who is let in.
struct Rules<'a> {
    asked: &'a Options,
    ranges: Vec<IpNet>,
    /// What Cloudflare reaches.
    ports: Vec<u16>,
}

pub fn firewall(asked: &Firewall) -> Result<(), String> {
    let like = asked.like.as_deref().map(Options::of).transpose()?;
    let text = text(like.as_ref().unwrap_or(&asked.options), &asked.file.config)?;
    match &asked.output {
        None => say!("{}", text.trim_end()),
        Some(path) => {
            let fresh = secure_fs::beside(path, ".new");
            let _ = std::fs::remove_file(&fresh);
            let made = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&fresh);
            let written = made.and_then(|mut file| file.write_all(text.as_bytes()).and_then(|()| file.sync_all()));
            written.and_then(|()| std::fs::rename(&fresh, path)).map_err(|e| format!("{}: {e}", path.display()))
        }
    }
}

fn text(asked: &Options, config: &Path) -> Result<String, String> {
    let settings = parse_file(config).and_then(compile::settings).map_err(|report| report.to_string())?;
    let (ranges, about) = ranges::in_force(&settings.trusted_proxies, &Files::beside(config))?;
    let name_ok = |name: &str| (1..=15).contains(&name.len()) && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b));
    if let Some(wrong) = asked.interface.iter().find(|name| !name_ok(name)) {
        return Err(format!("`{wrong}` is not the name of an interface"));
    }
    if asked.docker && asked.format != Format::Nft {
        return Err("--docker goes with --format nft".into());
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
    let mut out =
        format!("{first}\n{MADE_BY}{}\n# Lets only Cloudflare reach Keylatch, and everybody SSH and WireGuard. {about}\n", asked.line());
    if !private.is_empty() {
        let open = list(private.iter());
        out.push_str(&format!("# Not opened to Cloudflare, as the address is private: {open}. If it is reached there: --port PORT\n"));
    }
    if !asked.docker {
        let bridges = asked.interface.iter().map(|name| format!("--interface {name} ")).collect::<String>();
        out.push_str(
            "# Ports that Docker publishes do not come by here: publish them on 127.0.0.1 or on the address of WireGuard, or --docker.\n",
        );
        out.push_str(&format!(
            "# Containers that ask this host are let in where their bridge is named, too: {bridges}--interface docker0\n"
        ));
    }
    Ok(out + rest)
}

/// Those that Cloudflare reaches, and what is left out since others than Cloudflare reach it.
fn ports(asked: &Options, settings: &Settings) -> Result<(Vec<u16>, Vec<std::net::SocketAddr>), String> {
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
            writeln!(out, "    set {name} {{\n        type {kind}\n        flags interval\n        auto-merge")?;
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
        writeln!(out, "    }}")?;
        if asked.docker {
            self.docker(&mut out, &interfaces)?;
        }
        writeln!(out, "}}")?;
        Ok(out)
    }

    /// What is published is forwarded, to an address that Docker has put in the place of this machine's: of that, what comes from
    /// elsewhere than containers is let through if it comes from Cloudflare.
    fn docker(&self, out: &mut String, interfaces: &str) -> Result<(), Error> {
        writeln!(out, "    chain docker {{\n        type filter hook forward priority filter - 1; policy accept;")?;
        writeln!(out, "        ct state established,related accept\n        ct status ! dnat accept")?;
        writeln!(out, "        iifname {{ {interfaces}, \"docker*\", \"br-*\" }} accept")?;
        if !self.ports.is_empty() {
            let ports = list(self.ports.iter());
            writeln!(out, "        ip saddr @cloudflare4 meta l4proto tcp ct original proto-dst {{ {ports} }} accept")?;
            writeln!(out, "        ip6 saddr @cloudflare6 meta l4proto tcp ct original proto-dst {{ {ports} }} accept")?;
        }
        writeln!(out, "        drop\n    }}")
    }

    fn ufw(&self) -> Result<String, Error> {
        let Self { asked, ranges, ports } = self;
        let mut out = String::from("#!/bin/sh\nset -eu\n# SSH first: whoever enables ufw by SSH goes on being let in.\n");
        match asked.ssh_from.is_empty() {
            // Whoever has limited it has it limited still.
            true => writeln!(out, "ufw show added | grep -q '^ufw limit {0}/tcp' || ufw allow {0}/tcp", asked.ssh)?,
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
            "#!/bin/sh\nset -eu\n# Each list takes the place of what it was before in one step, or not at all; chains of others stay, and judge what passes here.\n",
        );
        // So many go into one rule.
        let ports: Vec<String> = ports.chunks(15).map(|some| some.iter().map(u16::to_string).collect::<Vec<_>>().join(",")).collect();
        for (program, icmp, v6) in [("iptables", "icmp", false), ("ip6tables", "ipv6-icmp", true)] {
            writeln!(out, "{program}-restore --noflush <<'END'\n*filter\n:KEYLATCH - [0:0]")?;
            let mut rule = |text: String| writeln!(out, "-A KEYLATCH {text}");
            rule("-m conntrack --ctstate ESTABLISHED,RELATED -j RETURN".into())?;
            rule(format!("-i lo -j RETURN\n-A KEYLATCH -p {icmp} -j RETURN"))?;
            let answers = if v6 { "-s fe80::/10 --sport 547 --dport 546" } else { "--sport 67 --dport 68" };
            rule(format!("-p udp {answers} -j RETURN"))?;
            match asked.ssh_from.is_empty() {
                true => rule(format!("-p tcp --dport {} -j RETURN", asked.ssh))?,
                false => of(&asked.ssh_from, v6).try_for_each(|from| rule(format!("-p tcp -s {from} --dport {} -j RETURN", asked.ssh)))?,
            }
            rule(format!("-p udp --dport {} -j RETURN", asked.wireguard))?;
            asked.interface.iter().try_for_each(|name| rule(format!("-i {name} -j RETURN")))?;
            for ports in &ports {
                of(ranges, v6).try_for_each(|from| rule(format!("-p tcp -s {from} -m multiport --dports {ports} -j RETURN")))?;
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
