//! `keylatch bindings`: what operators do with bindings from a shell. It works on the stores themselves,
//! whether a process runs or not; those that run hear of it.

use std::io::{BufWriter, Read, Write};
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand, ValueEnum};
use ipnet::IpNet;
use keylatch_filters::contract::{KEY_BYTES_MAX, KeyId, Rule};
use prometheus::Registry;
use serde::{Deserialize, Serialize};

use super::on_runtime;
use crate::config::{Files, Parsed, parse_file};
use crate::store::record::{Change, Query, Record, label};
use crate::store::{self, Opened};

/// Rows read at once.
const PAGE: u32 = 1000;
/// Fewer digits would often fit several keys; logs show 12.
const DIGITS_MIN: usize = 6;

#[derive(Args)]
pub struct Bindings {
    /// The configuration file
    #[arg(short, long, global = true, value_name = "FILE", env = "KEYLATCH_CONFIG", default_value = "keylatch.yaml")]
    config: PathBuf,
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
        /// `single`, `multiple` or `all`
        #[arg(long)]
        rule: Option<Rule>,
        /// A network or an address; may be given several times
        #[arg(long = "network", value_name = "CIDR", value_parser = network)]
        networks: Vec<IpNet>,
        /// What to remember about it
        #[arg(long)]
        note: Option<String>,
        /// Words to find it by, all of them; may be given several times
        #[arg(long = "label", value_parser = label)]
        labels: Vec<String>,
    },
    /// Remove a binding: the key's next use binds anew
    Unbind(Which),
    /// Refuse a key from everywhere
    Ban(Which),
    /// Let a banned key be used again, within its binding
    Unban(Which),
    /// Make or change bindings as a file says; each needs `key_id` or `key`, and `rule`, `networks`
    Import {
        /// The file; `-` is standard input
        file: PathBuf,
        /// Default: what the file's name ends with
        #[arg(long)]
        format: Option<Format>,
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

/// A binding in a file. What is not given is left as it is.
#[derive(Serialize, Deserialize, Default)]
#[serde(default, deny_unknown_fields)]
struct Row {
    key_id: String,
    /// Only ever read: the key itself, from another system's list.
    #[serde(skip_serializing)]
    key: String,
    hint: String,
    rule: String,
    networks: Vec<String>,
    banned: Option<bool>,
    confirmed: Option<bool>,
    made_by: String,
    note: Option<String>,
    labels: Option<Vec<String>>,
    created: String,
    last_used: String,
}

/// The same with lists as text, for CSV.
#[derive(Serialize, Deserialize, Default)]
#[serde(default, deny_unknown_fields)]
struct FlatRow {
    key_id: String,
    #[serde(skip_serializing)]
    key: String,
    hint: String,
    rule: String,
    networks: String,
    banned: Option<bool>,
    confirmed: Option<bool>,
    made_by: String,
    note: Option<String>,
    labels: Option<String>,
    created: String,
    last_used: String,
}

fn words(text: &str) -> Vec<String> {
    text.split_whitespace().map(str::to_owned).collect()
}

impl From<FlatRow> for Row {
    fn from(flat: FlatRow) -> Self {
        let FlatRow { key_id, key, hint, rule, networks, banned, confirmed, made_by, note, labels, created, last_used } = flat;
        let (networks, labels) = (words(&networks), labels.map(|labels| words(&labels)));
        Row { key_id, key, hint, rule, networks, banned, confirmed, made_by, note, labels, created, last_used }
    }
}

impl From<Row> for FlatRow {
    fn from(row: Row) -> Self {
        let Row { key_id, key, hint, rule, networks, banned, confirmed, made_by, note, labels, created, last_used } = row;
        let (networks, labels) = (networks.join(" "), labels.map(|labels| labels.join(" ")));
        FlatRow { key_id, key, hint, rule, networks, banned, confirmed, made_by, note, labels, created, last_used }
    }
}

impl From<&Record> for Row {
    fn from(record: &Record) -> Self {
        let binding = &record.binding;
        Row {
            key_id: binding.id.hex(),
            key: String::new(),
            hint: record.hint.clone(),
            rule: binding.rule.as_str().into(),
            networks: binding.networks.iter().map(ToString::to_string).collect(),
            banned: Some(binding.banned),
            confirmed: Some(binding.confirmed),
            made_by: record.made_by.clone(),
            note: Some(record.note.clone()),
            labels: Some(record.labels.clone()),
            created: humantime::format_rfc3339_seconds(record.created_at).to_string(),
            last_used: humantime::format_rfc3339_seconds(record.last_used_at).to_string(),
        }
    }
}

pub fn bindings(asked: &Bindings) -> Result<(), String> {
    let settings = parse_file(&asked.config).and_then(Parsed::settings).map_err(|report| report.to_string())?;
    if settings.storage == crate::config::model::Storage::Memory {
        return Err("storage is memory: its bindings are in the running process alone, and go with it".into());
    }
    on_runtime(async {
        let opened = store::open(&settings.storage, &settings.secrets, &Files::beside(&asked.config), &Registry::new()).await?;
        if carry_out(&opened, &asked.command).await? {
            // Where stores do not tell, the process on this machine is told; that none runs is no mistake.
            let _ = crate::control::ask(&asked.config, "bindings changed");
        }
        Ok(())
    })
}

/// Whether something was changed.
async fn carry_out(opened: &Opened, command: &Command) -> Result<bool, String> {
    let ban = |banned| Change { banned: Some(banned), ..Change::default() };
    match command {
        Command::List { label, address, banned, limit, json } => {
            let query =
                Query { label: label.clone(), address: *address, banned: banned.then_some(true), limit: *limit, ..Query::default() };
            for record in opened.store.list(query).await.map_err(|e| e.to_string())? {
                show(&record, *json)?;
            }
            Ok(false)
        }
        Command::Show(which) => {
            let record = find(opened, &which.id).await?;
            show(&record, true).map(|()| false)
        }
        Command::Set { which, rule, networks, note, labels } => set(opened, which, *rule, networks, note, labels).await,
        Command::Unbind(which) => {
            let record = find(opened, &which.id).await?;
            opened.store.remove(record.binding.id).await.map_err(|e| e.to_string())
        }
        Command::Ban(which) => change(opened, find(opened, &which.id).await?.binding.id, ban(true)).await,
        Command::Unban(which) => change(opened, find(opened, &which.id).await?.binding.id, ban(false)).await,
        Command::Import { file, format } => import(opened, file, *format).await,
        Command::Export { format } => export(opened, *format).await.map(|()| false),
    }
}

async fn set(
    opened: &Opened,
    which: &Which,
    rule: Option<Rule>,
    networks: &[IpNet],
    note: &Option<String>,
    labels: &[String],
) -> Result<bool, String> {
    let (id, hint) = match which.id.as_str() {
        "-" => key_from_stdin(opened)?,
        digits => match KeyId::from_hex(digits) {
            Some(id) => (id, String::new()),
            None => (find(opened, digits).await?.binding.id, String::new()),
        },
    };
    let rule = rule.or_else(|| (!networks.is_empty()).then_some(if networks.len() == 1 { Rule::Single } else { Rule::Multiple }));
    let rule = rule.map(|rule| fits(rule, networks.to_vec())).transpose()?;
    let made = rule.is_some().then(|| (hint, maker()));
    let labels = (!labels.is_empty()).then(|| labels.to_vec());
    change(opened, id, Change { rule, banned: None, note: note.clone(), labels, make: made }).await
}

/// A rule and networks that go together.
fn fits(rule: Rule, networks: Vec<IpNet>) -> Result<(Rule, Vec<IpNet>), String> {
    match (rule, networks.len()) {
        (Rule::Single, 1) | (Rule::All, 0) => Ok((rule, networks)),
        (Rule::Multiple, 1..) => Ok((rule, networks)),
        (Rule::Single, _) => Err("the rule `single` needs exactly one network".into()),
        (Rule::Multiple, _) => Err("the rule `multiple` needs at least one network".into()),
        (Rule::All, _) => Err("the rule `all` takes no network".into()),
    }
}

/// Who makes a binding by hand.
fn maker() -> String {
    let user = std::env::var("SUDO_USER").or_else(|_| std::env::var("USER")).unwrap_or_else(|_| "unknown".into());
    format!("command:{user}")
}

async fn change(opened: &Opened, id: KeyId, change: Change) -> Result<bool, String> {
    match opened.store.change(id, change).await.map_err(|e| e.to_string())? {
        Some(record) => show(&record, true).map(|()| true),
        None => Err(format!("{id} is not bound; say `--rule` and `--network` to make a binding")),
    }
}

fn key_from_stdin(opened: &Opened) -> Result<(KeyId, String), String> {
    let mut key = String::new();
    let limit = KEY_BYTES_MAX as u64 + 2;
    std::io::stdin().take(limit).read_to_string(&mut key).map_err(|e| format!("standard input: {e}"))?;
    hashed(opened, key.trim_end_matches(['\r', '\n']))
}

fn hashed(opened: &Opened, key: &str) -> Result<(KeyId, String), String> {
    if key.is_empty() || key.len() > KEY_BYTES_MAX || !key.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err("that is not a key: it must be 1 to 8192 visible ASCII characters".into());
    }
    let key = opened.hasher.key(key);
    Ok((key.id, key.hint))
}

