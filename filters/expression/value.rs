//! Values during an evaluation. Most of them borrow from the request.

use std::sync::Arc;

use http::HeaderMap;
use jiff::{SignedDuration, Timestamp};
use serde_json::{Map, Value as Json};

use super::fuel::{Fuel, Trouble};
use super::types::Kind;

/// A text of the request or of the expression, or one that was made. Its copy copies no bytes.
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

/// The entries of a map that an expression has made, in the order in which they were written.
pub type Entries<'v> = Vec<(Value<'v>, Value<'v>)>;

/// A value. Its copy is cheap.
#[derive(Clone, Debug)]
pub enum Value<'v> {
    Null,
    Bool(bool),
    Int(i64),
    Uint(u64),
    Double(f64),
    Text(Text<'v>),
    Bytes(Arc<[u8]>),
    List(Arc<Vec<Value<'v>>>),
    Map(Arc<Entries<'v>>),
    Timestamp(Timestamp),
    Duration(SignedDuration),
    Type(Kind),
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
            Json::Number(number) => match (number.as_i64(), number.as_u64(), number.as_f64()) {
                (Some(whole), ..) => Value::Int(whole),
                (None, Some(whole), _) => Value::Uint(whole),
                (None, None, Some(double)) => Value::Double(double),
                (None, None, None) => Value::Null,
            },
            Json::Array(_) | Json::Object(_) => Value::Json(json),
        }
    }

    /// The tag of its type.
    pub fn kind(&self) -> Kind {
        match self {
            Value::Null => Kind::Null,
            Value::Bool(_) => Kind::Bool,
            Value::Int(_) => Kind::Int,
            Value::Uint(_) => Kind::Uint,
            Value::Double(_) => Kind::Double,
            Value::Text(_) => Kind::Text,
            Value::Bytes(_) => Kind::Bytes,
            Value::List(_) | Value::Json(Json::Array(_)) => Kind::List,
            Value::Timestamp(_) => Kind::Timestamp,
            Value::Duration(_) => Kind::Duration,
            Value::Type(_) => Kind::Type,
            Value::Map(_) | Value::Headers(_) | Value::Params(_) | Value::Claims(_) | Value::Json(_) => Kind::Map,
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

    /// The items of a list.
    pub fn items(&self, fuel: &mut Fuel) -> Result<Arc<Vec<Value<'v>>>, Trouble> {
        match self {
            Value::List(items) => Ok(Arc::clone(items)),
            Value::Json(Json::Array(items)) => {
                fuel.burn(items.len())?;
                Ok(Arc::new(items.iter().map(Value::json).collect()))
            }
            _ => Err(Trouble::Type),
        }
    }

    /// The number of items of a list.
    pub fn length(&self) -> Option<usize> {
        match self {
            Value::List(items) => Some(items.len()),
            Value::Json(Json::Array(items)) => Some(items.len()),
            _ => None,
        }
    }

    /// One item of a list.
    pub fn item(&self, index: usize) -> Option<Value<'v>> {
        match self {
            Value::List(items) => items.get(index).cloned(),
            Value::Json(Json::Array(items)) => items.get(index).map(Value::json),
            _ => None,
        }
    }
}
