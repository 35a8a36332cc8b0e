//! `keylatch bindings`: what operators do with bindings from a shell. It works on the stores themselves,
//! whether a process runs or not; those that run hear of it.

mod rows;

use std::io::{Read, Write};
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};
use ipnet::IpNet;
use keylatch_filters::contract::{Bindings as _, KEY_BYTES_MAX, KeyId, Roaming, Rule};
use prometheus::Registry;

use super::{ConfigFile, actor, maker, on_runtime};
use crate::config::model::Storage;
use crate::config::{Files, Parsed, parse_file};
use crate::store::audit::{Asked, Entry};
use crate::store::record::{Change, Make, Query, Record, Terms, label};
use crate::store::row::Row;
use crate::store::{self, Opened, Purpose};

/// Fewer digits would often fit several keys; logs show 12.
const DIGITS_MIN: usize = 6;

#[derive(Args)]
pub struct Bindings {
    #[command(flatten)]
    file: ConfigFile,
    #[command(subcommand)]
    command: Command,
}

/// Which key.
#[derive(Args)]
struct Which {
    /// The key id's first digits, as logs show them; or `-` to read the key itself from standard input
    #[arg(value_name = "ID")]
    id: String,
}

#[derive(Subcommand)]
enum Command {
    /// List bindings, in the order of their ids
    List {
        /// With this label
        #[arg(long)]
        label: Option<String>,
        /// That admit this address
        #[arg(long, value_name = "IP")]
        address: Option<IpAddr>,
        /// Banned ones only
        #[arg(long)]
        banned: bool,
        /// At most so many
        #[arg(long, default_value_t = 100)]
        limit: u32,
        /// One JSON object a line
        #[arg(long)]
        json: bool,
    },
    /// Show one binding, as JSON
    Show(Which),
    /// Set a binding's rule and networks, and make it if it is not there (which needs all of the id, or the key)
    Set {
        #[command(flatten)]
        which: Which,
        /// `single`, `multiple`, `all` or `roaming`
        #[arg(long)]
        rule: Option<Rule>,
        /// A network or an address; may be given several times
        #[arg(long = "network", value_name = "CIDR", value_parser = network)]
        networks: Vec<IpNet>,
        /// What to remember about it
        #[arg(long)]
        note: Option<String>,
        /// With `--rule roaming`: how many networks at a time
        #[arg(long, value_name = "COUNT", requires = "window")]
        networks_max: Option<u8>,
        /// With `--rule roaming`: how long a network counts after its last use, such as `24h`
        #[arg(long, requires = "networks_max")]
        window: Option<humantime::Duration>,
        /// Words to find it by, all of them; may be given several times
        #[arg(long = "label", value_parser = label)]
        labels: Vec<String>,
    },
    /// Remove a binding: the key's next use binds anew
    Unbind(Which),
    /// Refuse a key from everywhere, also one that was never used (which needs all of the id, or the key)
    Ban(Which),
    /// Let a banned key be used again, within its binding; for one that was never used, see `unbind`
    Unban(Which),
    /// Make or change bindings as a file says; each needs `key_id` or `key`, and `rule`, `networks`
    Import {
        /// The file; `-` is standard input
        file: PathBuf,
        /// Default: what the file's name ends with
        #[arg(long)]
        format: Option<Format>,
    },
    /// Show what operators have changed, the latest first
    Audit {
        /// Of one binding, by its key id's first digits or whole; `-` reads the key from standard input
        #[arg(value_name = "ID")]
        id: Option<String>,
        /// At most so many
        #[arg(long, default_value_t = 100)]
        limit: u32,
        /// One JSON object a line, with each binding before and after
        #[arg(long)]
        json: bool,
    },
    /// Write all bindings to standard output
    Export {
        /// How
        #[arg(long, default_value = "jsonl")]
        format: Format,
    },
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    /// One JSON object a line
    Jsonl,
    /// With a line of names; lists are separated by spaces
    Csv,
}

