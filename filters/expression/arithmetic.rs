//! `+ - * / %` and the unary minus. Integer overflow is an error. Floating-point numbers follow IEEE 754.

use jiff::{SignedDuration, Timestamp};

use super::fuel::{EvalError, Fuel};
use super::time;
use super::value::Value;

/// The longest text that an expression may create.
pub const TEXT_BYTES_MAX: usize = 64 * 1024;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ArithmeticOp {
    Add,
    Subtract,
    Multiply,
    Divide,
    Modulo,
}

/// `-a`
pub fn negate(one: Value<'_>) -> Result<Value<'_>, EvalError> {
    match one {
        Value::Int(number) => number.checked_neg().map(Value::Int).ok_or(EvalError::Range),
        Value::Double(number) => Ok(Value::Double(-number)),
        _ => Err(EvalError::Type),
    }
}

/// A binary arithmetic operation. An integer is converted if the other operand is a floating-point number.
#[expect(clippy::cast_precision_loss, reason = "an integer beside a floating-point number is converted")]
pub fn sum<'v>(sum: ArithmeticOp, a: Value<'v>, b: Value<'v>, fuel: &mut Fuel) -> Result<Value<'v>, EvalError> {
    match (a, b) {
        (Value::Int(a), Value::Int(b)) => {
            let result = match sum {
                ArithmeticOp::Add => a.checked_add(b),
                ArithmeticOp::Subtract => a.checked_sub(b),
                ArithmeticOp::Multiply => a.checked_mul(b),
                ArithmeticOp::Divide => a.checked_div(b),
                ArithmeticOp::Modulo => a.checked_rem(b),
            };
            result.map(Value::Int).ok_or(EvalError::Range)
        }
        (Value::Uint(a), Value::Uint(b)) => {
            let result = match sum {
                ArithmeticOp::Add => a.checked_add(b),
                ArithmeticOp::Subtract => a.checked_sub(b),
                ArithmeticOp::Multiply => a.checked_mul(b),
                ArithmeticOp::Divide => a.checked_div(b),
                ArithmeticOp::Modulo => a.checked_rem(b),
            };
            result.map(Value::Uint).ok_or(EvalError::Range)
        }
        (Value::Double(a), Value::Double(b)) => doubles(sum, a, b),
        (Value::Double(a), Value::Int(b)) => doubles(sum, a, b as f64),
        (Value::Int(a), Value::Double(b)) => doubles(sum, a as f64, b),
        (Value::Double(a), Value::Uint(b)) => doubles(sum, a, b as f64),
        (Value::Uint(a), Value::Double(b)) => doubles(sum, a as f64, b),
        (a, b) => match sum {
            ArithmeticOp::Add => joined(a, b, fuel),
            ArithmeticOp::Subtract => difference(&a, &b),
            _ => Err(EvalError::Type),
        },
    }
}

fn doubles<'v>(sum: ArithmeticOp, a: f64, b: f64) -> Result<Value<'v>, EvalError> {
    Ok(Value::Double(match sum {
        ArithmeticOp::Add => a + b,
        ArithmeticOp::Subtract => a - b,
        ArithmeticOp::Multiply => a * b,
        ArithmeticOp::Divide => a / b,
        ArithmeticOp::Modulo => return Err(EvalError::Type),
    }))
}

fn joined<'v>(a: Value<'v>, b: Value<'v>, fuel: &mut Fuel) -> Result<Value<'v>, EvalError> {
    let bounded = |bytes: usize, fuel: &mut Fuel| {
        if bytes > TEXT_BYTES_MAX {
            return Err(EvalError::Budget);
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
        _ => Err(EvalError::Type),
    }
}

fn difference<'v>(a: &Value<'v>, b: &Value<'v>) -> Result<Value<'v>, EvalError> {
    match (a, b) {
        (Value::Timestamp(a), Value::Timestamp(b)) => time::span(Some(a.duration_since(*b))),
        (Value::Timestamp(time), Value::Duration(span)) => moved(*time, span.checked_neg().ok_or(EvalError::Range)?),
        (Value::Duration(a), Value::Duration(b)) => time::span(a.checked_sub(*b)),
        _ => Err(EvalError::Type),
    }
}

fn moved<'v>(time: Timestamp, by: SignedDuration) -> Result<Value<'v>, EvalError> {
    time::point(time.checked_add(by).ok())
}
