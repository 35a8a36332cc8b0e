//! The content of alerts: the JSON event, and its text for chat services. It sends nothing.

use std::time::{Duration, SystemTime};

use humantime::format_rfc3339_seconds;
use serde_json::{Value, json};

use crate::sql::ledger::{LedgerAddition, LedgerRow};
use crate::sql::outbox::{KeyOverThreshold, Threshold};

/// The event of a key that was refused too often.
pub fn intercepted(hot: &KeyOverThreshold, threshold: Threshold, now: SystemTime) -> Value {
    let last = &hot.last;
    json!({
        "type": "key.intercepted",
        "timestamp": format_rfc3339_seconds(now).to_string(),
        "data": {
            "key": last.id.to_string(),
            "hint": last.hint,
            "intercepts": hot.intercepts,
            "shadow": hot.shadow,
            "clients": hot.clients,
            "threshold": threshold.count,
            "window_s": threshold.window.as_secs(),
            "last": {
                "at": format_rfc3339_seconds(last.at).to_string(),
                "client": last.client.to_string(),
                "method": last.method,
                "path": last.path,
                "route": last.route,
                "user_agent": last.user_agent,
                "networks": last.networks.iter().map(ToString::to_string).collect::<Vec<_>>(),
                "banned": last.banned,
                "shadow": last.shadow,
                "replica": hot.replica,
            },
        },
    })
}

/// The event of a budget that has reached a share of its amount. The amounts are in millionths of the
/// currency's unit, or in tokens.
pub fn budget(addition: &LedgerAddition, row: &LedgerRow, percent: u8, now: SystemTime) -> Value {
    let (budget, subject) = addition.name.split_once(':').unwrap_or((&addition.name, ""));
    let renews_at = SystemTime::UNIX_EPOCH + Duration::from_secs(u64::try_from(addition.period_end_s).unwrap_or(0));
    json!({
        "type": "budget.share_reached",
        "timestamp": format_rfc3339_seconds(now).to_string(),
        "data": {
            "budget": budget,
            "subject": subject,
            "percent": percent,
            "spent": row.spent,
            "amount": row.amount_max,
            "renews_at": format_rfc3339_seconds(renews_at).to_string(),
        },
    })
}

/// The event of a test.
pub fn test(now: SystemTime) -> Value {
    json!({ "type": "test", "timestamp": format_rfc3339_seconds(now).to_string(), "data": {} })
}

/// An event as one line of text. The only part that the refused client chooses is its address:
/// paths and user agents stay out of chats.
pub fn text(event: &Value) -> String {
    let data = &event["data"];
    let last = &data["last"];
    let word = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    if event["type"] == "budget.share_reached" {
        return budget_text(data);
    }
    if event["type"] != "key.intercepted" {
        return "Keylatch: this is a test alert. Alerts are delivered here.".into();
    }
    let networks: Vec<&str> = last["networks"].as_array().into_iter().flatten().filter_map(Value::as_str).take(5).collect();
    let bound = match (last["banned"].as_bool(), networks.is_empty()) {
        (Some(true), _) => "It is banned.".to_owned(),
        (_, true) => String::new(),
        (_, false) => format!("It is bound to {}.", networks.join(", ")),
    };
    let times = data["intercepts"].as_u64().unwrap_or_default();
    let refused = match data["shadow"].as_u64().unwrap_or_default() {
        0 => format!("was refused {times} times"),
        shadow if shadow == times => format!("would have been refused {times} times (shadow mode)"),
        shadow => format!("was refused {times} times ({shadow} of them in shadow mode)"),
    };
    let minutes = data["window_s"].as_u64().unwrap_or_default().div_ceil(60);
    let clients = data["clients"].as_u64().unwrap_or_default();
    let text = format!(
        "Keylatch: key {} ({}) {refused} within {minutes} min, from {clients} address{}, last from {} on route {}. {bound}",
        word(&data["key"]),
        word(&data["hint"]),
        if clients == 1 { "" } else { "es" },
        word(&last["client"]),
        word(&last["route"]),
    );
    text.trim_end().chars().filter(|each| !each.is_control()).collect()
}

fn budget_text(data: &Value) -> String {
    let word = |name: &str| data[name].as_str().unwrap_or_default().to_owned();
    // A key id is shown by its first digits.
    let subject: String = word("subject").replace("key=", "key ").chars().take(16).collect();
    let of = if subject.is_empty() { String::new() } else { format!(" of {subject}") };
    format!("Keylatch: the budget `{}`{of} has reached {} %. It renews at {}.", word("budget"), data["percent"], word("renews_at"))
}
