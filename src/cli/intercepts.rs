//! `keylatch intercepts`: lists requests that were refused because their key is bound to other networks or banned.

use clap::{Args, Subcommand, ValueEnum};
use http::Method;
use serde_json::Value;

use std::time::SystemTime;

use super::ConfigFile;
use super::admin_client::{self, key, text};
use crate::cli::terminal::{outln, parse_past_time, print_header};

#[derive(Args)]
pub struct Intercepts {
    #[command(flatten)]
    file: ConfigFile,
    #[command(subcommand)]
    command: Command,
}

/// Which intercepts to list.
#[derive(Args)]
struct Filter {
    /// Only this key, by the first digits of its key id
    #[arg(long, value_name = "ID")]
    key: Option<String>,
    /// Only clients with this address or in this network
    #[arg(long)]
    client: Option<String>,
    /// Only this route
    #[arg(long)]
    route: Option<String>,
    /// Only this reason
    #[arg(long)]
    reason: Option<Reason>,
    /// Whether to list requests that were not refused because the filter is in shadow mode
    #[arg(long, default_value = "with")]
    shadow: Shadow,
    /// Only from this time on, in UTC: `2026-11-29`, `2026-11-29T08:30:00Z`, or `2h` for two hours ago
    #[arg(long, value_name = "TIME", value_parser = parse_past_time)]
    since: Option<SystemTime>,
    /// Only before this time, in the same forms
    #[arg(long, value_name = "TIME", value_parser = parse_past_time)]
    until: Option<SystemTime>,
    /// The maximum number of rows
    #[arg(long, default_value_t = 100)]
    limit: u32,
    /// Print one JSON object per line
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, ValueEnum)]
enum Reason {
    /// The key is bound to other networks
    Elsewhere,
    /// The key is banned
    Banned,
}

#[derive(Clone, Copy, ValueEnum)]
enum Shadow {
    /// List both
    With,
    /// List only those of filters in shadow mode
    Only,
    /// List only requests that were refused
    Without,
}

#[derive(Clone, Copy, ValueEnum)]
enum By {
    /// Group by key
    Key,
    /// Group by client address
    Client,
}

#[derive(Subcommand)]
enum Command {
    /// List intercepts, the latest first
    List(Filter),
    /// List the keys or clients with the most intercepts
    Top {
        /// How to group the intercepts
        #[arg(long, default_value = "key")]
        by: By,
        #[command(flatten)]
        filter: Filter,
    },
}

fn word(value: impl ValueEnum) -> Option<String> {
    value.to_possible_value().map(|value| value.get_name().to_owned())
}

impl Shadow {
    fn wanted(self) -> Option<bool> {
        match self {
            Self::With => None,
            Self::Only => Some(true),
            Self::Without => Some(false),
        }
    }
}

impl Filter {
    fn query(&self) -> Vec<(&'static str, Option<String>)> {
        vec![
            ("key_id", self.key.clone()),
            ("client", self.client.clone()),
            ("route", self.route.clone()),
            ("reason", self.reason.and_then(word)),
            ("shadow", self.shadow.wanted().map(|shadow| shadow.to_string())),
            ("since", self.since.map(|at| humantime::format_rfc3339_seconds(at).to_string())),
            ("until", self.until.map(|at| humantime::format_rfc3339_seconds(at).to_string())),
        ]
    }
}

pub fn intercepts(args: &Intercepts) -> Result<(), String> {
    let config = &args.file.config;
    match &args.command {
        Command::List(filter) => {
            let mut is_first = !filter.json;
            admin_client::list(config, "/logs", &filter.query(), filter.limit, |row| {
                if std::mem::take(&mut is_first) {
                    outln!("{HEADER}")?;
                }
                outln!("{}", if filter.json { row.to_string() } else { plain(row) })
            })?;
            if is_first {
                eprintln!("{NONE}");
            }
            Ok(())
        }
        Command::Top { by, filter } => {
            let mut query = filter.query();
            query.extend([("by", word(*by)), ("limit", Some(filter.limit.min(1000).to_string()))]);
            let page = admin_client::call(config, Method::GET, "/logs/groups", &query, None)?;
            if page.get("complete") == Some(&Value::Bool(false)) {
                eprintln!("only the latest 10,000 rows were counted; use `--since` and `--until` for others");
            }
            let rows = admin_client::rows(&page);
            if !filter.json {
                let others = if matches!(by, By::Key) { "CLIENTS" } else { "KEYS" };
                let column = if matches!(by, By::Key) { "KEY" } else { "CLIENT" };
                print_header(&format!("{:>8}  {others:<11} {:<29}  {column}", "COUNT", "LAST"), NONE, rows.is_empty())?;
            }
            rows.iter().try_for_each(|row| outln!("{}", if filter.json { row.to_string() } else { group(row) }))
        }
    }
}

const NONE: &str = "No intercepts match.";
const HEADER: &str = "LAST                      COUNT  KEY          HINT, CLIENT, REASON, REQUEST, ROUTE";

fn group(row: &Value) -> String {
    let (count, others, last) = (text(row, "count"), text(row, "others"), text(row, "last_at"));
    format!("{count:>8}  from {others:<6} last {last}  {} {}", text(row, "what"), text(row, "hint"))
}

fn plain(row: &Value) -> String {
    let (count, client, route) = (text(row, "count"), text(row, "client"), text(row, "route"));
    format!(
        "{}  {count:>5}  {} {}  {client}  {}  {route} {} {}",
        text(row, "last_at"),
        key(row),
        text(row, "hint"),
        if row.get("shadow") == Some(&Value::Bool(true)) { format!("{} (shadow)", text(row, "reason")) } else { text(row, "reason") },
        text(row, "method"),
        text(row, "path")
    )
}
