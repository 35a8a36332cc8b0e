//! What commands read from standard input and say on standard output.

use std::fmt::Arguments;
use std::io::{Read, Write};

/// Says a line, as `println!` does, but for what went wrong with it.
macro_rules! say {
    ($($what:tt)*) => { $crate::cli::terminal::line(format_args!($($what)*)) };
}
pub(crate) use say;

/// Says a line.
pub fn line(what: Arguments<'_>) -> Result<(), String> {
    written(writeln!(std::io::stdout(), "{what}"))
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
