//! The price table: what a request costs by model. It reads no file; the caller passes the entries of a price file.

mod amount;

use std::collections::HashMap;
use std::time::SystemTime;

use schemars::JsonSchema;
use serde::Deserialize;

use super::{Cost, Currency, Invalid, OtherUnits, Timestamp, TokenCounts};
pub use amount::{MicroUnits, micros_of};

/// The longest pattern of a model.
const PATTERN_BYTES_MAX: usize = 256;

/// The section `prices`: what requests cost. Without it, no cost is computed.
#[derive(Clone, Debug, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct PricesConfig {
    /// The currency of all prices, as an ISO 4217 code. Default: `USD`.
    pub currency: String,
    /// The prices. For a model, the first entry that matches and is valid applies.
    pub models: Vec<ModelPrice>,
    /// A YAML or JSON file with a list of further entries, read after `models`. Relative to the configuration.
    pub file: Option<String>,
}

impl Default for PricesConfig {
    fn default() -> Self {
        Self { currency: "USD".into(), models: Vec::new(), file: None }
    }
}

/// The prices of the models that match a pattern. A kind without a price of its own costs as much as the kind that includes it;
/// any other kind without a price costs nothing.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ModelPrice {
    /// The model's name. `*` stands for any text: `gpt-4o*`.
    pub model: String,
    /// Per million input tokens.
    #[serde(default)]
    pub input: Option<MicroUnits>,
    /// Per million input tokens from the prompt cache. Default: as `input`.
    #[serde(default)]
    pub cached_input: Option<MicroUnits>,
    /// Per million input tokens written to the prompt cache. Default: as `input`.
    #[serde(default)]
    pub cache_write: Option<MicroUnits>,
    /// Per million output tokens.
    #[serde(default)]
    pub output: Option<MicroUnits>,
    /// Per million output tokens of reasoning. Default: as `output`.
    #[serde(default)]
    pub reasoning: Option<MicroUnits>,
    /// Per generated image.
    #[serde(default)]
    pub image: Option<MicroUnits>,
    /// Per second of audio.
    #[serde(default)]
    pub second: Option<MicroUnits>,
    /// Per million characters of spoken text.
    #[serde(default)]
    pub characters: Option<MicroUnits>,
    /// Per request that was answered.
    #[serde(default)]
    pub request: Option<MicroUnits>,
    /// The prices apply from this time on.
    #[serde(default)]
    pub valid_from: Option<Timestamp>,
    /// The prices apply before this time.
    #[serde(default)]
    pub valid_until: Option<Timestamp>,
}

/// The prices of one entry, with all defaults filled in. Token and character prices are micro-units per million.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Prices {
    input: u64,
    cached_input: u64,
    cache_write: u64,
    output: u64,
    reasoning: u64,
    image: u64,
    second: u64,
    characters: u64,
    request: u64,
}

/// Parts per million, as `u128`.
const MILLION: u128 = 1_000_000;

impl Prices {
    fn new(entry: &ModelPrice) -> Self {
        let micros = |price: Option<MicroUnits>| price.map(|price| price.0);
        let (input, output) = (micros(entry.input).unwrap_or(0), micros(entry.output).unwrap_or(0));
        Self {
            input,
            cached_input: micros(entry.cached_input).unwrap_or(input),
            cache_write: micros(entry.cache_write).unwrap_or(input),
            output,
            reasoning: micros(entry.reasoning).unwrap_or(output),
            image: micros(entry.image).unwrap_or(0),
            second: micros(entry.second).unwrap_or(0),
            characters: micros(entry.characters).unwrap_or(0),
            request: micros(entry.request).unwrap_or(0),
        }
    }

    /// The cost of a request in micro-units, rounded up once.
    pub fn cost_micros(&self, tokens: &TokenCounts, units: &OtherUnits) -> u64 {
        let product = |count: u64, price: u64| u128::from(count) * u128::from(price);
        let cached = tokens.cached_input.min(tokens.input);
        let written = tokens.cache_write.min(tokens.input - cached);
        let reasoning = tokens.reasoning.min(tokens.output);
        let per_million = product(tokens.input - cached - written, self.input)
            + product(cached, self.cached_input)
            + product(written, self.cache_write)
            + product(tokens.output - reasoning, self.output)
            + product(reasoning, self.reasoning)
            + product(units.characters, self.characters)
            // Milliseconds, at a price per second.
            + product(units.audio_ms, self.second) * 1000;
        let whole = product(units.images, self.image) + u128::from(self.request);
        u64::try_from(per_million.div_ceil(MILLION) + whole).unwrap_or(u64::MAX)
    }

    /// The highest cost of a request with at most these tokens and images.
    pub fn cost_micros_max(&self, input: u64, output: u64, images: u64) -> u64 {
        let dearest =
            Self { input: self.input.max(self.cached_input).max(self.cache_write), output: self.output.max(self.reasoning), ..*self };
        let tokens = TokenCounts { input, output, ..TokenCounts::default() };
        dearest.cost_micros(&tokens, &OtherUnits { images, ..OtherUnits::default() })
    }
}

