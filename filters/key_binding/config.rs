//! The configuration of `key_binding` and its validation. It makes no decisions about requests.

use std::net::IpAddr;
use std::time::{Duration, SystemTime};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use schemars::JsonSchema;
use serde::Deserialize;

use crate::contract::{ByteSize, HumanDuration, Invalid, KEY_BYTES, KeySource, Rate, Timestamp};

/// The action for a request without a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum OnMissing {
    /// Refuse the request with 401.
    Refuse,
    /// Let the request pass; the upstream decides.
    Allow,
}

/// The action if the store of bindings fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum OnStoreFailure {
    /// Refuse the request with 503.
    Closed,
    /// Let the request pass unchecked.
    Open,
}

/// The action for a key that is not bound.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Enrol {
    /// The first use binds the key.
    FirstUse,
    /// The key is refused. Only operators make bindings.
    KnownOnly,
    /// The first use binds the key until a date. Afterwards, keys that are not bound are refused.
    Window {
        /// The date, in RFC 3339 form.
        until: Timestamp,
    },
}

/// The rule of a binding that a first use makes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum FirstRule {
    /// Only the network of the first use.
    Single,
    /// A limited number of networks at a time.
    Roaming {
        /// The number of networks, 1 to 64.
        networks_max: u8,
        /// The time after its last use when a network expires, at least 1min.
        window: HumanDuration,
    },
}

/// The condition that makes the binding of a first use permanent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Confirm {
    /// The upstream accepts the key.
    Upstream,
    /// None: it is permanent at once.
    Immediate,
}

/// The action on the open streams of a key that is banned, unbound, or bound to other networks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum OnBan {
    /// End the streams within a second, with an error event.
    Cut,
    /// Let the streams finish.
    Finish,
}

/// `key_binding`
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct KeyBindingConfig {
    /// The places where a request can carry the key. Default: all known header fields, not the query.
    pub from: Vec<KeySource>,
    /// The maximum length of a key, 1 KiB to 32 KiB. `limits.header_bytes` applies as well. Default: `8KiB`.
    pub key_bytes: ByteSize,
    /// The prefix length of a bound IPv4 network, 8 to 32. Default: 32, a single address.
    pub ipv4_prefix: u8,
    /// The prefix length of a bound IPv6 network, 16 to 128. Default: 64, the usual network of one household.
    pub ipv6_prefix: u8,
    /// The rule of a binding that a first use makes. Default: `single`.
    pub rule: FirstRule,
    /// With the rule `single`: the first use from the other address family adds its network, because dual-stack clients use
    /// both IPv4 and IPv6. Default: true.
    pub per_family: bool,
    /// The action for a key that is not bound. Default: `first_use`.
    pub enrol: Enrol,
    /// The condition that makes the binding of a first use permanent. Default: `upstream`.
    pub confirm: Confirm,
    /// The limit of first uses from one client address (IPv6: /64), shared by all routes. Default: `60/h`.
    pub new_keys_per_client: Rate,
    /// The action on open event streams of a key that is banned, unbound, or bound to other networks. Requires
    /// `sse_keepalive`. Default: `cut`.
    pub on_ban: OnBan,
    /// The action for a request without a key. Default: `refuse`.
    pub on_missing: OnMissing,
    /// The action if the store of bindings fails. Default: `closed`.
    pub on_store_failure: OnStoreFailure,
}

impl Default for KeyBindingConfig {
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

impl KeyBindingConfig {
    /// Whether a first use binds a key now.
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
        // `check` has refused prefix lengths that are out of range.
        network.map_or_else(|_| client.into(), |network| network.trunc())
    }

    /// Validates the settings.
    pub fn check(&self) -> Result<(), Invalid> {
        if self.from.is_empty() {
            return Err(Invalid::new("name at least one source of the key").at("from"));
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
