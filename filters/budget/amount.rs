//! The amount of a budget: money, or tokens of a kind.

use std::borrow::Cow;
use std::fmt;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, de};

use crate::contract::{Currency, MicroUnits, micros_of};

/// What a budget counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BudgetUnit {
    /// Money.
    Money(Currency),
    /// Input and output tokens.
    Tokens,
    /// Input tokens.
    InputTokens,
    /// Output tokens.
    OutputTokens,
}

/// An amount, such as `10 USD` or `2000000 tokens`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BudgetAmount {
    /// Millionths of the currency's unit, or tokens.
    pub value: u64,
    /// The unit.
    pub unit: BudgetUnit,
}

impl BudgetAmount {
    /// Whether it is an amount of money.
    pub fn is_money(&self) -> bool {
        matches!(self.unit, BudgetUnit::Money(_))
    }

    /// A value in the unit of this amount, such as `2.50 USD`.
    pub fn show(&self, value: u64) -> String {
        match self.unit {
            BudgetUnit::Money(currency) => format!("{} {currency}", MicroUnits(value)),
            BudgetUnit::Tokens => format!("{value} tokens"),
            BudgetUnit::InputTokens => format!("{value} input tokens"),
            BudgetUnit::OutputTokens => format!("{value} output tokens"),
        }
    }

    fn parse(text: &str) -> Option<Self> {
        let (number, unit) = text.trim().split_once(char::is_whitespace)?;
        let words: Vec<&str> = unit.split_whitespace().collect();
        let unit = match words.as_slice() {
            ["tokens"] => BudgetUnit::Tokens,
            ["input", "tokens"] => BudgetUnit::InputTokens,
            ["output", "tokens"] => BudgetUnit::OutputTokens,
            [code] => BudgetUnit::Money(Currency::parse(code)?),
            _ => return None,
        };
        let value = match unit {
            BudgetUnit::Money(_) => micros_of(number)?,
            _ => number.parse().ok()?,
        };
        (value > 0).then_some(Self { value, unit })
    }
}

impl<'de> Deserialize<'de> for BudgetAmount {
    fn deserialize<D: Deserializer<'de>>(input: D) -> Result<Self, D::Error> {
        struct Text;
        impl de::Visitor<'_> for Text {
            type Value = BudgetAmount;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an amount with its unit, such as `10 USD` or `2000000 tokens`")
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<BudgetAmount, E> {
                BudgetAmount::parse(text).ok_or_else(|| {
                    E::custom(format!(
                        "`{text}` is not an amount; write a number above 0 and its unit, such as `10 USD`, `2000000 tokens`, `500000 input tokens` or `100000 output tokens`"
                    ))
                })
            }
        }
        input.deserialize_str(Text)
    }
}

impl JsonSchema for BudgetAmount {
    fn schema_name() -> Cow<'static, str> {
        "BudgetAmount".into()
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "string",
            "description": "An amount with its unit: 10 USD, 2000000 tokens, 500000 input tokens, 100000 output tokens",
            "examples": ["10 USD", "2000000 tokens"],
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts() {
        for (text, shown) in [
            ("10 USD", Some("10.00 USD")),
            ("0.5  EUR", Some("0.50 EUR")),
            ("2000000 tokens", Some("2000000 tokens")),
            ("5 input tokens", Some("5 input tokens")),
            ("5 output  tokens", Some("5 output tokens")),
            ("0 USD", None),
            ("10", None),
            ("10 usd", None),
            ("1.5 tokens", None),
            ("ten USD", None),
            ("5 cached tokens", None),
        ] {
            let amount = BudgetAmount::parse(text);
            assert_eq!(amount.map(|amount| amount.show(amount.value)).as_deref(), shown, "{text}");
        }
    }
}
