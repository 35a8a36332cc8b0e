//! `text.format(list)` of the strings extension of CEL, with the verbs `%s %d %f %e %x %X %o %b`.

use super::arithmetic::TEXT_BYTES_MAX;
use super::fuel::{EvalError, Fuel};
use super::time;
use super::types::Kind;
use super::value::Value;

/// The maximum number of digits after the decimal point.
const PRECISION_MAX: usize = 100;
const PRECISION_DEFAULT: usize = 6;

/// The text with each verb replaced by an item of the list.
pub fn format<'v>(args: &[Value<'v>], fuel: &mut Fuel) -> Result<Value<'v>, EvalError> {
    let [text, list] = args else { return Err(EvalError::Type) };
    let (text, items) = (text.as_text()?, list.items(fuel)?);
    fuel.write(text.len())?;
    let (mut made, mut rest, mut items) = (String::new(), text, items.iter());
    while let Some((before, after)) = rest.split_once('%') {
        made.push_str(before);
        if let Some(after) = after.strip_prefix('%') {
            made.push('%');
            rest = after;
            continue;
        }
        let (precision, after) = precision(after)?;
        let verb = after.chars().next().ok_or(EvalError::Type)?;
        rest = after.get(verb.len_utf8()..).unwrap_or_default();
        let part = verb_text(verb, precision, items.next().ok_or(EvalError::Type)?, fuel)?;
        fuel.write(part.len())?;
        made.push_str(&part);
        if made.len() > TEXT_BYTES_MAX {
            return Err(EvalError::Budget);
        }
    }
    made.push_str(rest);
    Ok(Value::owned(made))
}

fn precision(text: &str) -> Result<(Option<usize>, &str), EvalError> {
    let Some(digits) = text.strip_prefix('.') else { return Ok((None, text)) };
    let end = digits.find(|c: char| !c.is_ascii_digit()).ok_or(EvalError::Type)?;
    let (number, rest) = digits.split_at(end);
    let number: usize = number.parse().map_err(|_| EvalError::Type)?;
    if number > PRECISION_MAX { Err(EvalError::Range) } else { Ok((Some(number), rest)) }
}

fn verb_text(verb: char, precision: Option<usize>, value: &Value<'_>, fuel: &mut Fuel) -> Result<String, EvalError> {
    match (verb, precision) {
        ('s', None) => plain(value, fuel),
        ('d', None) => match value {
            Value::Int(number) => Ok(number.to_string()),
            Value::Uint(number) => Ok(number.to_string()),
            Value::Double(number) => Ok(double(*number)),
            _ => Err(EvalError::Type),
        },
        ('f', precision) => number(value, |number| format!("{number:.*}", precision.unwrap_or(PRECISION_DEFAULT))),
        ('e', precision) => number(value, |number| scientific(number, precision.unwrap_or(PRECISION_DEFAULT))),
        ('x', None) => hexadecimal(value),
        ('X', None) => hexadecimal(value).map(|text| text.to_ascii_uppercase()),
        ('o', None) => radix(value, |magnitude| format!("{magnitude:o}")),
        ('b', None) => match value {
            Value::Bool(truth) => Ok(u8::from(*truth).to_string()),
            value => radix(value, |magnitude| format!("{magnitude:b}")),
        },
        _ => Err(EvalError::Type),
    }
}

/// `%s`
fn plain(value: &Value<'_>, fuel: &mut Fuel) -> Result<String, EvalError> {
    fuel.burn(1)?;
    Ok(match value {
        Value::Null => "null".into(),
        Value::Bool(truth) => truth.to_string(),
        Value::Int(number) => number.to_string(),
        Value::Uint(number) => number.to_string(),
        Value::Double(number) => double(*number),
        Value::Text(text) => (**text).to_owned(),
        Value::Bytes(bytes) => lossy(bytes),
        Value::Timestamp(time) => time.to_string(),
        Value::Duration(span) => time::write_duration(*span),
        Value::Type(kind) => kind.name().to_owned(),
        list if list.kind() == Kind::List => {
            let items = list.items(fuel)?;
            let parts = items.iter().map(|item| plain(item, fuel)).collect::<Result<Vec<_>, _>>()?;
            bounded(format!("[{}]", parts.join(", ")), fuel)?
        }
        map => {
            let mut parts = Vec::new();
            for (key, value) in map.entries(fuel)? {
                parts.push(format!("{}: {}", plain(&key, fuel)?, plain(&value, fuel)?));
            }
            parts.sort_unstable();
            bounded(format!("{{{}}}", parts.join(", ")), fuel)?
        }
    })
}

fn bounded(text: String, fuel: &mut Fuel) -> Result<String, EvalError> {
    fuel.write(text.len())?;
    if text.len() > TEXT_BYTES_MAX { Err(EvalError::Budget) } else { Ok(text) }
}

/// Decodes UTF-8. Consecutive invalid bytes become one U+FFFD.
fn lossy(bytes: &[u8]) -> String {
    let mut text = String::new();
    for chunk in bytes.utf8_chunks() {
        text.push_str(chunk.valid());
        let repeats = chunk.valid().is_empty() && text.ends_with('\u{fffd}');
        if !chunk.invalid().is_empty() && !repeats {
            text.push('\u{fffd}');
        }
    }
    text
}

fn double(number: f64) -> String {
    if number.is_infinite() { if number > 0.0 { "Infinity".into() } else { "-Infinity".into() } } else { number.to_string() }
}

#[expect(clippy::cast_precision_loss, reason = "a whole number is written as a floating-point number")]
fn number(value: &Value<'_>, write: impl Fn(f64) -> String) -> Result<String, EvalError> {
    let number = match value {
        Value::Int(number) => *number as f64,
        Value::Uint(number) => *number as f64,
        Value::Double(number) => *number,
        _ => return Err(EvalError::Type),
    };
    Ok(if number.is_finite() { write(number) } else { double(number) })
}

fn scientific(number: f64, precision: usize) -> String {
    let text = format!("{number:.precision$e}");
    let (digits, exponent) = text.split_once('e').unwrap_or((&text, "0"));
    let (sign, exponent) = exponent.strip_prefix('-').map_or(('+', exponent), |rest| ('-', rest));
    format!("{digits}e{sign}{exponent:0>2}")
}

fn hexadecimal(value: &Value<'_>) -> Result<String, EvalError> {
    let bytes = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    match value {
        Value::Text(text) => Ok(bytes(text.as_bytes())),
        Value::Bytes(raw) => Ok(bytes(raw)),
        value => radix(value, |magnitude| format!("{magnitude:x}")),
    }
}

fn radix(value: &Value<'_>, write: impl Fn(u64) -> String) -> Result<String, EvalError> {
    match value {
        Value::Int(number) if *number < 0 => Ok(format!("-{}", write(number.unsigned_abs()))),
        Value::Int(number) => Ok(write(number.unsigned_abs())),
        Value::Uint(number) => Ok(write(*number)),
        _ => Err(EvalError::Type),
    }
}
