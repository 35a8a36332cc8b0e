//! `keylatch audit`: prints the audit log of changes. Also used by `keylatch bindings audit`.

use clap::Args;
use prometheus::Registry;

use super::{ConfigFile, on_runtime};
use crate::bindings::{self, Purpose, Store};
use crate::cli::terminal::{outln, print_header};
use crate::compile;
use crate::config::model::Storage;
use crate::config::{Files, parse_file};
use crate::sql::audit::{AuditEntry, AuditQuery};

/// Rows of one page.
const PAGE: u32 = 1000;

#[derive(Args)]
pub struct Audit {
    #[command(flatten)]
    file: ConfigFile,
    /// Only changes of this target: a key id, a setting, an account
    #[arg(long)]
    target: Option<String>,
    /// Only changes by this actor
    #[arg(long)]
    actor: Option<String>,
    /// Only this kind of change: `binding.changed`, or `binding` for all changes of bindings
    #[arg(long)]
    action: Option<String>,
    /// The maximum number of rows
    #[arg(long, default_value_t = 100)]
    limit: u32,
    /// Print one JSON object per line, with the target before and after the change
    #[arg(long)]
    json: bool,
}

pub fn audit(args: &Audit) -> Result<(), String> {
    let settings = parse_file(&args.file.config).and_then(compile::settings).map_err(|report| report.to_string())?;
    if settings.storage == Storage::Memory {
        return Err("storage is memory: the audit log exists only in the running process; use its admin API".into());
    }
    on_runtime(async {
        let opened = bindings::open(&settings, &Files::beside(&args.file.config), &Registry::new(), Purpose::Command, None).await?;
        let query =
            AuditQuery { target: args.target.clone(), actor: args.actor.clone(), action: args.action.clone(), ..AuditQuery::default() };
        show(&opened.store, query, args.limit, args.json).await
    })
}

/// Prints the rows that match, the latest first.
pub async fn show(store: &Store, query: AuditQuery, limit: u32, json: bool) -> Result<(), String> {
    let (mut before, mut left, mut is_first) = (None, limit, !json);
    while left > 0 {
        let page = store.audit(AuditQuery { before, limit: left.min(PAGE), ..query.clone() }).await.map_err(|e| e.to_string())?;
        if std::mem::take(&mut is_first) {
            print_header("TIME                  ACTOR@ORIGIN  ACTION  TARGET  CHANGES", "No changes match.", page.is_empty())?;
        }
        let Some(last) = page.last() else { break };
        (before, left) = (Some(last.id), left - u32::try_from(page.len()).unwrap_or(left));
        for entry in &page {
            let line = if json { serde_json::to_string(entry).map_err(|e| e.to_string())? } else { plain(entry) };
            outln!("{line}")?;
        }
    }
    Ok(())
}

/// A row for people: actor, action, target, and the fields that changed.
fn plain(entry: &AuditEntry) -> String {
    let fields = |side: &Option<serde_json::Value>| side.as_ref().and_then(|value| value.as_object().cloned()).unwrap_or_default();
    let (before, after) = (fields(&entry.before), fields(&entry.after));
    let differs = |name: &&String| before.get(*name) != after.get(*name) && !["key_id", "last_used"].contains(&name.as_str());
    let changed: Vec<String> = after.keys().filter(differs).map(|name| format!("{name}={}", after[name])).collect();
    let at = humantime::format_rfc3339_seconds(entry.at);
    let target = entry.target.get(..12).unwrap_or(&entry.target);
    format!("{at}  {}@{}  {}  {target}  {}", entry.actor, entry.origin, entry.action, changed.join(" ")).trim_end().to_owned()
}
