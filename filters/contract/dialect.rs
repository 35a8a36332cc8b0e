//! The API dialects that Keylatch serves, and how a client of each requests a stream.
//!
//! The shape of an error in each dialect is defined in `src/http_proxy/dialects`.

use schemars::JsonSchema;
use serde::Deserialize;

/// The API dialect of a client. It determines the shape of errors, the keep-alive frames that a stream may carry, and
/// whether a response can start before the upstream responds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Dialect {
    /// OpenAI chat completions and compatible APIs: `{"error":{"message","type","param","code"}}`.
    #[default]
    #[serde(rename = "openai")]
    OpenAi,
    /// OpenAI Responses: errors as above, and `event: error` within a stream.
    #[serde(rename = "openai_responses")]
    OpenAiResponses,
    /// Anthropic Messages: `{"type":"error","error":{"type","message"}}`.
    Anthropic,
    /// Google Gemini: `{"error":{"code","message","status"}}`.
    Gemini,
    /// Cohere v2: `{"message"}`; a failed stream ends with `message-end`.
    Cohere,
    /// Mistral: `{"object":"error","message","type","param","code"}`.
    Mistral,
    /// The native API of Ollama: `{"error":"text"}`, streams of JSON lines.
    Ollama,
    /// Model Context Protocol over streamable HTTP: JSON-RPC 2.0 errors.
    Mcp,
    /// Alibaba DashScope: `{"code","message","request_id"}`.
    #[serde(rename = "dashscope")]
    DashScope,
}

/// How a client requests an event stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StreamRequest {
    /// `"stream": true` in the body.
    Body,
    /// The path and the query: `:streamGenerateContent?alt=sse` of Gemini.
    Target,
    /// A header field: `X-DashScope-SSE: enable`.
    Header,
    /// The server chooses between JSON and an event stream: MCP.
    Server,
    /// There are no event streams; streams are JSON lines: Ollama.
    Never,
}

/// The methods after the colon in paths of the Gemini API.
const GEMINI_METHODS: [&str; 8] = [
    "generateContent",
    "streamGenerateContent",
    "countTokens",
    "embedContent",
    "batchEmbedContents",
    "batchGenerateContent",
    "predict",
    "predictLongRunning",
];

impl Dialect {
    /// The dialect for a normalised path. A route can override it.
    pub fn of_path(path: &str) -> Self {
        // On the path of every request, so that the segments are walked once.
        let mut last = "";
        let (mut v1, mut v1beta, mut v2, mut openai, mut responses, mut mcp, mut messages) =
            (false, false, false, false, false, false, false);
        for segment in path.split('/').filter(|segment| !segment.is_empty()) {
            let before = std::mem::replace(&mut last, segment);
            match segment {
                "v1" => v1 = true,
                "v1beta" => v1beta = true,
                "v2" => v2 = true,
                "openai" => openai = true,
                "responses" => responses = true,
                "mcp" => mcp = true,
                "messages" => messages |= before == "v1",
                _ => {}
            }
        }
        let method = last.rsplit_once(':').map_or("", |(_, method)| method);
        // Anthropic models on Vertex AI: a Google path with Anthropic bodies and streams.
        if messages || matches!(method, "rawPredict" | "streamRawPredict") {
            return Dialect::Anthropic;
        }
        // `/v1beta/openai/…` is Google's OpenAI-compatible endpoint.
        if v1beta && !openai || GEMINI_METHODS.contains(&method) {
            return Dialect::Gemini;
        }
        match last {
            _ if responses => Dialect::OpenAiResponses,
            _ if mcp => Dialect::Mcp,
            "completions" | "embeddings" if v1 => Dialect::OpenAi,
            _ if path.contains("/api/v1/services/") => Dialect::DashScope,
            "chat" if v1 || v2 => Dialect::Cohere,
            "embed" | "rerank" | "classify" if v2 => Dialect::Cohere,
            "chat" | "generate" | "embed" | "embeddings" | "tags" | "show" | "pull" | "push" | "create" | "ps"
                if path.starts_with("/api/") =>
            {
                Dialect::Ollama
            }
            _ => Dialect::OpenAi,
        }
    }

    /// How clients of this dialect request an event stream.
    pub fn stream_request(self) -> StreamRequest {
        match self {
            Dialect::OpenAi | Dialect::OpenAiResponses | Dialect::Anthropic | Dialect::Cohere | Dialect::Mistral => StreamRequest::Body,
            Dialect::Gemini => StreamRequest::Target,
            Dialect::DashScope => StreamRequest::Header,
            Dialect::Mcp => StreamRequest::Server,
            Dialect::Ollama => StreamRequest::Never,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths() {
        for (path, dialect) in [
            ("/v1/chat/completions", Dialect::OpenAi),
            ("/openai/deployments/gpt/chat/completions", Dialect::OpenAi),
            ("/v1beta/openai/chat/completions", Dialect::OpenAi),
            ("/v1/messages", Dialect::Anthropic),
            ("/v1/messages/count_tokens", Dialect::Anthropic),
            ("/anthropic/v1/messages", Dialect::Anthropic),
            ("/v1/threads/t/messages", Dialect::OpenAi),
            ("/v1/projects/p/locations/l/publishers/anthropic/models/claude:streamRawPredict", Dialect::Anthropic),
            ("/v1/responses", Dialect::OpenAiResponses),
            ("/openai/v1/responses", Dialect::OpenAiResponses),
            ("/v1/responses/resp_1/cancel", Dialect::OpenAiResponses),
            ("/v1beta/models/gemini-pro:generateContent", Dialect::Gemini),
            ("/v1beta/models", Dialect::Gemini),
            ("/v1/models/gemini-pro:streamGenerateContent", Dialect::Gemini),
            ("/v1/models", Dialect::OpenAi),
            ("/v1/models/ft:gpt:x", Dialect::OpenAi),
            ("/v2/chat", Dialect::Cohere),
            ("/v2/rerank", Dialect::Cohere),
            ("/api/chat", Dialect::Ollama),
            ("/api/generate", Dialect::Ollama),
            ("/api/status", Dialect::OpenAi),
            ("/mcp", Dialect::Mcp),
            ("/servers/files/mcp", Dialect::Mcp),
            ("/api/v1/services/aigc/text-generation/generation", Dialect::DashScope),
            ("/", Dialect::OpenAi),
        ] {
            assert_eq!(Dialect::of_path(path), dialect, "{path}");
        }
    }

    #[test]
    fn configuration_names() {
        for (name, dialect) in [("openai", Dialect::OpenAi), ("openai_responses", Dialect::OpenAiResponses), ("mcp", Dialect::Mcp)] {
            assert_eq!(serde_json::from_value::<Dialect>(name.into()).ok(), Some(dialect));
        }
    }
}
