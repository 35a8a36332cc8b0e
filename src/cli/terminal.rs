//! Standard input and output of commands, with errors instead of panics.

use std::fmt::Arguments;
use std::io::{Read, Write};
use std::time::SystemTime;

/// Prints a line, as `println!` does, but returns an error instead of a panic.
macro_rules! outln {
    ($($what:tt)*) => { $crate::cli::terminal::write_line(format_args!($($what)*)) };
}
pub(crate) use outln;

/// Prints a line to standard output.
pub fn write_line(text: Arguments<'_>) -> Result<(), String> {
    output_result(writeln!(std::io::stdout(), "{text}"))
}

/// Begins a list for people: prints the header, or to standard error that the list is empty.
pub fn print_header(header: &str, empty: &str, is_empty: bool) -> Result<(), String> {
    if is_empty {
        eprintln!("{empty}");
        return Ok(());
    }
    write_line(format_args!("{header}"))
}

/// The result of a write to standard output; a closed pipe is no error.
pub fn output_result(result: std::io::Result<()>) -> Result<(), String> {
    match result {
        // The reader, such as `head`, has read enough.
        Err(e) if e.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        other => other.map_err(|e| format!("standard output: {e}")),
    }
}

/// Standard input without its last line end. More than `bytes_max` bytes are an error; input is never truncated.
pub fn read_stdin(bytes_max: usize) -> Result<String, String> {
    let wrong = |e: std::io::Error| format!("standard input: {e}");
    let mut text = String::new();
    // Up to two bytes of line end, and one more to detect that the input is longer.
    let read = std::io::stdin().take(bytes_max as u64 + 3).read_to_string(&mut text).map_err(wrong)?;
    let text = text.trim_end_matches(['\r', '\n']);
    if text.len() > bytes_max || read > bytes_max + 2 {
        return Err(format!("standard input: longer than {bytes_max} bytes"));
    }
    Ok(text.to_owned())
}

/// Parses a time in the past: a date, a time in UTC, or a duration before now.
pub fn parse_past_time(text: &str) -> Result<SystemTime, String> {
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
        let ms = |text: &str| parse_past_time(text).unwrap().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
        assert_eq!(ms("2026-11-29"), 1_795_910_400);
        assert_eq!(ms("2026-11-29T08:30:00Z"), 1_795_910_400 + 30_600);
        assert_eq!(ms("2026-11-29 08:30"), 1_795_910_400 + 30_600);
        assert!(SystemTime::now().duration_since(parse_past_time("2h").unwrap()).unwrap().as_secs().abs_diff(7200) < 5);
        for wrong in ["", "yesterday", "2026-13-01", "-2h", "29.11.2026"] {
            assert!(parse_past_time(wrong).is_err(), "{wrong}");
        }
    }
}
