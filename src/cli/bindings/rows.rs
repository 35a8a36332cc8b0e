//! Import and export of bindings as JSON lines or CSV. The tables of other gateways are read by [`super::foreign`].

use std::io::{BufWriter, Write};
use std::path::Path;
use std::time::SystemTime;

use keylatch_filters::contract::{Bindings as _, KeyId, Roaming};
use serde::{Deserialize, Serialize};

use super::{Format, PAGE, actor, foreign, use_cases};
use crate::bindings::Opened;
use crate::cli::terminal::{outln, output_result};
use crate::operator::bindings::{network, newer, terms};
use crate::sql::record::{Change, Creation, Query, label};
use crate::sql::row::Row;

/// A binding in CSV. Lists are text, separated by spaces.
#[derive(Serialize, Deserialize, Default)]
#[serde(default, deny_unknown_fields)]
struct FlatRow {
    key_id: String,
    #[serde(skip_serializing)]
    key: String,
    hint: String,
    rule: String,
    networks: String,
    networks_max: Option<u8>,
    window: Option<String>,
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
        let FlatRow {
            key_id,
            key,
            hint,
            rule,
            networks,
            networks_max,
            window,
            banned,
            confirmed,
            made_by,
            note,
            labels,
            created,
            last_used,
        } = flat;
        let (networks, labels) = (words(&networks), labels.map(|labels| words(&labels)));
        Row { key_id, key, hint, rule, networks, networks_max, window, banned, confirmed, made_by, note, labels, created, last_used }
    }
}

impl From<Row> for FlatRow {
    fn from(row: Row) -> Self {
        let Row { key_id, key, hint, rule, networks, networks_max, window, banned, confirmed, made_by, note, labels, created, last_used } =
            row;
        let (networks, labels) = (networks.join(" "), labels.map(|labels| labels.join(" ")));
        FlatRow { key_id, key, hint, rule, networks, networks_max, window, banned, confirmed, made_by, note, labels, created, last_used }
    }
}

pub async fn export(opened: &Opened, query: &Query, format: Format) -> Result<(), String> {
    let mut after = None;
    let mut out = BufWriter::new(std::io::stdout().lock());
    let mut csv = csv::Writer::from_writer(Vec::new());
    loop {
        let page = opened.store.list(Query { after, limit: PAGE, ..query.clone() }).await.map_err(|e| e.to_string())?;
        for record in &page.rows {
            let row = Row::from(record);
            match format {
                Format::Jsonl => {
                    let line = serde_json::to_string(&row).map_err(|e| e.to_string())?;
                    output_result(writeln!(out, "{line}"))?;
                }
                Format::Csv => csv.serialize(FlatRow::from(row)).map_err(|e| e.to_string())?,
            }
        }
        if format == Format::Csv {
            csv.flush().map_err(|e| e.to_string())?;
            output_result(out.write_all(csv.get_ref()))?;
            csv = csv::WriterBuilder::new().has_headers(false).from_writer(Vec::new());
        }
        after = page.next;
        if after.is_none() {
            break;
        }
    }
    output_result(out.flush())
}

/// How to read the table of another gateway.
pub struct Gateway<'a> {
    /// Pairs of our column name and its name in the table.
    pub columns: &'a [(String, String)],
    /// A key that must be among the rows.
    pub key: Option<&'a str>,
}

