//! `keylatch status`: prints the state and recent traffic of all replicas.

use clap::Args;
use http::Method;
use serde_json::Value;

use super::ConfigFile;
use super::admin_client::{self, text};
use super::terminal::outln;

#[derive(Args)]
pub struct Status {
    #[command(flatten)]
    file: ConfigFile,
    /// The time range: `1h`, `6h`, `24h`, `7d` or `30d`
    #[arg(long, default_value = "1h")]
    range: String,
    /// Print everything as JSON
    #[arg(long)]
    json: bool,
}

pub fn status(args: &Status) -> Result<(), String> {
    let board = admin_client::call(&args.file.config, Method::GET, "/dashboard", &[("range", Some(args.range.clone()))], None)?;
    if args.json {
        return outln!("{board}");
    }
    traffic(&board, &args.range)?;
    health(&board["health"])?;
    replicas(&board)?;
    tops(&board)
}

fn rows<'a>(board: &'a Value, name: &str) -> impl Iterator<Item = &'a Value> {
    board[name].as_array().into_iter().flatten()
}

fn traffic(board: &Value, range: &str) -> Result<(), String> {
    let now = &board["now"];
    let rate = now["requests_per_s"].as_f64().unwrap_or(0.0);
    outln!("now         {rate:.1} requests/s, {} streams, {} connections", now["streams"], now["connections"])?;
    if now["maintenance"] == true {
        outln!("            MAINTENANCE: every request is refused")?;
    }
    let quantile = |name: &str| board["first_byte"][name].as_f64().map_or_else(|| "–".to_owned(), |s| format!("{:.0} ms", s * 1e3));
    outln!(
        "last {range:<6} {} requests, {} intercepts; first byte p50 {}, p95 {}, p99 {}",
        board["requests"],
        board["intercepts"],
        quantile("p50"),
        quantile("p95"),
        quantile("p99")
    )
}

fn health(health: &Value) -> Result<(), String> {
    outln!("store       {}", health["store_error"].as_str().unwrap_or("answers"))?;
    if let Some(there) = health["redis"].as_bool() {
        outln!("redis       {}", if there { "answers" } else { "does not answer" })?;
    }
    rows(health, "upstreams").try_for_each(|upstream| {
        let down = if upstream["status"] == "down" { "DOWN: " } else { "" };
        outln!("upstream    {:<20} {down}{} of {} servers are healthy", text(upstream, "name"), upstream["well"], upstream["servers"])
    })
}

fn replicas(board: &Value) -> Result<(), String> {
    rows(board, "replicas").try_for_each(|replica| {
        let state = match (replica["gone"] == true, replica["reload_ok"] == false) {
            (true, _) => "gone",
            (false, true) => "its last reload failed",
            (false, false) if replica["handed_over"] == true => "has handed over and drains its connections",
            (false, false) => "serves",
        };
        let (name, version, loaded) = (text(replica, "name"), text(replica, "version"), text(replica, "loaded_at"));
        outln!("replica     {name:<20} {version} {state}, configuration of {loaded}")
    })
}

/// The most frequent decisions, and the keys and clients with the most requests and refusals.
fn tops(board: &Value) -> Result<(), String> {
    for decision in rows(board, "decisions").take(10) {
        let (filter, reason, outcome) = (text(decision, "filter"), text(decision, "reason"), text(decision, "outcome"));
        outln!("decided     {:>8} {filter} {reason} {outcome}", decision["count"])?;
    }
    for (list, count, of, name) in [
        ("busiest_keys", "requests", "requests", "key"),
        ("busiest_clients", "requests", "requests", "client"),
        ("limited_keys", "requests", "times 429", "key"),
        ("limited_clients", "requests", "times 429", "client"),
        ("unauthorized_clients", "requests", "times 401", "client"),
        ("top_keys", "count", "intercepts", "key"),
        ("top_clients", "count", "intercepts", "client"),
    ] {
        for row in rows(board, list).take(5) {
            let what = text(row, "what");
            let short = if name == "key" { what.get(..12).unwrap_or(&what) } else { &what };
            outln!("top {name:<7} {:>8} {of} {short} {}", row[count], text(row, "hint"))?;
        }
    }
    Ok(())
}
