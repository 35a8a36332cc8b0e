//! Keylatch's filters: the registry and the modules behind it; nothing else lives here.
//!
//! To add a filter: write `filters/<name>.rs`, add its `mod` line and its line in [`ALL`].
//! CONTRIBUTING.md walks through one.

pub mod chain;
pub mod contract;

pub mod bearer;
pub mod client_ip;
pub mod concurrency_limit;
pub mod flood_guard;
pub mod headers;
pub mod key_binding;
pub mod rate_limit;
pub mod request_id;
pub mod sse_keepalive;

#[cfg(test)]
mod testing;

use contract::Kind;

/// Every filter there is, in the order a chain usually lists them.
pub const ALL: &[Kind] = &[
    Kind::of::<client_ip::ClientIp>(),
    Kind::of::<request_id::RequestId>(),
    Kind::of::<flood_guard::FloodGuard>(),
    Kind::of::<bearer::Bearer>(),
    Kind::of::<key_binding::KeyBinding>(),
    Kind::of::<rate_limit::RateLimit>(),
    Kind::of::<concurrency_limit::ConcurrencyLimit>(),
    Kind::of::<sse_keepalive::SseKeepalive>(),
    Kind::of::<headers::Headers>(),
];