fn network(text: &str) -> Result<IpNet, String> {
    let net = text.parse::<IpNet>().or_else(|_| text.parse::<IpAddr>().map(IpNet::from));
    net.map(|net| net.trunc()).map_err(|_| format!("`{text}` is neither a network such as `192.0.2.0/24` nor an address"))
}

pub fn bindings(asked: &Bindings) -> Result<(), String> {
    let settings = parse_file(&asked.file.config).and_then(Parsed::settings).map_err(|report| report.to_string())?;
    if settings.storage == Storage::Memory {
        return Err("storage is memory: its bindings are in the running process alone, and go with it".into());
    }
    on_runtime(async {
        let opened = store::open(&settings, &Files::beside(&asked.file.config), &Registry::new(), Purpose::Command, None).await?;
        if carry_out(&opened, &asked.command).await? {
            // Where the store does not tell, the process on this machine is told; that none runs is no mistake.
            let told = crate::control::ask(&asked.file.config, "bindings changed");
            if told.is_err() && matches!(settings.storage, Storage::Sqlite(_)) {
                eprintln!("no running process was told; one that runs sees the change within 30s");
            }
        }
        Ok(())
    })
}

/// Whether something was changed.
async fn carry_out(opened: &Opened, command: &Command) -> Result<bool, String> {
    match command {
        Command::List { label, address, banned, limit, json } => {
            let query =
                Query { label: label.clone(), address: *address, banned: banned.then_some(true), limit: *limit, ..Query::default() };
            let records = opened.store.list(query).await.map_err(|e| e.to_string())?;
            records.iter().try_for_each(|record| show(record, *json))?;
            if records.len() as u64 == u64::from(*limit) {
                eprintln!("these are the first {limit}; there may be more, see --limit and `export`");
            }
            Ok(false)
        }
        Command::Show(which) => {
            let record = find(opened, &which.id).await?;
            show(&record, true).map(|()| false)
        }
        Command::Set { which, rule, networks, networks_max, window, note, labels } => {
            let roaming = networks_max.zip(*window).map(|(networks_max, window)| Roaming { networks_max, window: window.into() });
            let terms = terms(*rule, networks.clone(), roaming)?;
            set(opened, which, terms, note, labels).await
        }
        Command::Unbind(which) => {
            let record = find(opened, &which.id).await?;
            opened.store.remove(record.binding.id, actor()).await.map_err(|e| e.to_string())
        }
        Command::Ban(which) => ban(opened, which).await,
        Command::Unban(which) => {
            let unbanned = Change { banned: Some(false), ..Change::default() };
            change(opened, find(opened, &which.id).await?.binding.id, unbanned).await
        }
        Command::Import { file, format } => rows::import(opened, file, *format).await,
        Command::Audit { id, limit, json } => show_audit(opened, id.as_deref(), *limit, *json).await.map(|()| false),
        Command::Export { format } => rows::export(opened, *format).await.map(|()| false),
    }
}

/// The key that is meant, which need not be bound if all of it is said, and its hint.
async fn meant(opened: &Opened, which: &Which) -> Result<(KeyId, String), String> {
    match which.id.as_str() {
        "-" => key_from_stdin(opened).await,
        digits => match KeyId::from_hex(digits) {
            Some(id) => Ok((id, String::new())),
            None => Ok((find(opened, digits).await?.binding.id, String::new())),
        },
    }
}

async fn ban(opened: &Opened, which: &Which) -> Result<bool, String> {
    let (id, hint) = meant(opened, which).await?;
    let banned = Change { banned: Some(true), ..Change::default() };
    if opened.store.look_up(id).await.map_err(|e| e.to_string())?.is_some() {
        return change(opened, id, banned).await;
    }
    // Nothing is known of where it would be used from. Should somebody use it right now, the ban wins.
    let everywhere = Terms { rule: Rule::All, networks: Vec::new(), roaming: None };
    let done = change(opened, id, Change { rule: Some(everywhere), make: Some(Make::now(hint, maker())), ..banned }).await?;
    eprintln!("it was not bound; to let its first use bind it one day, `unbind` it, as `unban` lets it be used from everywhere");
    Ok(done)
}

