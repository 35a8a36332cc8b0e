//! What a request meets: everything compiled from one file.

use std::sync::Arc;

use keylatch_filters::chain::Chain;
use keylatch_filters::contract::TrustedProxies;

use super::Written;
use super::model::Settings;
use super::routes::Route;
use crate::alerts::Alerts;
use crate::upstream::Upstream;

/// Everything compiled from one file. A request takes it once, at its start, and keeps it to its end.
pub struct Snapshot {
    /// What the file said.
    pub settings: Settings,
    /// In order; the first that matches is taken.
    pub routes: Vec<Route>,
    /// The top-level filters alone, for requests that no route is for.
    pub unrouted: Chain,
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
}

impl Snapshot {
    /// The route for a request; `path` normalised and without its query.
    pub fn route(&self, method: &http::Method, host: &str, path: &str) -> Option<(usize, &Route)> {
        self.routes.iter().enumerate().find(|(_, route)| route.matches(method, host, path))
    }

    /// The sections that differ from those the process was started with and take effect at a restart only.
    pub fn needs_restart(&self, other: &Settings) -> Vec<&'static str> {
        let (a, b) = (&self.settings, other);
        let changed = [
            ("listeners", a.listeners != b.listeners),
            ("admin", a.admin != b.admin),
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