/// Imports a file. All rows are validated before the first one is written. Returns whether anything was written.
pub async fn import(opened: &Opened, file: &Path, format: Option<Format>, gateway: Option<&Gateway<'_>>) -> Result<bool, String> {
    let name = file.display();
    let csv = file.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("csv"));
    let format = format.unwrap_or(if csv { Format::Csv } else { Format::Jsonl });
    let text = match file.as_os_str().as_encoded_bytes() {
        b"-" => std::io::read_to_string(std::io::stdin()),
        _ => std::fs::read_to_string(file),
    };
    let text = text.map_err(|e| format!("{name}: {e}"))?;
    let rows: Vec<(u64, Result<Row, String>)> = match format {
        format if gateway.is_some() => foreign::rows(&text, format, gateway.map_or(&[], |gateway| gateway.columns)),
        Format::Jsonl => {
            let lines = (1..).zip(text.lines()).filter(|(_, line)| !line.trim().is_empty());
            lines
                .map(|(number, line)| {
                    (number, serde_json::from_str(line).map_err(|e| foreign::unreadable(&format!("column {}", e.column()))))
                })
                .collect()
        }
        Format::Csv => {
            let mut reader = csv::ReaderBuilder::new().trim(csv::Trim::Headers).from_reader(text.as_bytes());
            (2..)
                .zip(reader.deserialize::<FlatRow>())
                .map(|(number, row)| (number, row.map(Row::from).map_err(|_| foreign::unreadable("the first line must be the header"))))
                .collect()
        }
    };
    let (mut changes, mut wrong) = (Vec::new(), Vec::new());
    for (number, row) in rows {
        let change = match row {
            Ok(row) => change_of(opened, row).await,
            Err(error) => Err(error),
        };
        match change {
            Ok(change) => changes.push(change),
            Err(error) => wrong.push(format!("{name}:{number}: {error}")),
        }
    }
    if let Some(key) = gateway.and_then(|gateway| gateway.key) {
        let (id, _) = use_cases(opened, &actor()).hashed(key).await?;
        let under_previous = opened.hasher.earlier_ids(key);
        if !changes.iter().any(|(known, _)| *known == id || under_previous.contains(known)) {
            wrong.push(format!(
                "{name}: the key from --check-key is not among the rows: they were hashed under another secret, or with another key_form"
            ));
        }
    }
    if !wrong.is_empty() {
        wrong.push("nothing was imported".into());
        return Err(wrong.join("\n"));
    }
    let count = changes.len();
    for (done, (id, change)) in changes.into_iter().enumerate() {
        let changed = opened.store.change(id, change, actor()).await.map_err(Into::into).and_then(|changed| newer(changed, id));
        changed.map_err(|e| format!("{e}; {done} of {count} bindings were imported; it is safe to import the file again"))?;
    }
    outln!("{count} bindings imported")?;
    Ok(count > 0)
}

/// Validates a row and returns its change.
async fn change_of(opened: &Opened, row: Row) -> Result<(KeyId, Change), String> {
    let (id, hint) = match (row.key_id.as_str(), row.key.as_str()) {
        ("", "") => return Err("`key_id` or `key` is needed".into()),
        ("", key) => use_cases(opened, &actor()).hashed(key).await?,
        (id, "") => (KeyId::from_hex(id).ok_or("`key_id` must be 64 hex digits")?, String::new()),
        _ => return Err("`key_id` and `key` cannot both be given".into()),
    };
    let networks = row.networks.iter().map(|text| network(text)).collect::<Result<Vec<_>, _>>();
    let networks = networks.map_err(|_| "`networks` has an item that is neither a network nor an address")?;
    let window = row.window.as_deref().map(humantime::parse_duration).transpose().map_err(|e| format!("`window`: {e}"))?;
    let roaming = row.networks_max.zip(window).map(|(networks_max, window)| Roaming { networks_max, window });
    let rule = if row.rule.is_empty() {
        None
    } else {
        Some(row.rule.parse().map_err(|_: String| "`rule` must be single, multiple, all or roaming")?)
    };
    let terms = terms(rule, networks, roaming)?;
    let hint = if row.hint.is_empty() { hint } else { row.hint };
    let labels = row.labels.filter(|labels| !labels.is_empty());
    let labels = labels.map(|labels| labels.iter().map(|word| label(word)).collect::<Result<_, _>>()).transpose();
    let labels = labels.map_err(|_| "`labels` has an item that is not a valid label")?;
    let made_by = if row.made_by.is_empty() { "import".into() } else { row.made_by };
    let created = (!row.created.is_empty()).then(|| humantime::parse_rfc3339(&row.created)).transpose();
    let created = created.map_err(|_| "`created` must be a time such as 2026-01-31T09:00:00Z")?;
    let created_at = created.unwrap_or_else(SystemTime::now).min(SystemTime::now());
    let note = row.note.filter(|note| !note.is_empty());
    if terms.is_none() {
        if note.is_none() && labels.is_none() && row.banned.is_none() {
            return Err("`rule`, `networks`, `note`, `labels` or `banned` is needed".into());
        }
        if opened.store.authoritative(id, None).await.map_err(|e| e.to_string())?.is_none() {
            return Err(format!("{id} is not bound: `rule` or `networks` is needed to make a binding"));
        }
    }
    let make = terms.is_some().then_some(Creation { hint, made_by, created_at });
    Ok((id, Change { rule: terms, banned: row.banned, note, labels, expects: None, make }))
}
