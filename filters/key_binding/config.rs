//! What an operator may say of `key_binding`.

use std::net::IpAddr;
use std::time::{Duration, SystemTime};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use schemars::JsonSchema;
use serde::Deserialize;

use crate::contract::{ByteSize, HumanDuration, Invalid, KEY_BYTES, KeySource, Rate, Timestamp};

/// What to do with a request without a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum OnMissing {
    /// 401.
    Refuse,
    /// Let it pass unbound; the upstream decides.
    Allow,
}

/// What to do when the store cannot answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum OnStoreFailure {
    /// 503: nobody passes unjudged.
    Closed,
    /// Let it pass unjudged.
    Open,
}

/// What becomes of a key that nobody has bound.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Enrol {
    /// Its first use binds it.
    FirstUse,
    /// It is refused: bindings are made by operators.
    KnownOnly,
    /// Its first use binds it until a date; after that it is refused.
    Window {
        /// The date, as RFC 3339 writes it.
        until: Timestamp,
    },
}

/// The rule of a binding that a first use makes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum FirstRule {
    /// The network of the first use, and no other.
    Single,
    /// A few networks at a time.
    Roaming {
        /// How many, 1 to 64.
        networks_max: u8,
        /// How long a network counts after its last use, at least 1min.
        window: HumanDuration,
    },
}

/// When a first use holds for good.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Confirm {
    /// Once the upstream has accepted the key.
    Upstream,
    /// At once.
    Immediate,
}

/// What becomes of a key's open streams when it is banned or unbound, or bound to other networks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum OnBan {
    /// They end within a second, with an error event.
    Cut,
    /// They go on to their end.
    Finish,
}

/// `key_binding`
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Where a key may stand. Default: all known header fields, not the query.
    pub from: Vec<KeySource>,
    /// The longest key, 1 KiB to 32 KiB. `limits.header_bytes` bounds it as well. Default: `8KiB`.
    pub key_bytes: ByteSize,
    /// How much of an IPv4 address is bound, in bits, 8 to 32. Default: 32, the address itself.
    pub ipv4_prefix: u8,
    /// How much of an IPv6 address is bound, in bits, 16 to 128. Default: 64, what one household has.
    pub ipv6_prefix: u8,
    /// The rule of a binding that a first use makes. Default: `single`.
    pub rule: FirstRule,
    /// With the rule `single`: the first use from the other address family adds its network, since a client with IPv4 and
    /// IPv6 uses either. Default: true.
    pub per_family: bool,
    /// A key that nobody has bound. Default: `first_use`.
    pub enrol: Enrol,
    /// When a first use holds for good. Default: `upstream`.
    pub confirm: Confirm,
    /// First uses from one client address (IPv6: /64), shared by all routes. Default: `60/h`.
    pub new_keys_per_client: Rate,
    /// Open event streams of a key that is banned, unbound or bound elsewhere; needs `sse_keepalive`. Default: `cut`.
    pub on_ban: OnBan,
    /// A request without a key. Default: `refuse`.
    pub on_missing: OnMissing,
    /// The store does not answer. Default: `closed`.
    pub on_store_failure: OnStoreFailure,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            from: KeySource::FIELDS.to_vec(),
            key_bytes: ByteSize(KEY_BYTES as u64),
            ipv4_prefix: 32,
            ipv6_prefix: 64,
            rule: FirstRule::Single,
            per_family: true,
            enrol: Enrol::FirstUse,
            confirm: Confirm::Upstream,
            new_keys_per_client: Rate { count: 60, period: Duration::from_secs(3600) },
            on_ban: OnBan::Cut,
            on_missing: OnMissing::Refuse,
            on_store_failure: OnStoreFailure::Closed,
        }
    }
}

impl Config {
    /// Whether a first use binds a key at this time.
    pub fn enrols(&self, now: SystemTime) -> bool {
        match self.enrol {
            Enrol::KnownOnly => false,
            Enrol::Window { until } => now < until.0,
            Enrol::FirstUse => true,
        }
    }

    /// The network that a first use from `client` binds.
    pub fn network(&self, client: IpAddr) -> IpNet {
        let network = match client {
            IpAddr::V4(v4) => Ipv4Net::new(v4, self.ipv4_prefix).map(IpNet::from),
            IpAddr::V6(v6) => Ipv6Net::new(v6, self.ipv6_prefix).map(IpNet::from),
        };
        // `check` refuses prefixes that are too long.
        network.map_or_else(|_| client.into(), |network| network.trunc())
    }

    /// What makes no sense.
    pub fn check(&self) -> Result<(), Invalid> {
        if self.from.is_empty() {
            return Err(Invalid::new("name at least one place a key may stand in").at("from"));
        }
        if !(8..=32).contains(&self.ipv4_prefix) {
            return Err(Invalid::new(format!("{} is not between 8 and 32", self.ipv4_prefix)).at("ipv4_prefix"));
        }
        if !(16..=128).contains(&self.ipv6_prefix) {
            return Err(Invalid::new(format!("{} is not between 16 and 128", self.ipv6_prefix)).at("ipv6_prefix"));
        }
        if let FirstRule::Roaming { networks_max, window } = self.rule {
            let at = |invalid: Invalid| invalid.at("roaming").at("rule");
            if !(1..=64).contains(&networks_max) {
                return Err(at(Invalid::new("must be between 1 and 64").at("networks_max")));
            }
            if window.0 < Duration::from_secs(60) {
                return Err(at(Invalid::new("must be at least 1min").at("window")));
            }
        }
        Ok(())
    }
}
