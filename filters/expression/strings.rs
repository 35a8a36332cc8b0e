//! The strings extension of CEL. Positions and lengths count code points. The length of results is limited.

use super::arithmetic::TEXT_BYTES_MAX;
use super::fuel::{EvalError, Fuel};
use super::value::Value;

/// A function of the extension.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StringFunction {
    CharAt,
    IndexOf,
    LastIndexOf,
    Join,
    LowerAscii,
    UpperAscii,
    Replace,
    Split,
    Substring,
    Trim,
    Reverse,
    Quote,
}

/// Calls a function. The first argument is the receiver.
pub fn call<'v>(function: StringFunction, args: &[Value<'v>], fuel: &mut Fuel) -> Result<Value<'v>, EvalError> {
    let [target, rest @ ..] = args else { return Err(EvalError::Type) };
    if function == StringFunction::Join {
        return join(target, rest, fuel);
    }
    let text = target.as_text()?;
    fuel.write(text.len())?;
    Ok(match function {
        StringFunction::CharAt => Value::owned(slice(text, index(rest, 0)?, None, 1)?.to_owned()),
        StringFunction::IndexOf => Value::Int(first_index(text, part(rest, 0)?, rest.get(1))?),
        StringFunction::LastIndexOf => Value::Int(last_index(text, part(rest, 0)?, rest.get(1))?),
        StringFunction::LowerAscii => Value::owned(text.to_ascii_lowercase()),
        StringFunction::UpperAscii => Value::owned(text.to_ascii_uppercase()),
        StringFunction::Replace => Value::owned(replace(text, part(rest, 0)?, part(rest, 1)?, rest.get(2), fuel)?),
        StringFunction::Split => split(text, part(rest, 0)?, rest.get(1), fuel)?,
        StringFunction::Substring => {
            let end = if rest.len() > 1 { Some(index(rest, 1)?) } else { None };
            Value::owned(slice(text, index(rest, 0)?, end, usize::MAX)?.to_owned())
        }
        StringFunction::Trim => Value::owned(text.trim_matches(is_space).to_owned()),
        StringFunction::Reverse => Value::owned(text.chars().rev().collect()),
        StringFunction::Quote => bounded(quote(text))?,
        StringFunction::Join => return Err(EvalError::Type),
    })
}

fn bounded<'v>(text: String) -> Result<Value<'v>, EvalError> {
    if text.len() > TEXT_BYTES_MAX { Err(EvalError::Budget) } else { Ok(Value::owned(text)) }
}

/// White space as defined by Unicode.
fn is_space(c: char) -> bool {
    c.is_whitespace()
}

