//! # flood_guard
//!
//! Refuses floods from one client address with a bare 429 before any expensive work. Put it right after `client_ip`.
//!
//! ```yaml
//! flood_guard:
//!   limit: 200/s
//! ```
//!
//! **Counting.** Requests are counted in consecutive windows of the period of `limit`, 1 s to 1 min. The counter is a sketch
//! (`pingora-limits`) with fixed memory for any number of addresses. It never counts too few requests. With very many
//! addresses it may count slightly too many, so set the limit well above legitimate use. Use `rate_limit` for exact
//! limits.
//!
//! **Client addresses** are grouped by `ipv4_prefix` (default 32) and `ipv6_prefix` (default 64).

use std::sync::Arc;
use std::time::Duration;

use http::{HeaderValue, header};
use pingora_limits::rate::Rate as Sketch;
use schemars::JsonSchema;
use serde::Deserialize;

use crate::contract::{Filter, Flow, Hooks, Invalid, Problem, Rate, Reply, RequestCx, Result, Site};
use crate::limiting::ClientPrefixes;

/// Size of the sketch. 4 rows of 4096 counters keep the overcount below 0.1 % of all requests.
const SLOTS: usize = 4096;
const HASHES: usize = 4;

/// `flood_guard`
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct FloodGuardConfig {
    /// The maximum number of requests per client and period: `200/s`, `600/10s`. The period is 1s to 1min.
    pub limit: Rate,
    /// The prefix by which IPv4 clients are grouped, in bits, 8 to 32. Default: 32.
    pub ipv4_prefix: Option<u8>,
    /// The prefix by which IPv6 clients are grouped, in bits, 16 to 128. Default: 64.
    pub ipv6_prefix: Option<u8>,
}

/// The compiled filter.
pub struct FloodGuard {
    limit: u32,
    prefixes: ClientPrefixes,
    retry_after: HeaderValue,
    sketch: Arc<Sketch>,
}

impl Filter for FloodGuard {
    const NAME: &'static str = "flood_guard";
    const HOOKS: Hooks = Hooks::REQUEST;
    const SOURCE: &'static str = include_str!("flood_guard.rs");
    type Config = FloodGuardConfig;
    type State = ();

    fn compile(config: FloodGuardConfig, site: &mut Site<'_>) -> Result<Self, Invalid> {
        let period = config.limit.period;
        if period < Duration::from_secs(1) || period > Duration::from_secs(60) {
            return Err(Invalid::new("the period must be between 1s and 1min").at("limit"));
        }
        // A reload that changes the period starts with an empty sketch: counts of other periods are not comparable.
        let key = format!("{} every {period:?}", site.place);
        Ok(Self {
            limit: config.limit.count,
            prefixes: ClientPrefixes::new(config.ipv4_prefix, config.ipv6_prefix)?,
            retry_after: HeaderValue::from(period.as_secs()),
            sketch: site.keep(&key, || Sketch::new_with_estimator_config(period, HASHES, SLOTS)),
        })
    }

    async fn request(&self, cx: &mut RequestCx<'_>, (): &mut ()) -> Result<Flow> {
        let network = self.prefixes.network(cx.client());
        // A dry run counts nothing. The result includes this request.
        let count = if cx.is_dry_run() { self.sketch.observe(&network, 0) + 1 } else { self.sketch.observe(&network, 1) };
        if count <= isize::try_from(self.limit).unwrap_or(isize::MAX) {
            return Ok(Flow::Continue);
        }
        Ok(Reply::new(Problem::RateLimited, "rate_limit_exceeded", "flood", "Too many requests from your address.")
            .header(header::RETRY_AFTER, self.retry_after.clone())
            .into())
    }
}
