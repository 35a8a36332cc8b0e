//! The usage of one request: tokens, other units and cost, and the port to the accounts. It reads no answer and knows no price.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use super::{BoxFuture, KeyId, Now, StoreError};

/// Token counts of one request, by kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TokenCounts {
    /// Input tokens, including [`Self::cached_input`] and [`Self::cache_write`].
    pub input: u64,
    /// Input tokens that the upstream read from its prompt cache.
    pub cached_input: u64,
    /// Input tokens that the upstream wrote to its prompt cache.
    pub cache_write: u64,
    /// Output tokens, including [`Self::reasoning`].
    pub output: u64,
    /// Output tokens of reasoning.
    pub reasoning: u64,
}

impl TokenCounts {
    /// Input and output tokens.
    pub fn total(&self) -> u64 {
        self.input.saturating_add(self.output)
    }

    /// Whether all counts are zero.
    pub fn is_zero(&self) -> bool {
        *self == Self::default()
    }
}

/// Units other than tokens.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OtherUnits {
    /// Generated images.
    pub images: u64,
    /// Audio that was transcribed, in milliseconds.
    pub audio_ms: u64,
    /// Characters of text that was spoken.
    pub characters: u64,
}

/// The source of the counts of a request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum CountSource {
    /// The upstream reported them.
    Reported,
    /// Estimated from the length of the texts: the upstream reported nothing, or the answer was cut.
    Estimated,
    /// There are no counts: the request used nothing, or its answer cannot be read.
    #[default]
    None,
}

impl CountSource {
    /// The name in logs and APIs.
    pub fn as_str(self) -> &'static str {
        match self {
            CountSource::Reported => "reported",
            CountSource::Estimated => "estimated",
            CountSource::None => "none",
        }
    }
}

/// A three-letter currency code (ISO 4217), in upper case.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Currency(pub [u8; 3]);

impl Currency {
    /// The code.
    pub fn as_str(&self) -> &str {
        std::str::from_utf8(&self.0).unwrap_or("???")
    }

    /// Parses a code.
    pub fn parse(text: &str) -> Option<Self> {
        let code: [u8; 3] = text.as_bytes().try_into().ok()?;
        code.iter().all(u8::is_ascii_uppercase).then_some(Self(code))
    }
}

impl std::fmt::Display for Currency {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

/// An amount of money.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cost {
    /// Millionths of the currency's unit.
    pub micros: u64,
    /// The currency.
    pub currency: Currency,
}

/// The usage of one request. A fact for the log hooks of the filters after `usage`, for the access log and for the accounts.
#[derive(Clone, Debug, PartialEq)]
pub struct UsageRecord {
    /// When the request header was complete.
    pub at: SystemTime,
    /// The API key.
    pub key: Option<KeyId>,
    /// The verified identity.
    pub subject: Option<Arc<str>>,
    /// The model that the request names, or else the one of the answer. `None`: unknown.
    pub model: Option<Arc<str>>,
    /// The route's name.
    pub route: Arc<str>,
    /// The name of the upstream.
    pub upstream: Arc<str>,
    /// The status sent to the client; 0 if none was sent.
    pub status: u16,
    /// The token counts.
    pub tokens: TokenCounts,
    /// The other units.
    pub units: OtherUnits,
    /// The source of both.
    pub source: CountSource,
    /// The cost. `None`: no price is known for the model.
    pub cost: Option<Cost>,
    /// Whether the answer was a stream.
    pub streamed: bool,
    /// From the complete request header to the first text of the answer.
    pub first_token: Option<Duration>,
    /// From the complete request header to the end of the response.
    pub duration: Duration,
}

/// Adds usage to the accounts.
pub trait UsageSink: Send + Sync {
    /// Adds the usage of one request. Written later, in a batch.
    fn record(&self, record: &UsageRecord);
}

/// What one budget allows one subject in one period, such as the money that a key may spend in a month.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LedgerEntry {
    /// The budget and the subject; the same on every replica.
    pub name: Arc<str>,
    /// The number of the period; it increases from one period to the next.
    pub period: i64,
    /// The end of the period, in seconds since 1970.
    pub period_end_s: i64,
    /// The amount that may be spent in the period, in millionths of a currency unit or in tokens.
    pub amount_max: u64,
    /// How long a reservation lasts that is not settled.
    pub reservation_ttl: Duration,
    /// The shares of the amount, in percent, at which operators are alerted.
    pub alert_at: Arc<[u8]>,
}

/// The state of an entry.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LedgerState {
    /// The amount of settled requests.
    pub spent: u64,
    /// The amount that open requests have reserved.
    pub reserved: u64,
}

impl LedgerState {
    /// The amount that is neither spent nor reserved.
    pub fn left(&self, amount_max: u64) -> u64 {
        amount_max.saturating_sub(self.spent).saturating_sub(self.reserved)
    }
}

/// The result of a reservation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reserved {
    /// Whether the amount was reserved. If not, nothing has changed.
    pub allowed: bool,
    /// The state after it.
    pub state: LedgerState,
}

/// Amounts that are reserved before a request and settled after it. A reservation that is not settled expires.
pub trait Ledger: Send + Sync {
    /// Reserves an amount, if that much is left. `id` is unique for the request and the entry.
    fn reserve<'a>(&'a self, id: &'a str, entry: &'a LedgerEntry, amount: u64, now: Now) -> BoxFuture<'a, Result<Reserved, StoreError>>;
    /// Like [`Self::reserve`], in this process alone, while the store is away: with what it knows of the amounts that were spent.
    fn reserve_locally<'a>(
        &'a self,
        id: &'a str,
        entry: &'a LedgerEntry,
        amount: u64,
        now: Now,
    ) -> BoxFuture<'a, Result<Reserved, StoreError>>;
    /// Replaces the reservation of this id, if there is one, by the amount that was used. Returns at once; the change is repeated until the store
    /// has it.
    fn settle(&self, id: &str, entry: &LedgerEntry, amount: u64);
    /// The state of an entry.
    fn state<'a>(&'a self, entry: &'a LedgerEntry, now: Now) -> BoxFuture<'a, Result<LedgerState, StoreError>>;
}
