//! A batch of usage: sums of each group and minute, latencies, and rows of the request log.
//! Contains no queue; `crate::usage` fills batches and repeats them.

use std::sync::Arc;

use keylatch_filters::contract::{Currency, KeyId, UsageRecord};
use uuid::Uuid;

/// The fields by which requests are summed.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct UsageGroup {
    /// The API key.
    pub key: Option<KeyId>,
    /// The verified identity.
    pub subject: Option<Arc<str>>,
    /// The model.
    pub model: Option<Arc<str>>,
    /// The route.
    pub route: Arc<str>,
    /// The upstream.
    pub upstream: Arc<str>,
    /// The first digit of the status; 0 if none was sent.
    pub status: u8,
    /// The currency of the cost.
    pub currency: Option<Currency>,
}

macro_rules! sums {
    ($($(#[$doc:meta])* $name:ident),+ $(,)?) => {
        /// The sums of requests.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        pub struct UsageSums {
            $($(#[$doc])* pub $name: i64,)+
        }

        impl UsageSums {
            /// The names of the columns.
            pub const COLUMNS: &'static [&'static str] = &[$(stringify!($name)),+];

            /// The values in the order of [`Self::COLUMNS`].
            pub fn values(&self) -> Vec<i64> {
                vec![$(self.$name),+]
            }

            /// Reads the values in the order of [`Self::COLUMNS`].
            pub fn read<E>(mut next: impl FnMut() -> Result<i64, E>) -> Result<Self, E> {
                Ok(Self { $($name: next()?),+ })
            }

            /// Adds other sums.
            pub fn add(&mut self, other: &Self) {
                $(self.$name = self.$name.saturating_add(other.$name);)+
            }
        }
    };
}

sums! {
    /// Requests.
    requests,
    /// Input tokens, including those from and to the cache.
    input,
    /// Input tokens read from the cache.
    cached_input,
    /// Input tokens written to the cache.
    cache_write,
    /// Output tokens, including reasoning.
    output,
    /// Output tokens of reasoning.
    reasoning,
    /// Images.
    images,
    /// Transcribed audio, in milliseconds.
    audio_ms,
    /// Characters of spoken text.
    characters,
    /// The cost, in millionths of the currency's unit.
    cost_micros,
    /// Requests with counts but without a price.
    unpriced,
    /// Requests with estimated counts.
    estimated,
    /// The sum of the times to first token, in milliseconds.
    first_token_ms,
    /// Requests with a time to first token.
    first_tokens,
    /// The sum of the times from the first token to the end, in milliseconds.
    generation_ms,
    /// Output tokens of the requests in [`Self::generation_ms`].
    generation_output,
}

/// The upper bounds of the buckets of times to first token, in milliseconds. The last bucket has no
/// upper bound.
pub const LATENCY_BOUNDS_MS: [i64; 15] = [50, 75, 110, 170, 250, 380, 570, 860, 1300, 2000, 3000, 5000, 8000, 15_000, 40_000];

/// The fields by which times to first token are counted.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LatencyGroup {
    /// The start of the minute, in seconds since 1970.
    pub minute_s: i64,
    /// The model.
    pub model: Option<Arc<str>>,
    /// The route.
    pub route: Arc<str>,
}

/// A row of the request log.
#[derive(Clone, Debug, PartialEq)]
pub struct RequestRow {
    /// The id.
    pub id: Uuid,
    /// The usage of the request, without its content. Its names are bounded, its times are in milliseconds.
    pub usage: UsageRecord,
}

/// A part of the usage of one process, written in one transaction.
#[derive(Clone, Debug)]
pub struct UsageBatch {
    /// The unique id. A batch with an id that the database knows is not written again.
    pub id: Uuid,
    /// The creation time, in seconds since 1970.
    pub made_s: i64,
    /// The sums by minute (its start, in seconds since 1970) and group.
    pub sums: Vec<((i64, UsageGroup), UsageSums)>,
    /// The number of times to first token in each bucket.
    pub latency: Vec<(LatencyGroup, [u32; LATENCY_BOUNDS_MS.len() + 1])>,
    /// Rows of the request log.
    pub requests: Vec<RequestRow>,
}

impl UsageBatch {
    /// An empty batch with a new id.
    pub fn new(made_s: i64) -> Self {
        Self { id: Uuid::now_v7(), made_s, sums: Vec::new(), latency: Vec::new(), requests: Vec::new() }
    }
}

/// The bucket of a time to first token.
pub fn latency_bucket(first_token_ms: i64) -> usize {
    LATENCY_BOUNDS_MS.partition_point(|bound| *bound < first_token_ms)
}
