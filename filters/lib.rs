//! The filters of Keylatch and their registry, [`ALL`]. Filters decide; they do no I/O.
//!
//! To add a filter, write `filters/<name>.rs` and add its `mod` line and its entry in [`ALL`].
//! CONTRIBUTING.md has a complete example.

pub mod body_scan;
pub mod chain;
pub mod contract;
pub mod expression;
pub mod limiting;
pub mod usage_scan;

pub mod allowed_hosts;
pub mod bearer;
pub mod body_limit;
pub mod budget;
pub mod client_certificate;
pub mod client_ip;
pub mod concurrency_limit;
pub mod cors;
pub mod flood_guard;
pub mod headers;
pub mod key_binding;
pub mod rate_limit;
pub mod request_id;
pub mod rules;
pub mod security_headers;
pub mod sse_keepalive;
pub mod usage;

#[cfg(test)]
mod testing;

use contract::FilterKind;

/// All filters, in the usual order of a chain.
pub const ALL: &[FilterKind] = &[
    FilterKind::for_filter::<client_ip::ClientIp>(),
    FilterKind::for_filter::<request_id::RequestId>(),
    FilterKind::for_filter::<flood_guard::FloodGuard>(),
    FilterKind::for_filter::<allowed_hosts::AllowedHosts>(),
    FilterKind::for_filter::<cors::Cors>(),
    FilterKind::for_filter::<security_headers::SecurityHeaders>(),
    FilterKind::for_filter::<body_limit::BodyLimit>(),
    FilterKind::for_filter::<client_certificate::ClientCertificate>(),
    FilterKind::for_filter::<bearer::Bearer>(),
    FilterKind::for_filter::<key_binding::KeyBinding>(),
    FilterKind::for_filter::<rules::Rules>(),
    FilterKind::for_filter::<usage::Usage>(),
    FilterKind::for_filter::<rate_limit::RateLimit>(),
    FilterKind::for_filter::<budget::Budget>(),
    FilterKind::for_filter::<concurrency_limit::ConcurrencyLimit>(),
    FilterKind::for_filter::<sse_keepalive::SseKeepalive>(),
    FilterKind::for_filter::<headers::Headers>(),
];
