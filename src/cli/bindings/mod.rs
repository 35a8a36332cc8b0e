//! `keylatch bindings`: what operators do with bindings from a shell. It works on the stores themselves,
//! whether a process runs or not; those that run hear of it.

mod foreign;
mod rows;

use std::net::IpAddr;
use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};
use ipnet::IpNet;
use keylatch_filters::contract::{KEY_BYTES_MAX, KeyId, Roaming, Rule};
use prometheus::Registry;

use super::{ConfigFile, actor, audit, on_runtime};
use crate::bindings::{self, Opened, Purpose};
use crate::cli::terminal::{headed, read_stdin, say};
use crate::compile;
use crate::config::model::Storage;
use crate::config::{Files, Settings, parse_file};
use crate::operator::bindings as service;
use crate::operator::bindings::network;
use crate::sql::audit::{Actor, Asked};
use crate::sql::record::{Change, Query, Record, label};
use crate::sql::row::Row;

/// Rows read at once.
const PAGE: u32 = 1000;

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

impl Which {
    /// With the key that was read, if one was.
    fn key<'a>(&'a self, key: &'a Option<String>) -> service::Which<'a> {
        key.as_deref().map_or(service::Which::Id(&self.id), service::Which::Key)
    }
}

/// Which bindings.
#[derive(Args)]
struct Filter {
    /// With this label
    #[arg(long)]
    label: Option<String>,
    /// With this address, or a network that holds it
    #[arg(long, value_name = "IP")]
    address: Option<IpAddr>,
    /// Banned ones only
    #[arg(long)]
    banned: bool,
}

impl Filter {
    fn query(&self) -> Query {
        let network = self.address.map(IpNet::from);
        Query { label: self.label.clone(), network, banned: self.banned.then_some(true), ..Query::default() }
    }
}

