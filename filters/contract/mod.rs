//! What a filter is written against: the trait, what it is handed in each phase, what it may answer,
//! and the ports through which it has things *done*.
//!
//! No I/O lives here, and no filter is named here. `src/` implements the ports; filters use them.

mod arrival;
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
mod leash;
mod limits;
mod media_type;
mod names;
mod near;
mod outbound;
mod ports;
mod proxy_fields;
mod ranges;
mod reply;
mod site;
mod stream_plan;
mod strict;
mod trust;
mod values;

pub use arrival::{Arrival, ClientCertificate, Vouched};
pub use context::{BodyCx, LogCx, Now, RequestCx, ResponseCx, Source, UpstreamCx};
pub use dialect::{Dialect, StreamRequest};
pub use facts::{Chosen, ClientAddress, DryRun, Facts, Identity, LetThrough, RequestIds, Tags, Trace};
pub use fields::{field_name, host_name, is_framing, remove_spellings};
pub use filter::{Erased, Failure, Filter, Flow, Hooks, Result, State, failure, header_value};
pub use hex::{hex, unhex};
pub use invalid::{Invalid, decode};
pub use key::{Key, KeyForm, KeyHasher, KeyId, signed_part};
pub use key_reader::{KEY_BYTES, KEY_BYTES_MAX, KeyError, KeyReader, KeySource, UnlistedQuery, key_bytes_bound};
pub use kind::{Kind, manual_of};
pub use leash::{Leash, Pulled};
pub use limits::{Counters, Hit, Lease, Measure, Outcome, Quota, nanos};
pub use media_type::{EVENT_STREAM, is_event_stream, is_json_lines, is_uncoded, names_event_stream};
pub use names::check_name;
pub use near::{About, Counted, InForce, Near, Shown, Standing};
pub use outbound::{Answered, Body as AnswerBody, Call, CallError, Endpoint, Outbound, Service, Tend, Tended, Tender};
pub use ports::{Binding, Bindings, BoxFuture, FirstUse, Intercept, Roaming, Rule, StoreError};
pub use proxy_fields::{ADDRESS_FIELDS, PROXY_FIELDS, ProxyFields, ProxyFieldsConfig};
pub use ranges::{CLOUDFLARE, fetched_ranges, ranges};
pub use reply::{Body, Problem, Reply};
pub use site::{Keep, Meter, Named, Ports, Resolve, Site, bare};
pub use stream_plan::{AnswerKind, ExpectedAnswer, Frame, StreamPlan};
pub use trust::{CloudflareRefresh, TrustConfig, TrustedProxies, canonical, parse_address, write_address};
pub use values::{ByteSize, HumanDuration, Rate, SecretRef, Timestamp};
