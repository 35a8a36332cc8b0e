//! Reads the parameters of a JSON request that determine its usage. It finds models only to report them: routing has a stricter reader.

use std::sync::Arc;

use http::header;
use pingora_http::RequestHeader;

use super::json_paths::{JsonPaths, Path, Sink};
use super::json_text::{Text, Wants};
use super::reported::parse_count;

/// Whether a request has a body. Methods are compared without case, as some servers do.
pub fn has_body(request: &RequestHeader) -> bool {
    let is_bare = ["GET", "HEAD", "OPTIONS"].iter().any(|bare| request.method.as_str().eq_ignore_ascii_case(bare));
    let has_length = request.headers.get(header::CONTENT_LENGTH).is_some_and(|length| length != "0");
    !is_bare || has_length || request.headers.contains_key(header::TRANSFER_ENCODING)
}

/// The longest string in a place of binary data that is counted as text though it has no space.
const BINARY_BYTES_MIN: u64 = 4 << 10;

/// The parameters of a request.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RequestParameters {
    /// The model, if its name has at most 128 bytes.
    pub model: Option<Arc<str>>,
    /// Whether a stream is requested in the body.
    pub stream: bool,
    /// The largest number of output tokens that any parameter names, of whatever API.
    pub output_tokens_max: Option<u64>,
    /// The largest number of output tokens by the parameters of each API. Servers ignore those of another API.
    pub limits: OutputLimits,
    /// The number of answers or images that are requested.
    pub choices: u64,
    /// Whether usage in the stream is requested.
    pub includes_usage: Option<bool>,
    /// Whether there are `stream_options` at all.
    pub has_stream_options: bool,
    /// Characters of all strings but keys. A string of more than 4 KiB without a space counts nothing if it is a data URL or
    /// the value of a key for binary data, such as `data`.
    pub prompt_chars: u64,
    /// Bytes of the body without binary data.
    pub text_bytes: u64,
    /// Numbers in `prompt` and `input`: ids of tokens.
    pub token_ids: u64,
    /// Texts in `prompt`: each of them is completed.
    pub prompts: u64,
    /// Characters of the `input` at the root, if it is a string or a list of strings.
    pub input_chars: u64,
    /// Images in the prompt.
    pub images: u64,
    /// Whether the body is a complete JSON value.
    pub is_complete: bool,
}

/// The maximum of output tokens by API. Of a parameter that is repeated, the largest value counts: parsers differ.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OutputLimits {
    /// `max_tokens` and `max_completion_tokens` at the root.
    pub chat: Option<u64>,
    /// `max_output_tokens` at the root.
    pub responses: Option<u64>,
    /// `maxOutputTokens` of the generation configuration.
    pub gemini: Option<u64>,
    /// `options.num_predict`
    pub ollama: Option<u64>,
    /// `inferenceConfig.maxTokens`
    pub bedrock: Option<u64>,
    /// `parameters.max_tokens`
    pub dashscope: Option<u64>,
}

/// Reads a JSON request, piece by piece.
#[derive(Debug)]
pub struct RequestScan {
    json: JsonPaths<Place>,
    request: Request,
}

impl Default for RequestScan {
    fn default() -> Self {
        Self::new()
    }
}

impl RequestScan {
    /// Starts before the first byte of the body.
    pub fn new() -> Self {
        Self { json: JsonPaths::new(), request: Request::default() }
    }

    /// Reads the next piece of the body, without its content coding.
    pub fn feed(&mut self, bytes: &[u8]) {
        self.request.bytes = self.request.bytes.saturating_add(bytes.len() as u64);
        self.json.feed(bytes, &mut self.request);
    }

