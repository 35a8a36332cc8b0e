//! Conversions between types, as the CEL specification defines them.

use std::fmt::Write;

use jiff::Timestamp;

use super::fuel::{EvalError, Fuel};
use super::time;
use super::types::Kind;
use super::value::Value;

/// 2^63 and 2^64: the first doubles out of range.
const INT_END: f64 = 9_223_372_036_854_775_808.0;
const UINT_END: f64 = 18_446_744_073_709_551_616.0;

/// `int(a)`, `string(a)` and the like.
pub fn convert<'v>(to: Kind, one: Value<'v>, fuel: &mut Fuel) -> Result<Value<'v>, EvalError> {
    match &one {
        Value::Text(text) => fuel.write(text.len())?,
        Value::Bytes(bytes) => fuel.write(bytes.len())?,
        _ => {}
    }
    match to {
        Kind::Type => Ok(Value::Type(one.kind())),
        Kind::Any => Ok(one),
        to if one.kind() == to => Ok(one),
        Kind::Bool => truth(&one),
        Kind::Int => int(&one),
        Kind::Uint => uint(&one),
        Kind::Double => double(&one),
        Kind::Text => text(&one),
        Kind::Bytes => one.as_text().map(|text| Value::Bytes(text.as_bytes().into())),
        Kind::Timestamp => match &one {
            Value::Text(text) => time::read_timestamp(text),
            Value::Int(seconds) => time::point(Timestamp::from_second(*seconds).ok()),
            _ => Err(EvalError::Type),
        },
        Kind::Duration => time::read_duration(one.as_text()?),
        Kind::Null | Kind::List | Kind::Map => Err(EvalError::Type),
    }
}

fn truth<'v>(one: &Value<'_>) -> Result<Value<'v>, EvalError> {
    match one.as_text()? {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(Value::Bool(true)),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(Value::Bool(false)),
        _ => Err(EvalError::Type),
    }
}

#[expect(clippy::cast_possible_truncation, reason = "within the bounds that are tested first")]
fn int<'v>(one: &Value<'_>) -> Result<Value<'v>, EvalError> {
    Ok(Value::Int(match one {
        Value::Uint(number) => i64::try_from(*number).map_err(|_| EvalError::Range)?,
        Value::Double(number) if *number > -INT_END && *number < INT_END => *number as i64,
        Value::Double(_) => return Err(EvalError::Range),
        Value::Text(text) => text.parse().map_err(|_| EvalError::Type)?,
        Value::Timestamp(time) => time.as_second() - i64::from(time.subsec_nanosecond() < 0),
        Value::Duration(span) => span.as_secs(),
        _ => return Err(EvalError::Type),
    }))
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "within the bounds that are tested first")]
fn uint<'v>(one: &Value<'_>) -> Result<Value<'v>, EvalError> {
    Ok(Value::Uint(match one {
        Value::Int(number) => u64::try_from(*number).map_err(|_| EvalError::Range)?,
        Value::Double(number) if (0.0..UINT_END).contains(number) => *number as u64,
        Value::Double(_) => return Err(EvalError::Range),
        Value::Text(text) => text.parse().map_err(|_| EvalError::Type)?,
        _ => return Err(EvalError::Type),
    }))
}

#[expect(clippy::cast_precision_loss, reason = "the conversion rounds to the nearest floating-point number")]
fn double<'v>(one: &Value<'_>) -> Result<Value<'v>, EvalError> {
    Ok(Value::Double(match one {
        Value::Int(number) => *number as f64,
        Value::Uint(number) => *number as f64,
        Value::Text(text) => text.parse().map_err(|_| EvalError::Type)?,
        _ => return Err(EvalError::Type),
    }))
}

fn text<'v>(one: &Value<'_>) -> Result<Value<'v>, EvalError> {
    Ok(Value::owned(match one {
        Value::Bool(truth) => truth.to_string(),
        Value::Int(number) => number.to_string(),
        Value::Uint(number) => number.to_string(),
        Value::Double(number) => write_double(*number),
        Value::Bytes(bytes) => std::str::from_utf8(bytes).map_err(|_| EvalError::Type)?.to_owned(),
        Value::Timestamp(time) => time.to_string(),
        Value::Duration(span) => time::write_duration(*span),
        Value::Type(kind) => kind.name().to_owned(),
        _ => return Err(EvalError::Type),
    }))
}

/// The shortest decimal that parses to the same number, with an exponent below 1e-4 and from 1e21.
pub fn write_double(number: f64) -> String {
    if number.is_nan() {
        return "NaN".into();
    }
    if number.is_infinite() {
        return if number > 0.0 { "+Inf".into() } else { "-Inf".into() };
    }
    let magnitude = number.abs();
    if magnitude == 0.0 || (1e-4..1e21).contains(&magnitude) {
        return number.to_string();
    }
    let scientific = format!("{number:e}");
    let (digits, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let (sign, exponent) = exponent.strip_prefix('-').map_or(('+', exponent), |rest| ('-', rest));
    let mut text = digits.to_owned();
    let _ = write!(text, "e{sign}{exponent:0>2}");
    text
}
