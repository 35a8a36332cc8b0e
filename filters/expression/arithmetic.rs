//! `+ - * / %` and the unary minus. Whole numbers never wrap; floating-point numbers follow IEEE 754.

use jiff::{SignedDuration, Timestamp};

use super::fuel::{Fuel, Trouble};
use super::time;
use super::value::Value;

/// The longest text or list that an expression may put together.
pub const TEXT_BYTES_MAX: usize = 64 * 1024;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sum {
    Add,
    Subtract,
    Multiply,
    Divide,
    Modulo,
}

/// `-a`
pub fn negate(one: Value<'_>) -> Result<Value<'_>, Trouble> {
    match one {
        Value::Int(number) => number.checked_neg().map(Value::Int).ok_or(Trouble::Range),
        Value::Double(number) => Ok(Value::Double(-number)),
        _ => Err(Trouble::Type),
    }
}

/// `a + b` and the like. A whole number beside a floating-point number counts as one.
#[expect(clippy::cast_precision_loss, reason = "a whole number beside a floating-point number is converted to one")]
pub fn sum<'v>(sum: Sum, a: Value<'v>, b: Value<'v>, fuel: &mut Fuel) -> Result<Value<'v>, Trouble> {
    match (a, b) {
        (Value::Int(a), Value::Int(b)) => {
            let result = match sum {
                Sum::Add => a.checked_add(b),
                Sum::Subtract => a.checked_sub(b),
                Sum::Multiply => a.checked_mul(b),
                Sum::Divide => a.checked_div(b),
                Sum::Modulo => a.checked_rem(b),
            };
            result.map(Value::Int).ok_or(Trouble::Range)
        }
        (Value::Uint(a), Value::Uint(b)) => {
            let result = match sum {
                Sum::Add => a.checked_add(b),
                Sum::Subtract => a.checked_sub(b),
                Sum::Multiply => a.checked_mul(b),
                Sum::Divide => a.checked_div(b),
                Sum::Modulo => a.checked_rem(b),
            };
            result.map(Value::Uint).ok_or(Trouble::Range)
        }
        (Value::Double(a), Value::Double(b)) => doubles(sum, a, b),
        (Value::Double(a), Value::Int(b)) => doubles(sum, a, b as f64),
        (Value::Int(a), Value::Double(b)) => doubles(sum, a as f64, b),
        (Value::Double(a), Value::Uint(b)) => doubles(sum, a, b as f64),
        (Value::Uint(a), Value::Double(b)) => doubles(sum, a as f64, b),
        (a, b) => match sum {
            Sum::Add => joined(a, b, fuel),
            Sum::Subtract => difference(&a, &b),
            _ => Err(Trouble::Type),
        },
    }
}

fn doubles<'v>(sum: Sum, a: f64, b: f64) -> Result<Value<'v>, Trouble> {
    Ok(Value::Double(match sum {
        Sum::Add => a + b,
        Sum::Subtract => a - b,
        Sum::Multiply => a * b,
        Sum::Divide => a / b,
        Sum::Modulo => return Err(Trouble::Type),
    }))
}

fn joined<'v>(a: Value<'v>, b: Value<'v>, fuel: &mut Fuel) -> Result<Value<'v>, Trouble> {
    let bounded = |bytes: usize, fuel: &mut Fuel| {
        if bytes > TEXT_BYTES_MAX {
            return Err(Trouble::Budget);
        }
        fuel.write(bytes)
    };
    match (a, b) {
        (Value::Text(a), Value::Text(b)) => {
            bounded(a.len() + b.len(), fuel)?;
            Ok(Value::owned([&*a, &*b].concat()))
        }
        (Value::Bytes(a), Value::Bytes(b)) => {
            bounded(a.len() + b.len(), fuel)?;
            Ok(Value::Bytes([&*a, &*b].concat().into()))
        }
        (Value::Timestamp(time), Value::Duration(span)) | (Value::Duration(span), Value::Timestamp(time)) => moved(time, span),
        (Value::Duration(a), Value::Duration(b)) => time::span(a.checked_add(b)),
        (a, b) if a.length().is_some() && b.length().is_some() => {
            let (a, b) = (a.items(fuel)?, b.items(fuel)?);
            fuel.burn(a.len() + b.len())?;
            Ok(Value::list(a.iter().chain(b.iter()).cloned().collect()))
        }
        _ => Err(Trouble::Type),
    }
}

fn difference<'v>(a: &Value<'v>, b: &Value<'v>) -> Result<Value<'v>, Trouble> {
    match (a, b) {
        (Value::Timestamp(a), Value::Timestamp(b)) => time::span(Some(a.duration_since(*b))),
        (Value::Timestamp(time), Value::Duration(span)) => moved(*time, span.checked_neg().ok_or(Trouble::Range)?),
        (Value::Duration(a), Value::Duration(b)) => time::span(a.checked_sub(*b)),
        _ => Err(Trouble::Type),
    }
}

fn moved<'v>(time: Timestamp, by: SignedDuration) -> Result<Value<'v>, Trouble> {
    time::point(time.checked_add(by).ok())
}
