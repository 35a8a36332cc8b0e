//! `keylatch bindings`: lists, changes, imports and exports bindings in the store itself.
//!
//! No process needs to run; running processes are notified of changes.

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
use crate::cli::terminal::{outln, print_header, read_stdin};
use crate::compile;
use crate::config::model::Storage;
use crate::config::{Files, Settings, parse_file};
use crate::operator::bindings as service;
use crate::operator::bindings::network;
use crate::sql::audit::{Actor, AuditQuery};
use crate::sql::record::{Change, Query, Record, label};
use crate::sql::row::Row;

/// Rows of one page.
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
    /// The first digits of the key id, as logs show them; `-` reads the key itself from standard input
    #[arg(value_name = "ID")]
    id: String,
}

impl Which {
    /// The key from standard input, if one was read, else the key id.
    fn key<'a>(&'a self, key: &'a Option<String>) -> service::Which<'a> {
        key.as_deref().map_or(service::Which::Id(&self.id), service::Which::Key)
    }
}

/// Which bindings to list.
#[derive(Args)]
struct Filter {
    /// Only bindings with this label
    #[arg(long)]
    label: Option<String>,
    /// Only bindings with this address, or with a network that contains it
    #[arg(long, value_name = "IP")]
    address: Option<IpAddr>,
    /// Only banned bindings
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
    /// List bindings in the order of their key ids
    List {
        #[command(flatten)]
        filter: Filter,
        /// The maximum number of rows
        #[arg(long, default_value_t = 100)]
        limit: u32,
        /// Print one JSON object per line
        #[arg(long)]
        json: bool,
    },
    /// Print one binding as JSON
    Show(Which),
    /// Set the rule and networks of a binding. A new binding needs the full key id or the key
    Set {
        #[command(flatten)]
        which: Which,
        /// The rule: `single`, `multiple`, `all` or `roaming`
        #[arg(long)]
        rule: Option<Rule>,
        /// A network or address; may be repeated
        #[arg(long = "network", value_name = "CIDR", value_parser = network)]
        networks: Vec<IpNet>,
        /// A note for operators
        #[arg(long)]
        note: Option<String>,
        /// With `--rule roaming`: the number of networks at a time
        #[arg(long, value_name = "COUNT", requires = "window")]
        networks_max: Option<u8>,
        /// With `--rule roaming`: the time for which a network counts after its last use, such as `24h`
        #[arg(long, requires = "networks_max")]
        window: Option<humantime::Duration>,
        /// A label; may be repeated. The given labels replace all labels of the binding
        #[arg(long = "label", value_parser = label)]
        labels: Vec<String>,
    },
    /// Allow one more network for a key. An address stands for the network that a first use from it would bind
    Allow {
        #[command(flatten)]
        which: Which,
        /// The address or network
        #[arg(value_name = "IP")]
        ip: String,
    },
    /// Remove a binding. The next use of the key creates a new one
    Unbind(Which),
    /// Refuse a key from every address. A key that was never used needs its full key id or the key
    Ban(Which),
    /// Lift the ban of a key within its binding. For a key that was never used, see `unbind`
    Unban(Which),
    /// Create or change bindings from a file. Each row needs `key_id` or `key`, and `rule` and `networks`; rows of bound keys may have only
    /// `note`, `labels` or `banned`
    Import {
        /// The file; `-` is standard input
        file: PathBuf,
        /// The format. Default: by the file name, `csv` for `.csv` and `jsonl` otherwise
        #[arg(long)]
        format: Option<Format>,
        /// Read the table of another gateway that hashes keys by HMAC-SHA256 with the same secret
        #[arg(long)]
        gateway: bool,
        /// Read one of the fields from another column of that table, such as `key_id=token_hash` or `networks=bound_ip`; may be repeated
        #[arg(long, value_name = "FIELD=COLUMN", value_parser = foreign::column, requires = "gateway")]
        column: Vec<(String, String)>,
        /// Read a key from standard input and require it among the rows. This proves that the secret is the same
        #[arg(long, requires = "gateway")]
        check_key: bool,
    },
    /// Print the changes of bindings, the latest first. See also `keylatch audit`
    Audit {
        /// Only this binding, by its key id or the first digits of it; `-` reads the key from standard input
        #[arg(value_name = "ID")]
        id: Option<String>,
        /// The maximum number of rows
        #[arg(long, default_value_t = 100)]
        limit: u32,
        /// Print one JSON object per line, with the binding before and after the change
        #[arg(long)]
        json: bool,
    },
    /// Write all bindings to standard output
    Export {
        #[command(flatten)]
        filter: Filter,
        /// The format
        #[arg(long, default_value = "jsonl")]
        format: Format,
    },
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    /// One JSON object per line
    Jsonl,
    /// CSV with a header line; items of lists are separated by spaces
    Csv,
}

