//! `keylatch status`: how things are and have been, over all replicas.

use std::io::Write;

use clap::Args;
use http::Method;

use super::here::{self, text};
use super::{ConfigFile, written};

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

/// Whoever reads may have seen enough, and then the rest is not said.
macro_rules! say {
    ($($what:tt)*) => { written(writeln!(std::io::stdout(), $($what)*))? };
}

pub fn status(asked: &Status) -> Result<(), String> {
    let board = here::call(&asked.file.config, Method::GET, "/dashboard", &[("range", Some(asked.range.clone()))], None)?;
    if asked.json {
        say!("{board}");
        return Ok(());
    }
    let (now, health) = (&board["now"], &board["health"]);
    say!(
        "now         {:.1} requests/s, {} streams, {} connections",
        now["requests_per_s"].as_f64().unwrap_or(0.0),
        now["streams"],
        now["connections"]
    );
    if now["maintenance"] == true {
        say!("            MAINTENANCE: every request is refused");
    }
    let quantile = |name: &str| board["first_byte"][name].as_f64().map_or_else(|| "–".to_owned(), |s| format!("{:.0} ms", s * 1e3));
    say!(
        "last {:<6} {} requests, {} intercepts; first byte p50 {}, p95 {}, p99 {}",
        asked.range,
        board["requests"],
        board["intercepts"],
        quantile("p50"),
        quantile("p95"),
        quantile("p99")
    );
    say!("store       {}", health["store_error"].as_str().unwrap_or("answers"));
    if let Some(there) = health["redis"].as_bool() {
        say!("redis       {}", if there { "answers" } else { "does not answer" });
    }
    let each = |name: &str| board[name].as_array().cloned().unwrap_or_default();
    for upstream in health["upstreams"].as_array().into_iter().flatten() {
        say!("upstream    {:<20} {} of {} servers are well", text(upstream, "name"), upstream["well"], upstream["servers"]);
    }
    for replica in each("replicas") {
        let state = match (replica["gone"] == true, replica["reload_ok"] == false) {
            (true, _) => "gone",
            (false, true) => "its last reload failed",
            (false, false) => "serves",
        };
        say!(
            "replica     {:<20} {} {state}, configuration of {}",
            text(&replica, "name"),
            text(&replica, "version"),
            text(&replica, "loaded_at")
        );
    }
    for decision in each("decisions").iter().take(10) {
        say!(
            "decided     {:>8} {} {} {}",
            decision["count"],
            text(decision, "filter"),
            text(decision, "reason"),
            text(decision, "outcome")
        );
    }
    for (name, rows) in [("key", each("busiest_keys")), ("client", each("busiest_clients"))] {
        for row in rows.iter().take(5) {
            let what = text(row, "what");
            let short = if name == "key" { what.get(..12).unwrap_or(&what) } else { &what };
            say!("top {name:<7} {:>8} requests {short} {}", row["requests"], text(row, "hint"));
        }
    }
    for (name, rows) in [("key", each("top_keys")), ("client", each("top_clients"))] {
        for row in rows.iter().take(5) {
            let what = text(row, "what");
            let short = if name == "key" { what.get(..12).unwrap_or(&what) } else { &what };
            say!("top {name:<7} {:>8} intercepts {short} {}", row["count"], text(row, "hint"));
        }
    }
    Ok(())
}
