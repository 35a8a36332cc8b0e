//! The places in an answer that are read, by the keys that lead to them. It is the only list of the field names of dialects.

use super::json_paths;
use super::json_text::Wants;
use super::reported::Field;

/// How the texts of a place make up the answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Part {
    /// Each text follows the one before it.
    Next,
    /// Each event has the whole text so far.
    Whole,
}

/// A place in an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// Not read, as all below it.
    Skipped,
    /// An event, or the whole answer.
    Root,
    /// Where OpenAI, Anthropic, Cohere and others report usage.
    Usage,
    /// `x_groq`
    Groq,
    InputDetails,
    OutputDetails,
    /// `billed_units` of Cohere.
    Billed,
    /// `tokens` of Cohere.
    CohereTokens,
    /// `meta` of Cohere.
    Meta,
    /// `usageMetadata` of Gemini.
    GeminiUsage,
    /// `metadata` of Vertex AI.
    Metadata,
    TokenMetadata,
    PredictInput,
    PredictOutput,
    /// A count.
    Count(Field),
    /// Seconds of audio that `usage` reports.
    BilledSeconds,
    /// Seconds of audio that a transcription states.
    Duration,
    /// The type of an event.
    Type,
    Model,
    /// `done: true` of Ollama.
    Done,
    /// The reason why the text ended.
    EndReason,
    /// A generated image.
    Image,
    /// The list of generated images.
    Images,
    Choices,
    Candidates,
    GeminiContent,
    GeminiParts,
    GeminiThought,
    GeminiCall,
    /// The text of a part of Gemini.
    GeminiText,
    /// `message` at the root: of Ollama, Cohere, or the first event of Anthropic.
    Message,
    /// `response` at the root: a text of Ollama, an object of OpenAI's Responses or Gemini Code Assist.
    Response,
    /// `delta` at the root: a text of OpenAI's Responses, an object of Anthropic or Cohere.
    Delta,
    /// `output` at the root: of OpenAI's Responses, DashScope or Bedrock.
    Output,
    /// A message with `content`, `reasoning_content`, `tool_calls` and so on.
    Body(Part),
    /// The content of a message: a text or parts.
    Content(Part),
    /// A tool call, or a list of them.
    Call(Part),
    /// Arguments of a tool: a text, or values of any kind.
    Arguments(Part),
    /// Generated text.
    Text(Part),
    /// Reasoning: a text or parts with texts.
    Reasoning(Part),
    /// Reasoning under the name by which some servers repeat it.
    ReasoningAgain(Part),
}

impl json_paths::Path for Place {
    const ROOT: Self = Place::Root;
    const FINDS_SPACES: bool = false;

    fn member(self, key: &[u8]) -> Self {
        match self {
            Place::Skipped | Place::Count(_) | Place::Text(_) => Place::Skipped,
            Place::Root => at_root(key),
            Place::Usage | Place::InputDetails | Place::OutputDetails | Place::Billed | Place::CohereTokens => in_usage(self, key),
            Place::GeminiUsage | Place::Metadata | Place::TokenMetadata | Place::PredictInput | Place::PredictOutput => {
                in_google_usage(self, key)
            }
            Place::Groq | Place::Meta | Place::Message | Place::Response | Place::Delta | Place::Output | Place::Images => {
                below_root(self, key)
            }
            Place::Choices | Place::Candidates | Place::GeminiContent | Place::GeminiParts | Place::GeminiCall => in_choice(self, key),
            Place::Body(part) | Place::Content(part) | Place::Call(part) => in_message(self, part, key),
            Place::Arguments(_) => self,
            Place::Reasoning(part) | Place::ReasoningAgain(part) => match key {
                b"text" | b"content" | b"reasoningText" => Place::Reasoning(part),
                _ => Place::Skipped,
            },
            _ => Place::Skipped,
        }
    }

    fn wants(self) -> Wants {
        match self {
            Place::Type | Place::Model | Place::EndReason | Place::Image | Place::Duration => Wants::Start,
            Place::Text(_)
            | Place::Reasoning(_)
            | Place::ReasoningAgain(_)
            | Place::Content(_)
            | Place::Arguments(_)
            | Place::GeminiText
            | Place::Response
            | Place::Delta => Wants::Length,
            _ => Wants::Nothing,
        }
    }
}

