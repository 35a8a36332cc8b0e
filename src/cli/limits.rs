//! `keylatch limits`: lists subjects near or over a limit on all replicas, and resets their usage.

use clap::{Args, Subcommand};
use http::Method;
use serde_json::{Value, json};

use super::ConfigFile;
use super::admin_client::{self, text};
use crate::cli::terminal::{outln, print_header};

#[derive(Args)]
pub struct Limits {
    #[command(flatten)]
    file: ConfigFile,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// List subjects that have used at least 80 % of a limit; those over a limit come first
    List {
        /// Print one JSON object per line
        #[arg(long)]
        json: bool,
    },
    /// Reset the usage of a subject on all replicas, and end its block
    GiveBack {
        /// The subject, as the list shows it (`key=…`, `client=…`), the first digits of a key id, or an address
        subject: String,
        /// Only this limit
        #[arg(long)]
        limit: Option<String>,
        /// Print what was reset, one JSON object per line
        #[arg(long)]
        json: bool,
    },
}

pub fn limits(args: &Limits) -> Result<(), String> {
    let config = &args.file.config;
    let listed = admin_client::call(config, Method::GET, "/limits", &[], None)?;
    admin_client::warn_of_silent(&[&listed]);
    if listed["complete"] == false {
        eprintln!("the list is incomplete: a replica has more than 1,000 rows");
    }
    let rows = admin_client::rows(&listed);
    match &args.command {
        Command::List { json } => {
            if !json {
                print_header(HEADER, "No limit is near or over.", rows.is_empty())?;
            }
            rows.iter().try_for_each(|row| outln!("{}", if *json { row.to_string() } else { plain(row) }))
        }
        Command::GiveBack { subject, limit, json } => {
            let can = |row: &&Value| row.get("can_give_back") == Some(&Value::Bool(true));
            let fits = |row: &&Value| matches_subject(row, subject) && limit.as_ref().is_none_or(|limit| text(row, "limit") == *limit);
            let mut given: Vec<Value> = Vec::new();
            for row in rows.iter().filter(can).filter(fits) {
                let which = json!({ "limit": row["limit"], "place": row["place"], "subject": row["subject"] });
                // Several replicas may list the same usage; one call resets it on all of them.
                if !given.contains(&which) {
                    admin_client::call(config, Method::POST, "/limits/reset", &[], Some(&which))?;
                    let plain = || format!("Reset `{}` ({}) for {}.", text(row, "limit"), text(row, "place"), text(row, "subject"));
                    outln!("{}", if *json { which.to_string() } else { plain() })?;
                    given.push(which);
                }
            }
            match given.is_empty() {
                true => Err(format!("`{subject}` is near or over no limit that can be reset; see `keylatch limits list`")),
                false => Ok(()),
            }
        }
    }
}

/// The minimum number of digits of a key id, as for bindings.
const DIGITS_MIN: usize = crate::operator::bindings::DIGITS_MIN;

/// Whether the subject of a row is this subject, key or address.
fn matches_subject(row: &Value, wanted: &str) -> bool {
    let digits = wanted.strip_prefix("key=").unwrap_or(wanted).to_ascii_lowercase();
    let is_key = digits.len() >= DIGITS_MIN && text(row, "key_id").starts_with(&digits);
    let address = wanted.strip_prefix("client=").unwrap_or(wanted);
    // A subject of several parts must be given in full: one part alone would also reset the usage of other subjects.
    let is_single = !text(row, "subject").contains('+');
    text(row, "subject") == wanted || (is_single && (is_key || text(row, "client") == address))
}

const HEADER: &str = "LIMIT                    USED  SUBJECT, PLACE, STATE, COUNTED BY";

fn plain(row: &Value) -> String {
    let state = match (row["over"] == true, row["shadow"] == true) {
        (true, false) if row["retry_in_s"] == 0 => "refused".to_owned(),
        (true, false) => format!("refused for {} s", text(row, "retry_in_s")),
        (true, true) => "would be refused".to_owned(),
        (false, _) => "near".to_owned(),
    };
    let by = row["replica"].as_str().map_or_else(|| "all replicas".to_owned(), str::to_owned);
    let used = format!("{}/{}", text(row, "used"), text(row, "most"));
    format!("{:<16} {used:>12}  {}  {state}  {}  {by}", text(row, "limit"), text(row, "subject"), text(row, "place"))
}