struct Entry {
    pattern: Pattern,
    prices: Prices,
    valid_from: Option<SystemTime>,
    valid_until: Option<SystemTime>,
}

/// The compiled prices.
#[derive(Default)]
pub struct PriceTable {
    currency: Option<Currency>,
    entries: Vec<Entry>,
    /// The entries without `*`, by name, in their order.
    exact: HashMap<String, Vec<usize>>,
    /// The entries with `*`, in their order.
    patterns: Vec<usize>,
    is_invalid: bool,
}

impl std::fmt::Debug for PriceTable {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PriceTable").field("currency", &self.currency).field("entries", &self.entries.len()).finish()
    }
}

impl PriceTable {
    /// Compiles the section with the entries of its file. Returns all errors, with paths relative to the section.
    pub fn compile(config: &PricesConfig, from_file: &[ModelPrice]) -> Result<Self, Vec<Invalid>> {
        let mut wrong = Vec::new();
        let currency = Currency::parse(&config.currency);
        if currency.is_none() {
            wrong.push(Invalid::new("must be a currency code of three capital letters, such as `USD`").at("currency"));
        }
        let mut table = Self { currency, ..Self::default() };
        for (index, entry) in config.models.iter().enumerate() {
            table.add(entry).unwrap_or_else(|invalid| wrong.push(invalid.index(index).at("models")));
        }
        for (index, entry) in from_file.iter().enumerate() {
            let in_file = |invalid: Invalid| Invalid::new(format!("entry {} of the file: {invalid}", index + 1)).at("file");
            table.add(entry).unwrap_or_else(|invalid| wrong.push(in_file(invalid)));
        }
        if wrong.is_empty() { Ok(table) } else { Err(wrong) }
    }

    fn add(&mut self, entry: &ModelPrice) -> Result<(), Invalid> {
        if entry.model.is_empty() || entry.model.len() > PATTERN_BYTES_MAX {
            return Err(Invalid::new(format!("must have 1 to {PATTERN_BYTES_MAX} bytes")).at("model"));
        }
        let (from, until) = (entry.valid_from.map(|time| time.0), entry.valid_until.map(|time| time.0));
        if from.zip(until).is_some_and(|(from, until)| from >= until) {
            return Err(Invalid::new("must be later than `valid_from`").at("valid_until"));
        }
        let index = self.entries.len();
        let pattern = Pattern::new(&entry.model);
        match &pattern {
            Pattern::Exact(name) => self.exact.entry(name.clone()).or_default().push(index),
            Pattern::Glob(_) => self.patterns.push(index),
        }
        self.entries.push(Entry { pattern, prices: Prices::new(entry), valid_from: from, valid_until: until });
        Ok(())
    }

    /// In place of a section with errors, so that they are reported once.
    pub fn invalid() -> Self {
        Self { is_invalid: true, ..Self::default() }
    }

    /// Whether the section has errors.
    pub fn is_invalid(&self) -> bool {
        self.is_invalid
    }

    /// Whether no price is configured.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The currency of the prices.
    pub fn currency(&self) -> Option<Currency> {
        self.currency.filter(|_| !self.is_empty())
    }

    /// The prices of a model at a time. `None`: no entry applies.
    pub fn prices(&self, model: &str, at: SystemTime) -> Option<Prices> {
        let valid = |index: &usize| {
            let entry = self.entries.get(*index)?;
            let begun = entry.valid_from.is_none_or(|from| at >= from);
            let over = entry.valid_until.is_some_and(|until| at >= until);
            (begun && !over).then_some((*index, entry))
        };
        let exact = self.exact.get(model).and_then(|indexes| indexes.iter().find_map(valid));
        let before = exact.map_or(usize::MAX, |(index, _)| index);
        let earlier = self.patterns.iter().take_while(|index| **index < before).filter_map(valid);
        let glob = earlier.filter(|(_, entry)| entry.pattern.matches(model)).map(|(_, entry)| entry.prices).next();
        glob.or_else(|| exact.map(|(_, entry)| entry.prices))
    }

    /// The cost of a request. `None`: no price applies to the model.
    pub fn cost(&self, model: &str, at: SystemTime, tokens: &TokenCounts, units: &OtherUnits) -> Option<Cost> {
        let currency = self.currency()?;
        Some(Cost { micros: self.prices(model, at)?.cost_micros(tokens, units), currency })
    }
}

/// A pattern of model names.
enum Pattern {
    Exact(String),
    /// The texts between the asterisks; at least two.
    Glob(Vec<String>),
}

impl Pattern {
    fn new(text: &str) -> Self {
        if text.contains('*') { Pattern::Glob(text.split('*').map(str::to_owned).collect()) } else { Pattern::Exact(text.to_owned()) }
    }

