//! The most that a request can use, from its size and its maximum of output tokens.

use http::header;

use super::{Budget, BudgetUnit};
use crate::contract::{Dialect, RequestCx, RequestModel};
use crate::usage_scan::{OutputLimits, RequestParameters};

/// No tokenizer of a known model makes more than one token of three bytes of ordinary text, in the mean.
const BYTES_PER_TOKEN_MIN: u64 = 3;
/// Tokens that a chat template adds.
const TEMPLATE_TOKENS: u64 = 64;

/// The last segments of the paths of requests that use no tokens.
const FREE: [&str; 6] = ["count_tokens", "tokenize", "detokenize", "moderations", "cancel", "input_tokens"];
/// The last segments of the paths of requests without output tokens.
const WITHOUT_OUTPUT: [&str; 6] = ["embeddings", "embed", "rerank", "classify", "transcriptions", "translations"];

impl Budget {
    /// The most that a request can use. `None`: its model has no price.
    pub(super) fn most(&self, cx: &RequestCx<'_>) -> Option<u64> {
        let path = cx.request.uri.path();
        let last = path.rsplit('/').next().unwrap_or_default();
        let (last, method) = last.rsplit_once(':').unwrap_or((last, ""));
        if FREE.contains(&last) || method == "countTokens" {
            return Some(0);
        }
        let parameters = cx.facts.get::<RequestParameters>().cloned().unwrap_or_default();
        let announced = cx.headers().get(header::CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse::<u64>().ok());
        let text_bytes = match parameters.is_complete {
            true => parameters.text_bytes,
            false if is_form(cx) => 0,
            false => announced.unwrap_or(0).max(parameters.text_bytes),
        };
        let input = text_bytes.div_ceil(BYTES_PER_TOKEN_MIN).max(parameters.token_ids).saturating_add(TEMPLATE_TOKENS);
        let has_output = !WITHOUT_OUTPUT.contains(&last) && !method.to_ascii_lowercase().contains("embed");
        // Many servers read 0 as no maximum.
        let each = announced_maximum(cx, &parameters.limits).filter(|most| *most > 0).unwrap_or(self.output_tokens_default);
        let answers = parameters.choices.max(1).saturating_mul(parameters.prompts.max(1));
        let output = if has_output { each.saturating_mul(answers) } else { 0 };
        let images = if path.contains("/images/") { parameters.choices.max(1) } else { 0 };
        Some(match self.amount.unit {
            BudgetUnit::Tokens => input.saturating_add(output),
            BudgetUnit::InputTokens => input,
            BudgetUnit::OutputTokens => output,
            BudgetUnit::Money(_) => {
                let Some(RequestModel::Named(model)) = cx.facts.get::<RequestModel>() else { return None };
                self.prices.prices(model, cx.now.wall)?.cost_micros_max(input, output, images)
            }
        })
    }
}

/// The maximum of output tokens by the parameter of the request's own API: its server ignores those of others.
fn announced_maximum(cx: &RequestCx<'_>, limits: &OutputLimits) -> Option<u64> {
    match cx.dialect {
        _ if cx.request.uri.path().ends_with("/converse") => limits.bedrock,
        Dialect::OpenAiResponses => limits.responses,
        Dialect::Gemini => limits.gemini,
        Dialect::Ollama => limits.ollama,
        Dialect::DashScope => limits.dashscope,
        Dialect::OpenAi | Dialect::Anthropic | Dialect::Cohere | Dialect::Mistral | Dialect::Mcp => limits.chat,
    }
}

/// Whether the body is a form: its length says nothing about tokens.
fn is_form(cx: &RequestCx<'_>) -> bool {
    let kind = cx.headers().get(header::CONTENT_TYPE).map_or(&b""[..], |value| value.as_bytes());
    kind.get(..10).is_some_and(|start| start.eq_ignore_ascii_case(b"multipart/"))
}
