//! What commands read from standard input and say on standard output.

use std::fmt::Arguments;
use std::io::{Read, Write};
use std::time::SystemTime;

/// Says a line, as `println!` does, but for what went wrong with it.
macro_rules! say {
    ($($what:tt)*) => { $crate::cli::terminal::line(format_args!($($what)*)) };
}
pub(crate) use say;

/// Says a line.
pub fn line(what: Arguments<'_>) -> Result<(), String> {
    written(writeln!(std::io::stdout(), "{what}"))
}

/// Begins a list for people: the names of its columns, or on standard error that it is empty.
pub fn headed(header: &str, empty: &str, is_empty: bool) -> Result<(), String> {
    if is_empty {
        eprintln!("{empty}");
        return Ok(());
    }
    line(format_args!("{header}"))
}

/// What came of writing to standard output.
pub fn written(result: std::io::Result<()>) -> Result<(), String> {
    match result {
        // Whoever read has seen enough.
        Err(e) if e.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        other => other.map_err(|e| format!("standard output: {e}")),
    }
}

/// All of standard input without the end of its last line, `bytes_max` at most: what is longer is refused, never cut.
pub fn read_stdin(bytes_max: usize) -> Result<String, String> {
    let wrong = |e: std::io::Error| format!("standard input: {e}");
    let mut text = String::new();
    // One more tells that there is more, and a line may end with two.
    let read = std::io::stdin().take(bytes_max as u64 + 3).read_to_string(&mut text).map_err(wrong)?;
    let text = text.trim_end_matches(['\r', '\n']);
    if text.len() > bytes_max || read > bytes_max + 2 {
        return Err(format!("standard input: longer than {bytes_max} bytes"));
    }
    Ok(text.to_owned())
}

/// A time as an operator writes it: a date, a time in UTC, or how long ago it was.
pub fn past(text: &str) -> Result<SystemTime, String> {
    let date = || humantime::parse_rfc3339_weak(&format!("{text}T00:00:00Z")).ok();
    let time = || humantime::parse_rfc3339_weak(text).ok();
    let minutes = || humantime::parse_rfc3339_weak(&format!("{text}:00")).ok();
    let ago = || SystemTime::now().checked_sub(humantime::parse_duration(text).ok()?);
    let known = date().or_else(time).or_else(minutes).or_else(ago);
    known.ok_or_else(|| "write a date such as 2026-11-29, a time such as 2026-11-29T08:30:00Z, or a duration such as 2h".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_dates_times_and_durations() {
        let ms = |text: &str| past(text).unwrap().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
        assert_eq!(ms("2026-11-29"), 1_795_910_400);
        assert_eq!(ms("2026-11-29T08:30:00Z"), 1_795_910_400 + 30_600);
        assert_eq!(ms("2026-11-29 08:30"), 1_795_910_400 + 30_600);
        assert!(SystemTime::now().duration_since(past("2h").unwrap()).unwrap().as_secs().abs_diff(7200) < 5);
        for wrong in ["", "yesterday", "2026-13-01", "-2h", "29.11.2026"] {
            assert!(past(wrong).is_err(), "{wrong}");
        }
    }
}
