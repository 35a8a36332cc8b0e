//! Amounts of money as integers: millionths of the currency's unit.

use std::borrow::Cow;
use std::fmt;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, de};

/// The largest amount: a billion units.
const MICROS_MAX: u64 = 1_000_000_000_000_000;

/// An amount of money, in millionths of the currency's unit. Written as a decimal number with at most six places.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct MicroUnits(pub u64);

/// Parses a decimal number such as `2.5` into millionths. `None`: it is no such number, is negative, has more than six decimal
/// places, or is above a billion.
pub fn micros_of(text: &str) -> Option<u64> {
    let (whole, places) = text.split_once('.').unwrap_or((text, ""));
    let digits = |part: &str| part.bytes().all(|byte| byte.is_ascii_digit());
    if (whole.is_empty() && places.is_empty()) || !digits(whole) || !digits(places) {
        return None;
    }
    let places = places.trim_end_matches('0');
    if places.len() > 6 {
        return None;
    }
    let whole: u64 = if whole.is_empty() { 0 } else { whole.parse().ok()? };
    let micros: u64 = format!("{places:0<6}").parse().ok()?;
    whole.checked_mul(1_000_000)?.checked_add(micros).filter(|micros| *micros <= MICROS_MAX)
}

impl<'de> Deserialize<'de> for MicroUnits {
    fn deserialize<D: Deserializer<'de>>(input: D) -> Result<Self, D::Error> {
        struct Decimal;
        fn parsed<E: de::Error>(text: &str) -> Result<MicroUnits, E> {
            micros_of(text).map(MicroUnits).ok_or_else(|| {
                E::custom(format!(
                    "`{text}` is not an amount; write a decimal number from 0 to a billion with at most six places, such as `2.5`"
                ))
            })
        }
        impl de::Visitor<'_> for Decimal {
            type Value = MicroUnits;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an amount such as 2.5")
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<MicroUnits, E> {
                parsed(text)
            }
            fn visit_u64<E: de::Error>(self, number: u64) -> Result<MicroUnits, E> {
                parsed(&number.to_string())
            }
            fn visit_i64<E: de::Error>(self, number: i64) -> Result<MicroUnits, E> {
                parsed(&number.to_string())
            }
            fn visit_f64<E: de::Error>(self, number: f64) -> Result<MicroUnits, E> {
                // The shortest text that reads as this number: what was written, for up to 15 digits.
                parsed(&number.to_string())
            }
        }
        input.deserialize_any(Decimal)
    }
}

impl JsonSchema for MicroUnits {
    fn schema_name() -> Cow<'static, str> {
        "Amount".into()
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": ["number", "string"],
            "description": "An amount of money, with at most six decimal places",
            "minimum": 0,
            "examples": [2.5],
        })
    }
}

impl fmt::Display for MicroUnits {
    /// A decimal number with at least two places: `2.50`, `0.000125`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = format!("{}.{:06}", self.0 / 1_000_000, self.0 % 1_000_000);
        let shortest = text.len() - 4;
        f.write_str(text.get(..text.trim_end_matches('0').len().max(shortest)).unwrap_or(&text))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_are_exact() {
        for (text, micros) in [
            ("2.5", Some(2_500_000)),
            ("0.075", Some(75_000)),
            (".5", Some(500_000)),
            ("7.", Some(7_000_000)),
            ("0.000001", Some(1)),
            ("0.0000010", Some(1)),
            ("0.0000001", None),
            ("1000000000", Some(MICROS_MAX)),
            ("1000000001", None),
            ("99999999999999999999", None),
            ("-1", None),
            ("1e3", None),
            (".", None),
            ("", None),
        ] {
            assert_eq!(micros_of(text), micros, "{text}");
        }
        for (json, micros) in [("0.1", 100_000), ("0.000001", 1), ("3", 3_000_000), ("\"0.3\"", 300_000), ("1.0", 1_000_000)] {
            assert_eq!(serde_json::from_str::<MicroUnits>(json).unwrap(), MicroUnits(micros), "{json}");
        }
        assert!(serde_json::from_str::<MicroUnits>("-0.5").is_err());
    }

    #[test]
    fn amounts_are_shown_with_two_places_or_more() {
        for (micros, text) in [(2_500_000, "2.50"), (0, "0.00"), (125, "0.000125"), (1_230_000, "1.23"), (1_234_000, "1.234")] {
            assert_eq!(MicroUnits(micros).to_string(), text);
        }
    }
}
