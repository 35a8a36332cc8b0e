//! The most that a request can use, from its size and its maximum of output tokens.

use http::header;

use super::{Budget, BudgetUnit};
use crate::contract::{RequestCx, RequestModel};
use crate::usage_scan::RequestParameters;

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
            true => parameters.prompt_bytes,
            false if is_form(cx) => 0,
            false => announced.unwrap_or(0).max(parameters.prompt_bytes),
        };
        let input = text_bytes.div_ceil(BYTES_PER_TOKEN_MIN).saturating_add(TEMPLATE_TOKENS);
        let has_output = !WITHOUT_OUTPUT.contains(&last) && !method.to_ascii_lowercase().contains("embed");
        let each = parameters.output_tokens_max.unwrap_or(self.output_tokens_default);
        let output = if has_output { each.saturating_mul(parameters.choices.max(1)) } else { 0 };
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

/// Whether the body is a form: its length says nothing about tokens.
fn is_form(cx: &RequestCx<'_>) -> bool {
    let kind = cx.headers().get(header::CONTENT_TYPE).map_or(&b""[..], |value| value.as_bytes());
    kind.get(..10).is_some_and(|start| start.eq_ignore_ascii_case(b"multipart/"))
}
