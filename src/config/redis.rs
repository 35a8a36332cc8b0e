//! The `redis` section of [`super::model`]. Connects to nothing; `crate::redis` does.

use keylatch_filters::contract::{HumanDuration, Invalid, SecretRef};
use schemars::JsonSchema;
use serde::Deserialize;

/// Redis 6 or later, or Valkey, for limits and cached bindings that replicas share. Needs a
/// restart.
#[derive(Clone, Debug, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Redis {
    /// The URL: `redis://user:password@host:6379/0`, or `rediss://` for TLS, which is always
    /// verified; from `${ENV}` or `file:PATH`.
    pub url: SecretRef,
    /// Sentinels: `redis://host:26379`. The host in `url` is then the name of the monitored master,
    /// and its port is ignored.
    #[serde(default)]
    pub sentinels: Vec<SecretRef>,
    /// Further nodes of the Redis Cluster of `url`, as `host:port`. User, password and TLS are
    /// those of `url`.
    #[serde(default)]
    pub cluster: Vec<String>,
    /// CA certificates (PEM) that the server is verified with. Default: the system's.
    pub ca_file: Option<String>,
    /// The time limit of a command. After it, a request continues without Redis. Default: 100ms.
    #[serde(default = "tenth_of_a_second")]
    pub timeout: HumanDuration,
    /// The prefix of all keys. Two systems that share a Redis need different ones. Default:
    /// `keylatch`.
    #[serde(default = "keylatch")]
    pub prefix: String,
    /// How long a cached binding is used, unless a change is notified. Default: 5min.
    #[serde(default = "five_minutes")]
    pub cache_ttl: HumanDuration,
}

fn tenth_of_a_second() -> HumanDuration {
    HumanDuration(std::time::Duration::from_millis(100))
}

fn five_minutes() -> HumanDuration {
    HumanDuration::secs(300)
}

fn keylatch() -> String {
    "keylatch".into()
}

impl Redis {
    /// Errors that can be found without a network call.
    pub fn mistakes(&self) -> Vec<Invalid> {
        let mut wrong = Vec::new();
        let mut check = |ok: bool, key: &str, says: &str| {
            if !ok {
                wrong.push(Invalid::new(says).at(key).at("redis"));
            }
        };
        check((5..=10_000).contains(&self.timeout.0.as_millis()), "timeout", "must be between 5ms and 10s");
        check((1..=86_400).contains(&self.cache_ttl.0.as_secs()), "cache_ttl", "must be between 1s and 24h");
        let word = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.:".contains(&byte);
        let fine = (1..=64).contains(&self.prefix.len()) && self.prefix.bytes().all(word);
        check(fine, "prefix", "must have 1 to 64 letters, digits and `-_.:`");
        check(self.sentinels.is_empty() || self.cluster.is_empty(), "cluster", "cannot be combined with `sentinels`; remove one of them");
        for (index, node) in self.cluster.iter().enumerate() {
            let port = node.rsplit_once(':').filter(|(host, _)| !host.is_empty()).and_then(|(_, port)| port.parse::<u16>().ok());
            if port.is_none() {
                wrong.push(Invalid::new("must have the form `host:port`").index(index).at("cluster").at("redis"));
            }
        }
        wrong
    }
}
