//! `keylatch firewall`: prints rules for the host firewall that admit Cloudflare to the listeners, and everyone else to SSH and
//! WireGuard only.
//!
//! The rules are never applied here: a mistake can lock the operator out, so they must be read first.

use std::fmt::{Display, Error, Write};
use std::fs::OpenOptions;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use clap::{Args, Parser, ValueEnum, value_parser};
use ipnet::IpNet;

use super::ConfigFile;
use super::terminal::outln;
use crate::compile;
use crate::config::{Files, Settings, parse_file};
use crate::doctor::is_reachable;
use crate::operator::ranges;
use crate::util::secure_fs;

#[derive(Args)]
pub struct Firewall {
    #[command(flatten)]
    file: ConfigFile,
    /// Write the rules to this file, atomically, instead of standard output
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Use the options with which this file of rules was made
    #[arg(long, value_name = "FILE", conflicts_with_all = ["format", "port", "ssh", "ssh_from", "wireguard", "interface", "docker"])]
    like: Option<PathBuf>,
    #[command(flatten)]
    options: Options,
}

/// The options in the header of a file of rules.
#[derive(Parser)]
struct HeaderOptions {
    #[command(flatten)]
    options: Options,
}

#[derive(Args)]
struct Options {
    /// The format of the rules: for `nft -f`, a shell script with ufw, or a shell script with iptables and ip6tables
    #[arg(long, value_enum, default_value = "nft")]
    format: Format,
    /// A TCP port that Cloudflare may reach; may be repeated. Default: the ports of all listeners on public or wildcard addresses
    #[arg(long, value_name = "PORT", value_parser = value_parser!(u16).range(1..))]
    port: Vec<u16>,
    /// The TCP port of SSH
    #[arg(long, value_name = "PORT", default_value = "22", value_parser = value_parser!(u16).range(1..))]
    ssh: u16,
    /// A network from which SSH is admitted; may be repeated. Default: every network
    #[arg(long, value_name = "CIDR")]
    ssh_from: Vec<IpNet>,
    /// The UDP port of WireGuard
    #[arg(long, value_name = "PORT", default_value = "51820", value_parser = value_parser!(u16).range(1..))]
    wireguard: u16,
    /// An interface from which everything is admitted; may be repeated. For example that of WireGuard, or the bridge of containers that
    /// call this host
    #[arg(long, value_name = "NAME", default_value = "wg0")]
    interface: Vec<String>,
    /// Also filter ports that Docker publishes, which bypass the input chain. Needs `--format nft`
    #[arg(long)]
    docker: bool,
}

impl Options {
    /// The options as they would be typed.
    fn command_line(&self) -> String {
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

    /// The options in the header of a file of rules.
    fn from_file(path: &Path) -> Result<Self, String> {
        let text = std::fs::read_to_string(path).map_err(|e| format!("{}: {e}", path.display()))?;
        let line = text.lines().find_map(|line| line.strip_prefix(MADE_BY));
        let line = line.ok_or_else(|| format!("{}: the line `{MADE_BY}…` is missing", path.display()))?;
        let words = ["keylatch firewall"].into_iter().chain(line.split_whitespace());
        let made = HeaderOptions::try_parse_from(words).map_err(|e| format!("{}: {}", path.display(), e.kind()))?;
        Ok(made.options)
    }
}

/// The prefix of the header line with the options.
const MADE_BY: &str = "# Made by: keylatch firewall ";

#[derive(Clone, Copy, PartialEq, ValueEnum)]
enum Format {
    Nft,
    Ufw,
    Iptables,
}

/// The content of the rules, for all formats.
struct Rules<'a> {
    options: &'a Options,
    ranges: Vec<IpNet>,
    /// The ports that Cloudflare may reach.
    ports: Vec<u16>,
}

pub fn firewall(args: &Firewall) -> Result<(), String> {
    let like = args.like.as_deref().map(Options::from_file).transpose()?;
    let text = text(like.as_ref().unwrap_or(&args.options), &args.file.config)?;
    match &args.output {
        None => outln!("{}", text.trim_end()),
        Some(path) => {
            let fresh = secure_fs::beside(path, ".new");
            let _ = std::fs::remove_file(&fresh);
            let made = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&fresh);
            let written = made.and_then(|mut file| file.write_all(text.as_bytes()).and_then(|()| file.sync_all()));
            written.and_then(|()| std::fs::rename(&fresh, path)).map_err(|e| format!("{}: {e}", path.display()))
        }
    }
}