fn at_root(key: &[u8]) -> Place {
    match key {
        b"usage" => Place::Usage,
        b"choices" => Place::Choices,
        b"message" => Place::Message,
        b"delta" => Place::Delta,
        b"response" => Place::Response,
        b"type" | b"event_type" => Place::Type,
        b"model" | b"modelVersion" => Place::Model,
        b"candidates" => Place::Candidates,
        b"usageMetadata" => Place::GeminiUsage,
        b"content" => Place::Content(Part::Whole),
        b"text" => Place::Text(Part::Whole),
        b"output" => Place::Output,
        b"data" => Place::Images,
        b"x_groq" => Place::Groq,
        b"meta" => Place::Meta,
        b"metadata" => Place::Metadata,
        b"done" | b"is_finished" => Place::Done,
        b"prompt_eval_count" => Place::Count(Field::OllamaInput),
        b"eval_count" => Place::Count(Field::OllamaOutput),
        b"thinking" => Place::Reasoning(Part::Next),
        b"duration" => Place::Duration,
        _ => Place::Skipped,
    }
}

fn in_usage(place: Place, key: &[u8]) -> Place {
    Place::Count(match (place, key) {
        (Place::Usage, b"prompt_tokens") => Field::Prompt,
        (Place::Usage, b"completion_tokens") => Field::Completion,
        (Place::Usage, b"total_tokens" | b"totalTokens") => Field::Total,
        (Place::Usage, b"input_tokens" | b"inputTokens") => Field::Input,
        (Place::Usage, b"output_tokens" | b"outputTokens") => Field::Output,
        (Place::Usage, b"cached_tokens" | b"prompt_cache_hit_tokens") => Field::CachedInside,
        (Place::Usage, b"cache_read_input_tokens" | b"cacheReadInputTokens") => Field::CacheRead,
        (Place::Usage, b"cache_creation_input_tokens" | b"cacheWriteInputTokens") => Field::CacheCreation,
        (Place::Usage, b"reasoning_tokens") => Field::Reasoning,
        (Place::InputDetails, b"cached_tokens") => Field::CachedInside,
        (Place::InputDetails, b"cache_write_tokens" | b"cache_creation_tokens" | b"cache_creation_input_tokens") => Field::WrittenInside,
        (Place::OutputDetails, b"reasoning_tokens" | b"thinking_tokens") => Field::Reasoning,
        (Place::Billed, b"input_tokens") => Field::BilledInput,
        (Place::Billed, b"output_tokens") => Field::BilledOutput,
        (Place::CohereTokens, b"input_tokens") => Field::CohereInput,
        (Place::CohereTokens, b"output_tokens") => Field::CohereOutput,
        (Place::Usage, b"prompt_tokens_details" | b"input_tokens_details") => return Place::InputDetails,
        (Place::Usage, b"completion_tokens_details" | b"output_tokens_details") => return Place::OutputDetails,
        (Place::Usage, b"billed_units") => return Place::Billed,
        (Place::Usage, b"tokens") => return Place::CohereTokens,
        (Place::Usage, b"seconds" | b"prompt_audio_seconds") => return Place::BilledSeconds,
        _ => return Place::Skipped,
    })
}

fn in_google_usage(place: Place, key: &[u8]) -> Place {
    Place::Count(match (place, key) {
        (Place::GeminiUsage, b"promptTokenCount") => Field::GeminiPrompt,
        (Place::GeminiUsage, b"candidatesTokenCount") => Field::GeminiCandidates,
        (Place::GeminiUsage, b"thoughtsTokenCount") => Field::GeminiThoughts,
        (Place::GeminiUsage, b"cachedContentTokenCount") => Field::GeminiCached,
        (Place::GeminiUsage, b"toolUsePromptTokenCount") => Field::GeminiToolUse,
        (Place::GeminiUsage, b"totalTokenCount") => Field::GeminiTotal,
        (Place::PredictInput, b"totalTokens") => Field::PredictInput,
        (Place::PredictOutput, b"totalTokens") => Field::PredictOutput,
        (Place::Metadata, b"tokenMetadata") => return Place::TokenMetadata,
        (Place::TokenMetadata, b"inputTokenCount") => return Place::PredictInput,
        (Place::TokenMetadata, b"outputTokenCount") => return Place::PredictOutput,
        _ => return Place::Skipped,
    })
}

