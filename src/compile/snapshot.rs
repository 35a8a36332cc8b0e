//! What a request meets: everything compiled from one file.

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

/// Everything compiled from one file. A request takes it once, at its start, and keeps it to its end.
pub struct Snapshot {
    /// What the file said.
    pub settings: Settings,
    /// In order; the first that matches is taken.
    pub routes: Vec<Route>,
    /// The top-level filters alone, for requests that no route is for.
    pub unrouted: Chain,
    /// What each listener asks of whoever connects.
    pub entries: Vec<Arc<ListenerPolicy>>,
    /// Every upstream, used by a route or not.
    pub upstreams: Vec<Arc<Upstream>>,
    /// Who may speak for others.
    pub trusted: Arc<TrustedProxies>,
    /// Who is told what.
    pub alerts: Arc<Alerts>,
    /// What stands in the file.
    pub written: Written,
    /// All of it as YAML, secrets masked.
    pub masked: String,
    /// The files it was compiled from, and what they held; `None`: they were not there.
    pub files: BTreeMap<PathBuf, Option<Digest>>,
    /// Those of them that hold secrets.
    pub secret_files: BTreeSet<PathBuf>,
}

impl Snapshot {
    /// The route for a request; `path` normalised and without its query.
    pub fn route(&self, method: &http::Method, host: &str, path: &str) -> Option<(usize, &Route)> {
        self.routes.iter().enumerate().find(|(_, route)| route.matches(method, host, path))
    }

    /// What the listener at this address asks of whoever connects, if the file still has it.
    pub fn listener_policy(&self, address: SocketAddr) -> Option<&Arc<ListenerPolicy>> {
        self.entries.iter().find(|entry| entry.address == address)
    }

    /// The listeners' certificates from ACME, with what is wanted of each.
    pub fn acme(&self) -> Vec<(Arc<AcmeCertificates>, WantedCertificate)> {
        self.entries.iter().filter_map(|entry| entry.acme.clone()).collect()
    }

    /// The sections that differ from those the process was started with and take effect at a restart only.
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
        ];
        changed.into_iter().filter_map(|(name, differs)| differs.then_some(name)).collect()
    }
}
