//! What all listeners of a process share.

use std::sync::Arc;

use arc_swap::ArcSwap;

use crate::acme::Acme;
use crate::compile::Snapshot;
use crate::settings::LiveSettings;
use crate::telemetry::access::AccessLog;
use crate::telemetry::metrics::Metrics;

/// What all listeners share.
pub struct Shared {
    /// The configuration in force. Written by `reload.rs` alone.
    pub snapshot: ArcSwap<Snapshot>,
    /// What is counted.
    pub metrics: Arc<Metrics>,
    /// Where each request is told.
    pub access: AccessLog,
    /// What operators have set while it runs.
    pub live: Arc<LiveSettings>,
    /// Certificates that are made by themselves.
    pub acme: Arc<Acme>,
}
