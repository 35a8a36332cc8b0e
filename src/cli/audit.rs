//! `keylatch audit`: who has changed what.

use clap::Args;
use prometheus::Registry;

use super::{ConfigFile, on_runtime};
use crate::bindings::{self, Purpose, Store};
use crate::cli::terminal::{headed, say};
use crate::compile;
use crate::config::model::Storage;
use crate::config::{Files, parse_file};
use crate::sql::audit::{AuditEntry, AuditQuery};

/// Rows read at once.
const PAGE: u32 = 1000;

#[derive(Args)]
pub struct Audit {
    #[command(flatten)]
    file: ConfigFile,
    /// Of this thing: a key id, a setting, an account
    #[arg(long)]
    target: Option<String>,
    /// By him
    #[arg(long)]
    actor: Option<String>,
    /// Of this kind: `binding.changed`, or `binding` for all of bindings
    #[arg(long)]
    action: Option<String>,
    /// At most so many
    #[arg(long, default_value_t = 100)]
    limit: u32,
    /// One JSON object a line, with each thing before and after
    #[arg(long)]
    json: bool,
}

pub fn audit(asked: &Audit) -> Result<(), String> {
    let settings = parse_file(&asked.file.config).and_then(compile::settings).map_err(|report| report.to_string())?;
    if settings.storage == Storage::Memory {
        return Err("storage is memory: its audit is in the running process alone; its admin API shows it".into());
    }
    on_runtime(async {
        let opened = bindings::open(&settings, &Files::beside(&asked.file.config), &Registry::new(), Purpose::Command, None).await?;
        let of =
            AuditQuery { target: asked.target.clone(), actor: asked.actor.clone(), action: asked.action.clone(), ..AuditQuery::default() };
        show(&opened.store, of, asked.limit, asked.json).await
    })
}

/// The latest first.
pub async fn show(store: &Store, asked: AuditQuery, limit: u32, json: bool) -> Result<(), String> {
    let (mut before, mut left, mut is_first) = (None, limit, !json);
    while left > 0 {
        let page = store.audit(AuditQuery { before, limit: left.min(PAGE), ..asked.clone() }).await.map_err(|e| e.to_string())?;
        if std::mem::take(&mut is_first) {
            headed("TIME                  ACTOR@ORIGIN  ACTION  TARGET  CHANGES", "There is no such change.", page.is_empty())?;
        }
        let Some(last) = page.last() else { break };
        (before, left) = (Some(last.id), left - u32::try_from(page.len()).unwrap_or(left));
        for entry in &page {
            let line = if json { serde_json::to_string(entry).map_err(|e| e.to_string())? } else { plain(entry) };
            say!("{line}")?;
        }
    }
    Ok(())
}

/// Who did what to which, and what is different since.
fn plain(entry: &AuditEntry) -> String {
    let fields = |side: &Option<serde_json::Value>| side.as_ref().and_then(|value| value.as_object().cloned()).unwrap_or_default();
    let (before, after) = (fields(&entry.before), fields(&entry.after));
    let differs = |name: &&String| before.get(*name) != after.get(*name) && !["key_id", "last_used"].contains(&name.as_str());
    let changed: Vec<String> = after.keys().filter(differs).map(|name| format!("{name}={}", after[name])).collect();
    let at = humantime::format_rfc3339_seconds(entry.at);
    let target = entry.target.get(..12).unwrap_or(&entry.target);
    format!("{at}  {}@{}  {}  {target}  {}", entry.actor, entry.origin, entry.action, changed.join(" ")).trim_end().to_owned()
}
