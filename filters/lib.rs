//! Keylatch's filters: the registry and the modules behind it; nothing else lives here.
//!
//! To add a filter: write `filters/<name>.rs`, add its `mod` line and its line in [`ALL`].
//! CONTRIBUTING.md walks through one.

pub mod chain;
pub mod contract;
pub mod expression;
pub mod limiting;

pub mod allowed_hosts;
pub mod bearer;
pub mod body_limit;
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

#[cfg(test)]
mod testing;

use contract::Kind;

/// Every filter there is, in the order a chain usually lists them.
pub const ALL: &[Kind] = &[
    Kind::of::<client_ip::ClientIp>(),
    Kind::of::<request_id::RequestId>(),
    Kind::of::<flood_guard::FloodGuard>(),
    Kind::of::<allowed_hosts::AllowedHosts>(),
    Kind::of::<cors::Cors>(),
    Kind::of::<security_headers::SecurityHeaders>(),
    Kind::of::<body_limit::BodyLimit>(),
    Kind::of::<client_certificate::ClientCertificate>(),
    Kind::of::<bearer::Bearer>(),
    Kind::of::<key_binding::KeyBinding>(),
    Kind::of::<rules::Rules>(),
    Kind::of::<rate_limit::RateLimit>(),
    Kind::of::<concurrency_limit::ConcurrencyLimit>(),
    Kind::of::<sse_keepalive::SseKeepalive>(),
    Kind::of::<headers::Headers>(),
];