async fn set(opened: &Opened, which: &Which, rule: Option<Terms>, note: &Option<String>, labels: &[String]) -> Result<bool, String> {
    let (id, hint) = meant(opened, which).await?;
    let made = rule.is_some().then(|| Make::now(hint, maker()));
    let labels = (!labels.is_empty()).then(|| labels.to_vec());
    change(opened, id, Change { rule, banned: None, note: note.clone(), labels, make: made }).await
}

/// A rule with what must go with it; `None` if nothing is said of either.
fn terms(rule: Option<Rule>, networks: Vec<IpNet>, roaming: Option<Roaming>) -> Result<Option<Terms>, String> {
    let rule = match (rule, networks.len(), roaming) {
        (Some(rule), _, _) => rule,
        (None, _, Some(_)) => Rule::Roaming,
        (None, 0, None) => return Ok(None),
        (None, 1, None) => Rule::Single,
        (None, _, None) => Rule::Multiple,
    };
    if let Some(roaming) = roaming.filter(|roaming| networks.len() > usize::from(roaming.networks_max)) {
        return Err(format!("{} networks are more than the {} that networks_max lets there be", networks.len(), roaming.networks_max));
    }
    let fine = roaming.is_none_or(|r| (1..=64).contains(&r.networks_max) && r.window >= Duration::from_secs(60));
    match (rule, networks.len(), roaming) {
        (Rule::Single, 1, None) | (Rule::Multiple, 1.., None) | (Rule::All, 0, None) => {}
        (Rule::Roaming, _, Some(_)) if fine => {}
        (Rule::Roaming, _, _) => return Err("the rule `roaming` needs networks_max, 1 to 64, and window, at least 1min".into()),
        (_, _, Some(_)) => return Err("networks_max and window go with the rule `roaming` only".into()),
        (Rule::Single, _, _) => return Err("the rule `single` needs exactly one network".into()),
        (Rule::Multiple, _, _) => return Err("the rule `multiple` needs at least one network".into()),
        (Rule::All, _, _) => return Err("the rule `all` takes no network".into()),
    }
    Ok(Some(Terms { rule, networks, roaming }))
}

async fn change(opened: &Opened, id: KeyId, change: Change) -> Result<bool, String> {
    match opened.store.change(id, change, actor()).await.map_err(|e| e.to_string())? {
        Some(record) => show(&record, true).map(|()| true),
        None => Err(format!("{id} is not bound; say `--rule` and `--network` to make a binding")),
    }
}

async fn key_from_stdin(opened: &Opened) -> Result<(KeyId, String), String> {
    let mut key = String::new();
    let limit = KEY_BYTES_MAX as u64 + 2;
    std::io::stdin().take(limit).read_to_string(&mut key).map_err(|e| format!("standard input: {e}"))?;
    hashed(opened, key.trim_end_matches(['\r', '\n'])).await
}

/// The id under which the key is bound: where it was not used since the secret was changed, that is still the one
/// under the secret before.
async fn hashed(opened: &Opened, key: &str) -> Result<(KeyId, String), String> {
    if key.is_empty() || key.len() > KEY_BYTES_MAX || !key.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err("that is not a key: it must be 1 to 8192 visible ASCII characters".into());
    }
    let (previous, key) = (opened.hasher.previous_ids(key), opened.hasher.key(key));
    if previous.is_empty() {
        return Ok((key.id, key.hint));
    }
    for id in std::iter::once(key.id).chain(previous) {
        if opened.store.look_up(id).await.map_err(|e| e.to_string())?.is_some() {
            return Ok((id, key.hint));
        }
    }
    Ok((key.id, key.hint))
}

