//! Reads bindings from the table of another gateway, exported as CSV or JSON lines: its column names, and the value formats of
//! PostgreSQL and Python.
//!
//! Keys must be hashed as here: HMAC-SHA256 with the same secret, in hex. This file only parses; it checks no key.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use serde_json::Value;

use super::Format;
use crate::sql::row::Row;

/// Our column names with those of other gateways. The first column with a value is used.
const NAMES: [(&str, &[&str]); 6] = [
    ("key_id", &["key_id", "token_hash", "token_hmac", "key_hash", "key_hmac", "api_key_hash", "hash"]),
    ("hint", &["hint", "token_display", "key_hint", "key_display", "display"]),
    ("networks", &["networks", "allowed_ips", "allowed_networks", "bound_ip", "bound_cidr", "client_ip", "ip_address", "ip"]),
    ("rule", &["rule", "binding_mode", "mode"]),
    ("banned", &["banned", "is_banned", "status"]),
    ("created", &["created", "first_used_at", "created_at", "bound_at"]),
];

/// The columns for a key with the rule `single`. A list of allowed addresses may be left over from another rule.
const BOUND: [&str; 4] = ["networks", "bound_ip", "bound_cidr", "client_ip"];
/// Columns in which 1 means banned; in `status` 1 means active.
const FLAGS: [&str; 2] = ["banned", "is_banned"];

type Fields = BTreeMap<String, String>;

/// Parses `FIELD=COLUMN`: a field of a binding, and the column of the table that has it.
pub fn column(text: &str) -> Result<(String, String), String> {
    let (ours, gateway_rows) = text.split_once('=').ok_or("must be FIELD=COLUMN, such as key_id=token_hash")?;
    match NAMES.iter().any(|(name, _)| *name == ours) {
        true => Ok((ours.to_owned(), gateway_rows.to_owned())),
        false => Err(format!("unknown field `{ours}`; the fields are {}", NAMES.map(|(name, _)| name).join(", "))),
    }
}

/// The rows, each with its line number.
pub fn rows(text: &str, format: Format, columns: &[(String, String)]) -> Vec<(u64, Result<Row, String>)> {
    let fields: Vec<(u64, Result<Fields, String>)> = match format {
        Format::Jsonl => {
            let lines = (1..).zip(text.lines()).filter(|(_, line)| !line.trim().is_empty());
            let read = |line: &str| serde_json::from_str::<BTreeMap<String, Value>>(line).map(|map| map.into_iter().map(flat).collect());
            lines.map(|(number, line)| (number, read(line).map_err(|e| unreadable(&format!("column {}", e.column()))))).collect()
        }
        Format::Csv => {
            let mut reader = csv::ReaderBuilder::new().trim(csv::Trim::Headers).from_reader(text.as_bytes());
            let read = |row: Result<Fields, csv::Error>| row.map_err(|_| unreadable("the first line must be the header"));
            (2..).zip(reader.deserialize::<Fields>()).map(|(number, row)| (number, read(row))).collect()
        }
    };
    fields.into_iter().map(|(number, fields)| (number, fields.and_then(|fields| row(&fields, columns)))).collect()
}

fn flat((name, value): (String, Value)) -> (String, String) {
    let text = match value {
        Value::Null => String::new(),
        Value::String(text) => text,
        other => other.to_string(),
    };
    (name, text)
}

fn row(fields: &Fields, columns: &[(String, String)]) -> Result<Row, String> {
    let named = |ours: &str| columns.iter().find(|(name, _)| name == ours).map(|(_, gateway_rows)| gateway_rows.as_str());
    // An empty column counts as absent: another one may have the value.
    let value_of =
        |name: &str| fields.get(name).map(|value| value.trim()).filter(|value| !value.is_empty() && *value != "{}" && *value != "[]");
    let column = |ours: &str, first: &[&'static str]| {
        let known = NAMES.iter().find(|(name, _)| *name == ours).map_or(&[][..], |(_, names)| names);
        let known = first.iter().chain(known).copied().filter(|_| named(ours).is_none());
        named(ours).into_iter().chain(known).find_map(|name| value_of(name).map(|value| (name, value)))
    };
    let get = |ours: &str| column(ours, &[]).map(|(_, value)| value);
    let rule = get("rule").map(str::to_ascii_lowercase).unwrap_or_default();
    let networks = column("networks", if rule == "single" { &BOUND } else { &[] });
    let networks = networks.map(|(_, text)| list(text)).unwrap_or_default();
    let banned = column("banned", &[]).map(|(name, text)| banned(name, text)).transpose()?;
    if rule == "single" && networks.iter().any(|network| network.ends_with("/0")) {
        return Err("a key with the rule `single` has a network of all addresses; use the rule `all`".into());
    }
    Ok(Row {
        key_id: get("key_id").ok_or("no column has the hash of the key; name it with --column key_id=COLUMN")?.to_ascii_lowercase(),
        hint: get("hint").unwrap_or_default().to_owned(),
        networks: if rule == "all" { Vec::new() } else { networks },
        rule,
        banned,
        made_by: "import:gateway".into(),
        created: get("created").map(time).transpose()?.unwrap_or_default(),
        ..Row::default()
    })
}