#[derive(Subcommand)]
enum Command {
    /// List bindings, in the order of their ids
    List {
        #[command(flatten)]
        filter: Filter,
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
    /// Let a key be used from one more address or network; of an address, from the network that a first use would bind
    Allow {
        #[command(flatten)]
        which: Which,
        /// The address or network
        #[arg(value_name = "IP")]
        ip: String,
    },
    /// Remove a binding: the key's next use binds anew
    Unbind(Which),
    /// Refuse a key from everywhere, also one that was never used (which needs all of the id, or the key)
    Ban(Which),
    /// Let a banned key be used again, within its binding; for one that was never used, see `unbind`
    Unban(Which),
    /// Make or change bindings as a file says; each needs `key_id` or `key`, and `rule` and `networks`, or of a key that is bound
    /// `note`, `labels` or `banned` alone
    Import {
        /// The file; `-` is standard input
        file: PathBuf,
        /// Default: what the file's name ends with
        #[arg(long)]
        format: Option<Format>,
        /// It is the table of another gateway, whose keys were hashed by HMAC-SHA256 under the same secret
        #[arg(long)]
        gateway: bool,
        /// What a column is called there, as often as you like: `key_id=token_hash`, `networks=bound_ip`
        #[arg(long, value_name = "NAME=THEIRS", value_parser = foreign::column, requires = "gateway")]
        column: Vec<(String, String)>,
        /// Read a key from standard input that must be among them: that shows that the secret is the same
        #[arg(long, requires = "gateway")]
        check_key: bool,
    },
    /// Show what operators have changed of bindings, the latest first; see also `keylatch audit`
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
        #[command(flatten)]
        filter: Filter,
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

pub fn bindings(asked: &Bindings) -> Result<(), String> {
    let settings = parse_file(&asked.file.config).and_then(compile::settings).map_err(|report| report.to_string())?;
    if settings.storage == Storage::Memory {
        return Err("storage is memory: its bindings are in the running process alone, and go with it".into());
    }
    on_runtime(async {
        let opened = bindings::open(&settings, &Files::beside(&asked.file.config), &Registry::new(), Purpose::Command, None).await?;
        if carry_out(&opened, &settings, &asked.command).await? {
            // Where the store does not tell, the process on this machine is told; that none runs is no mistake.
            let told = crate::control::send_command(&asked.file.config, "bindings changed");
            if told.is_err() && matches!(settings.storage, Storage::Sqlite(_)) {
                eprintln!("no running process was told; one that runs sees the change within 30s");
            }
        }
        Ok(())
    })
}

/// Whether something was changed.
async fn carry_out(opened: &Opened, settings: &Settings, command: &Command) -> Result<bool, String> {
    let actor = actor();
    let work = at_work(opened, &actor);
    let key = match command {
        Command::Show(which)
        | Command::Set { which, .. }
        | Command::Allow { which, .. }
        | Command::Unbind(which)
        | Command::Ban(which)
        | Command::Unban(which) => key_from_stdin(&which.id)?,
        _ => None,
    };
    match command {
        Command::List { filter, limit, json } => {
            let query = filter.query();
            let (mut after, mut left, mut is_first) = (None, *limit as usize, true);
            loop {
                let page = opened.store.list(Query { after, limit: PAGE, ..query.clone() }).await.map_err(|e| e.to_string())?;
                if is_first && !json {
                    headed(&header(), "There is no such binding.", page.rows.is_empty())?;
                }
                is_first = false;
                page.rows.iter().take(left).try_for_each(|record| show(record, *json))?;
                if left < page.rows.len() || left == page.rows.len() && page.next.is_some() {
                    eprintln!("these are the first {limit}; there are more, see --limit and `export`");
                    return Ok(false);
                }
                (after, left) = (page.next, left - page.rows.len());
                if after.is_none() {
                    return Ok(false);
                }
            }
        }
        Command::Show(which) => show(&work.find(which.key(&key)).await?, true).map(|()| false),
        Command::Allow { which, ip } => {
            let network = service::allowed(ip, settings)?;
            show(&work.allow(which.key(&key), network, None).await?, true).map(|()| true)
        }
        Command::Set { which, rule, networks, networks_max, window, note, labels } => {
            let roaming = networks_max.zip(*window).map(|(networks_max, window)| Roaming { networks_max, window: window.into() });
            let rule = service::terms(*rule, networks.clone(), roaming)?;
            let labels = (!labels.is_empty()).then(|| labels.clone());
            let change = Change { rule, note: note.clone(), labels, ..Change::default() };
            if let Some(before) = replaced(opened, &work, which.key(&key)).await? {
                eprintln!("replaces: {}", plain(&before));
            }
            show(&work.set(which.key(&key), change).await?, true).map(|()| true)
        }
        Command::Unbind(which) => work.unbind(which.key(&key), None).await.map(|_| true).map_err(String::from),
        Command::Ban(which) => {
            let (record, was_bound) = work.ban(which.key(&key), None).await?;
            if !was_bound {
                eprintln!(
                    "it was not bound; to let its first use bind it one day, `unbind` it, as `unban` lets it be used from everywhere"
                );
            }
            show(&record, true).map(|()| true)
        }
        Command::Unban(which) => show(&work.unban(which.key(&key), None).await?, true).map(|()| true),
        Command::Import { file, format, gateway, column, check_key } => {
            let key = if *check_key { Some(read_stdin(KEY_BYTES_MAX)?) } else { None };
            let gateway = gateway.then_some(rows::Gateway { columns: column, key: key.as_deref() });
            rows::import(opened, file, *format, gateway.as_ref()).await
        }
        Command::Audit { id, limit, json } => {
            let asked = Asked { target: target(opened, id.as_deref()).await?, action: Some("binding".into()), ..Asked::default() };
            audit::show(&opened.store, asked, *limit, *json).await.map(|()| false)
        }
        Command::Export { filter, format } => rows::export(opened, &filter.query(), *format).await.map(|()| false),
    }
}

/// The binding that a change replaces, if there is one.
async fn replaced(opened: &Opened, work: &service::Bindings<'_>, which: service::Which<'_>) -> Result<Option<Record>, String> {
    let (id, _) = work.meant(which).await?;
    let query = Query { prefix: service::prefix(&id.hex())?, limit: 1, ..Query::default() };
    Ok(opened.store.list(query).await.map_err(|e| e.to_string())?.rows.pop())
}

/// Who and what, for the work itself.
fn at_work<'a>(opened: &'a Opened, actor: &'a Actor) -> service::Bindings<'a> {
    service::Bindings { store: &opened.store, hasher: &opened.hasher, actor }
}

/// The key on standard input, where the id is `-`.
fn key_from_stdin(id: &str) -> Result<Option<String>, String> {
    if id != "-" {
        return Ok(None);
    }
    read_stdin(KEY_BYTES_MAX).map(Some)
}

/// Of one binding, or of all.
async fn target(opened: &Opened, id: Option<&str>) -> Result<Option<String>, String> {
    let Some(id) = id else { return Ok(None) };
    // What was removed is found by its whole id.
    if KeyId::from_hex(id).is_some() {
        return Ok(Some(id.to_ascii_lowercase()));
    }
    let (actor, key) = (actor(), key_from_stdin(id)?);
    let work = at_work(opened, &actor);
    Ok(Some(match key {
        Some(key) => work.hashed(&key).await?.0.hex(),
        None => work.find(service::Which::Id(id)).await?.binding.id.hex(),
    }))
}

fn show(record: &Record, json: bool) -> Result<(), String> {
    match json {
        true => say!("{}", serde_json::to_string(&Row::from(record)).map_err(|e| e.to_string())?),
        false => say!("{}", plain(record)),
    }
}

/// The columns of [`plain`].
fn header() -> String {
    format!("{:<12}  {:<10} {:<8} {:<20}  {:<20}  {:<10}  STATE, LABELS", "KEY", "HINT", "RULE", "NETWORKS", "LAST USED", "MADE BY")
}

fn plain(record: &Record) -> String {
    let row = Row::from(record);
    let state = if record.binding.banned { "banned" } else { "" };
    let networks = if row.networks.is_empty() { "everywhere".into() } else { row.networks.join(",") };
    let labels = row.labels.unwrap_or_default().join(",");
    let line = format!(
        "{}  {:<10} {:<8} {networks:<20}  {:<20}  {:<10}  {state} {labels}",
        record.binding.id, row.hint, row.rule, row.last_used, row.made_by
    );
    line.trim_end().to_owned()
}