    /// The parameters of the body so far. Call it after the last piece.
    pub fn finish(&mut self) -> RequestParameters {
        let is_complete = self.json.is_complete() && !self.json.is_broken();
        self.json.reset(&mut self.request);
        let request = &self.request;
        RequestParameters {
            model: request.model.clone(),
            stream: request.stream,
            output_tokens_max: request.limits.iter().copied().flatten().max(),
            limits: OutputLimits {
                chat: request.limit(Limit::MaxTokens).max(request.limit(Limit::MaxCompletionTokens)),
                responses: request.limit(Limit::MaxOutputTokens),
                gemini: request.limit(Limit::Gemini),
                ollama: request.limit(Limit::Ollama),
                bedrock: request.limit(Limit::Bedrock),
                dashscope: request.limit(Limit::DashScope),
            },
            choices: request.choices.iter().copied().flatten().max().unwrap_or(1).max(1),
            includes_usage: request.includes_usage,
            has_stream_options: request.has_stream_options,
            prompt_chars: request.prompt_chars,
            text_bytes: request.bytes.saturating_sub(request.binary_bytes),
            token_ids: request.token_ids,
            prompts: request.prompts,
            input_chars: request.input_chars,
            images: request.images,
            is_complete,
        }
    }
}

/// A parameter that limits the output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Limit {
    MaxTokens,
    MaxCompletionTokens,
    MaxOutputTokens,
    Gemini,
    Ollama,
    Bedrock,
    DashScope,
}

const LIMITS: usize = Limit::DashScope as usize + 1;

/// A parameter that asks for several answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Choices {
    N,
    BestOf,
    Gemini,
}

const CHOICES: usize = Choices::Gemini as usize + 1;

/// A place in a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// Any that is not below: its strings count.
    Any,
    Root,
    /// `request` of Gemini Code Assist.
    Nested,
    Model,
    Stream,
    StreamOptions,
    IncludesUsage,
    /// `options`, `parameters`, `generationConfig`, `inferenceConfig`
    Options,
    Limit(Limit),
    Choices(Choices),
    /// `input` at the root.
    Input,
    /// `prompt` at the root.
    Prompt,
    /// The type of a part of a message.
    Type,
    MediaType,
    /// Where binary data may be.
    Binary,
    /// `images` of Ollama: binary data.
    Images,
}

impl Path for Place {
    const ROOT: Self = Place::Root;
    const FINDS_SPACES: bool = true;

    fn member(self, key: &[u8]) -> Self {
        match (self, key) {
            (Place::Root, b"model") => Place::Model,
            (Place::Root, b"stream") => Place::Stream,
            (Place::Root, b"stream_options") => Place::StreamOptions,
            (Place::Root, b"request") => Place::Nested,
            (Place::Root, b"input") => Place::Input,
            (Place::Root, b"options" | b"parameters" | b"inferenceConfig") => Place::Options,
            (Place::Root | Place::Nested, b"generationConfig" | b"generation_config") => Place::Options,
            (Place::StreamOptions, b"include_usage") => Place::IncludesUsage,
            (Place::Root, b"max_tokens") => Place::Limit(Limit::MaxTokens),
            (Place::Options, b"max_tokens") => Place::Limit(Limit::DashScope),
            (Place::Root, b"prompt") => Place::Prompt,
            (Place::Root, b"max_completion_tokens") => Place::Limit(Limit::MaxCompletionTokens),
            (Place::Root, b"max_output_tokens") => Place::Limit(Limit::MaxOutputTokens),
            (Place::Options, b"maxOutputTokens" | b"max_output_tokens") => Place::Limit(Limit::Gemini),
            (Place::Options, b"num_predict") => Place::Limit(Limit::Ollama),
            (Place::Root | Place::Options, b"maxTokens") => Place::Limit(Limit::Bedrock),
            (Place::Root | Place::Options, b"n") => Place::Choices(Choices::N),
            (Place::Root, b"best_of") => Place::Choices(Choices::BestOf),
            (Place::Options, b"candidateCount" | b"candidate_count" | b"sampleCount") => Place::Choices(Choices::Gemini),
            (_, b"type") => Place::Type,
            (_, b"mimeType" | b"mime_type") => Place::MediaType,
            (_, b"images") => Place::Images,
            (_, b"data" | b"b64_json" | b"image_url" | b"url" | b"file_data" | b"bytes" | b"bytesBase64Encoded") => Place::Binary,
            _ => Place::Any,
        }
    }