    fn matches(&self, name: &str) -> bool {
        let pieces = match self {
            Pattern::Exact(text) => return text == name,
            Pattern::Glob(pieces) => pieces,
        };
        let Some(((first, last), middle)) = pieces.split_first().and_then(|(first, rest)| {
            let (last, middle) = rest.split_last()?;
            Some(((first, last), middle))
        }) else {
            return false;
        };
        let Some(mut rest) = name.strip_prefix(first.as_str()) else { return false };
        for piece in middle {
            let Some(at) = rest.find(piece.as_str()) else { return false };
            rest = rest.get(at + piece.len()..).unwrap_or_default();
        }
        rest.ends_with(last.as_str())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn table(yaml: serde_json::Value) -> Result<PriceTable, Vec<Invalid>> {
        PriceTable::compile(&serde_json::from_value(yaml).unwrap(), &[])
    }

    #[test]
    fn the_first_valid_entry_applies() {
        let year = |n: u64| SystemTime::UNIX_EPOCH + Duration::from_secs(n * 366 * 86_400);
        let table = table(serde_json::json!({ "models": [
            { "model": "gpt-4o", "input": 1, "valid_until": "2020-01-01T00:00:00Z" },
            { "model": "gpt-4*", "input": 2 },
            { "model": "gpt-4o", "input": 3 },
            { "model": "*-mini*", "input": 4 },
            { "model": "exact", "input": 5 },
            { "model": "*", "input": 6, "valid_from": "2020-01-01T00:00:00Z" },
        ] }))
        .unwrap();
        let input = |model: &str, at| table.prices(model, at).map(|prices| prices.input / 1_000_000);
        for (model, old, new) in [
            ("gpt-4o", Some(1), Some(2)),
            ("gpt-4", Some(2), Some(2)),
            ("o4-mini-high", Some(4), Some(4)),
            ("exact", Some(5), Some(5)),
            ("other", None, Some(6)),
        ] {
            assert_eq!((input(model, year(10)), input(model, year(55))), (old, new), "{model}");
        }
    }

    #[test]
    fn patterns() {
        for (pattern, name, matches) in [
            ("a*", "a", true),
            ("*", "", true),
            ("a*a", "a", false),
            ("a*a", "aa", true),
            ("a*b*c", "a-b-b-c", true),
            ("a*b*c", "acb", false),
            ("*ab*ab", "ab", false),
            ("a", "ab", false),
        ] {
            assert_eq!(Pattern::new(pattern).matches(name), matches, "{pattern} {name}");
        }
    }

    #[test]
    fn costs_are_exact() {
        let table = table(serde_json::json!({ "currency": "EUR", "models": [
            { "model": "m", "input": 2.5, "cached_input": "1.25", "output": 10, "image": 0.04, "second": 0.0001, "request": 0.001 },
            { "model": "w", "input": 3, "cache_write": 3.75, "cached_input": 0.3, "output": 15, "reasoning": 20, "characters": 15 },
        ] }))
        .unwrap();
        let cost =
            |model: &str, tokens: TokenCounts, units: OtherUnits| table.cost(model, SystemTime::UNIX_EPOCH, &tokens, &units).unwrap();
        let none = OtherUnits::default();
        let m = TokenCounts { input: 1000, cached_input: 400, output: 100, ..TokenCounts::default() };
        assert_eq!(cost("m", m, none), Cost { micros: 1500 + 500 + 1000 + 1000, currency: Currency(*b"EUR") });
        let units = OtherUnits { images: 2, audio_ms: 2500, characters: 0 };
        assert_eq!(cost("m", TokenCounts::default(), units).micros, 80_000 + 250 + 1000);
        let w = TokenCounts { input: 1000, cached_input: 100, cache_write: 200, output: 50, reasoning: 10 };
        assert_eq!(cost("w", w, OtherUnits { characters: 1_000_000, ..none }).micros, 2100 + 30 + 750 + 600 + 200 + 15_000_000);
        assert_eq!(cost("w", TokenCounts { input: 1, ..TokenCounts::default() }, none).micros, 3, "rounded up");
        assert_eq!(cost("w", TokenCounts { input: u64::MAX, ..TokenCounts::default() }, none).micros, u64::MAX, "saturates");
        let prices = table.prices("w", SystemTime::UNIX_EPOCH).unwrap();
        assert_eq!(prices.cost_micros_max(1000, 50, 0), 3750 + 1000, "at the dearest kinds");
    }

    #[test]
    fn errors_name_their_place() {
        let wrong = table(serde_json::json!({ "currency": "usd", "models": [
            { "model": "" },
            { "model": "m", "valid_from": "2021-01-01T00:00:00Z", "valid_until": "2020-01-01T00:00:00Z" },
        ] }))
        .unwrap_err();
        let paths: Vec<_> = wrong.iter().map(|invalid| invalid.path.join(".")).collect();
        assert_eq!(paths, ["currency", "models.[0].model", "models.[1].valid_until"]);
        let entry = ModelPrice::default();
        let wrong = PriceTable::compile(&PricesConfig::default(), &[entry]).unwrap_err();
        assert!(wrong[0].to_string().starts_with("entry 1 of the file: "), "{wrong:?}");
    }
}
