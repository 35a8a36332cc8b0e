//! # flood_guard
//!
//! Stops floods before anything that costs: more than `limit` requests from one client address in a
//! second-granular window get a bare 429. Put it right after `client_ip`.
//!
//! ```yaml
//! flood_guard:
//!   limit: 200/s
//! ```
//!
//! It counts with the sketch of `pingora-limits`, in fixed memory however many addresses there are.
//! A sketch never counts too little; under very many addresses it may count a little too much. So set
//! the limit well above honest use, and use `rate_limit` where exactness matters.
//! Clients are counted by `ipv4_prefix` (32) and `ipv6_prefix` (64).

use std::sync::Arc;
use std::time::Duration;

use http::{HeaderValue, header};
use pingora_limits::rate::Rate as Sketch;
use schemars::JsonSchema;
use serde::Deserialize;

use crate::contract::{Filter, Flow, Hooks, Invalid, Problem, Rate, Reply, RequestCx, Result, Site};
use crate::rate_limit::subject::Prefixes;

/// Slots of the sketch; four rows of 4096 counters keep the excess under a thousandth of all requests.
const SLOTS: usize = 4096;
const HASHES: usize = 4;

/// `flood_guard`
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The most requests one address may send in the period, between 1s and 1min: `200/s`, `600/10s`.
    pub limit: Rate,
    /// How much of an IPv4 client's address counts, in bits, 8 to 32. Default: 32.
    pub ipv4_prefix: Option<u8>,
    /// How much of an IPv6 client's address counts, in bits, 16 to 128. Default: 64.
    pub ipv6_prefix: Option<u8>,
}

/// The compiled filter.
pub struct FloodGuard {
    limit: u32,
    prefixes: Prefixes,
    retry_after: HeaderValue,
    sketch: Arc<Sketch>,
}

impl Filter for FloodGuard {
    const NAME: &'static str = "flood_guard";
    const HOOKS: Hooks = Hooks::REQUEST;
    const SOURCE: &'static str = include_str!("flood_guard.rs");
    type Config = Config;
    type State = ();

    fn compile(config: Config, site: &mut Site<'_>) -> Result<Self, Invalid> {
        let period = config.limit.period;
        if period < Duration::from_secs(1) || period > Duration::from_secs(60) {
            return Err(Invalid::new("the period must be between 1s and 1min").at("limit"));
        }
        // The window is part of the name: counts of one window say nothing about another.
        let key = format!("{} every {period:?}", site.place);
        Ok(Self {
            limit: config.limit.count,
            prefixes: Prefixes::new(config.ipv4_prefix, config.ipv6_prefix)?,
            retry_after: HeaderValue::from(period.as_secs()),
            sketch: site.keep(&key, || Sketch::new_with_estimator_config(period, HASHES, SLOTS)),
        })
    }

    async fn request(&self, cx: &mut RequestCx<'_>, (): &mut ()) -> Result<Flow> {
        let network = self.prefixes.network(cx.client());
        // A look counts nothing, and says how many there would be with this one.
        let seen = if cx.is_dry_run() { self.sketch.observe(&network, 0) + 1 } else { self.sketch.observe(&network, 1) };
        if seen <= isize::try_from(self.limit).unwrap_or(isize::MAX) {
            return Ok(Flow::Continue);
        }
        Ok(Reply::new(Problem::RateLimited, "rate_limit_exceeded", "flood", "Too many requests from your address.")
            .header(header::RETRY_AFTER, self.retry_after.clone())
            .into())
    }
}