fn banned(column: &str, text: &str) -> Result<bool, String> {
    let flag = FLAGS.contains(&column);
    match text.to_ascii_lowercase().as_str() {
        "t" | "true" | "yes" | "banned" | "disabled" | "blocked" => Ok(true),
        "f" | "false" | "no" | "active" | "enabled" | "ok" => Ok(false),
        "0" if flag => Ok(false),
        "1" if flag => Ok(true),
        "1" if column == "status" => Ok(false),
        "2" if column == "status" => Ok(true),
        number if number.bytes().all(|digit| digit.is_ascii_digit()) => Err(format!(
            "`{column}`: unknown value {number}: in `status` 1 is active and 2 banned, in `banned` 1 is banned; write true or false"
        )),
        _ => Err(format!("`{column}` must be true, false, active or banned; in `status` 1 or 2; in `banned` 0 or 1")),
    }
}

/// A list: `{a,b}` of PostgreSQL, `["a", "b"]` of JSON, or words separated by spaces, commas or semicolons.
fn list(text: &str) -> Vec<String> {
    let inside = text.trim_matches(['{', '}', '[', ']']);
    inside.split([',', ' ', ';']).map(|item| item.trim_matches(['"', '\'']).to_owned()).filter(|item| !item.is_empty()).collect()
}

/// A time: `2026-01-31 09:00:00.123+08` of PostgreSQL, `2026-01-31T09:00:00` of Python, RFC 3339, or seconds or milliseconds
/// since 1970. Without a zone it is UTC.
fn time(text: &str) -> Result<String, String> {
    let wrong = || format!("`{text}` is not a time; write 2026-01-31T09:00:00Z or 2026-01-31 09:00:00+08");
    if let Ok(number) = text.parse::<f64>() {
        // 1e11 seconds are in the year 5138, 1e11 milliseconds in 1973: a larger number is in milliseconds.
        let seconds = if number > 1e11 { number / 1000.0 } else { number };
        let since = Duration::try_from_secs_f64(seconds).ok().filter(|since| *since < FAR).ok_or_else(wrong)?;
        return Ok(humantime::format_rfc3339_seconds(SystemTime::UNIX_EPOCH + since).to_string());
    }
    let plain = text.replacen(' ', "T", 1);
    let plain = plain.strip_suffix(['Z', 'z']).unwrap_or(&plain);
    let zone = plain.find('T').and_then(|day| plain[day..].rfind(['+', '-']).map(|at| day + at));
    let (plain, zone) = zone.map_or((plain, "+00"), |at| plain.split_at(at));
    let local = humantime::parse_rfc3339(&format!("{plain}Z")).map_err(|_| wrong())?;
    let ahead = offset(&zone[1..]).ok_or_else(wrong)?;
    let utc = if zone.starts_with('+') { local.checked_sub(ahead) } else { local.checked_add(ahead) };
    utc.filter(|time| *time >= SystemTime::UNIX_EPOCH).map(|time| humantime::format_rfc3339_seconds(time).to_string()).ok_or_else(wrong)
}

/// A zone offset: `08`, `0530` or `05:30`.
fn offset(text: &str) -> Option<Duration> {
    let digits = text.replace(':', "");
    let whole = matches!(digits.len(), 2 | 4) && digits.bytes().all(|digit| digit.is_ascii_digit());
    let number = |range: std::ops::Range<usize>| digits.get(range).map_or(Some(0), |part| part.parse::<u64>().ok());
    let (hours, minutes) = (number(0..2).filter(|_| whole)?, number(2..4)?);
    (hours < 24 && minutes < 60).then(|| Duration::from_secs(hours * 3600 + minutes * 60))
}

/// A time in the year 9998, as the upper bound.
const FAR: Duration = Duration::from_secs(253_370_000_000);