fn below_root(place: Place, key: &[u8]) -> Place {
    match (place, key) {
        (Place::Groq | Place::Message | Place::Response | Place::Delta, b"usage") => Place::Usage,
        (Place::Message | Place::Response, b"model" | b"modelVersion") => Place::Model,
        (Place::Message, _) => in_message(place, Part::Next, key),
        (Place::Response, b"usageMetadata") => Place::GeminiUsage,
        (Place::Response, b"candidates") => Place::Candidates,
        (Place::Response, b"meta") => Place::Meta,
        (Place::Meta, b"billed_units") => Place::Billed,
        (Place::Meta, b"tokens") => Place::CohereTokens,
        (Place::Meta, b"cached_tokens") => Place::Count(Field::CachedInside),
        (Place::Delta, b"message") => Place::Body(Part::Next),
        (Place::Delta, b"text" | b"partial_json") => Place::Text(Part::Next),
        (Place::Delta, b"thinking") => Place::Reasoning(Part::Next),
        (Place::Images, b"b64_json" | b"url") => Place::Image,
        (Place::Output, b"choices") => Place::Choices,
        (Place::Output, b"message") => Place::Body(Part::Whole),
        (Place::Output, b"content") => Place::Content(Part::Whole),
        (Place::Output, b"text") => Place::Text(Part::Whole),
        (Place::Output, b"arguments" | b"input") => Place::Arguments(Part::Whole),
        (Place::Output, b"summary") => Place::Reasoning(Part::Whole),
        (Place::Output, b"finish_reason") => Place::EndReason,
        _ => Place::Skipped,
    }
}

fn in_choice(place: Place, key: &[u8]) -> Place {
    match (place, key) {
        (Place::Choices, b"delta") => Place::Body(Part::Next),
        (Place::Choices, b"message") => Place::Body(Part::Whole),
        (Place::Choices, b"text") => Place::Text(Part::Next),
        (Place::Choices, b"finish_reason") => Place::EndReason,
        (Place::Choices, b"usage") => Place::Usage,
        (Place::Candidates, b"content") => Place::GeminiContent,
        (Place::Candidates, b"finishReason") => Place::EndReason,
        (Place::GeminiContent, b"parts") => Place::GeminiParts,
        (Place::GeminiParts, b"text") => Place::GeminiText,
        (Place::GeminiParts, b"thought") => Place::GeminiThought,
        (Place::GeminiParts, b"functionCall" | b"executableCode") => Place::GeminiCall,
        (Place::GeminiCall, b"args" | b"code") => Place::Arguments(Part::Next),
        _ => Place::Skipped,
    }
}

fn in_message(place: Place, part: Part, key: &[u8]) -> Place {
    match (place, key) {
        (Place::Body(_) | Place::Message, b"content") => Place::Content(part),
        (Place::Body(_) | Place::Message, b"reasoning_content" | b"thinking") => Place::Reasoning(part),
        (Place::Body(_) | Place::Message, b"reasoning") => Place::ReasoningAgain(part),
        (Place::Body(_) | Place::Message, b"refusal" | b"tool_plan") => Place::Text(part),
        (Place::Body(_) | Place::Message, b"tool_calls" | b"function_call") => Place::Call(part),
        (Place::Content(_), b"text" | b"refusal") => Place::Text(part),
        (Place::Content(_), b"thinking" | b"reasoningContent") => Place::Reasoning(part),
        (Place::Content(_), b"toolUse") => Place::Call(part),
        (Place::Content(_) | Place::Call(_), b"input") => Place::Arguments(part),
        (Place::Call(_), b"function") => Place::Call(part),
        (Place::Call(_), b"arguments") => Place::Arguments(part),
        _ => Place::Skipped,
    }
}
