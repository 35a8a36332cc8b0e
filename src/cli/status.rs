//! `keylatch status`: how things are and have been, over all replicas.

use clap::Args;
use http::Method;
use serde_json::Value;

use super::ConfigFile;
use super::here::{self, text};

#[derive(Args)]
pub struct Status {
    #[command(flatten)]
    file: ConfigFile,
    /// How far back: `1h`, `6h`, `24h`, `7d`, `30d`
    #[arg(long, default_value = "1h")]
    range: String,
    /// All of it, as JSON
    #[arg(long)]
    json: bool,
}

pub fn status(asked: &Status) -> Result<(), String> {
    let board = here::call(&asked.file.config, Method::GET, "/dashboard", &[("range", Some(asked.range.clone()))], None)?;
    if asked.json {
        println!("{board}");
        return Ok(());
    }
    let (now, health) = (&board["now"], &board["health"]);
    println!(
        "now         {:.1} requests/s, {} streams, {} connections",
        now["requests_per_s"].as_f64().unwrap_or(0.0),
        now["streams"],
        now["connections"]
    );
    if now["maintenance"] == true {
        println!("            MAINTENANCE: every request is refused");
    }
    let quantile = |name: &str| board["first_byte"][name].as_f64().map_or_else(|| "–".to_owned(), |s| format!("{:.0} ms", s * 1e3));
    println!(
        "last {:<6} {} requests, {} intercepts; first byte p50 {}, p95 {}, p99 {}",
        asked.range,
        board["requests"],
        board["intercepts"],
        quantile("p50"),
        quantile("p95"),
        quantile("p99")
    );
    println!("store       {}", health["store_error"].as_str().unwrap_or("answers"));
    if let Some(there) = health["redis"].as_bool() {
        println!("redis       {}", if there { "answers" } else { "does not answer" });
    }
    let each = |name: &str| board[name].as_array().cloned().unwrap_or_default();
    for upstream in health["upstreams"].as_array().into_iter().flatten() {
        println!("upstream    {:<20} {} of {} servers are well", text(upstream, "name"), upstream["well"], upstream["servers"]);
    }
    for replica in each("replicas") {
        let state = match (replica["gone"] == true, replica["reload_ok"] == false) {
            (true, _) => "gone",
            (false, true) => "its last reload failed",
            (false, false) => "serves",
        };
        println!(
            "replica     {:<20} {} {state}, configuration of {}",
            text(&replica, "name"),
            text(&replica, "version"),
            text(&replica, "loaded_at")
        );
    }
    for decision in each("decisions").iter().take(10) {
        println!(
            "decided     {:>8} {} {} {}",
            decision["count"],
            text(decision, "filter"),
            text(decision, "reason"),
            text(decision, "outcome")
        );
    }
    for (name, rows) in [("key", each("busiest_keys")), ("client", each("busiest_clients"))] {
        rows.iter().take(5).for_each(|row: &Value| {
            let what = text(row, "what");
            let short = if name == "key" { what.get(..12).unwrap_or(&what) } else { &what };
            println!("top {name:<7} {:>8} requests {short} {}", row["requests"], text(row, "hint"));
        });
    }
    for (name, rows) in [("key", each("top_keys")), ("client", each("top_clients"))] {
        rows.iter().take(5).for_each(|row: &Value| {
            let what = text(row, "what");
            let short = if name == "key" { what.get(..12).unwrap_or(&what) } else { &what };
            println!("top {name:<7} {:>8} intercepts {short} {}", row["count"], text(row, "hint"));
        });
    }
    Ok(())
}
