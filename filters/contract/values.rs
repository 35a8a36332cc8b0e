//! Scalar types of configurations: durations, sizes, rates, timestamps and secrets. They read no files.

use std::borrow::Cow;
use std::fmt;
use std::time::{Duration, SystemTime};

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, de};

/// A duration in readable form: `250ms`, `15s`, `5m`, `1h 30m`, `2days`. At most 400 days.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct HumanDuration(pub Duration);

impl HumanDuration {
    /// A bound that prevents overflow in clock arithmetic; longer than any useful setting.
    const LONGEST: Duration = Duration::from_secs(400 * 86_400);

    /// A duration in seconds.
    pub const fn secs(seconds: u64) -> Self {
        Self(Duration::from_secs(seconds))
    }
}

impl fmt::Display for HumanDuration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        humantime::format_duration(self.0).fmt(f)
    }
}

/// Reads a scalar as text, because YAML reads `60` as a number.
struct Scalar(&'static str);

impl de::Visitor<'_> for Scalar {
    type Value = String;
    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
    fn visit_str<E: de::Error>(self, text: &str) -> Result<String, E> {
        Ok(text.to_owned())
    }
    fn visit_u64<E: de::Error>(self, number: u64) -> Result<String, E> {
        Ok(number.to_string())
    }
}

impl<'de> Deserialize<'de> for HumanDuration {
    fn deserialize<D: Deserializer<'de>>(input: D) -> Result<Self, D::Error> {
        let text = input.deserialize_any(Scalar("a duration such as 15s"))?;
        let duration = humantime::parse_duration(&text).map_err(|_| {
            de::Error::custom(format!("`{text}` is not a duration; write a number with its unit, such as `15s`, `500ms` or `5m`"))
        })?;
        if duration > Self::LONGEST {
            return Err(de::Error::custom(format!("`{text}` is too long; at most 400days")));
        }
        Ok(HumanDuration(duration))
    }
}

impl JsonSchema for HumanDuration {
    fn schema_name() -> Cow<'static, str> {
        "Duration".into()
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "string",
            "description": "A duration with its unit: 250ms, 15s, 5m, 1h 30m",
            "examples": ["15s"],
        })
    }
}

/// A size in bytes in readable form: `512`, `64KiB`, `10MB`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ByteSize(pub u64);

impl ByteSize {
    /// A size in KiB.
    pub const fn kib(n: u64) -> Self {
        Self(n * 1024)
    }
    /// A size in MiB.
    pub const fn mib(n: u64) -> Self {
        Self(n * 1024 * 1024)
    }
    /// As a `usize`; `usize::MAX` if it does not fit.
    pub fn as_usize(self) -> usize {
        usize::try_from(self.0).unwrap_or(usize::MAX)
    }
}

impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        bytesize::ByteSize(self.0).fmt(f)
    }
}

impl<'de> Deserialize<'de> for ByteSize {
    fn deserialize<D: Deserializer<'de>>(input: D) -> Result<Self, D::Error> {
        let text = input.deserialize_any(Scalar("a size such as 64KiB"))?;
        text.parse::<bytesize::ByteSize>().map(|size| ByteSize(size.0)).map_err(|_| {
            de::Error::custom(format!("`{text}` is not a size; write bytes or a number with its unit, such as `64KiB` or `10MiB`"))
        })
    }
}

impl JsonSchema for ByteSize {
    fn schema_name() -> Cow<'static, str> {
        "ByteSize".into()
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": ["string", "integer"],
            "minimum": 0,
            "description": "A size in bytes, with an optional unit: 512, 64KiB, 10MiB",
            "examples": ["64KiB"],
        })
    }
}

/// A rate, as a count per period: `60/min`, `10/s`, `1000/h`, `5/10s`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// The count; at least 1.
    pub count: u32,
    /// The period, from 1 millisecond to 31 days.
    pub period: Duration,
}

impl Rate {
    const LONGEST: Duration = Duration::from_secs(31 * 86_400);

    /// Parses `count/period`.
    pub fn parse(text: &str) -> Result<Self, String> {
        let wrong = || format!("`{text}` is not a rate; write a count and a period, such as `60/min`, `10/s`, `1000/h` or `20/10s`");
        let (count, period) = text.split_once('/').ok_or_else(wrong)?;
        let count: u32 = count.trim().parse().map_err(|_| wrong())?;
        let period = match period.trim() {
            "s" | "sec" | "second" => Duration::from_secs(1),
            "m" | "min" | "minute" => Duration::from_secs(60),
            "h" | "hour" => Duration::from_secs(3600),
            "d" | "day" => Duration::from_secs(86_400),
            "w" | "week" => Duration::from_secs(7 * 86_400),
            "month" => Duration::from_secs(30 * 86_400),
            other => humantime::parse_duration(other).map_err(|_| wrong())?,
        };
        if count == 0 {
            return Err(format!("`{text}` allows no requests; the count must be at least 1"));
        }
        if period < Duration::from_millis(1) || period > Self::LONGEST {
            return Err(format!("the period of `{text}` must be between 1ms and 31days"));
        }
        Ok(Self { count, period })
    }

