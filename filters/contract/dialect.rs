//! The API dialects that Keylatch serves: how a client of each asks for a stream.
//!
//! This file holds the facts; how an error is written in each dialect is decided in `src/http_proxy/dialects`.

use schemars::JsonSchema;
use serde::Deserialize;

/// The API that a client speaks. It decides the shape of errors, which heartbeat frames a stream may carry, and
/// whether an answer can begin before the upstream's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Dialect {
    /// OpenAI chat completions and everything shaped like it: `{"error":{"message","type","param","code"}}`.
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
    /// Ollama's own API: `{"error":"text"}`, streams of JSON lines.
    Ollama,
    /// Model Context Protocol over streamable HTTP: JSON-RPC 2.0 errors.
    Mcp,
    /// Alibaba DashScope: `{"code","message","request_id"}`.
    #[serde(rename = "dashscope")]
    DashScope,
}

/// How a client learns that it gets a stream of events.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StreamRequest {
    /// `"stream": true` in the body.
    Body,
    /// The path and the query say it: Gemini's `:streamGenerateContent?alt=sse`.
    Target,
    /// A header field: `X-DashScope-SSE: enable`.
    Header,
    /// The server chooses between JSON and a stream: MCP.
    Server,
    /// Streams are JSON lines: Ollama.
    Never,
}

/// What follows the colon in the paths of Gemini's API.
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
    /// The dialect of a request by its normalised path. An operator may name another for a route.
    pub fn of_path(path: &str) -> Self {
        // Every request comes here: one walk over the segments.
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
        // Anthropic's models on Vertex AI: the path is Google's, bodies and streams are Anthropic's.
        if messages || matches!(method, "rawPredict" | "streamRawPredict") {
            return Dialect::Anthropic;
        }
        // `/v1beta/openai/…` is Google's own endpoint in OpenAI's shape.
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

    /// How its clients ask for a stream of events.
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
    fn names_in_a_file() {
        for (name, dialect) in [("openai", Dialect::OpenAi), ("openai_responses", Dialect::OpenAiResponses), ("mcp", Dialect::Mcp)] {
            assert_eq!(serde_json::from_value::<Dialect>(name.into()).ok(), Some(dialect));
        }
    }
}
