//! A deserializer over [`Value`] that rejects a list where a struct is expected. serde_json would read the list as the fields
//! of the struct in order, and hide a mistake in the configuration. In all else it behaves like serde_json.

use serde::de::value::{MapAccessDeserializer, MapDeserializer, SeqDeserializer};
use serde::de::{Deserializer, Error as _, IntoDeserializer, Unexpected, Visitor};
use serde::forward_to_deserialize_any;
use serde_json::{Error, Value};

/// The deserializer; see the module.
pub struct Strict(pub Value);

impl IntoDeserializer<'_, Error> for Strict {
    type Deserializer = Self;
    fn into_deserializer(self) -> Self {
        self
    }
}

fn entries(map: serde_json::Map<String, Value>) -> impl Iterator<Item = (String, Strict)> {
    map.into_iter().map(|(key, value)| (key, Strict(value)))
}

impl<'de> Deserializer<'de> for Strict {
    type Error = Error;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match self.0 {
            Value::Array(items) => {
                let mut items = SeqDeserializer::new(items.into_iter().map(Strict));
                let value = visitor.visit_seq(&mut items)?;
                items.end().map(|()| value)
            }
            Value::Object(map) => {
                let mut entries = MapDeserializer::new(entries(map));
                let value = visitor.visit_map(&mut entries)?;
                entries.end().map(|()| value)
            }
            plain => plain.deserialize_any(visitor),
        }
    }

    fn deserialize_struct<V: Visitor<'de>>(self, _: &'static str, _: &'static [&'static str], visitor: V) -> Result<V::Value, Error> {
        match self.0 {
            Value::Array(_) => Err(Error::invalid_type(Unexpected::Seq, &"a map")),
            _ => self.deserialize_any(visitor),
        }
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match self.0 {
            Value::Null => visitor.visit_none(),
            _ => visitor.visit_some(self),
        }
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(self, _: &'static str, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        name: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        match self.0 {
            Value::Object(map) if map.len() == 1 => visitor.visit_enum(MapAccessDeserializer::new(MapDeserializer::new(entries(map)))),
            // A unit variant, or an invalid value, for which serde_json writes the error.
            other => other.deserialize_enum(name, variants, visitor),
        }
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf unit unit_struct seq tuple
        tuple_struct map identifier ignored_any
    }
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;
    use serde_json::json;

    use crate::contract::decode;

    #[derive(Debug, PartialEq, Deserialize)]
    struct Inner {
        count: u32,
    }

    #[derive(Debug, PartialEq, Deserialize)]
    #[serde(rename_all = "snake_case")]
    enum Kind {
        Plain,
        With(Inner),
    }

    #[derive(Debug, PartialEq, Deserialize)]
    struct Outer {
        kinds: Vec<Kind>,
        inner: Option<Inner>,
        ratio: f64,
    }

    #[test]
    fn values_are_read() {
        let read = decode::<Outer>(json!({ "kinds": ["plain", { "with": { "count": 3 } }], "inner": null, "ratio": 1 }));
        let kinds = vec![Kind::Plain, Kind::With(Inner { count: 3 })];
        assert_eq!(read, Ok(Outer { kinds, inner: None, ratio: 1.0 }));
    }

    #[test]
    fn a_list_is_not_a_map() {
        for (value, path) in [
            (json!([[], null, 1]), ""),
            (json!({ "kinds": [], "inner": [3], "ratio": 1 }), "inner"),
            (json!({ "kinds": [{ "with": [3] }], "ratio": 1 }), "kinds [0] with"),
        ] {
            let wrong = decode::<Outer>(value).unwrap_err();
            assert_eq!(wrong.path.join(" "), path, "{wrong}");
            assert!(wrong.message.contains("invalid type: sequence, expected a map"), "{wrong}");
        }
        for wrong in [json!({ "with": { "count": 3 }, "plain": null }), json!({}), json!(3)] {
            assert!(decode::<Kind>(wrong).is_err());
        }
    }
}