    /// The time between two hits at exactly this rate.
    pub fn interval(&self) -> Duration {
        self.period / self.count
    }
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.count, humantime::format_duration(self.period))
    }
}

impl<'de> Deserialize<'de> for Rate {
    fn deserialize<D: Deserializer<'de>>(input: D) -> Result<Self, D::Error> {
        let text = input.deserialize_any(Scalar("a rate such as 60/min"))?;
        Rate::parse(&text).map_err(de::Error::custom)
    }
}

impl JsonSchema for Rate {
    fn schema_name() -> Cow<'static, str> {
        "Rate".into()
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "string",
            "pattern": "^[0-9]+ */ *[0-9a-z ]+$",
            "description": "A count per period: 60/min, 10/s, 1000/h, 20/10s",
            "examples": ["60/min"],
        })
    }
}

/// A point in time in RFC 3339 form: `2026-12-01T00:00:00Z`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timestamp(pub SystemTime);

impl<'de> Deserialize<'de> for Timestamp {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        humantime::parse_rfc3339(&text)
            .map(Self)
            .map_err(|_| de::Error::custom(format!("`{text}` is not a timestamp; write it like `2026-12-01T00:00:00Z`")))
    }
}

impl JsonSchema for Timestamp {
    fn schema_name() -> Cow<'static, str> {
        "Timestamp".into()
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string", "format": "date-time", "examples": ["2026-12-01T00:00:00Z"] })
    }
}

/// A secret: the text itself (usually from `${ENV}`), or the path of its file as `file:PATH`.
/// `Debug` does not show it. [`super::Site::secret`] reads it.
#[derive(Clone, PartialEq, Eq)]
pub struct SecretRef(pub(super) String);

impl<'de> Deserialize<'de> for SecretRef {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        /// A secret that looks like a number or boolean is text. The loader keeps the spelling of such numbers.
        struct Scalar;
        impl de::Visitor<'_> for Scalar {
            type Value = SecretRef;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string")
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<SecretRef, E> {
                Ok(SecretRef(text.to_owned()))
            }
            fn visit_u64<E: de::Error>(self, number: u64) -> Result<SecretRef, E> {
                Ok(SecretRef(number.to_string()))
            }
            fn visit_i64<E: de::Error>(self, number: i64) -> Result<SecretRef, E> {
                Ok(SecretRef(number.to_string()))
            }
            fn visit_f64<E: de::Error>(self, number: f64) -> Result<SecretRef, E> {
                serde_json::Number::from_f64(number)
                    .map(|number| SecretRef(number.to_string()))
                    .ok_or_else(|| E::custom("write it in quotes"))
            }
            fn visit_bool<E: de::Error>(self, truth: bool) -> Result<SecretRef, E> {
                Ok(SecretRef(truth.to_string()))
            }
        }
        deserializer.deserialize_any(Scalar)
    }
}

impl SecretRef {
    /// For tests and defaults.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The path of the file, if the secret is in a file.
    pub fn file(&self) -> Option<&str> {
        self.0.strip_prefix("file:")
    }

    /// The text as it is in the configuration: `file:` and a path, or the secret itself.
    pub fn text(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for SecretRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SecretRef(…)")
    }
}

impl JsonSchema for SecretRef {
    fn schema_name() -> Cow<'static, str> {
        "Secret".into()
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "string",
            "description": "A secret: ${ENV_NAME}, or file:PATH (relative to the configuration file)",
            "examples": ["${PROVIDER_KEY}", "file:/run/secrets/provider_key"],
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates() {
        assert_eq!(Rate::parse("60/min").unwrap(), Rate { count: 60, period: Duration::from_secs(60) });
        assert_eq!(Rate::parse("20/10s").unwrap(), Rate { count: 20, period: Duration::from_secs(10) });
        for wrong in ["", "60", "0/s", "-1/s", "1/0s", "x/min", "1/fortnight", "5/90days", "1.5/s"] {
            assert!(Rate::parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn debug_does_not_show_secrets() {
        assert!(!format!("{:?}", SecretRef::new("hunter2")).contains("hunter2"));
    }
}
