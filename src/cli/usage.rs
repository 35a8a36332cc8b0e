//! `keylatch usage`: reports what requests used, through the running process.

use std::io::Write;

use clap::{Args, Subcommand, ValueEnum};
use http::Method;
use serde_json::Value;

use super::ConfigFile;
use super::admin_client::{self, Call, encoded, key, text};
use crate::cli::terminal::{outln, output_result, print_header};

#[derive(Args)]
pub struct Usage {
    #[command(flatten)]
    file: ConfigFile,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// List the keys, models, … that used the most
    Top {
        /// How to group the requests
        #[arg(long, default_value = "key")]
        by: By,
        #[command(flatten)]
        range: Last,
        /// The order, the largest first
        #[arg(long, default_value = "cost")]
        sort: Sort,
        /// Only this model
        #[arg(long)]
        model: Option<String>,
        /// Only keys with this label
        #[arg(long)]
        label: Option<String>,
        /// The maximum number of rows
        #[arg(long, default_value_t = 20)]
        limit: u32,
        /// Print one JSON object per line
        #[arg(long)]
        json: bool,
    },
    /// Show what one key used, by day and model
    Show {
        /// The key, by the first digits of its key id
        #[arg(value_name = "KEY")]
        key_id: String,
        #[command(flatten)]
        range: Last,
        /// The time zone of days, by its IANA name. Default: UTC
        #[arg(long, value_name = "NAME")]
        time_zone: Option<String>,
        /// The maximum number of rows
        #[arg(long, default_value_t = 1000)]
        limit: u32,
        /// Print one JSON object per line
        #[arg(long)]
        json: bool,
    },
    /// Print a report as a file
    Export(Export),
}

#[derive(Args)]
struct Last {
    /// The range: a duration that ends now
    #[arg(long, value_name = "DURATION", default_value = "24h", value_parser = duration)]
    last: String,
}

#[derive(Args)]
struct Export {
    /// Only from this time on: `2026-11-29`, `2026-11-29T08:30:00Z`, or `30d` for 30 days ago
    #[arg(long, value_name = "TIME", default_value = "24h")]
    from: String,
    /// Only before this time, in the same forms. Default: now
    #[arg(long, value_name = "TIME")]
    to: Option<String>,
    /// One row for each step of time
    #[arg(long, default_value = "none")]
    step: Step,
    /// The time zone of steps and dates, by its IANA name. Default: UTC
    #[arg(long, value_name = "NAME")]
    time_zone: Option<String>,
    /// How to group the requests, by at most two fields with a comma
    #[arg(long, value_delimiter = ',', num_args = 1)]
    group: Vec<By>,
    /// Only this key, by the first digits of its key id
    #[arg(long, value_name = "ID")]
    key: Option<String>,
    /// Only this model
    #[arg(long)]
    model: Option<String>,
    /// Only keys with this label
    #[arg(long)]
    label: Option<String>,
    /// The file format
    #[arg(long, default_value = "csv")]
    format: Format,
}

#[derive(Clone, Copy, ValueEnum)]
enum By {
    /// By key
    Key,
    /// By model
    Model,
    /// By route
    Route,
    /// By verified identity
    Subject,
    /// By label of the key's binding
    Label,
    /// By upstream
    Upstream,
    /// By class of the status
    Status,
}

#[derive(Clone, Copy, ValueEnum)]
enum Sort {
    /// By cost
    Cost,
    /// By input and output tokens
    Tokens,
    /// By requests
    Requests,
}

#[derive(Clone, Copy, ValueEnum)]
enum Step {
    /// One row for the whole range
    None,
    /// By hour
    Hour,
    /// By day
    Day,
    /// By week, from Monday on
    Week,
    /// By month
    Month,
}

#[derive(Clone, Copy, ValueEnum)]
enum Format {
    /// CSV with a header line
    Csv,
    /// One JSON object per line
    Jsonl,
}

fn word(value: impl ValueEnum) -> Option<String> {
    value.to_possible_value().map(|value| value.get_name().to_owned())
}

/// Checks a duration; the admin API parses it.
fn duration(text: &str) -> Result<String, String> {
    let fine = humantime::parse_duration(text).is_ok_and(|duration| !duration.is_zero());
    if fine { Ok(text.to_owned()) } else { Err("write a duration such as 24h or 30d".to_owned()) }
}

const NONE: &str = "No usage in this range.";
const COLUMNS: &str = "            COST  REQUESTS        INPUT  CACHED       OUTPUT  TOK/S  FIRST TOKEN";

