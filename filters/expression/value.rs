//! What expressions come to while they are evaluated, and the fuel that each step costs.

use std::borrow::Cow;
use std::cmp::Ordering;
use std::sync::Arc;

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
    /// A parameter stands there more than once, with different values: whoever reads it reads one or the other.
    #[error("a parameter has several values")]
    Several,
    /// More layers of encoding than anybody means.
    #[error("it is encoded too often")]
    Layers,
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

    /// Making a text costs more.
    pub fn write(&mut self, bytes: usize) -> Result<(), Trouble> {
        self.burn(bytes / 16)
    }
}

/// A text of the request's or the expression's, or one that was made. A copy of it copies nothing.
#[derive(Clone, Debug)]
pub enum Text<'v> {
    Seen(&'v str),
    Made(Arc<str>),
}

impl std::ops::Deref for Text<'_> {
    type Target = str;
    fn deref(&self) -> &str {
        match self {
            Text::Seen(text) => text,
            Text::Made(text) => text,
        }
    }
}

/// A value, mostly a look at what the request holds. A copy of it copies next to nothing.
#[derive(Clone, Debug)]
pub enum Value<'v> {
    Null,
    Bool(bool),
    Int(i64),
    Double(f64),
    Text(Text<'v>),
    List(Arc<Vec<Value<'v>>>),
    Headers(&'v HeaderMap),
    /// A query.
    Params(&'v str),
    Claims(&'v Map<String, Json>),
    /// A list or an object of a claim.
    Json(&'v Json),
}

impl<'v> Value<'v> {
    pub fn text(text: &'v str) -> Self {
        Value::Text(Text::Seen(text))
    }

    pub fn owned(text: String) -> Self {
        Value::Text(Text::Made(text.into()))
    }

    pub fn list(items: Vec<Value<'v>>) -> Self {
        Value::List(Arc::new(items))
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

    pub fn items(self, fuel: &mut Fuel) -> Result<Arc<Vec<Value<'v>>>, Trouble> {
        match self {
            Value::List(items) => Ok(items),
            Value::Json(Json::Array(items)) => {
                fuel.burn(items.len())?;
                Ok(Arc::new(items.iter().map(Value::json).collect()))
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
            (Value::Text(a), Value::Text(b)) => Some((**a).cmp(&**b)),
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
    pub fn member(&self, name: &str, fuel: &mut Fuel) -> Result<Value<'v>, Trouble> {
        Ok(match self {
            Value::Headers(headers) => field(headers, name, fuel)?,
            Value::Params(query) => {
                fuel.burn(query.len() / 8)?;
                param(query, name, fuel)?.unwrap_or(Value::text(""))
            }
            Value::Claims(claims) => claims.get(name).map_or(Value::Null, Value::json),
            Value::Json(Json::Object(object)) => object.get(name).map_or(Value::Null, Value::json),
            Value::Null => Value::Null,
            _ => return Err(Trouble::Type),
        })
    }

    pub fn has(&self, name: &str, fuel: &mut Fuel) -> Result<bool, Trouble> {
        Ok(match self {
            Value::Headers(headers) => headers.contains_key(name),
            Value::Params(query) => {
                fuel.burn(query.len() / 8)?;
                pairs(query).any(|(key, _)| key == name)
            }
            Value::Claims(claims) => claims.get(name).is_some_and(|claim| !claim.is_null()),
            Value::Json(Json::Object(object)) => object.get(name).is_some_and(|member| !member.is_null()),
            _ => false,
        })
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

/// A header field, with all its lines. Bytes that are not UTF-8 stand there as U+FFFD.
pub fn field<'v>(headers: &'v HeaderMap, name: &str, fuel: &mut Fuel) -> Result<Value<'v>, Trouble> {
    let mut lines = headers.get_all(name).iter();
    let Some(first) = lines.next() else { return Ok(Value::text("")) };
    if let (Ok(plain), None) = (std::str::from_utf8(first.as_bytes()), lines.next()) {
        return Ok(Value::text(plain));
    }
    let lines: Vec<Cow<'_, str>> = headers.get_all(name).iter().map(|line| String::from_utf8_lossy(line.as_bytes())).collect();
    fuel.write(lines.iter().map(|line| line.len()).sum())?;
    Ok(Value::owned(lines.join(", ")))
}

/// The parameters of a query, decoded as a form is.
fn pairs(query: &str) -> impl Iterator<Item = (Cow<'_, str>, &str)> {
    query.split('&').map(|pair| pair.split_once('=').unwrap_or((pair, ""))).map(|(key, value)| (form(key), value))
}

fn form(text: &str) -> Cow<'_, str> {
    if text.contains(['%', '+']) {
        Cow::Owned(percent_decode(text.replace('+', " ").as_bytes()).decode_utf8_lossy().into_owned())
    } else {
        Cow::Borrowed(text)
    }
}

/// The parameter of this name.
fn param<'v>(query: &'v str, name: &str, fuel: &mut Fuel) -> Result<Option<Value<'v>>, Trouble> {
    let mut found: Option<Cow<'v, str>> = None;
    for (_, value) in pairs(query).filter(|(key, _)| key == name) {
        let value = form(value);
        if found.as_ref().is_some_and(|other| *other != value) {
            return Err(Trouble::Several);
        }
        found = Some(value);
    }
    Ok(match found {
        None => None,
        Some(Cow::Borrowed(text)) => Some(Value::text(text)),
        Some(Cow::Owned(text)) => {
            fuel.write(text.len())?;
            Some(Value::owned(text))
        }
    })
}
