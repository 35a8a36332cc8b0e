//! Values during an evaluation. Most of them borrow from the request or the expression.

use std::sync::Arc;

use http::HeaderMap;
use jiff::{SignedDuration, Timestamp};
use serde_json::{Map, Value as Json};

use super::fuel::{EvalError, Fuel};
use super::types::Kind;

/// A borrowed or shared text. Cloning it copies no bytes.
#[derive(Clone, Debug)]
pub enum Text<'v> {
    Borrowed(&'v str),
    Shared(Arc<str>),
}

impl std::ops::Deref for Text<'_> {
    type Target = str;
    fn deref(&self) -> &str {
        match self {
            Text::Borrowed(text) => text,
            Text::Shared(text) => text,
        }
    }
}

/// The entries of a map that an expression has created, in source order.
pub type Entries<'v> = Vec<(Value<'v>, Value<'v>)>;

/// A value. Cloning it is cheap.
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
    /// The parameters of a query, undecoded.
    Params(&'v str),
    Claims(&'v Map<String, Json>),
    /// A list or an object inside a claim.
    Json(&'v Json),
}

impl<'v> Value<'v> {
    pub fn text(text: &'v str) -> Self {
        Value::Text(Text::Borrowed(text))
    }

    pub fn owned(text: String) -> Self {
        Value::Text(Text::Shared(text.into()))
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

    pub fn as_bool(&self) -> Result<bool, EvalError> {
        if let Value::Bool(truth) = self { Ok(*truth) } else { Err(EvalError::Type) }
    }

    pub fn as_int(&self) -> Result<i64, EvalError> {
        if let Value::Int(number) = self { Ok(*number) } else { Err(EvalError::Type) }
    }

    pub fn as_text(&self) -> Result<&str, EvalError> {
        if let Value::Text(text) = self { Ok(text) } else { Err(EvalError::Type) }
    }

    /// The items of a list. An error for other values.
    pub fn items(&self, fuel: &mut Fuel) -> Result<Arc<Vec<Value<'v>>>, EvalError> {
        match self {
            Value::List(items) => Ok(Arc::clone(items)),
            Value::Json(Json::Array(items)) => {
                fuel.burn(items.len())?;
                Ok(Arc::new(items.iter().map(Value::json).collect()))
            }
            _ => Err(EvalError::Type),
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

    /// An item of a list.
    pub fn item(&self, index: usize) -> Option<Value<'v>> {
        match self {
            Value::List(items) => items.get(index).cloned(),
            Value::Json(Json::Array(items)) => items.get(index).map(Value::json),
            _ => None,
        }
    }
}