fn text(options: &Options, config: &Path) -> Result<String, String> {
    let settings = parse_file(config).and_then(compile::settings).map_err(|report| report.to_string())?;
    let (ranges, about) = ranges::in_force(&settings.trusted_proxies, &Files::beside(config))?;
    let name_ok = |name: &str| (1..=15).contains(&name.len()) && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b));
    if let Some(wrong) = options.interface.iter().find(|name| !name_ok(name)) {
        return Err(format!("--interface: `{wrong}` is not the name of an interface"));
    }
    if options.docker && options.format != Format::Nft {
        return Err("--docker needs --format nft".into());
    }
    let (ports, private) = ports(options, &settings)?;
    let rules = Rules { options, ranges, ports };
    let text = match options.format {
        Format::Nft => rules.nft(),
        Format::Ufw => rules.ufw(),
        Format::Iptables => rules.iptables(),
    };
    let text = text.map_err(|e| e.to_string())?;
    let (first, rest) = text.split_once('\n').unwrap_or((&text, ""));
    let mut out = format!(
        "{first}\n{MADE_BY}{}\n# Admits Cloudflare to Keylatch, and everyone to SSH and WireGuard only. {about}\n",
        options.command_line()
    );
    if !private.is_empty() {
        let open = list(private.iter());
        out.push_str(&format!("# Not opened to Cloudflare, as the address is private: {open}. To open it, use --port PORT\n"));
    }
    if !options.docker {
        let bridges = options.interface.iter().map(|name| format!("--interface {name} ")).collect::<String>();
        out.push_str(
            "# Ports that Docker publishes bypass these rules: publish them on 127.0.0.1 or the WireGuard address, or use --docker.\n",
        );
        out.push_str(&format!("# To admit containers that call this host, name their bridge as well: {bridges}--interface docker0\n"));
    }
    Ok(out + rest)
}

/// The ports that Cloudflare may reach, and the listeners that are left out because their address is private.
fn ports(options: &Options, settings: &Settings) -> Result<(Vec<u16>, Vec<std::net::SocketAddr>), String> {
    if !options.port.is_empty() {
        return Ok((options.port.clone(), Vec::new()));
    }
    let outside = settings.listeners.iter().map(|listener| listener.address).filter(|at| !at.ip().is_loopback());
    let (public, private): (Vec<_>, Vec<_>) = outside.partition(|at| is_reachable(at.ip()));
    if public.is_empty() && private.is_empty() {
        return Err("all listeners are on loopback addresses; name the ports that Cloudflare may reach, such as --port 443".into());
    }
    let mut ports: Vec<u16> = public.iter().map(std::net::SocketAddr::port).collect();
    ports.sort_unstable();
    ports.dedup();
    Ok((ports, private))
}

/// The networks of one IP version.
fn of_version(networks: &[IpNet], v6: bool) -> impl Iterator<Item = &IpNet> {
    networks.iter().filter(move |network| matches!(network, IpNet::V6(_)) == v6)
}

fn list(items: impl Iterator<Item = impl ToString>) -> String {
    items.map(|one| one.to_string()).collect::<Vec<_>>().join(", ")
}

