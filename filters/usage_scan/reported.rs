//! Makes token counts of the counts that an answer reports under the names of its dialect.

use crate::contract::{OtherUnits, TokenCounts};

/// A count that dialects report. Counts with the same meaning share one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Field {
    Prompt,
    Completion,
    Total,
    Input,
    Output,
    /// Cached input, included in the input.
    CachedInside,
    /// Input written to the cache, included in the input.
    WrittenInside,
    /// Cached input, beside `input_tokens`.
    CacheRead,
    /// Input written to the cache, beside `input_tokens`.
    CacheCreation,
    Reasoning,
    BilledInput,
    BilledOutput,
    CohereInput,
    CohereOutput,
    GeminiPrompt,
    GeminiCandidates,
    GeminiThoughts,
    GeminiCached,
    GeminiToolUse,
    GeminiTotal,
    OllamaInput,
    OllamaOutput,
    PredictInput,
    PredictOutput,
}

const FIELDS: usize = Field::PredictOutput as usize + 1;

/// The largest count: larger numbers are not exact in JSON, and are ignored.
const COUNT_MAX: u64 = 1 << 53;

/// The units that an answer reports.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reported {
    /// The tokens.
    pub tokens: TokenCounts,
    /// Other units.
    pub units: OtherUnits,
}

/// The last count of each field that is not zero: servers repeat running counts, and some begin or end with zeros.
#[derive(Debug, Default)]
pub(super) struct Counts([u64; FIELDS]);

impl Counts {
    /// Keeps a number as it is written. What is no count is ignored: `null`, zero, a negative or huge number.
    pub(super) fn keep(&mut self, field: Field, token: &[u8]) {
        if let (Some(count), Some(kept)) = (parse_count(token).filter(|count| *count > 0), self.0.get_mut(field as usize)) {
            *kept = count;
        }
    }

    fn get(&self, field: Field) -> u64 {
        self.0.get(field as usize).copied().unwrap_or_default()
    }

    fn any(&self, fields: &[Field]) -> bool {
        fields.iter().any(|field| self.get(*field) > 0)
    }

    /// The token counts, by the first dialect of which there are counts.
    pub(super) fn tokens(&self) -> TokenCounts {
        let tokens = if self.any(&[Field::Prompt, Field::Completion]) {
            self.openai_chat()
        } else if self.any(&[Field::Input, Field::Output, Field::CacheRead, Field::CacheCreation]) {
            self.input_and_output()
        } else if self.any(&[Field::GeminiPrompt, Field::GeminiCandidates, Field::GeminiThoughts, Field::GeminiTotal]) {
            self.gemini()
        } else if self.any(&[Field::BilledInput, Field::BilledOutput]) {
            self.cohere(Field::BilledInput, Field::BilledOutput)
        } else if self.any(&[Field::CohereInput, Field::CohereOutput]) {
            self.cohere(Field::CohereInput, Field::CohereOutput)
        } else if self.any(&[Field::OllamaInput, Field::OllamaOutput]) {
            self.cohere(Field::OllamaInput, Field::OllamaOutput)
        } else if self.any(&[Field::PredictInput, Field::PredictOutput]) {
            self.cohere(Field::PredictInput, Field::PredictOutput)
        } else {
            // Embeddings of some servers have only a total.
            TokenCounts { input: self.get(Field::Total), ..TokenCounts::default() }
        };
        consistent(tokens)
    }

    /// `prompt_tokens` include cached ones, even where a proxy adds the fields of Anthropic.
    fn openai_chat(&self) -> TokenCounts {
        let (input, completion, reasoning) = (self.get(Field::Prompt), self.get(Field::Completion), self.get(Field::Reasoning));
        let rest = self.get(Field::Total).saturating_sub(input);
        let missing = rest.saturating_sub(completion);
        let has_cache = self.any(&[Field::CacheRead, Field::CacheCreation]);
        // Some servers leave reasoning out of `completion_tokens`, but not out of the total; proxies of Gemini even without a count.
        let (output, reasoning) = match reasoning {
            0 if missing > 0 && input > 0 && !has_cache => (rest, if completion > 0 { missing } else { 0 }),
            _ if missing > 0 && missing == reasoning => (rest, reasoning),
            _ => (completion, reasoning),
        };
        TokenCounts {
            input,
            cached_input: self.first(Field::CachedInside, Field::CacheRead),
            cache_write: self.first(Field::WrittenInside, Field::CacheCreation),
            output,
            reasoning,
        }
    }

    /// `input_tokens` and `output_tokens`: the input of OpenAI includes cached tokens, the one of Anthropic and Bedrock does not.
    fn input_and_output(&self) -> TokenCounts {
        let input = self.get(Field::Input);
        let output = self.get(Field::Output);
        let reasoning = self.get(Field::Reasoning);
        if self.any(&[Field::CachedInside, Field::WrittenInside]) {
            let (cached_input, cache_write) = (self.get(Field::CachedInside), self.get(Field::WrittenInside));
            return TokenCounts { input, cached_input, cache_write, output, reasoning };
        }
        let (cached_input, cache_write) = (self.get(Field::CacheRead), self.get(Field::CacheCreation));
        let input = input.saturating_add(cached_input).saturating_add(cache_write);
        TokenCounts { input, cached_input, cache_write, output, reasoning }
    }

    /// The prompt includes cached tokens, the candidates do not include thoughts.
    fn gemini(&self) -> TokenCounts {
        let input = self.get(Field::GeminiPrompt).saturating_add(self.get(Field::GeminiToolUse));
        let reasoning = self.get(Field::GeminiThoughts);
        let counted = self.get(Field::GeminiCandidates).saturating_add(reasoning);
        let output = if counted > 0 { counted } else { self.get(Field::GeminiTotal).saturating_sub(input) };
        TokenCounts { input, cached_input: self.get(Field::GeminiCached), cache_write: 0, output, reasoning }
    }

    fn cohere(&self, input: Field, output: Field) -> TokenCounts {
        let (input, output) = (self.get(input), self.get(output));
        TokenCounts { input, output, cached_input: self.get(Field::CachedInside), ..TokenCounts::default() }
    }

    fn first(&self, one: Field, other: Field) -> u64 {
        match self.get(one) {
            0 => self.get(other),
            count => count,
        }
    }
}

/// Parts are at most as large as what includes them.
fn consistent(mut tokens: TokenCounts) -> TokenCounts {
    tokens.cached_input = tokens.cached_input.min(tokens.input);
    tokens.cache_write = tokens.cache_write.min(tokens.input - tokens.cached_input);
    tokens.reasoning = tokens.reasoning.min(tokens.output);
    tokens
}

/// A number of JSON as a count, rounded.
pub(super) fn parse_count(token: &[u8]) -> Option<u64> {
    // Most counts are short and plain.
    if token.len() > 15 || !token.iter().all(u8::is_ascii_digit) {
        return scaled(token, 1.0);
    }
    (!token.is_empty()).then(|| token.iter().fold(0, |count, digit| count * 10 + u64::from(digit - b'0')))
}

/// A number of seconds in milliseconds.
pub(super) fn parse_seconds(text: &str) -> Option<u64> {
    scaled(text.as_bytes(), 1000.0)
}

fn scaled(token: &[u8], factor: f64) -> Option<u64> {
    // Rust also reads names such as `inf`.
    if !token.first()?.is_ascii_digit() {
        return None;
    }
    let number = std::str::from_utf8(token).ok()?.parse::<f64>().ok()? * factor;
    (number <= COUNT_MAX as f64).then_some(number.round_ties_even().max(0.0) as u64)
}
