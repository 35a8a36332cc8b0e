//! The strings extension of CEL. Positions and lengths count code points; what is made is bounded.

use super::arithmetic::TEXT_BYTES_MAX;
use super::fuel::{Fuel, Trouble};
use super::value::Value;

/// One of its functions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Strings {
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

/// The value of a call; the first argument is what the function is called on.
pub fn call<'v>(function: Strings, args: &[Value<'v>], fuel: &mut Fuel) -> Result<Value<'v>, Trouble> {
    let [target, rest @ ..] = args else { return Err(Trouble::Type) };
    if function == Strings::Join {
        return join(target, rest, fuel);
    }
    let text = target.as_text()?;
    fuel.write(text.len())?;
    Ok(match function {
        Strings::CharAt => Value::owned(slice(text, index(rest, 0)?, None, 1)?.to_owned()),
        Strings::IndexOf => Value::Int(first_index(text, part(rest, 0)?, rest.get(1))?),
        Strings::LastIndexOf => Value::Int(last_index(text, part(rest, 0)?, rest.get(1))?),
        Strings::LowerAscii => Value::owned(text.to_ascii_lowercase()),
        Strings::UpperAscii => Value::owned(text.to_ascii_uppercase()),
        Strings::Replace => Value::owned(replace(text, part(rest, 0)?, part(rest, 1)?, rest.get(2), fuel)?),
        Strings::Split => split(text, part(rest, 0)?, rest.get(1), fuel)?,
        Strings::Substring => {
            let end = if rest.len() > 1 { Some(index(rest, 1)?) } else { None };
            Value::owned(slice(text, index(rest, 0)?, end, usize::MAX)?.to_owned())
        }
        Strings::Trim => Value::owned(text.trim_matches(is_space).to_owned()),
        Strings::Reverse => Value::owned(text.chars().rev().collect()),
        Strings::Quote => bounded(quote(text))?,
        Strings::Join => return Err(Trouble::Type),
    })
}

fn bounded<'v>(text: String) -> Result<Value<'v>, Trouble> {
    if text.len() > TEXT_BYTES_MAX { Err(Trouble::Budget) } else { Ok(Value::owned(text)) }
}

/// White space as Unicode has it, without the characters that only look like it.
fn is_space(c: char) -> bool {
    c.is_whitespace()
}

fn part<'a>(args: &'a [Value<'_>], at: usize) -> Result<&'a str, Trouble> {
    args.get(at).ok_or(Trouble::Type)?.as_text()
}

fn index(args: &[Value<'_>], at: usize) -> Result<usize, Trouble> {
    usize::try_from(args.get(at).ok_or(Trouble::Type)?.whole()?).map_err(|_| Trouble::Range)
}

/// The byte at which a code point begins; that after the last one is the end.
fn byte_at(text: &str, position: usize) -> Result<usize, Trouble> {
    let mut starts = text.char_indices().map(|(byte, _)| byte).chain([text.len()]);
    starts.nth(position).ok_or(Trouble::Range)
}

/// From one code point to another, `most` of them.
fn slice(text: &str, from: usize, to: Option<usize>, most: usize) -> Result<&str, Trouble> {
    let start = byte_at(text, from)?;
    let end = match to {
        Some(to) if to < from => return Err(Trouble::Range),
        Some(to) => byte_at(text, to)?,
        None => text.len(),
    };
    let whole = text.get(start..end).ok_or(Trouble::Range)?;
    Ok(whole.char_indices().nth(most).map_or(whole, |(byte, _)| whole.get(..byte).unwrap_or(whole)))
}

fn position(text: &str, byte: usize) -> Result<i64, Trouble> {
    let count = text.get(..byte).ok_or(Trouble::Range)?.chars().count();
    i64::try_from(count).map_err(|_| Trouble::Range)
}

fn first_index(text: &str, wanted: &str, from: Option<&Value<'_>>) -> Result<i64, Trouble> {
    let from = from.map_or(Ok(0), Value::whole)?;
    let start = byte_at(text, usize::try_from(from).map_err(|_| Trouble::Range)?)?;
    let found = text.get(start..).and_then(|rest| rest.find(wanted));
    found.map_or(Ok(-1), |byte| position(text, start + byte))
}

/// The last one that begins at `from` or before.
fn last_index(text: &str, wanted: &str, from: Option<&Value<'_>>) -> Result<i64, Trouble> {
    let end = match from {
        None => text.len(),
        Some(from) => {
            let start = byte_at(text, usize::try_from(from.whole()?).map_err(|_| Trouble::Range)?)?;
            (start + wanted.len()).min(text.len())
        }
    };
    // A position inside a code point belongs to no match.
    let end = (0..=end).rev().find(|byte| text.is_char_boundary(*byte)).unwrap_or(0);
    text.get(..end).and_then(|head| head.rfind(wanted)).map_or(Ok(-1), |byte| position(text, byte))
}

fn replace(text: &str, from: &str, to: &str, limit: Option<&Value<'_>>, fuel: &mut Fuel) -> Result<String, Trouble> {
    let limit = limit.map_or(Ok(-1), Value::whole)?;
    let limit = usize::try_from(limit).unwrap_or(usize::MAX);
    let count = if from.is_empty() { text.chars().count() + 1 } else { text.matches(from).count() }.min(limit);
    let bytes = text.len().saturating_add(count.saturating_mul(to.len()));
    if bytes > TEXT_BYTES_MAX {
        return Err(Trouble::Budget);
    }
    fuel.write(bytes)?;
    Ok(text.replacen(from, to, count))
}

fn split<'v>(text: &str, separator: &str, limit: Option<&Value<'_>>, fuel: &mut Fuel) -> Result<Value<'v>, Trouble> {
    let limit = usize::try_from(limit.map_or(Ok(-1), Value::whole)?).unwrap_or(usize::MAX);
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

fn join<'v>(list: &Value<'v>, args: &[Value<'v>], fuel: &mut Fuel) -> Result<Value<'v>, Trouble> {
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
            return Err(Trouble::Budget);
        }
    }
    fuel.write(text.len())?;
    Ok(Value::owned(text))
}

/// In double quotes, so that it can be read again.
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
