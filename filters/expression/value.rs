//! What expressions come to while they are evaluated, and the fuel that each step costs.

use std::borrow::Cow;
use std::cmp::Ordering;

use http::HeaderMap;
use percent_encoding::percent_decode;
use serde_json::{Map, Value as Json};

/// The steps of one evaluation.
const STEPS_MAX: u32 = 20_000;

/// Why an expression came to nothing for this request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Trouble {
    /// Too many steps, or too long a text.
    #[error("it takes too long")]
    Budget,
    /// A claim is not what it was used as.
    #[error("a value is not of the type that is needed")]
    Type,
    /// Out of range, or a division by zero.
    #[error("a number is out of range")]
    Range,
}

/// What is left of the steps.
pub struct Fuel(u32);

impl Default for Fuel {
    fn default() -> Self {
        Self(STEPS_MAX)
    }
}

impl Fuel {
    pub fn burn(&mut self, steps: usize) -> Result<(), Trouble> {
        let steps = u32::try_from(steps).unwrap_or(u32::MAX);
        self.0 = self.0.checked_sub(steps).ok_or(Trouble::Budget)?;
        Ok(())
    }

    /// Looking at a text costs by its length.
    pub fn read(&mut self, text: &str) -> Result<(), Trouble> {
        self.burn(text.len() / 64)
    }
}

/// A value, mostly a look at what the request holds.
#[derive(Clone, Debug)]
pub enum Value<'v> {
    Null,
    Bool(bool),
    Int(i64),
    Double(f64),
    Text(Cow<'v, str>),
    List(Vec<Value<'v>>),
    Headers(&'v HeaderMap),
    /// A query.
    Params(&'v str),
    Claims(&'v Map<String, Json>),
    /// A list or an object of a claim.
    Json(&'v Json),
}

impl<'v> Value<'v> {
    pub fn text(text: &'v str) -> Self {
        Value::Text(Cow::Borrowed(text))
    }

    pub fn owned(text: String) -> Self {
        Value::Text(Cow::Owned(text))
    }

    pub fn json(json: &'v Json) -> Self {
        match json {
            Json::Null => Value::Null,
            Json::Bool(truth) => Value::Bool(*truth),
            Json::String(text) => Value::text(text),
            Json::Number(number) => match (number.as_i64(), number.as_f64()) {
                (Some(whole), _) => Value::Int(whole),
                (None, Some(double)) => Value::Double(double),
                (None, None) => Value::Null,
            },
            Json::Array(_) | Json::Object(_) => Value::Json(json),
        }
    }

    pub fn truth(&self) -> Result<bool, Trouble> {
        if let Value::Bool(truth) = self { Ok(*truth) } else { Err(Trouble::Type) }
    }

    pub fn whole(&self) -> Result<i64, Trouble> {
        if let Value::Int(number) = self { Ok(*number) } else { Err(Trouble::Type) }
    }

    pub fn as_text(&self) -> Result<&str, Trouble> {
        if let Value::Text(text) = self { Ok(text) } else { Err(Trouble::Type) }
    }

    pub fn items(self, fuel: &mut Fuel) -> Result<Vec<Value<'v>>, Trouble> {
        match self {
            Value::List(items) => Ok(items),
            Value::Json(Json::Array(items)) => {
                fuel.burn(items.len())?;
                Ok(items.iter().map(Value::json).collect())
            }
            _ => Err(Trouble::Type),
        }
    }

    #[expect(clippy::cast_precision_loss, reason = "a number and a whole number are compared as numbers")]
    pub fn compare(&self, other: &Self) -> Result<Ordering, Trouble> {
        let ordered = match (self, other) {
            (Value::Int(a), Value::Int(b)) => Some(a.cmp(b)),
            (Value::Double(a), Value::Double(b)) => a.partial_cmp(b),
            (Value::Int(a), Value::Double(b)) => (*a as f64).partial_cmp(b),
            (Value::Double(a), Value::Int(b)) => a.partial_cmp(&(*b as f64)),
            (Value::Text(a), Value::Text(b)) => Some(a.cmp(b)),
            _ => None,
        };
        ordered.ok_or(Trouble::Type)
    }

    pub fn equals(&self, other: &Self) -> bool {
        match (self, other) {
            (Value::Null, Value::Null) => true,
            (Value::Bool(a), Value::Bool(b)) => a == b,
            (Value::Json(a), Value::Json(b)) => a == b,
            _ => self.compare(other) == Ok(Ordering::Equal),
        }
    }

    /// What stands under this name. A header field or a parameter that is not there is empty, a claim null.
    pub fn member(&self, name: &str) -> Result<Value<'v>, Trouble> {
        Ok(match self {
            Value::Headers(headers) => {
                let mut values = headers.get_all(name).iter().map(|value| String::from_utf8_lossy(value.as_bytes()));
                match (values.next(), values.next()) {
                    (None, _) => Value::text(""),
                    (Some(one), None) => Value::Text(one),
                    (Some(one), Some(two)) => Value::owned([one, two].into_iter().chain(values).collect::<Vec<_>>().join(", ")),
                }
            }
            Value::Params(query) => param(query, name).map_or(Value::text(""), Value::Text),
            Value::Claims(claims) => claims.get(name).map_or(Value::Null, Value::json),
            Value::Json(Json::Object(object)) => object.get(name).map_or(Value::Null, Value::json),
            Value::Null => Value::Null,
            _ => return Err(Trouble::Type),
        })
    }

    pub fn has(&self, name: &str) -> bool {
        match self {
            Value::Headers(headers) => headers.contains_key(name),
            Value::Params(query) => param(query, name).is_some(),
            Value::Claims(claims) => claims.get(name).is_some_and(|claim| !claim.is_null()),
            Value::Json(Json::Object(object)) => object.get(name).is_some_and(|member| !member.is_null()),
            _ => false,
        }
    }

    pub fn size(&self) -> Result<i64, Trouble> {
        let size = match self {
            Value::Text(text) => text.chars().count(),
            Value::List(items) => items.len(),
            Value::Json(Json::Array(items)) => items.len(),
            Value::Json(Json::Object(object)) => object.len(),
            Value::Claims(claims) => claims.len(),
            Value::Headers(headers) => headers.keys_len(),
            Value::Params(query) => query.split('&').filter(|pair| !pair.is_empty()).count(),
            _ => return Err(Trouble::Type),
        };
        i64::try_from(size).map_err(|_| Trouble::Range)
    }
}

/// The first parameter of this name, decoded as a form is.
fn param<'v>(query: &'v str, name: &str) -> Option<Cow<'v, str>> {
    let plain = |text: &'v str| -> Cow<'v, str> {
        if text.contains(['%', '+']) {
            Cow::Owned(percent_decode(text.replace('+', " ").as_bytes()).decode_utf8_lossy().into_owned())
        } else {
            Cow::Borrowed(text)
        }
    };
    let pairs = query.split('&').map(|pair| pair.split_once('=').unwrap_or((pair, "")));
    pairs.filter(|(key, _)| plain(key) == name).map(|(_, value)| plain(value)).next()
}
