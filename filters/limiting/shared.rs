//! The options of counts that replicas share, and the reply when the shared counts cannot be reached.

use http::{HeaderValue, header};
use schemars::JsonSchema;
use serde::Deserialize;

use crate::contract::{Problem, Reply};

/// Where requests are counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum CountScope {
    /// In this process. Each replica counts separately.
    #[default]
    Local,
    /// In Redis. All replicas share one count.
    Shared,
}

/// What happens to a request when the shared counts in Redis cannot be reached.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum CountsFailurePolicy {
    /// This process counts it on its own.
    #[default]
    Local,
    /// It passes without being counted.
    Allow,
    /// It is refused with 503.
    Deny,
}

impl CountsFailurePolicy {
    /// The value of the metric label `outcome`.
    pub fn as_str(self) -> &'static str {
        match self {
            CountsFailurePolicy::Local => "local",
            CountsFailurePolicy::Allow => "allow",
            CountsFailurePolicy::Deny => "deny",
        }
    }
}

/// 503: the shared counts cannot be reached and the filter is configured with `on_store_failure: deny`.
pub fn shared_counts_unavailable() -> Reply {
    let message = "Rate limits are temporarily unavailable. Retry after 1 s.";
    Reply::new(Problem::Unavailable, "limits_unavailable", "store", message).header(header::RETRY_AFTER, HeaderValue::from_static("1"))
}
