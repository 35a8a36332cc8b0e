//! Expressions over a request, in the language of CEL (cel.dev): read by its parser, checked for types when they are
//! compiled, and evaluated in bounded time and memory. The manual is that of `rules`.
//!
//! The checker and the evaluator are here because no library of this language checks types before it runs, or bounds
//! what a run may cost: an expression that compiles can only fail on what a request holds.

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
mod scope;
mod strings;
mod time;
mod types;
mod value;
mod variables;

use cel::Env;

use crate::contract::Invalid;
use evaluate::{Node, Run};
pub use fuel::Trouble;
use lower::{Lowering, Wrong};
pub use scope::Scope;
pub use types::Type;
use value::Value;
pub use variables::VARIABLES;

/// The longest there is.
const SOURCE_BYTES_MAX: usize = 8192;
/// How deep they nest.
const DEPTH_MAX: u16 = 64;

/// How many operators and members may follow each other, those around a place included: the parser, and whatever looks at
/// its tree, takes some of the stack for each.
const CHAINED_MAX: usize = 120;

/// The longest chain of operators and members that is open at once. What is between `&&`, `||`, `,` and `:` begins anew,
/// parentheses begin within.
fn chained(source: &str) -> usize {
    let (mut open, mut longest) = (vec![0_usize], 0);
    let mut chars = source.chars().peekable();
    let mut before = None;
    while let Some(c) = chars.next() {
        match c {
            '"' | '\'' => skip_text(&mut chars, c, before == Some('r') || before == Some('R')),
            '(' | '[' | '{' => {
                // What is called or looked up is one more of the chain around it.
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
            // `in` is an operator, too; as a part of a name it is counted once too often.
            'i' if chars.peek() == Some(&'n') => open.last_mut().into_iter().for_each(|last| *last += 1),
            _ => {}
        }
        longest = longest.max(open.iter().sum());
        before = Some(c);
    }
    longest
}

/// To the end of a text that `quote` has begun, three of which begin one that may hold it.
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
}

impl Expression {
    /// An expression with a value of this type. `routes`: the routes that there are, or none if they are not known.
    pub fn compile(source: &str, wanted: &Type, routes: &[String]) -> Result<Self, Invalid> {
        if source.len() > SOURCE_BYTES_MAX {
            return Err(Invalid::new(format!("an expression has at most {SOURCE_BYTES_MAX} bytes")));
        }
        if chained(source) > CHAINED_MAX {
            return Err(Invalid::new("the expression chains or nests too much; write it as several"));
        }
        let (tree, info) = parse(source)?;
        let place = |Wrong { id, message }: Wrong| {
            let offset = info.offset_for(id).map_or(0, |(start, _)| start as usize);
            let before: Vec<char> = source.chars().take(offset).collect();
            let line = before.iter().filter(|c| **c == '\n').count() + 1;
            let column = before.iter().rev().take_while(|c| **c != '\n').count();
            Invalid::new(format!("{}: {message}", position(line, column, source)))
        };
        let (root, found) = Lowering::new(routes).lower(&tree).map_err(place)?;
        if !found.is_a(wanted) {
            return Err(Invalid::new(format!("it comes to {found}, and {wanted} is needed here")));
        }
        Ok(Self { root })
    }

    /// Whether it is true of a request.
    pub fn holds(&self, scope: &Scope<'_>) -> Result<bool, Trouble> {
        self.run(scope)?.truth()
    }

    /// The whole number that it comes to.
    pub fn number(&self, scope: &Scope<'_>) -> Result<i64, Trouble> {
        self.run(scope)?.whole()
    }

    fn run<'v>(&'v self, scope: &'v Scope<'v>) -> Result<Value<'v>, Trouble> {
        Run::of(scope).evaluate(&self.root)
    }
}

/// Where something is in the source: by its column alone, if there is but one line.
fn position(line: usize, column: usize, source: &str) -> String {
    if source.trim_end().contains('\n') { format!("line {line}, column {}", column + 1) } else { format!("column {}", column + 1) }
}

fn parse(source: &str) -> Result<(cel::common::ast::IdedExpr, cel::common::ast::SourceInfo), Invalid> {
    // Without macros: what they stand for is known here, and stays what was written. Somebody else's parser gets no
    // chance to end the process by a panic.
    let parsed = std::panic::catch_unwind(|| {
        let parser = Env::default().with_optional_support(false).parser().enable_ident_escape_syntax(true).max_recursion_depth(DEPTH_MAX);
        parser.parse_with_source_info(source)
    });
    match parsed {
        Ok(Ok(parsed)) => Ok(parsed),
        Ok(Err(errors)) => Err(match errors.errors.first() {
            Some(first) => {
                let (line, column) = (usize::try_from(first.pos.0).unwrap_or(1), usize::try_from(first.pos.1).unwrap_or(0));
                Invalid::new(format!("{}: {}", position(line.max(1), column.saturating_sub(1), source), plainly(&first.msg)))
            }
            None => Invalid::new("not an expression"),
        }),
        Err(_) => Err(Invalid::new("not an expression that can be read")),
    }
}

/// The parser's words, without the list of every token it would have taken, and without its insides.
fn plainly(message: &str) -> String {
    let message = message.trim_start_matches("Syntax error: ");
    let message = message.split_once(" expecting {").map_or(message, |(found, _)| found);
    if message.contains(" { ") || message.contains('(') { "this cannot be read".to_owned() } else { message.to_owned() }
}

#[cfg(test)]
mod conformance;
#[cfg(test)]
mod language;
#[cfg(test)]
mod tests;