/// The error for a row that cannot be read. A row may hold keys, so its content is not shown.
pub fn unreadable(hint: &str) -> String {
    format!(
        "not a valid binding ({hint}); its columns are key_id or key, hint, rule, networks, networks_max, window, banned, made_by, note, labels, created"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_and_values_of_other_gateways() {
        let id = "AB".repeat(32);
        let csv = format!(
            "id,token_hash,token_display,bound_ip,binding_mode,allowed_ips,status,first_used_at\n\
             1,{id},sk-a…f00d,203.0.113.0/24,single,[],1,2026-01-31 09:00:00.5+00\n\
             2,{id},,203.0.113.7,multiple,\"{{203.0.113.7,198.51.100.0/24}}\",2,2026-01-31T09:00:00\n\
             3,{id},,203.0.113.7,all,,t,1769850000\n\
             4,{id},,203.0.113.7,single,,perhaps,\n"
        );
        let rows = rows(&csv, Format::Csv, &[]);
        let row = |at: usize| rows[at].1.clone().unwrap();
        assert_eq!(row(0).key_id, "ab".repeat(32));
        assert_eq!((row(0).hint.as_str(), row(0).rule.as_str(), row(0).banned), ("sk-a…f00d", "single", Some(false)));
        assert_eq!((row(0).networks, row(0).created.as_str()), (vec!["203.0.113.0/24".to_owned()], "2026-01-31T09:00:00Z"));
        assert_eq!(row(1).networks, ["203.0.113.7", "198.51.100.0/24"]);
        assert_eq!((row(1).banned, row(1).created.as_str()), (Some(true), "2026-01-31T09:00:00Z"));
        assert_eq!(
            (row(2).networks.len(), row(2).rule.as_str(), row(2).banned, row(2).created.as_str()),
            (0, "all", Some(true), "2026-01-31T09:00:00Z")
        );
        assert_eq!(rows[3].0, 5);
        assert!(rows[3].1.as_ref().unwrap_err().contains("must be true, false"));
    }

    #[test]
    fn a_single_key_uses_the_bound_address() {
        let row = |rule: &str| {
            let csv =
                format!("key_hash,allowed_ips,bound_ip,mode\n00,\"[\"\"203.0.113.1\"\", \"\"203.0.113.2\"\"]\",198.51.100.7,{rule}\n");
            rows(&csv, Format::Csv, &[]).remove(0).1.unwrap().networks
        };
        assert_eq!(row("single"), ["198.51.100.7"], "the list is left over from another rule");
        assert_eq!(row("multiple"), ["203.0.113.1", "203.0.113.2"]);
    }

    #[test]
    fn forms_of_banned() {
        for (column, text, is) in [
            ("status", "1", Some(false)),
            ("status", "2", Some(true)),
            ("status", "0", None),
            ("status", "3", None),
            ("status", "Banned", Some(true)),
            ("banned", "1", Some(true)),
            ("is_banned", "0", Some(false)),
            ("is_banned", "2", None),
            ("banned", "f", Some(false)),
            ("is_banned", "t", Some(true)),
            ("zustand", "1", None),
            ("zustand", "true", Some(true)),
            ("zustand", "perhaps", None),
        ] {
            let read = banned(column, text);
            assert_eq!(read.as_ref().ok().copied(), is, "{column} {text}: {read:?}");
            assert!(read.is_ok() || read.unwrap_err().contains(column));
        }
        let csv = "key_hash,ip,is_banned\n00,203.0.113.7,1\n";
        assert_eq!(rows(csv, Format::Csv, &[]).remove(0).1.unwrap().banned, Some(true));
    }

    #[test]
    fn forms_of_times() {
        for (text, is) in [
            ("2026-01-31 09:00:00+00", "2026-01-31T09:00:00Z"),
            ("2026-01-31 09:00:00.25+08", "2026-01-31T01:00:00Z"),
            ("2026-01-31T09:00:00-0330", "2026-01-31T12:30:00Z"),
            ("2026-01-31T09:00:00+05:45", "2026-01-31T03:15:00Z"),
            ("2026-01-31 09:00:00", "2026-01-31T09:00:00Z"),
            ("2026-01-31t09:00:00z", ""),
            ("2026-01-31 09:00:00+8", ""),
            ("2026-01-31 09:00:00+24", ""),
            ("2026-01-31", ""),
            ("1769850000", "2026-01-31T09:00:00Z"),
            ("1769850000000", "2026-01-31T09:00:00Z"),
            ("-5", ""),
            ("nan", ""),
            ("1e300", ""),
            ("1970-01-01 00:00:00+08", ""),
            ("+", ""),
            ("yesterday", ""),
        ] {
            assert_eq!(time(text).unwrap_or_default(), is, "{text}");
        }
    }

    #[test]
    fn columns_are_mapped_by_option() {
        let columns = [column("key_id=wert").unwrap(), column("networks=wo").unwrap()];
        let json = r#"{"wert": "00", "wo": ["2001:db8::/64"], "key_hash": "ff", "rule": null}"#;
        let (_, row) = rows(json, Format::Jsonl, &columns).remove(0);
        let row = row.unwrap();
        assert_eq!((row.key_id.as_str(), row.networks), ("00", vec!["2001:db8::/64".to_owned()]));
        assert!(column("absent=x").is_err() && column("key_id").is_err());
        assert!(rows("{\"ip\": \"1.2.3.4\"}", Format::Jsonl, &[]).remove(0).1.unwrap_err().contains("--column key_id="));
    }
}