fn part<'a>(args: &'a [Value<'_>], at: usize) -> Result<&'a str, EvalError> {
    args.get(at).ok_or(EvalError::Type)?.as_text()
}

fn index(args: &[Value<'_>], at: usize) -> Result<usize, EvalError> {
    usize::try_from(args.get(at).ok_or(EvalError::Type)?.as_int()?).map_err(|_| EvalError::Range)
}

/// The byte offset of a code point. The position after the last one is the end of the text.
fn byte_at(text: &str, position: usize) -> Result<usize, EvalError> {
    let mut starts = text.char_indices().map(|(byte, _)| byte).chain([text.len()]);
    starts.nth(position).ok_or(EvalError::Range)
}

/// The part from one code point to another, at most `most` code points.
fn slice(text: &str, from: usize, to: Option<usize>, most: usize) -> Result<&str, EvalError> {
    let start = byte_at(text, from)?;
    let end = match to {
        Some(to) if to < from => return Err(EvalError::Range),
        Some(to) => byte_at(text, to)?,
        None => text.len(),
    };
    let whole = text.get(start..end).ok_or(EvalError::Range)?;
    Ok(whole.char_indices().nth(most).map_or(whole, |(byte, _)| whole.get(..byte).unwrap_or(whole)))
}

fn position(text: &str, byte: usize) -> Result<i64, EvalError> {
    let count = text.get(..byte).ok_or(EvalError::Range)?.chars().count();
    i64::try_from(count).map_err(|_| EvalError::Range)
}

fn first_index(text: &str, wanted: &str, from: Option<&Value<'_>>) -> Result<i64, EvalError> {
    let from = from.map_or(Ok(0), Value::as_int)?;
    let start = byte_at(text, usize::try_from(from).map_err(|_| EvalError::Range)?)?;
    let found = text.get(start..).and_then(|rest| rest.find(wanted));
    found.map_or(Ok(-1), |byte| position(text, start + byte))
}

/// The last occurrence that starts at or before `from`.
fn last_index(text: &str, wanted: &str, from: Option<&Value<'_>>) -> Result<i64, EvalError> {
    let end = match from {
        None => text.len(),
        Some(from) => {
            let start = byte_at(text, usize::try_from(from.as_int()?).map_err(|_| EvalError::Range)?)?;
            (start + wanted.len()).min(text.len())
        }
    };
    // Move back to a character boundary.
    let end = (0..=end).rev().find(|byte| text.is_char_boundary(*byte)).unwrap_or(0);
    text.get(..end).and_then(|head| head.rfind(wanted)).map_or(Ok(-1), |byte| position(text, byte))
}

fn replace(text: &str, from: &str, to: &str, limit: Option<&Value<'_>>, fuel: &mut Fuel) -> Result<String, EvalError> {
    let limit = limit.map_or(Ok(-1), Value::as_int)?;
    let limit = usize::try_from(limit).unwrap_or(usize::MAX);
    let count = if from.is_empty() { text.chars().count() + 1 } else { text.matches(from).count() }.min(limit);
    let bytes = text.len().saturating_add(count.saturating_mul(to.len()));
    if bytes > TEXT_BYTES_MAX {
        return Err(EvalError::Budget);
    }
    fuel.write(bytes)?;
    Ok(text.replacen(from, to, count))
}

fn split<'v>(text: &str, separator: &str, limit: Option<&Value<'_>>, fuel: &mut Fuel) -> Result<Value<'v>, EvalError> {
    let limit = usize::try_from(limit.map_or(Ok(-1), Value::as_int)?).unwrap_or(usize::MAX);
    let owned = |part: &str| Value::owned(part.to_owned());
    let parts: Vec<Value<'v>> = match (limit, separator) {
        (0, _) => Vec::new(),
        (limit, "") => {
            let most = limit.min(text.chars().count()).max(1);
            let head = text.chars().take(most - 1).map(|c| Value::owned(c.to_string()));
            head.chain([owned(slice(text, most - 1, None, usize::MAX)?)]).collect()
        }
        (limit, separator) => text.splitn(limit, separator).map(owned).collect(),
    };
    fuel.burn(parts.len())?;
    Ok(Value::list(parts))
}

fn join<'v>(list: &Value<'v>, args: &[Value<'v>], fuel: &mut Fuel) -> Result<Value<'v>, EvalError> {
    let separator = if args.is_empty() { "" } else { part(args, 0)? };
    let items = list.items(fuel)?;
    let mut text = String::new();
    for (index, item) in items.iter().enumerate() {
        if index > 0 {
            text.push_str(separator);
        }
        text.push_str(item.as_text()?);
        fuel.burn(1)?;
        if text.len() > TEXT_BYTES_MAX {
            return Err(EvalError::Budget);
        }
    }
    fuel.write(text.len())?;
    Ok(Value::owned(text))
}

/// A CEL literal of the text, in double quotes.
fn quote(text: &str) -> String {
    let mut quoted = String::with_capacity(text.len() + 2);
    quoted.push('"');
    for c in text.chars() {
        match c {
            '\u{7}' => quoted.push_str("\\a"),
            '\u{8}' => quoted.push_str("\\b"),
            '\u{c}' => quoted.push_str("\\f"),
            '\n' => quoted.push_str("\\n"),
            '\r' => quoted.push_str("\\r"),
            '\t' => quoted.push_str("\\t"),
            '\u{b}' => quoted.push_str("\\v"),
            '\\' => quoted.push_str("\\\\"),
            '"' => quoted.push_str("\\\""),
            c => quoted.push(c),
        }
    }
    quoted.push('"');
    quoted
}