/// The one binding that is meant.
async fn find(opened: &Opened, id: &str) -> Result<Record, String> {
    let prefix = match id {
        "-" => key_from_stdin(opened).await?.0.hex(),
        digits => digits.to_ascii_lowercase(),
    };
    let whole = prefix.len().is_multiple_of(2);
    let hex = prefix.len() <= 64 && prefix.bytes().all(|byte| byte.is_ascii_hexdigit());
    if !hex || prefix.len() < DIGITS_MIN || !whole {
        return Err(format!("`{id}` is not a key id: give an even number of its first digits, at least {DIGITS_MIN}, as logs show them"));
    }
    let bytes = (0..prefix.len()).step_by(2).filter_map(|at| u8::from_str_radix(prefix.get(at..at + 2)?, 16).ok()).collect();
    let query = Query { prefix: bytes, limit: 2, ..Query::default() };
    let mut found = opened.store.list(query).await.map_err(|e| e.to_string())?;
    match (found.pop(), found.pop()) {
        (Some(record), None) => Ok(record),
        (Some(_), Some(_)) => Err(format!("`{prefix}` fits several keys; give more digits")),
        (None, _) => Err(format!("no binding begins with `{prefix}`")),
    }
}

async fn show_audit(opened: &Opened, id: Option<&str>, limit: u32, json: bool) -> Result<(), String> {
    let target = match id {
        // What was removed is found by its whole id.
        Some(digits) if KeyId::from_hex(digits).is_some() => Some(digits.to_ascii_lowercase()),
        Some("-") => Some(key_from_stdin(opened).await?.0.hex()),
        Some(digits) => Some(find(opened, digits).await?.binding.id.hex()),
        None => None,
    };
    let (mut before, mut left) = (None, limit);
    while left > 0 {
        let asked = Asked { before, target: target.clone(), limit: left.min(1000) };
        let page = opened.store.audit(asked).await.map_err(|e| e.to_string())?;
        let Some(last) = page.last() else { break };
        (before, left) = (Some(last.id), left - u32::try_from(page.len()).unwrap_or(left));
        for entry in &page {
            let line = if json { serde_json::to_string(entry).map_err(|e| e.to_string())? } else { plain(entry) };
            written(writeln!(std::io::stdout(), "{line}"))?;
        }
    }
    Ok(())
}

/// Who did what to which, and what is different since.
fn plain(entry: &Entry) -> String {
    let fields = |side: &Option<serde_json::Value>| side.as_ref().and_then(|value| value.as_object().cloned()).unwrap_or_default();
    let (before, after) = (fields(&entry.before), fields(&entry.after));
    let differs = |name: &&String| before.get(*name) != after.get(*name) && !["key_id", "last_used"].contains(&name.as_str());
    let changed: Vec<String> = after.keys().filter(differs).map(|name| format!("{name}={}", after[name])).collect();
    let at = humantime::format_rfc3339_seconds(entry.at);
    let target = entry.target.get(..12).unwrap_or(&entry.target);
    format!("{at}  {}@{}  {}  {target}  {}", entry.actor, entry.origin, entry.action, changed.join(" ")).trim_end().to_owned()
}

fn written(result: std::io::Result<()>) -> Result<(), String> {
    match result {
        // Whoever read has seen enough.
        Err(e) if e.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        other => other.map_err(|e| format!("standard output: {e}")),
    }
}

fn show(record: &Record, json: bool) -> Result<(), String> {
    let row = Row::from(record);
    let line = if json {
        serde_json::to_string(&row).map_err(|e| e.to_string())?
    } else {
        let state = if record.binding.banned { "banned" } else { "" };
        let networks = if row.networks.is_empty() { "everywhere".into() } else { row.networks.join(",") };
        format!(
            "{}  {:<10} {:<8} {networks}  {}  {state} {}",
            record.binding.id,
            row.hint,
            row.rule,
            row.last_used,
            row.labels.unwrap_or_default().join(",")
        )
    };
    written(writeln!(std::io::stdout(), "{}", line.trim_end()))
}