    fn wants(self) -> Wants {
        Wants::StartAndLength
    }
}

/// What was read so far.
#[derive(Debug, Default)]
struct Request {
    model: Option<Arc<str>>,
    stream: bool,
    limits: [Option<u64>; LIMITS],
    choices: [Option<u64>; CHOICES],
    includes_usage: Option<bool>,
    has_stream_options: bool,
    prompt_chars: u64,
    bytes: u64,
    binary_bytes: u64,
    token_ids: u64,
    prompts: u64,
    input_chars: u64,
    images: u64,
}

impl Request {
    fn limit(&self, limit: Limit) -> Option<u64> {
        self.limits.get(limit as usize).copied().flatten()
    }
}

impl Sink<Place> for Request {
    fn scalar(&mut self, place: Place, token: &[u8]) {
        match place {
            Place::Stream => self.stream = token == b"true",
            Place::StreamOptions => self.has_stream_options = true,
            Place::IncludesUsage => self.includes_usage = parse_bool(token),
            Place::Limit(limit) => raise(&mut self.limits, limit as usize, number(token)),
            Place::Choices(choices) => raise(&mut self.choices, choices as usize, number(token)),
            Place::Prompt | Place::Input if token.first().is_some_and(u8::is_ascii_digit) => self.token_ids += 1,
            _ => {}
        }
    }

    fn text(&mut self, place: Place, text: Text<'_>) {
        let is_image = match place {
            Place::Type => matches!(text.whole(), Some("image_url" | "input_image" | "image")),
            Place::MediaType => text.start.starts_with(b"image/"),
            Place::Images => true,
            _ => false,
        };
        self.images = self.images.saturating_add(is_image.into());
        let in_binary = matches!(place, Place::Binary | Place::Images) || text.start.starts_with(b"data:");
        if in_binary && !text.has_space && text.bytes > BINARY_BYTES_MIN {
            self.binary_bytes = self.binary_bytes.saturating_add(text.bytes);
            return;
        }
        self.prompt_chars = self.prompt_chars.saturating_add(text.chars);
        match place {
            Place::Prompt => self.prompts = self.prompts.saturating_add(1),
            // Lenient servers read numbers in strings.
            Place::Limit(limit) => raise(&mut self.limits, limit as usize, text.whole().and_then(|text| number(text.as_bytes()))),
            Place::Choices(choices) => {
                raise(&mut self.choices, choices as usize, text.whole().and_then(|text| number(text.as_bytes())));
            }
            Place::Input => self.input_chars = self.input_chars.saturating_add(text.chars),
            // As parsers do, take the last one.
            Place::Model => self.model = text.whole().filter(|name| !name.is_empty()).map(Arc::from),
            _ => {}
        }
    }

    fn object_end(&mut self, place: Place) {
        self.has_stream_options |= place == Place::StreamOptions;
    }

    fn event_end(&mut self) {}
}

/// Keeps the larger value.
fn raise(values: &mut [Option<u64>], index: usize, value: Option<u64>) {
    if let Some(kept) = values.get_mut(index) {
        *kept = value.max(*kept);
    }
}

/// A number; one that is too large is the largest.
fn number(token: &[u8]) -> Option<u64> {
    let is_huge = token.len() > 15 && token.iter().all(u8::is_ascii_digit);
    if is_huge { Some(u64::MAX) } else { parse_count(token) }
}

