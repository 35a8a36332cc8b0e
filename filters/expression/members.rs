//! Access to the members of values: header fields, query parameters, claims, and maps that expressions create.

use std::borrow::Cow;

use http::HeaderMap;
use percent_encoding::percent_decode;
use serde_json::Value as Json;

use super::fuel::{EvalError, Fuel};
use super::value::{Entries, Value};

impl<'v> Value<'v> {
    /// `a.name`. An absent header field or parameter is empty, an absent claim is null.
    pub fn member(&self, name: &str, fuel: &mut Fuel) -> Result<Value<'v>, EvalError> {
        Ok(match self {
            Value::Headers(headers) => field(headers, name, fuel)?,
            Value::Params(query) => {
                fuel.burn(query.len() / 8)?;
                param(query, name, fuel)?.unwrap_or(Value::text(""))
            }
            Value::Claims(claims) => claims.get(name).map_or(Value::Null, Value::json),
            Value::Json(Json::Object(object)) => object.get(name).map_or(Value::Null, Value::json),
            Value::Map(_) => self.find(&Value::owned(name.to_owned()), fuel)?.ok_or(EvalError::Missing)?,
            Value::Null => Value::Null,
            _ => return Err(EvalError::Type),
        })
    }

    /// `a[key]`
    pub fn indexed(&self, key: &Value<'v>, fuel: &mut Fuel) -> Result<Value<'v>, EvalError> {
        match (self, key) {
            (Value::Map(_), key) => self.find(key, fuel)?.ok_or(EvalError::Missing),
            (_, Value::Text(name)) => self.member(name, fuel),
            (list, key) if list.length().is_some() => list.item(position(key)?).ok_or(EvalError::Range),
            (Value::Null, _) => Ok(Value::Null),
            _ => Err(EvalError::Type),
        }
    }

    /// `has(a.name)` and `name in a`. A claim with the value null exists.
    pub fn has(&self, name: &str, fuel: &mut Fuel) -> Result<bool, EvalError> {
        Ok(match self {
            Value::Headers(headers) => headers.contains_key(name),
            Value::Params(query) => {
                fuel.burn(query.len() / 8)?;
                pairs(query).any(|(key, _)| key == name)
            }
            Value::Claims(claims) => claims.contains_key(name),
            Value::Json(Json::Object(object)) => object.contains_key(name),
            Value::Map(entries) => {
                fuel.burn(entries.len())?;
                entries.iter().any(|(key, _)| matches!(key, Value::Text(key) if **key == *name))
            }
            Value::Null => false,
            _ => return Err(EvalError::Type),
        })
    }

    /// The value of a key. `None`: no such key.
    pub fn find(&self, key: &Value<'v>, fuel: &mut Fuel) -> Result<Option<Value<'v>>, EvalError> {
        match (self, key) {
            (Value::Map(entries), key) => {
                for (known, value) in entries.iter() {
                    fuel.burn(1)?;
                    if known.equals(key, fuel)? {
                        return Ok(Some(value.clone()));
                    }
                }
                Ok(None)
            }
            (_, Value::Text(name)) if self.has(name, fuel)? => self.member(name, fuel).map(Some),
            _ => Ok(None),
        }
    }

    /// The keys and values of a map.
    pub fn entries(&self, fuel: &mut Fuel) -> Result<Entries<'v>, EvalError> {
        let names: Vec<Value<'v>> = match self {
            Value::Map(entries) => {
                fuel.burn(entries.len())?;
                return Ok((**entries).clone());
            }
            Value::Claims(claims) => claims.keys().map(|name| Value::text(name)).collect(),
            Value::Json(Json::Object(object)) => object.keys().map(|name| Value::text(name)).collect(),
            Value::Headers(headers) => headers.keys().map(|name| Value::text(name.as_str())).collect(),
            Value::Params(query) => {
                fuel.burn(query.len() / 8)?;
                param_names(query)
            }
            _ => return Err(EvalError::Type),
        };
        fuel.burn(names.len())?;
        names.into_iter().map(|name| Ok((name.clone(), self.indexed(&name, fuel)?))).collect()
    }

    /// The number of entries of a map.
    pub fn entries_count(&self, fuel: &mut Fuel) -> Result<usize, EvalError> {
        Ok(match self {
            Value::Map(entries) => entries.len(),
            Value::Json(Json::Object(object)) => object.len(),
            Value::Claims(claims) => claims.len(),
            Value::Headers(headers) => headers.keys_len(),
            Value::Params(query) => {
                fuel.burn(query.len() / 8)?;
                param_names(query).len()
            }
            _ => return Err(EvalError::Type),
        })
    }

    /// `size(a)`
    pub fn size(&self, fuel: &mut Fuel) -> Result<i64, EvalError> {
        let size = match self {
            Value::Text(text) => text.chars().count(),
            Value::Bytes(bytes) => bytes.len(),
            list if list.length().is_some() => list.length().unwrap_or_default(),
            map => map.entries_count(fuel)?,
        };
        i64::try_from(size).map_err(|_| EvalError::Range)
    }
}

