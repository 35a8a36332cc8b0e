//! Connects to Redis: a single server, the master that Sentinel names, or a cluster. Keeping the
//! connection belongs to `redis`.

use std::time::Duration;

use keylatch_filters::contract::{Resolve, SecretRef};
use redis::aio::MultiplexedConnection;
use redis::cluster::ClusterClient;
use redis::cluster_async::ClusterConnection;
use redis::sentinel::{SentinelClient, SentinelClientBuilder, SentinelServerType};
use redis::{AsyncConnectionConfig, Client, ConnectionAddr, ConnectionInfo, IntoConnectionInfo, TlsCertificates, TlsMode};

use crate::config::model::Redis as RedisConfig;
use crate::config::{Files, store_url};

/// The time limit of one connection attempt, handshake included.
const CONNECT_TIME_MAX: Duration = Duration::from_secs(2);

/// The configured kind of Redis.
pub enum Target {
    One(Box<Client>),
    Sentinel(Box<SentinelClient>),
    Cluster(Box<ClusterClient>),
}

/// A connection that callers share.
#[derive(Clone)]
pub enum Link {
    One(MultiplexedConnection),
    Cluster(ClusterConnection),
}

impl Target {
    /// Errors say what to do and contain no URL, which may contain a password.
    pub fn from_config(config: &RedisConfig, files: &Files) -> Result<Self, String> {
        let server = info(&config.url, files, "redis.url")?;
        let certificates = match &config.ca_file {
            Some(path) if is_tls(&server) || config.sentinels.iter().any(|url| url.text().starts_with("rediss:")) => {
                let pem = files.file(path).map_err(|e| format!("redis.ca_file: {e}"))?;
                if !pem.contains("BEGIN CERTIFICATE") {
                    return Err(format!("redis.ca_file: `{path}` contains no PEM certificate"));
                }
                Some(TlsCertificates { client_tls: None, root_cert: Some(pem.into_bytes()) })
            }
            Some(_) => return Err("redis.ca_file has an effect with `rediss://` only".into()),
            None => None,
        };
        let made = if !config.sentinels.is_empty() {
            sentinel(&server, config, files, certificates)?
        } else if !config.cluster.is_empty() {
            cluster(server, config, certificates)
        } else {
            match certificates {
                Some(certificates) => Client::build_with_tls(server, certificates),
                None => Client::open(server),
            }
            .map(Box::new)
            .map(Target::One)
        };
        made.map_err(|error| format!("redis: {}", first_line(&error)))
    }

    /// Makes a new connection.
    pub async fn connect(&mut self, timeout: Duration) -> redis::RedisResult<Link> {
        let config = AsyncConnectionConfig::new().set_connection_timeout(Some(CONNECT_TIME_MAX)).set_response_timeout(Some(timeout));
        let connecting = async {
            match self {
                Target::One(client) => client.get_multiplexed_async_connection_with_config(&config).await.map(Link::One),
                Target::Sentinel(client) => client.get_async_connection_with_config(&config).await.map(Link::One),
                Target::Cluster(client) => client.get_async_connection().await.map(Link::Cluster),
            }
        };
        // Sentinels and nodes are tried one after the other.
        let late = |_| Err((redis::ErrorKind::Io, "no answer in time").into());
        tokio::time::timeout(3 * CONNECT_TIME_MAX, connecting).await.unwrap_or_else(late)
    }
}

fn is_tls(info: &ConnectionInfo) -> bool {
    matches!(info.addr(), ConnectionAddr::TcpTls { .. })
}

fn info(url: &SecretRef, files: &Files, place: &str) -> Result<ConnectionInfo, String> {
    let url = files.secret(url).map_err(|e| format!("{place}: {e}"))?;
    let url = store_url::redis(&url).map_err(|error| format!("{place} {error}"))?;
    // The parser's error may contain the URL.
    url.as_str().into_connection_info().map_err(|_| format!("{place} is malformed"))
}

fn sentinel(
    master: &ConnectionInfo,
    config: &RedisConfig,
    files: &Files,
    certificates: Option<TlsCertificates>,
) -> Result<redis::RedisResult<Target>, String> {
    let sentinels: Vec<ConnectionInfo> =
        config.sentinels.iter().enumerate().map(|(n, url)| info(url, files, &format!("redis.sentinels[{n}]"))).collect::<Result<_, _>>()?;
    let name = match master.addr() {
        ConnectionAddr::Tcp(host, _) | ConnectionAddr::TcpTls { host, .. } => host.clone(),
        _ => return Err("redis.url: with sentinels, the host must be the name of the monitored master".into()),
    };
    let same = |a: &ConnectionInfo, b: &ConnectionInfo| {
        let (one, other) = (a.redis_settings(), b.redis_settings());
        (one.username(), one.password(), is_tls(a)) == (other.username(), other.password(), is_tls(b))
    };
    let Some(first) = sentinels.first().filter(|first| sentinels.iter().all(|other| same(first, other))) else {
        return Err("redis.sentinels: all must have the same user, password and scheme".into());
    };
    let made = || {
        let addresses = sentinels.iter().map(|one| one.addr().clone());
        let mut builder = SentinelClientBuilder::new(addresses, name, SentinelServerType::Master)?;
        builder = builder.set_client_to_redis_db(master.redis_settings().db());
        if let Some(user) = master.redis_settings().username() {
            builder = builder.set_client_to_redis_username(user);
        }
        if let Some(password) = master.redis_settings().password() {
            builder = builder.set_client_to_redis_password(password);
        }
        if is_tls(master) {
            builder = builder.set_client_to_redis_tls_mode(TlsMode::Secure);
        }
        if let Some(user) = first.redis_settings().username() {
            builder = builder.set_client_to_sentinel_username(user);
        }
        if let Some(password) = first.redis_settings().password() {
            builder = builder.set_client_to_sentinel_password(password);
        }
        if is_tls(first) {
            builder = builder.set_client_to_sentinel_tls_mode(TlsMode::Secure);
        }
        if let Some(certificates) = certificates {
            builder = builder.set_client_to_redis_certificates(certificates.clone()).set_client_to_sentinel_certificates(certificates);
        }
        builder.build().map(|client| Target::Sentinel(Box::new(client)))
    };
    Ok(made())
}

fn cluster(first: ConnectionInfo, config: &RedisConfig, certificates: Option<TlsCertificates>) -> redis::RedisResult<Target> {
    let mut nodes = vec![first.clone()];
    for node in &config.cluster {
        // The form was checked with the rest of the file.
        let Some((host, port)) = node.rsplit_once(':').and_then(|(host, port)| Some((host.to_owned(), port.parse().ok()?))) else {
            continue;
        };
        let addr = match first.addr() {
            ConnectionAddr::TcpTls { insecure, tls_params, .. } => {
                ConnectionAddr::TcpTls { host, port, insecure: *insecure, tls_params: tls_params.clone() }
            }
            _ => ConnectionAddr::Tcp(host, port),
        };
        nodes.push(first.clone().set_addr(addr));
    }
    let mut builder = ClusterClient::builder(nodes).connection_timeout(CONNECT_TIME_MAX).response_timeout(config.timeout.0).retries(1);
    if let Some(certificates) = certificates {
        builder = builder.certs(certificates);
    }
    builder.build().map(Box::new).map(Target::Cluster)
}

/// The first line of the driver's error, without what it quotes from servers and URLs.
pub fn first_line(error: &redis::RedisError) -> String {
    let text = error.to_string();
    let line = text.lines().next().unwrap_or_default();
    line.chars().take(200).collect()
}