/// The one binding that is meant.
async fn find(opened: &Opened, id: &str) -> Result<Record, String> {
    let prefix = match id {
        "-" => key_from_stdin(opened)?.0.hex(),
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

async fn export(opened: &Opened, format: Format) -> Result<(), String> {
    let mut after = None;
    let mut out = BufWriter::new(std::io::stdout().lock());
    let mut csv = csv::Writer::from_writer(Vec::new());
    loop {
        let page = opened.store.list(Query { after, limit: PAGE, ..Query::default() }).await.map_err(|e| e.to_string())?;
        let Some(last) = page.last() else { break };
        after = Some(last.binding.id);
        for record in &page {
            let row = Row::from(record);
            match format {
                Format::Jsonl => {
                    let line = serde_json::to_string(&row).map_err(|e| e.to_string())?;
                    written(writeln!(out, "{line}"))?;
                }
                Format::Csv => csv.serialize(FlatRow::from(row)).map_err(|e| e.to_string())?,
            }
        }
        if format == Format::Csv {
            csv.flush().map_err(|e| e.to_string())?;
            written(out.write_all(csv.get_ref()))?;
            csv = csv::WriterBuilder::new().has_headers(false).from_writer(Vec::new());
        }
    }
    written(out.flush())
}

/// All rows are understood before the first is written.
async fn import(opened: &Opened, file: &Path, format: Option<Format>) -> Result<bool, String> {
    let name = file.display();
    let csv = file.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("csv"));
    let format = format.unwrap_or(if csv { Format::Csv } else { Format::Jsonl });
    let text = match file.as_os_str().as_encoded_bytes() {
        b"-" => std::io::read_to_string(std::io::stdin()),
        _ => std::fs::read_to_string(file),
    };
    let text = text.map_err(|e| format!("{name}: {e}"))?;
    let rows: Vec<(u64, Result<Row, String>)> = match format {
        Format::Jsonl => {
            let lines = (1..).zip(text.lines()).filter(|(_, line)| !line.trim().is_empty());
            lines.map(|(number, line)| (number, serde_json::from_str(line).map_err(|e| e.to_string()))).collect()
        }
        Format::Csv => {
            let mut reader = csv::ReaderBuilder::new().trim(csv::Trim::All).from_reader(text.as_bytes());
            (2..)
                .zip(reader.deserialize::<FlatRow>())
                .map(|(number, row)| (number, row.map(Row::from).map_err(|e| e.to_string())))
                .collect()
        }
    };
    let (mut changes, mut wrong) = (Vec::new(), Vec::new());
    for (number, row) in rows {
        match row.and_then(|row| meant(opened, row)) {
            Ok(change) => changes.push(change),
            Err(error) => wrong.push(format!("{name}:{number}: {error}")),
        }
    }
    if !wrong.is_empty() {
        wrong.push("nothing was imported".into());
        return Err(wrong.join("\n"));
    }
    let count = changes.len();
    for (done, (id, change)) in changes.into_iter().enumerate() {
        let changed = opened.store.change(id, change).await;
        changed.map_err(|e| format!("{e}; {done} of {count} were imported, importing again does no harm"))?;
    }
    println!("{count} bindings imported");
    Ok(count > 0)
}

/// What a row wants.
fn meant(opened: &Opened, row: Row) -> Result<(KeyId, Change), String> {
    let (id, hint) = match (row.key_id.as_str(), row.key.as_str()) {
        ("", "") => return Err("`key_id` or `key` is needed".into()),
        ("", key) => hashed(opened, key)?,
        (id, "") => (KeyId::from_hex(id).ok_or("`key_id` must be 64 hex digits")?, String::new()),
        _ => return Err("`key_id` and `key` cannot both be given".into()),
    };
    let networks = row.networks.iter().map(|text| network(text)).collect::<Result<Vec<_>, _>>()?;
    let rule = match (row.rule.as_str(), networks.len()) {
        ("", 0) => return Err("`rule` and `networks` are needed".into()),
        ("", 1) => Rule::Single,
        ("", _) => Rule::Multiple,
        (word, _) => word.parse()?,
    };
    let hint = if row.hint.is_empty() { hint } else { row.hint };
    let labels = row.labels.filter(|labels| !labels.is_empty());
    let labels = labels.map(|labels| labels.iter().map(|word| label(word)).collect()).transpose()?;
    let made_by = if row.made_by.is_empty() { "import".into() } else { row.made_by };
    let change = Change {
        rule: Some(fits(rule, networks)?),
        banned: row.banned,
        note: row.note.filter(|note| !note.is_empty()),
        labels,
        make: Some((hint, made_by)),
    };
    Ok((id, change))
}