fn parse_bool(token: &[u8]) -> Option<bool> {
    match token {
        b"true" => Some(true),
        b"false" => Some(false),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The parameters of a body, whole and cut at every byte.
    fn scan(body: &str) -> RequestParameters {
        let of = |pieces: &[&[u8]]| {
            let mut scan = RequestScan::new();
            pieces.iter().for_each(|piece| scan.feed(piece));
            scan.finish()
        };
        let whole = of(&[body.as_bytes()]);
        let bytes: Vec<&[u8]> = body.as_bytes().chunks(1).collect();
        assert_eq!(of(&bytes), whole, "byte by byte: {body}");
        for at in 0..body.len().min(2000) {
            assert_eq!(of(&[&body.as_bytes()[..at], &body.as_bytes()[at..]]), whole, "cut at {at}: {body}");
        }
        whole
    }

    #[test]
    fn limits_of_the_output() {
        for (body, limit) in [
            (r#"{"max_tokens":100}"#, Some(100)),
            (r#"{"max_completion_tokens":100}"#, Some(100)),
            (r#"{"max_output_tokens":100}"#, Some(100)),
            (r#"{"generationConfig":{"maxOutputTokens":100}}"#, Some(100)),
            (r#"{"generation_config":{"max_output_tokens":100}}"#, Some(100)),
            (r#"{"request":{"generationConfig":{"maxOutputTokens":100}}}"#, Some(100)),
            (r#"{"options":{"num_predict":100}}"#, Some(100)),
            (r#"{"parameters":{"max_tokens":100}}"#, Some(100)),
            (r#"{"maxTokens":100}"#, Some(100)),
            (r#"{"inferenceConfig":{"maxTokens":100}}"#, Some(100)),
            (r#"{"max_tokens":100,"max_completion_tokens":300,"max_output_tokens":200}"#, Some(300)),
            (r#"{"max_tokens":300,"max_tokens":100}"#, Some(300)),
            (r#"{"max_tokens":300,"max_tokens":null}"#, Some(300)),
            (r#"{"max_tokens":99999999999999999999999999}"#, Some(u64::MAX)),
            (r#"{"max\u005ftokens":100.0}"#, Some(100)),
            (r#"{"options":{"num_predict":-1}}"#, None),
            (r#"{"max_tokens":"100"}"#, Some(100)),
            (r#"{"max_tokens":"many"}"#, None),
            (r#"{"max_tokens":1e400}"#, None),
            (r#"{"max_tokens":0}"#, Some(0)),
            (r#"{"messages":[{"max_tokens":100}],"metadata":{"max_tokens":100},"num_predict":7}"#, None),
            ("{}", None),
        ] {
            assert_eq!(scan(body).output_tokens_max, limit, "{body}");
        }
    }

    #[test]
    fn other_parameters() {
        let parameters = scan(
            r#"{"model":"gpt-x","messages":[{"role":"user","content":"Hello"}],"stream":true,"n":3,"stream_options":{"include_usage":false}}"#,
        );
        assert_eq!(
            parameters,
            RequestParameters {
                model: Some("gpt-x".into()),
                stream: true,
                output_tokens_max: None,
                choices: 3,
                includes_usage: Some(false),
                has_stream_options: true,
                prompt_chars: 14,
                text_bytes: 125,
                token_ids: 0,
                prompts: 0,
                limits: OutputLimits::default(),
                input_chars: 0,
                images: 0,
                is_complete: true,
            }
        );
        for (body, choices) in [
            (r#"{"n":null}"#, 1),
            (r#"{"n":0}"#, 1),
            (r#"{"n":2,"best_of":5}"#, 5),
            (r#"{"generationConfig":{"candidateCount":4}}"#, 4),
            (r#"{"parameters":{"sampleCount":4}}"#, 4),
            (r#"{"messages":[{"n":4}]}"#, 1),
        ] {
            assert_eq!(scan(body).choices, choices, "{body}");
        }
        for (body, stream, includes_usage) in [
            (r#"{"stream":false,"stream_options":{}}"#, false, None),
            (r#"{"stream":true,"stream_options":{"include_usage":true}}"#, true, Some(true)),
            (r#"{"stream":true,"stream":false,"stream_options":null}"#, false, None),
            (r#"{"stream":"true","include_usage":true}"#, false, None),
        ] {
            let parameters = scan(body);
            assert_eq!((parameters.stream, parameters.includes_usage), (stream, includes_usage), "{body}");
        }
    }

    #[test]
    fn characters_of_the_prompt() {
        for (body, prompt, input) in [
            (r#"{"input":"Größe"}"#, 5, 5),
            (r#"{"input":["ab","c"]}"#, 3, 3),
            (r#"{"input":[{"role":"user","content":"ab"}]}"#, 6, 0),
            (r#"{"prompt":["ab","c"],"suffix":"d"}"#, 4, 0),
            (
                r#"{"messages":[{"content":[{"type":"text","text":"a\n\u00e9"}]}],"tools":[{"function":{"parameters":{"input":"x"}}}]}"#,
                8,
                0,
            ),
            (r#"{"contents":[{"parts":[{"text":"ab"}]}],"systemInstruction":{"parts":{"text":"c"}}}"#, 3, 0),
            (r#"{"input":"unfinis"#, 7, 7),
        ] {
            let parameters = scan(body);
            assert_eq!((parameters.prompt_chars, parameters.input_chars), (prompt, input), "{body}");
        }
    }

    #[test]
    fn binary_data() {
        let long = "A".repeat(5000);
        for (body, chars) in [
            (format!(r#"{{"a":"data:image/png;base64,{long}"}}"#), 0),
            (format!(r#"{{"messages":[{{"content":[{{"image_url":{{"url":"data:image/png;base64,{long}"}}}}]}}]}}"#), 0),
            (format!(r#"{{"source":{{"data":"{long}"}},"images":["{long}"],"file_data":"{long}"}}"#), 0),
            (format!(r#"{{"inlineData":{{"mimeType":"a/b","data":"{long}"}}}}"#), 3),
            (format!(r#"{{"data":"{long}"#), 0),
            (format!(r#"{{"content":"{long}"}}"#), 5000),
            (format!(r#"{{"content":"data: {long}"}}"#), 5006),
            (format!(r#"{{"data":"{long} "}}"#), 5001),
            (r#"{"data":"short"}"#.to_owned(), 5),
            (r#"{"url":"https://img.example/1"}"#.to_owned(), 21),
        ] {
            assert_eq!(scan(&body).prompt_chars, chars, "{}", body.get(..40).unwrap_or(&body));
        }
    }

    #[test]
    fn images_in_the_prompt() {
        for (body, images) in [
            (r#"{"messages":[{"content":[{"type":"image_url","image_url":{"url":"a"}},{"type":"text","text":"image"}]}]}"#, 1),
            (r#"{"input":[{"content":[{"type":"input_image","image_url":"a"},{"type":"input_image","file_id":"f"}]}]}"#, 2),
            (r#"{"messages":[{"content":[{"type":"image","source":{"type":"base64","media_type":"image/png","data":"a"}}]}]}"#, 1),
            (
                r#"{"contents":[{"parts":[{"inlineData":{"mimeType":"image/png","data":"a"}},{"inline_data":{"mime_type":"audio/wav"}}]}]}"#,
                1,
            ),
            (r#"{"messages":[{"content":"a","images":["AAAA","BBBB"]}]}"#, 2),
            (r#"{"tools":[{"parameters":{"type":"object"}}]}"#, 0),
        ] {
            assert_eq!(scan(body).images, images, "{body}");
        }
    }

    #[test]
    fn complete_bodies() {
        for (body, complete) in [
            ("{}", true),
            (" {\"a\":[1,{\"b\":null}]} \r\n", true),
            ("[]", true),
            ("", false),
            ("{", false),
            ("{}}", false),
            ("{\"a\":1,}", false),
            ("model=a", false),
            ("--boundary\r\n", false),
        ] {
            assert_eq!(scan(body).is_complete, complete, "{body}");
        }
        assert_eq!(scan(r#"{"model":"a"#).model, None);
        assert_eq!(scan(r#"{"model":"a","model":"b"}"#).model.as_deref(), Some("b"));
        assert_eq!(scan(r#"{"messages":[{"model":"a"}]}"#).model, None);
    }
}
