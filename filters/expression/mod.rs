//! Expressions over a request, in the language CEL (cel.dev). Expressions are type-checked when the configuration is read
//! and evaluated in bounded time and memory. The manual is that of the filter `rules`. Expressions perform no I/O.
//!
//! The parser is the `cel` crate. The checker and the evaluator are written here, because no CEL library checks types
//! before evaluation or limits its cost. A compiled expression can fail only because of the values of a request.

mod arithmetic;
mod calls;
mod compare;
mod constants;
mod convert;
mod evaluate;
mod format;
mod fuel;
mod functions;
mod loops;
mod lower;
mod members;
mod parse;
mod scope;
mod strings;
mod time;
mod types;
mod value;
mod variables;

use crate::contract::Invalid;
use evaluate::{Node, Run};
pub use fuel::EvalError;
use lower::{CheckError, TypeChecker};
use parse::{parse, position};
pub use scope::Scope;
pub use types::Type;
use value::Value;
pub use variables::VARIABLES;

/// The longest expression.
const SOURCE_BYTES_MAX: usize = 8192;
/// The longest chain of operators and members that is open at one position. The parser and all users of its tree recurse
/// once per link, so the chain bounds their stack.
const CHAINED_MAX: usize = 120;

/// The length of the longest open chain of operators and members in a source. `&&`, `||` and `,` start a new chain;
/// brackets start a nested one.
fn chained(source: &str) -> usize {
    let (mut open, mut longest) = (vec![0_usize], 0);
    let mut chars = source.chars().peekable();
    let mut before = None;
    while let Some(c) = chars.next() {
        match c {
            '"' | '\'' => skip_text(&mut chars, c, before == Some('r') || before == Some('R')),
            '(' | '[' | '{' => {
                // A call or an index is one more link of the surrounding chain.
                if let Some(last) = open.last_mut() {
                    *last += 1;
                }
                open.push(0);
            }
            ')' | ']' | '}' if open.len() > 1 => drop(open.pop()),
            ',' => open.last_mut().into_iter().for_each(|last| *last = 0),
            '&' | '|' if chars.peek() == Some(&c) => {
                chars.next();
                open.last_mut().into_iter().for_each(|last| *last = 0);
            }
            '.' | '+' | '-' | '*' | '/' | '%' | '<' | '>' | '=' | '!' | '?' => open.last_mut().into_iter().for_each(|last| *last += 1),
            // The operator `in`. `in` inside a name is counted too, which only makes the bound stricter.
            'i' if chars.peek() == Some(&'n') => open.last_mut().into_iter().for_each(|last| *last += 1),
            _ => {}
        }
        longest = longest.max(open.iter().sum());
        before = Some(c);
    }
    longest
}

/// Skips a text literal that starts with `quote`, or with three of them.
fn skip_text(chars: &mut std::iter::Peekable<std::str::Chars<'_>>, quote: char, raw: bool) {
    let mut ahead = chars.clone();
    let three = ahead.next() == Some(quote) && ahead.next() == Some(quote);
    if three {
        *chars = ahead;
    }
    let mut quotes = 0;
    while let Some(c) = chars.next() {
        match c {
            '\\' if !raw => drop(chars.next()),
            c if c == quote => quotes += 1,
            _ => quotes = 0,
        }
        if quotes == if three { 3 } else { 1 } {
            return;
        }
    }
}

/// A compiled expression.
#[derive(Debug)]
pub struct Expression {
    root: Node,
    reads_model: bool,
}

impl Expression {
    /// Compiles an expression that must return `wanted`. `routes`: the names of all routes; empty if unknown.
    pub fn compile(source: &str, wanted: &Type, routes: &[String]) -> Result<Self, Invalid> {
        let mut lowering = TypeChecker::new(routes);
        let (root, found) = Self::check(source, &mut lowering)?;
        if !found.is_assignable_to(wanted) {
            return Err(Invalid::new(format!("the expression returns {found}, but {wanted} is required")));
        }
        Ok(Self { root, reads_model: lowering.reads_model })
    }

    /// The names of header fields in an expression, as far as they are constants. Empty if the text is not an expression.
    pub fn header_fields(source: &str) -> Vec<String> {
        let mut lowering = TypeChecker::default();
        // An error ends the search; names before it count.
        let _ = Self::check(source, &mut lowering);
        lowering.header_fields
    }

    fn check(source: &str, lowering: &mut TypeChecker<'_>) -> Result<(Node, Type), Invalid> {
        if source.len() > SOURCE_BYTES_MAX {
            return Err(Invalid::new(format!("an expression must have at most {SOURCE_BYTES_MAX} bytes")));
        }
        if chained(source) > CHAINED_MAX {
            return Err(Invalid::new("the expression is too deeply chained or nested; split it"));
        }
        let (tree, info) = parse(source)?;
        let place = |CheckError { id, message }: CheckError| {
            let offset = info.offset_for(id).map_or(0, |(start, _)| start as usize);
            let before: Vec<char> = source.chars().take(offset).collect();
            let line = before.iter().filter(|c| **c == '\n').count() + 1;
            let column = before.iter().rev().take_while(|c| **c != '\n').count();
            Invalid::new(format!("{}: {message}", position(line, column, source)))
        };
        lowering.lower(&tree).map_err(place)
    }

    /// Whether it reads `request.model`, for which the body may have to be read ahead.
    pub fn reads_model(&self) -> bool {
        self.reads_model
    }

    /// The result for a request, for an expression of type bool.
    pub fn holds(&self, scope: &Scope<'_>) -> Result<bool, EvalError> {
        self.run(scope)?.as_bool()
    }

    /// The result for a request, for an expression of type int.
    pub fn number(&self, scope: &Scope<'_>) -> Result<i64, EvalError> {
        self.run(scope)?.as_int()
    }

    fn run<'v>(&'v self, scope: &'v Scope<'v>) -> Result<Value<'v>, EvalError> {
        Run::new(scope).evaluate(&self.root)
    }
}

#[cfg(test)]
mod conformance;
#[cfg(test)]
mod language;
#[cfg(test)]
mod tests;