impl Rules<'_> {
    fn nft(&self) -> Result<String, Error> {
        let Self { options, ranges, ports } = self;
        let mut out =
            String::from("#!/usr/sbin/nft -f\n# Load it with `nft -f FILE`. It replaces the table `inet keylatch` and nothing else.\n");
        writeln!(out, "table inet keylatch\ndelete table inet keylatch\n\ntable inet keylatch {{")?;
        for (name, kind, v6) in [("cloudflare4", "ipv4_addr", false), ("cloudflare6", "ipv6_addr", true)] {
            writeln!(out, "    set {name} {{\n        type {kind}\n        flags interval\n        auto-merge")?;
            if of_version(ranges, v6).next().is_some() {
                writeln!(out, "        elements = {{ {} }}", list(of_version(ranges, v6)))?;
            }
            writeln!(out, "    }}")?;
        }
        writeln!(out, "    chain input {{\n        type filter hook input priority filter; policy drop;")?;
        writeln!(out, "        ct state established,related accept\n        ct state invalid drop\n        iif \"lo\" accept")?;
        writeln!(out, "        meta l4proto {{ icmp, ipv6-icmp }} accept")?;
        // DHCP: connection tracking does not match answers to broadcasts and multicasts.
        writeln!(out, "        udp sport 67 udp dport 68 accept\n        ip6 saddr fe80::/10 udp sport 547 udp dport 546 accept")?;
        match options.ssh_from.is_empty() {
            true => writeln!(out, "        tcp dport {} accept", options.ssh)?,
            false => {
                for network in &options.ssh_from {
                    let family = if matches!(network, IpNet::V6(_)) { "ip6" } else { "ip" };
                    writeln!(out, "        {family} saddr {network} tcp dport {} accept", options.ssh)?;
                }
            }
        }
        let interfaces = list(options.interface.iter().map(|name| format!("\"{name}\"")));
        writeln!(out, "        udp dport {} accept\n        iifname {{ {interfaces} }} accept", options.wireguard)?;
        if !ports.is_empty() {
            let ports = list(ports.iter());
            writeln!(out, "        ip saddr @cloudflare4 tcp dport {{ {ports} }} accept")?;
            writeln!(out, "        ip6 saddr @cloudflare6 tcp dport {{ {ports} }} accept")?;
        }
        writeln!(out, "    }}")?;
        if options.docker {
            self.docker(&mut out, &interfaces)?;
        }
        writeln!(out, "}}")?;
        Ok(out)
    }

    /// Traffic to a published port is forwarded with a destination that Docker has rewritten (DNAT). This chain filters it:
    /// containers pass, and everything else passes only from Cloudflare.
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
        let Self { options, ranges, ports } = self;
        let mut out = String::from("#!/bin/sh\nset -eu\n# SSH first, so that an operator who is connected by SSH is not locked out.\n");
        match options.ssh_from.is_empty() {
            // An existing `limit` rule for SSH stays.
            true => writeln!(out, "ufw show added | grep -q '^ufw limit {0}/tcp' || ufw allow {0}/tcp", options.ssh)?,
            false => {
                options
                    .ssh_from
                    .iter()
                    .try_for_each(|network| writeln!(out, "ufw allow from {network} to any port {} proto tcp", options.ssh))?;
            }
        }
        // The rules have the form of `ufw show added`, so that old ones can be found and deleted.
        writeln!(out, "rules='allow {}/udp", options.wireguard)?;
        options.interface.iter().try_for_each(|name| writeln!(out, "allow in on {name}"))?;
        for port in ports {
            ranges.iter().try_for_each(|network| writeln!(out, "allow from {network} to any port {port} proto tcp"))?;
        }
        out.truncate(out.trim_end().len());
        writeln!(out, "'")?;
        out.push_str(UFW_END);
        Ok(out)
    }

    fn iptables(&self) -> Result<String, Error> {
        let Self { options, ranges, ports } = self;
        let mut out = String::from(
            "#!/bin/sh\nset -eu\n# Each list replaces its predecessor in one step or not at all. Other chains stay, and apply to what passes here.\n",
        );
        // A multiport match takes at most 15 ports.
        let ports: Vec<String> = ports.chunks(15).map(|some| some.iter().map(u16::to_string).collect::<Vec<_>>().join(",")).collect();
        for (program, icmp, v6) in [("iptables", "icmp", false), ("ip6tables", "ipv6-icmp", true)] {
            writeln!(out, "{program}-restore --noflush <<'END'\n*filter\n:KEYLATCH - [0:0]")?;
            let mut rule = |text: String| writeln!(out, "-A KEYLATCH {text}");
            rule("-m conntrack --ctstate ESTABLISHED,RELATED -j RETURN".into())?;
            rule(format!("-i lo -j RETURN\n-A KEYLATCH -p {icmp} -j RETURN"))?;
            let answers = if v6 { "-s fe80::/10 --sport 547 --dport 546" } else { "--sport 67 --dport 68" };
            rule(format!("-p udp {answers} -j RETURN"))?;
            match options.ssh_from.is_empty() {
                true => rule(format!("-p tcp --dport {} -j RETURN", options.ssh))?,
                false => of_version(&options.ssh_from, v6)
                    .try_for_each(|from| rule(format!("-p tcp -s {from} --dport {} -j RETURN", options.ssh)))?,
            }
            rule(format!("-p udp --dport {} -j RETURN", options.wireguard))?;
            options.interface.iter().try_for_each(|name| rule(format!("-i {name} -j RETURN")))?;
            for ports in &ports {
                of_version(ranges, v6).try_for_each(|from| rule(format!("-p tcp -s {from} -m multiport --dports {ports} -j RETURN")))?;
            }
            rule("-j DROP".into())?;
            writeln!(out, "COMMIT\nEND\n{program} -C INPUT -j KEYLATCH 2>/dev/null || {program} -I INPUT 1 -j KEYLATCH")?;
        }
        Ok(out)
    }
}

/// Adds new rules before it deletes old ones, so that no admitted network is refused in between.
const UFW_END: &str = r#"printf '%s\n' "$rules" | while read -r rule; do
    ufw $rule comment keylatch
done
ufw show added | sed -n "s/^ufw \(.*\) comment 'keylatch'$/\1/p" | while read -r rule; do
    printf '%s\n' "$rules" | grep -qxF "$rule" || ufw delete $rule
done
ufw default deny incoming
ufw --force enable
if ufw show added | grep '^ufw \(allow\|limit\)' | grep -v "comment 'keylatch'$"; then
    echo 'These rules were not added by keylatch and stay. Check that they admit nothing but SSH.' >&2
fi
"#;