pub fn usage(args: &Usage) -> Result<(), String> {
    let config = &args.file.config;
    match &args.command {
        Command::Top { by, range, sort, model, label, limit, json } => {
            let query = [
                ("from", Some(range.last.clone())),
                ("group", word(*by)),
                ("sort", word(*sort)),
                ("model", model.clone()),
                ("label", label.clone()),
            ];
            let mut is_first = !json;
            admin_client::list(config, "/usage", &query, *limit, |row| {
                if std::mem::take(&mut is_first) {
                    outln!("{COLUMNS}  {}", word(*by).unwrap_or_default().to_uppercase())?;
                }
                outln!("{}", if *json { row.to_string() } else { format!("{}  {}", sums(row), name(row, *by)) })
            })?;
            if is_first {
                eprintln!("{NONE}");
            }
            Ok(())
        }
        Command::Show { key_id, range, time_zone, limit, json } => {
            let query = [("from", Some(range.last.clone())), ("key_id", Some(key_id.clone())), ("time_zone", time_zone.clone())];
            if !json {
                let total = admin_client::call(config, Method::GET, "/usage", &with(&query, &[("group", "key")]), None)?;
                let rows = admin_client::rows(&total);
                rows.iter().try_for_each(|row| outln!("Key {}", name(row, By::Key)))?;
                print_header(&format!("{COLUMNS}  DAY, MODEL"), NONE, rows.is_empty())?;
                rows.iter().try_for_each(|row| outln!("{}  total", sums(row)))?;
            }
            admin_client::list(config, "/usage", &with(&query, &[("step", "day"), ("group", "model")]), *limit, |row| {
                let at = text(row, "at");
                let day = || day(&at, time_zone.as_deref());
                outln!("{}", if *json { row.to_string() } else { format!("{}  {}  {}", sums(row), day(), name(row, By::Model)) })
            })?;
            Ok(())
        }
        Command::Export(export) => {
            let group: Vec<String> = export.group.iter().filter_map(|by| word(*by)).collect();
            let query = encoded(&[
                ("from", Some(export.from.clone())),
                ("to", export.to.clone()),
                ("step", word(export.step)),
                ("time_zone", export.time_zone.clone()),
                ("group", Some(group.join(",")).filter(|group| !group.is_empty())),
                ("key_id", export.key.clone()),
                ("model", export.model.clone()),
                ("label", export.label.clone()),
                ("format", word(export.format)),
            ])?;
            let call = Call { method: Method::GET, path: "/usage/export", query: &query, body: None, version: None };
            let mut out = std::io::stdout();
            call.download(config, |piece| output_result(out.write_all(piece)))?;
            output_result(std::io::stdout().flush())
        }
    }
}

/// The parameters with some more.
fn with(query: &[(&'static str, Option<String>)], more: &[(&'static str, &str)]) -> Vec<(&'static str, Option<String>)> {
    query.iter().cloned().chain(more.iter().map(|(name, value)| (*name, Some((*value).to_owned())))).collect()
}

/// The date of a time in a time zone.
fn day(at: &str, zone: Option<&str>) -> String {
    let zone = zone.and_then(|name| jiff::tz::TimeZone::get(name).ok()).unwrap_or(jiff::tz::TimeZone::UTC);
    at.parse::<jiff::Timestamp>().map_or_else(|_| at.to_owned(), |at| at.to_zoned_datetime(zone).date().to_string())
}

/// The group of a row.
fn name(row: &Value, by: By) -> String {
    let Some(field) = word(by) else { return String::new() };
    let value = match by {
        By::Key => key(row),
        _ => text(row, &field),
    };
    if value.is_empty() {
        return "-".to_owned();
    }
    let labels = row.get("labels").and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str);
    let labels: Vec<&str> = labels.collect();
    let more = [text(row, "hint"), labels.join(","), text(row, "note")];
    let more = more.iter().filter(|part| !part.is_empty()).map(|part| format!("  {part}"));
    value + &more.collect::<String>()
}

/// The sums of a row, as columns.
fn sums(row: &Value) -> String {
    let number = |name: &str| row.get(name).and_then(Value::as_i64).unwrap_or_default();
    let cost = match (text(row, "cost"), number("unpriced")) {
        (cost, _) if cost.is_empty() => "-".to_owned(),
        (cost, 0) => format!("{cost} {}", text(row, "currency")),
        (cost, _) => format!(">{cost} {}", text(row, "currency")),
    };
    let (input, cached) = (number("input_tokens"), number("cached_input_tokens"));
    let share = if input > 0 { format!("{} %", cached.saturating_mul(100) / input) } else { "-".to_owned() };
    let or_none = |name: &str, unit: &str| Some(text(row, name)).filter(|text| !text.is_empty()).map_or("-".to_owned(), |text| text + unit);
    let (speed, first) = (or_none("tokens_per_second", ""), or_none("first_token_ms", " ms"));
    let (requests, output) = (number("requests"), number("output_tokens"));
    format!("{cost:>16}  {requests:>8}  {input:>11}  {share:>6}  {output:>11}  {speed:>5}  {first:>11}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn rows_are_columns() {
        let row = json!({
            "key_id": "0f".repeat(32), "hint": "sk-…wxyz", "labels": ["a", "b"], "note": "", "requests": 3, "input_tokens": 1000,
            "cached_input_tokens": 250, "output_tokens": 20, "cost": "1.5", "currency": "USD", "unpriced": 1, "tokens_per_second": 12.5,
            "first_token_ms": null,
        });
        assert_eq!(name(&row, By::Key), "0f0f0f0f0f0f  sk-…wxyz  a,b");
        assert_eq!(sums(&row), "        >1.5 USD         3         1000    25 %           20   12.5            -");
        assert_eq!(sums(&row).len(), COLUMNS.len());
        assert_eq!(name(&json!({ "model": "" }), By::Model), "-");
        assert!(duration("24h").is_ok() && ["", "0s", "x"].iter().all(|wrong| duration(wrong).is_err()));
        assert_eq!(day("2026-01-31T23:00:00.000Z", Some("Europe/Berlin")), "2026-02-01");
    }
}
