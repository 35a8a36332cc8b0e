//! Equality and order as the CEL specification defines them: numbers of all types compare by value, lists and maps by
//! their members, and values of different types are never equal.

use std::cmp::Ordering;

use super::fuel::{EvalError, Fuel};
use super::types::Kind;
use super::value::Value;

/// 2^63: the first number above every `i64`.
const INT_END: f64 = 9_223_372_036_854_775_808.0;
/// 2^64: the first number above every `u64`.
const UINT_END: f64 = 18_446_744_073_709_551_616.0;

impl Value<'_> {
    /// `a == b`
    pub fn equals(&self, other: &Self, fuel: &mut Fuel) -> Result<bool, EvalError> {
        match (self, other) {
            (Value::Null, Value::Null) => Ok(true),
            (Value::Bool(a), Value::Bool(b)) => Ok(a == b),
            (Value::Text(a), Value::Text(b)) => Ok(**a == **b),
            (Value::Bytes(a), Value::Bytes(b)) => Ok(a == b),
            (Value::Timestamp(a), Value::Timestamp(b)) => Ok(a == b),
            (Value::Duration(a), Value::Duration(b)) => Ok(a == b),
            (Value::Type(a), Value::Type(b)) => Ok(a == b),
            _ => match (self.kind(), other.kind()) {
                (Kind::List, Kind::List) => self.same_items(other, fuel),
                (Kind::Map, Kind::Map) => self.same_entries(other, fuel),
                _ => Ok(self.numbers(other) == Some(Some(Ordering::Equal))),
            },
        }
    }

    fn same_items(&self, other: &Self, fuel: &mut Fuel) -> Result<bool, EvalError> {
        let (Some(length), Some(other_length)) = (self.length(), other.length()) else { return Err(EvalError::Type) };
        if length != other_length {
            return Ok(false);
        }
        for index in 0..length {
            fuel.burn(1)?;
            let same = match (self.item(index), other.item(index)) {
                (Some(a), Some(b)) => a.equals(&b, fuel)?,
                _ => false,
            };
            if !same {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn same_entries(&self, other: &Self, fuel: &mut Fuel) -> Result<bool, EvalError> {
        let entries = self.entries(fuel)?;
        if entries.len() != other.entries_count(fuel)? {
            return Ok(false);
        }
        for (key, value) in entries {
            match other.find(&key, fuel)? {
                Some(found) if value.equals(&found, fuel)? => {}
                _ => return Ok(false),
            }
        }
        Ok(true)
    }

    /// The order of two numbers. Outer `None`: not numbers. Inner `None`: one of them is NaN.
    #[expect(clippy::option_option, reason = "operands that are no numbers and NaN are different results")]
    fn numbers(&self, other: &Self) -> Option<Option<Ordering>> {
        Some(match (self, other) {
            (Value::Int(a), Value::Int(b)) => Some(a.cmp(b)),
            (Value::Uint(a), Value::Uint(b)) => Some(a.cmp(b)),
            (Value::Double(a), Value::Double(b)) => a.partial_cmp(b),
            (Value::Int(a), Value::Uint(b)) => Some(i128::from(*a).cmp(&i128::from(*b))),
            (Value::Uint(a), Value::Int(b)) => Some(i128::from(*a).cmp(&i128::from(*b))),
            (Value::Int(a), Value::Double(b)) => whole_and_double(i128::from(*a), *b),
            (Value::Uint(a), Value::Double(b)) => whole_and_double(i128::from(*a), *b),
            (Value::Double(a), Value::Int(b)) => whole_and_double(i128::from(*b), *a).map(Ordering::reverse),
            (Value::Double(a), Value::Uint(b)) => whole_and_double(i128::from(*b), *a).map(Ordering::reverse),
            _ => return None,
        })
    }

    /// The order of two values of an ordered type. `None`: one of them is NaN.
    pub fn order(&self, other: &Self) -> Result<Option<Ordering>, EvalError> {
        Ok(Some(match (self, other) {
            (Value::Bool(a), Value::Bool(b)) => a.cmp(b),
            (Value::Text(a), Value::Text(b)) => (**a).cmp(&**b),
            (Value::Bytes(a), Value::Bytes(b)) => a.cmp(b),
            (Value::Timestamp(a), Value::Timestamp(b)) => a.cmp(b),
            (Value::Duration(a), Value::Duration(b)) => a.cmp(b),
            _ => return self.numbers(other).ok_or(EvalError::Type),
        }))
    }
}

/// Compares without rounding: first with the integer part, then with the fraction.
#[expect(clippy::cast_possible_truncation, reason = "within the bounds that are tested first")]
fn whole_and_double(whole: i128, double: f64) -> Option<Ordering> {
    if double.is_nan() {
        return None;
    }
    if double >= UINT_END {
        return Some(Ordering::Less);
    }
    if double < -INT_END {
        return Some(Ordering::Greater);
    }
    let by_whole = whole.cmp(&(double.trunc() as i128));
    Some(by_whole.then_with(|| 0.0.partial_cmp(&double.fract()).unwrap_or(Ordering::Equal)))
}
