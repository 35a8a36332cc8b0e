//! The state that all listeners of a process share. It contains no logic.

use std::sync::Arc;

use arc_swap::ArcSwap;

use crate::acme::Acme;
use crate::compile::Snapshot;
use crate::settings::LiveSettings;
use crate::telemetry::access::AccessLog;
use crate::telemetry::metrics::Metrics;

/// The state that all listeners share.
pub struct ProxyState {
    /// The configuration in force. Only `reload.rs` writes it.
    pub snapshot: ArcSwap<Snapshot>,
    /// The metrics.
    pub metrics: Arc<Metrics>,
    /// The access log.
    pub access: AccessLog,
    /// The live settings.
    pub live: Arc<LiveSettings>,
    /// The ACME certificates.
    pub acme: Arc<Acme>,
}
