//! Calls the CEL parser, and shortens its messages.

use cel::Env;
use cel::common::ast::{IdedExpr, SourceInfo};

use crate::contract::Invalid;

/// The deepest nesting that the parser accepts.
pub const DEPTH_MAX: u16 = 64;
/// The stack of the parser at that depth. It is reserved; only the used part needs memory.
const STACK_BYTES: usize = 64 << 20;

/// A position in the source: the column only, if the source has one line.
pub fn position(line: usize, column: usize, source: &str) -> String {
    if source.trim_end().contains('\n') { format!("line {line}, column {}", column + 1) } else { format!("column {}", column + 1) }
}

/// The syntax tree of an expression.
pub fn parse(source: &str) -> Result<(IdedExpr, SourceInfo), Invalid> {
    // Macros are not expanded by the parser, because the checker handles them with their original positions.
    let parse = || {
        let parser = Env::default().with_optional_support(false).parser().enable_ident_escape_syntax(true).max_recursion_depth(DEPTH_MAX);
        parser.parse_with_source_info(source)
    };
    // The parser runs in a thread of its own for two reasons: it needs a large stack, most of all in debug builds, and a
    // panic in it must become an error.
    let parsed = std::thread::scope(|scope| match std::thread::Builder::new().stack_size(STACK_BYTES).spawn_scoped(scope, parse) {
        Ok(thread) => Ok(thread.join()),
        Err(error) => Err(Invalid::new(format!("no thread could be started to read the expression: {error}"))),
    })?;
    match parsed {
        Ok(Ok(parsed)) => Ok(parsed),
        Ok(Err(errors)) => Err(match errors.errors.first() {
            Some(first) => {
                let (line, column) = (usize::try_from(first.pos.0).unwrap_or(1), usize::try_from(first.pos.1).unwrap_or(0));
                Invalid::new(format!("{}: {}", position(line.max(1), column.saturating_sub(1), source), short_message(&first.msg)))
            }
            None => Invalid::new("this is not a valid expression"),
        }),
        Err(_) => Err(Invalid::new("this is not a valid expression")),
    }
}

/// The parser's message without its list of expected tokens and without internal names.
fn short_message(message: &str) -> String {
    let message = message.trim_start_matches("Syntax error: ");
    let message = message.split_once(" expecting {").map_or(message, |(found, _)| found);
    if message.contains(" { ") || message.contains('(') { "syntax error".to_owned() } else { message.to_owned() }
}