/// A number as an index of a list.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "within the bounds that are tested first")]
fn position(key: &Value<'_>) -> Result<usize, EvalError> {
    match key {
        Value::Int(index) => usize::try_from(*index).map_err(|_| EvalError::Range),
        Value::Uint(index) => usize::try_from(*index).map_err(|_| EvalError::Range),
        Value::Double(index) if index.fract() == 0.0 && (0.0..4e9).contains(index) => Ok(*index as usize),
        _ => Err(EvalError::Type),
    }
}

/// The value of a header field, all lines joined by `, `. Bytes that are not UTF-8 become U+FFFD.
pub fn field<'v>(headers: &'v HeaderMap, name: &str, fuel: &mut Fuel) -> Result<Value<'v>, EvalError> {
    let mut lines = headers.get_all(name).iter();
    let Some(first) = lines.next() else { return Ok(Value::text("")) };
    if let (Ok(plain), None) = (std::str::from_utf8(first.as_bytes()), lines.next()) {
        return Ok(Value::text(plain));
    }
    let lines: Vec<Cow<'_, str>> = headers.get_all(name).iter().map(|line| String::from_utf8_lossy(line.as_bytes())).collect();
    fuel.write(lines.iter().map(|line| line.len()).sum())?;
    Ok(Value::owned(lines.join(", ")))
}

/// The parameters of a query. Names are decoded like form data.
fn pairs(query: &str) -> impl Iterator<Item = (Cow<'_, str>, &str)> {
    let pairs = query.split('&').filter(|pair| !pair.is_empty());
    pairs.map(|pair| pair.split_once('=').unwrap_or((pair, ""))).map(|(key, value)| (form(key), value))
}

/// The distinct names of the parameters.
fn param_names(query: &str) -> Vec<Value<'_>> {
    let mut names: Vec<Cow<'_, str>> = pairs(query).map(|(name, _)| name).collect();
    names.sort_unstable();
    names.dedup();
    let value = |name| match name {
        Cow::Borrowed(name) => Value::text(name),
        Cow::Owned(name) => Value::owned(name),
    };
    names.into_iter().map(value).collect()
}

fn form(text: &str) -> Cow<'_, str> {
    if text.contains(['%', '+']) {
        Cow::Owned(percent_decode(text.replace('+', " ").as_bytes()).decode_utf8_lossy().into_owned())
    } else {
        Cow::Borrowed(text)
    }
}

/// The value of a parameter. An error if it occurs with different values.
fn param<'v>(query: &'v str, name: &str, fuel: &mut Fuel) -> Result<Option<Value<'v>>, EvalError> {
    let mut found: Option<Cow<'v, str>> = None;
    for (_, value) in pairs(query).filter(|(key, _)| key == name) {
        let value = form(value);
        if found.as_ref().is_some_and(|other| *other != value) {
            return Err(EvalError::Several);
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
