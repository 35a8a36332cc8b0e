//! The part of [`super::model`] about Redis.

use keylatch_filters::contract::{HumanDuration, Invalid, SecretRef};
use schemars::JsonSchema;
use serde::Deserialize;

/// Redis 6 or later, or Valkey: what replicas remember together. Changing it needs a restart.
#[derive(Clone, Debug, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Redis {
    /// Where it is: `redis://user:password@host:6379/0`, or `rediss://` for TLS, which is verified; from `${ENV}` or `file:PATH`.
    pub url: SecretRef,
    /// Sentinels, as `redis://host:26379`: the host in `url` is then the name of the master they watch, and its port is ignored.
    #[serde(default)]
    pub sentinels: Vec<SecretRef>,
    /// Further nodes of the Redis Cluster that `url` is one of, as `host:port`; user, password and TLS are those of `url`.
    #[serde(default)]
    pub cluster: Vec<String>,
    /// The certificates that may sign the server's, as PEM. Default: the system's.
    pub ca_file: Option<String>,
    /// How long an answer may take: a request waits at most this for Redis, and then does without. Default: 100ms.
    #[serde(default = "tenth_of_a_second")]
    pub timeout: HumanDuration,
    /// What the names of all keys begin with: two systems that share a Redis need two. Default: `keylatch`.
    #[serde(default = "keylatch")]
    pub prefix: String,
    /// For how long a binding in Redis is believed; changes are heard of before. Default: 5min.
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
    /// What makes no sense, without asking anybody.
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
        check(fine, "prefix", "must be 1 to 64 letters, digits and `-_.:`");
        check(self.sentinels.is_empty() || self.cluster.is_empty(), "cluster", "a cluster has no sentinels; leave one of the two out");
        for (index, node) in self.cluster.iter().enumerate() {
            let port = node.rsplit_once(':').filter(|(host, _)| !host.is_empty()).and_then(|(_, port)| port.parse::<u16>().ok());
            if port.is_none() {
                wrong.push(Invalid::new("must be a node as `host:port`").index(index).at("cluster").at("redis"));
            }
        }
        wrong
    }
}
