//! The contract between a filter and the proxy: the [`Filter`] trait, the context of each hook, the replies, and the ports.
//!
//! A port is a trait for an operation that needs I/O; `src/` implements it and filters call it. This module does no I/O and
//! names no filter.

mod arrival;
mod cancellation;
mod context;
mod dialect;
mod facts;
mod fields;
mod filter;
mod hex;
mod invalid;
mod key;
mod key_reader;
mod kind;
mod limit_usage;
mod limits;
mod media_type;
mod names;
mod outbound;
mod ports;
mod prices;
mod proxy_fields;
mod ranges;
mod reply;
mod site;
mod stream_plan;
mod strict;
mod trust;
mod usage;
mod values;

pub use arrival::{Arrival, ClientCertificate, Vouched};
pub use cancellation::{CancelReason, CancellationHandle};
pub use context::{BodyCx, LogCx, Now, RequestCx, ResponseCx, Source, UpstreamCx};
pub use dialect::{Dialect, StreamRequest};
pub use facts::{ClientAddress, DryRun, Facts, Identity, LetThrough, RequestIds, RequestModel, SelectedLimits, Tags, Trace, UnknownModel};
pub use fields::{field_name, host_name, is_framing, remove_spellings};
pub use filter::{ErasedFilter, Failure, Filter, Flow, Hooks, Result, State, failure, header_value};
pub use hex::{hex, unhex};
pub use invalid::{Invalid, decode};
pub use key::{Key, KeyForm, KeyHasher, KeyId, signed_part};
pub use key_reader::{KEY_BYTES, KEY_BYTES_MAX, KeyError, KeyReader, KeySource, UnlistedQuery, key_bytes_bound};
pub use kind::{FilterKind, manual_of};
pub use limit_usage::{ActiveLimit, CountedSubject, LimitUsage, TrackedUsage, UsageSource, UsageTracker};
pub use limits::{Counters, Hit, Lease, Measure, Outcome, Quota, nanos};
pub use media_type::{EVENT_STREAM, is_event_stream, is_json_lines, is_uncoded, names_event_stream};
pub use names::check_name;
pub use outbound::{AnswerBody, Call, CallError, Endpoint, Outbound, PeriodicTask, Service, ServiceResponse, TaskHandle, TaskOutcome};
pub use ports::{Binding, Bindings, BoxFuture, FirstUse, Intercept, KeyUse, Roaming, Rule, StoreError, is_label};
pub use prices::{MicroUnits, ModelPrice, PriceTable, Prices, PricesConfig, micros_of};
pub use proxy_fields::{ADDRESS_FIELDS, PROXY_FIELDS, ProxyFields, ProxyFieldsConfig};
pub use ranges::{CLOUDFLARE, WORKER_ZONES, fetched_ranges, is_worker_zone, ranges};
pub use reply::{Body, Problem, Reply};
pub use site::{Keep, LimitNames, Meter, Ports, Resolve, Site, trim_secret};
pub use stream_plan::{AnswerKind, ExpectedAnswer, Frame, StreamPlan};
pub use trust::{CloudflareRefresh, TrustConfig, TrustedProxies, canonical, parse_address, write_address};
pub use usage::{Cost, CountSource, Currency, Ledger, LedgerEntry, LedgerState, OtherUnits, Reserved, TokenCounts, UsageRecord, UsageSink};
pub use values::{ByteSize, HumanDuration, Rate, SecretRef, Timestamp};
