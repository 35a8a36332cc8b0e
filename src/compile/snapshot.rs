//! The immutable result of compiling one configuration file. Contains no compilation.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use keylatch_filters::chain::Chain;
use keylatch_filters::contract::TrustedProxies;

use super::route::Route;
use crate::acme::{AcmeCertificates, WantedCertificate};
use crate::alerts::Alerts;
use crate::config::model::{Listener, Settings};
use crate::config::{Digest, Written};
use crate::listener::policy::ListenerPolicy;
use crate::upstream::Upstream;

/// Everything compiled from one file. A request takes the current snapshot at its start and keeps
/// it to its end.
pub struct Snapshot {
    /// The settings as the file gives them.
    pub settings: Settings,
    /// The routes in order; the first match is used.
    pub routes: Vec<Route>,
    /// The top-level filters, for requests that match no route.
    pub unrouted: Chain,
    /// The connection policy of each listener.
    pub entries: Vec<Arc<ListenerPolicy>>,
    /// All upstreams, used by a route or not.
    pub upstreams: Vec<Arc<Upstream>>,
    /// The trusted proxies.
    pub trusted: Arc<TrustedProxies>,
    /// The compiled alerts.
    pub alerts: Arc<Alerts>,
    /// The keys that are present in the file.
    pub written: Written,
    /// The configuration as YAML, with secrets masked.
    pub masked: String,
    /// The files it was compiled from, with their digests; `None`: the file did not exist.
    pub files: BTreeMap<PathBuf, Option<Digest>>,
    /// Those of the files that contain secrets.
    pub secret_files: BTreeSet<PathBuf>,
}

impl Snapshot {
    /// The route of a request. `path` is normalised and without its query.
    pub fn route(&self, method: &http::Method, host: &str, path: &str) -> Option<(usize, &Route)> {
        self.routes.iter().enumerate().find(|(_, route)| route.matches(method, host, path))
    }

    /// The connection policy of the listener at this address, if the file still has it.
    pub fn listener_policy(&self, address: SocketAddr) -> Option<&Arc<ListenerPolicy>> {
        self.entries.iter().find(|entry| entry.address == address)
    }

    /// The listeners' ACME certificates, with the names and challenges that each needs.
    pub fn acme(&self) -> Vec<(Arc<AcmeCertificates>, WantedCertificate)> {
        self.entries.iter().filter_map(|entry| entry.acme.clone()).collect()
    }

    /// The sections that differ from those at the start of the process and take effect after a
    /// restart only.
    pub fn needs_restart(&self, other: &Settings) -> Vec<&'static str> {
        let (a, b) = (&self.settings, other);
        let changed = [
            ("listeners", !a.listeners.iter().map(Listener::at_start).eq(b.listeners.iter().map(Listener::at_start))),
            ("admin", a.admin.at_start() != b.admin.at_start()),
            ("storage", a.storage != b.storage),
            ("redis", a.redis != b.redis),
            ("secrets", a.secrets != b.secrets),
            ("log.level or log.format", (a.log.level, a.log.format) != (b.log.level, b.log.format)),
            ("shutdown", a.shutdown != b.shutdown),
            ("workers", a.workers != b.workers),
            ("scheduling", a.scheduling != b.scheduling),
        ];
        changed.into_iter().filter_map(|(name, differs)| differs.then_some(name)).collect()
    }
}
