//! `keylatch limits`: who is near or over a limit, on all replicas, and giving back what he has used.

use clap::{Args, Subcommand};
use http::Method;
use serde_json::{Value, json};

use super::ConfigFile;
use super::admin_client::{self, text};
use crate::cli::terminal::{headed, say};

#[derive(Args)]
pub struct Limits {
    #[command(flatten)]
    file: ConfigFile,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// List who has used four fifths of a limit or more, first who is over
    List {
        /// One JSON object a line
        #[arg(long)]
        json: bool,
    },
    /// Give back what somebody has used, on all replicas; a block ends with it
    GiveBack {
        /// Who, as the list shows it: `key=…`, `client=…`; or a key id's first digits, or an address
        subject: String,
        /// Of this limit only
        #[arg(long)]
        limit: Option<String>,
        /// What was given back, one JSON object a line
        #[arg(long)]
        json: bool,
    },
}

pub fn limits(asked: &Limits) -> Result<(), String> {
    let config = &asked.file.config;
    let listed = admin_client::call(config, Method::GET, "/limits", &[], None)?;
    admin_client::warn_of_silent(&[&listed]);
    if listed["complete"] == false {
        eprintln!("these are not all: a replica knows of more than 1,000");
    }
    let rows = admin_client::rows(&listed);
    match &asked.command {
        Command::List { json } => {
            if !json {
                headed(HEADER, "No limit is near or over.", rows.is_empty())?;
            }
            rows.iter().try_for_each(|row| say!("{}", if *json { row.to_string() } else { plain(row) }))
        }
        Command::GiveBack { subject, limit, json } => {
            let can = |row: &&Value| row.get("can_give_back") == Some(&Value::Bool(true));
            let fits = |row: &&Value| names(row, subject) && limit.as_ref().is_none_or(|limit| text(row, "limit") == *limit);
            let mut given: Vec<Value> = Vec::new();
            for row in rows.iter().filter(can).filter(fits) {
                let which = json!({ "limit": row["limit"], "place": row["place"], "subject": row["subject"] });
                // Each replica may have said so; it is given back on all at once.
                if !given.contains(&which) {
                    admin_client::call(config, Method::POST, "/limits/reset", &[], Some(&which))?;
                    let plain = || format!("{} has all of `{}` ({}) again", text(row, "subject"), text(row, "limit"), text(row, "place"));
                    say!("{}", if *json { which.to_string() } else { plain() })?;
                    given.push(which);
                }
            }
            match given.is_empty() {
                true => Err(format!("`{subject}` is near or over no limit that can be given back; `keylatch limits list` says who is")),
                false => Ok(()),
            }
        }
    }
}

/// Digits of a key id that are enough, as for bindings.
const DIGITS_MIN: usize = crate::operator::bindings::DIGITS_MIN;

/// Whether a row is of this subject, key or address.
fn names(row: &Value, asked: &str) -> bool {
    let digits = asked.strip_prefix("key=").unwrap_or(asked).to_ascii_lowercase();
    let is_key = digits.len() >= DIGITS_MIN && text(row, "key_id").starts_with(&digits);
    let address = asked.strip_prefix("client=").unwrap_or(asked);
    // A subject of several parts is named by all of it: giving back a part would give back what others have used.
    let is_alone = !text(row, "subject").contains('+');
    text(row, "subject") == asked || (is_alone && (is_key || text(row, "client") == address))
}

const HEADER: &str = "LIMIT                    USED  SUBJECT, PLACE, STATE, COUNTED BY";

fn plain(row: &Value) -> String {
    let state = match (row["over"] == true, row["shadow"] == true) {
        (true, false) if row["retry_in_s"] == 0 => "refused".to_owned(),
        (true, false) => format!("refused, for another {}s", text(row, "retry_in_s")),
        (true, true) => "would be refused".to_owned(),
        (false, _) => "near".to_owned(),
    };
    let by = row["replica"].as_str().map_or_else(|| "all together".to_owned(), str::to_owned);
    let used = format!("{}/{}", text(row, "used"), text(row, "most"));
    format!("{:<16} {used:>12}  {}  {state}  {}  {by}", text(row, "limit"), text(row, "subject"), text(row, "place"))
}