pub fn bindings(args: &Bindings) -> Result<(), String> {
    let settings = parse_file(&args.file.config).and_then(compile::settings).map_err(|report| report.to_string())?;
    if settings.storage == Storage::Memory {
        return Err("storage is memory: bindings exist only in the running process and end with it; use its admin API".into());
    }
    on_runtime(async {
        let opened = bindings::open(&settings, &Files::beside(&args.file.config), &Registry::new(), Purpose::Command, None).await?;
        if carry_out(&opened, &settings, &args.command).await? {
            // Notifies the process on this machine, for stores without notifications. It is no error if none runs.
            let notified = crate::control::send_command(&args.file.config, "bindings changed");
            if notified.is_err() && matches!(settings.storage, Storage::Sqlite(_)) {
                eprintln!("no running process was notified; one that runs sees the change within 30 s");
            }
        }
        Ok(())
    })
}

/// Whether something was changed.
async fn carry_out(opened: &Opened, settings: &Settings, command: &Command) -> Result<bool, String> {
    let actor = actor();
    let work = use_cases(opened, &actor);
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
                    print_header(&header(), "No bindings match.", page.rows.is_empty())?;
                }
                is_first = false;
                page.rows.iter().take(left).try_for_each(|record| show(record, *json))?;
                if left < page.rows.len() || left == page.rows.len() && page.next.is_some() {
                    eprintln!("only the first {limit} rows are listed; use --limit or `export` for more");
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
                eprintln!("the key was not bound; to let its first use bind it later, use `unbind`: `unban` allows it from every address");
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
            let query =
                AuditQuery { target: target(opened, id.as_deref()).await?, action: Some("binding".into()), ..AuditQuery::default() };
            audit::show(&opened.store, query, *limit, *json).await.map(|()| false)
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

/// The use cases of bindings, with the actor for the audit log.
fn use_cases<'a>(opened: &'a Opened, actor: &'a Actor) -> service::Bindings<'a> {
    service::Bindings { store: &opened.store, hasher: &opened.hasher, actor }
}

/// The key on standard input, where the id is `-`.
fn key_from_stdin(id: &str) -> Result<Option<String>, String> {
    if id != "-" {
        return Ok(None);
    }
    read_stdin(KEY_BYTES_MAX).map(Some)
}

/// The key id by which the audit log is filtered; `None` for all bindings.
async fn target(opened: &Opened, id: Option<&str>) -> Result<Option<String>, String> {
    let Some(id) = id else { return Ok(None) };
    // A full key id needs no look-up, and so also finds a binding that was removed.
    if KeyId::from_hex(id).is_some() {
        return Ok(Some(id.to_ascii_lowercase()));
    }
    let (actor, key) = (actor(), key_from_stdin(id)?);
    let work = use_cases(opened, &actor);
    Ok(Some(match key {
        Some(key) => work.hashed(&key).await?.0.hex(),
        None => work.find(service::Which::Id(id)).await?.binding.id.hex(),
    }))
}

fn show(record: &Record, json: bool) -> Result<(), String> {
    match json {
        true => outln!("{}", serde_json::to_string(&Row::from(record)).map_err(|e| e.to_string())?),
        false => outln!("{}", plain(record)),
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
