//! # key_binding
//!
//! Binds an API key to the network that uses it first. From any other network the key gets 403, and
//! the attempt is recorded as an intercept. The response tells neither the owner of the key nor the
//! bound network. The key itself is never stored: its HMAC-SHA256 identifies it.
//!
//! ```yaml
//! key_binding:
//!   from: [authorization, x-api-key]
//!   key_bytes: 8KiB
//!   ipv4_prefix: 32
//!   ipv6_prefix: 64
//!   rule: single
//!   per_family: true
//!   enrol: first_use
//!   confirm: upstream
//!   new_keys_per_client: 60/h
//!   on_ban: cut
//!   on_missing: refuse
//!   on_store_failure: closed
//! ```
//!
//! Place `client_ip` before this filter. Without it, the filter uses the address of the peer.
//!
//! ## First use
//!
//! `enrol` decides about a key that is not bound:
//!
//! - `first_use` binds it.
//! - `known_only` refuses it. Only operators make bindings.
//! - `{window: {until: 2026-12-01T00:00:00Z}}` binds it until that time and refuses it afterwards.
//!
//! With `confirm: upstream` a first use is in force at once, but stays unconfirmed until the
//! upstream accepts the key. The binding is removed if the upstream answers with 401 or 403, or if
//! it answers with neither a success nor 429 within `retention.unconfirmed`. Invented keys
//! therefore do not fill the store. Use `confirm: immediate` if the upstream never sees the key of
//! the client, and verify the key in a filter before this one.
//!
//! `new_keys_per_client` limits the first uses from one client address.
//!
//! ## Where keys are read
//!
//! `from` lists the places where a request can carry the key:
//!
//! - `authorization`, `x-api-key`, `api-key`, `x-goog-api-key`, `mj-api-secret` and
//!   `sec-websocket-protocol`: the default.
//! - `query-key`: the query parameter `key` of Gemini clients.
//! - `{header: NAME}`: any other header field.
//!
//! The prefix `Bearer ` is skipped in `authorization`, `mj-api-secret` and `{header: NAME}`. An
//! empty key counts as none.
//!
//! - A key in a known header field that is not listed does not reach the upstream.
//! - A key in the query that is not listed is refused with 401, also with `on_missing: allow`.
//! - Two different keys in one request are refused with 400, because the upstream could use a key
//!   that was not checked.
//! - A key longer than `key_bytes` is refused with 400.
//!
//! ## Signed tokens as keys
//!
//! A key that is a signed token (JWS) is identified by its header and payload. The signature does
//! not count, because an ECDSA signature can be rewritten into another valid one without the
//! private key. Since anyone can write a header and a payload, use `confirm: immediate` with such
//! tokens only after a `bearer` filter that verifies them.
//!
//! ## Rules
//!
//! The rule of a binding is one of:
//!
//! - `single`: one network.
//! - `multiple`: a list of networks.
//! - `all`: every network.
//! - `roaming`: up to `networks_max` networks at a time. A network that was not used for `window`
//!   makes room for another.
//!
//! A first use makes a `single` binding, or a roaming one with
//! `rule: {roaming: {networks_max: 3, window: 24h}}`. A banned key is refused from every network.
//!
//! A dual-stack client uses both IPv4 and IPv6. With `per_family: true`, a `single` binding that a
//! first use has made also adds the network of the first use from the other address family, as long
//! as `enrol` allows first uses. Such a use counts towards `new_keys_per_client`. Set
//! `per_family: false` if clients have one address family, so that no second network can be added.
//!
//! ## Shadow mode
//!
//! In shadow mode keys are bound and checked, but no request is refused. A request that would be
//! refused is recorded as an intercept that is marked as `shadow`.
//! `keylatch intercepts list --shadow only` lists them, and `alerts.intercepts.shadow` includes
//! them in alerts.

mod config;
mod dry_run;
mod replies;
mod truncate;
mod unread_keys;

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use http::{HeaderName, HeaderValue, StatusCode, header};
use ipnet::IpNet;
use pingora_http::ResponseHeader;
use prometheus::IntCounter;

use crate::contract::{
    Binding, Bindings, CancellationHandle, Filter, FirstUse, Flow, Hooks, Intercept, Invalid, Key, KeyError, KeyHasher, KeyReader,
    KeySource, KeyUse, Problem, Quota, Reply, RequestCx, ResponseCx, Result, Roaming, Site, Source, StoreError, UnlistedQuery, UpstreamCx,
    is_event_stream, key_bytes_bound,
};
use crate::limiting::client_network;
use crate::limiting::gcra::GcraTable;
pub use config::{Confirm, Enrol, FirstRule, KeyBindingConfig, OnBan, OnMissing, OnStoreFailure};
use replies::{forbidden, malformed, refusal, too_many};
use truncate::truncated;
use unread_keys::{remove_keys, unread_fields};

const USER_AGENT_BYTES_MAX: usize = 256;
const PATH_BYTES_MAX: usize = 512;

/// The compiled filter.
pub struct KeyBinding {
    config: KeyBindingConfig,
    reader: KeyReader,
    /// Known key fields that the configuration does not list.
    unread: Vec<(KeySource, HeaderName)>,
    /// The sentence that tells a client how to send a key.
    instruction: String,
    hasher: KeyHasher,
    bindings: Arc<dyn Bindings>,
    /// The first uses of each client.
    new_keys: Arc<GcraTable>,
    new_keys_quota: Quota,
    store_failures: IntCounter,
}

/// First uses are counted for at most this number of clients.
const NEW_KEYS_CLIENTS_MAX: usize = 100_000;

/// The verdict on a key.
enum Verdict {
    /// The binding admits the client.
    Admitted(Arc<Binding>),
    /// The key is bound to other networks, or banned.
    Refused(Arc<Binding>),
    /// The key is not bound, and a first use may not bind it.
    Unknown,
    /// The client has used too many new keys. With the time until the next one is allowed.
    TooMany(Duration),
}

impl Filter for KeyBinding {
    const NAME: &'static str = "key_binding";
    const HOOKS: Hooks = Hooks { request: true, upstream_request: true, response: true, ..Hooks::NONE };
    const SOURCE: &'static str = include_str!("mod.rs");
    type Config = KeyBindingConfig;
    /// The admitted client and its binding.
    type State = Option<(IpAddr, Arc<Binding>)>;

    fn compile(config: KeyBindingConfig, site: &mut Site<'_>) -> Result<Self, Invalid> {
        config.check()?;
        Ok(Self {
            reader: KeyReader::new(
                &config.from,
                key_bytes_bound(config.key_bytes).map_err(|invalid| invalid.at("key_bytes"))?,
                UnlistedQuery::Refused,
                site.ports.hasher.form(),
            )
            .map_err(|invalid| invalid.at("from"))?,
            unread: unread_fields(&config.from)?,
            instruction: config.from.first().map(KeySource::instruction).unwrap_or_default(),
            hasher: site.ports.hasher.clone(),
            bindings: Arc::clone(&site.ports.bindings),
            // One table for all chains, so that several chains do not multiply the limit.
            new_keys: site.keep("key_binding.new_keys", || GcraTable::new(NEW_KEYS_CLIENTS_MAX)),
            new_keys_quota: Quota::new(config.new_keys_per_client.interval(), config.new_keys_per_client.count),
            store_failures: site.counter(
                "binding_store_failures_total",
                "Requests with a binding that could not be read from the store, by outcome.",
                ("outcome", if config.on_store_failure == OnStoreFailure::Open { "open" } else { "closed" }),
            ),
            config,
        })
    }

    async fn request(&self, cx: &mut RequestCx<'_>, admitted: &mut Self::State) -> Result<Flow> {
        let key = match self.reader.read(cx.request) {
            Ok(Some(key)) => self.hasher.key(&key),
            Ok(None) if self.config.on_missing == OnMissing::Allow => return Ok(Flow::Continue),
            Ok(None) => return Ok(self.missing("missing_key", "No API key was sent.").into()),
            Err(KeyError::InQuery) => {
                return Ok(self.missing(KeyError::InQuery.reason(), "An API key in the query is not accepted.").into());
            }
            Err(error) => return Ok(malformed(error).into()),
        };
        cx.facts.put(key.clone());
        let dry_run = cx.is_dry_run();
        let verdict = if dry_run { self.dry_run_verdict(cx, &key).await } else { self.verdict(cx, &key).await };
        match verdict {
            Ok(Verdict::Admitted(binding)) => {
                if !dry_run {
                    self.bindings.used(key.id, cx.now.wall);
                }
                cx.facts.put(Arc::clone(&binding));
                *admitted = Some((cx.client(), binding));
                Ok(Flow::Continue)
            }
            Ok(Verdict::Refused(binding)) => {
                if !dry_run {
                    self.intercepted(cx, key, &binding);
                }
                Ok(refusal(&binding).into())
            }
            Ok(Verdict::Unknown) => Ok(forbidden("unknown_key").into()),
            Ok(Verdict::TooMany(wait)) => Ok(too_many(wait).into()),
            Err(error) => Ok(self.store_failed(cx, &error)),
        }
    }

    /// Confirms or releases a new binding by the status of the upstream, and registers a stream for cancellation.
    fn response(&self, cx: &mut ResponseCx<'_>, admitted: &mut Self::State) -> Result<()> {
        let Some((client, binding)) = admitted else { return Ok(()) };
        if self.config.on_ban == OnBan::Cut && is_long_lived(cx.response) && cx.facts.get::<Arc<CancellationHandle>>().is_none() {
            cx.facts.put(self.bindings.stream_cancellation(binding.id, *client));
        }
        if cx.source == Source::Upstream && !binding.confirmed {
            match cx.response.status {
                StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => self.bindings.release(binding),
                // 429 means that the upstream knows the key.
                status if status.is_success() || matches!(status, StatusCode::TOO_MANY_REQUESTS | StatusCode::SWITCHING_PROTOCOLS) => {
                    self.bindings.confirm(binding)
                }
                // Any other status tells nothing about the key; a later response may.
                _ => {}
            }
        }
        Ok(())
    }

    /// Removes keys in fields that were not read: the upstream must not use a key that was not checked.
    fn upstream_request(&self, cx: &mut UpstreamCx<'_>, _admitted: &mut Self::State) -> Result<()> {
        for (source, name) in &self.unread {
            if cx.request.headers.contains_key(name) {
                remove_keys(source, name, self.hasher.form(), cx)?;
            }
        }
        Ok(())
    }
}

impl KeyBinding {
    async fn verdict(&self, cx: &RequestCx<'_>, key: &Key) -> Result<Verdict, StoreError> {
        let (client, now) = (cx.client(), cx.now.wall);
        let verdict =
            |binding: Arc<Binding>| if binding.admits(client, now) { Verdict::Admitted(binding) } else { Verdict::Refused(binding) };
        if let Some(cached) = self.bindings.cached(&key.id).filter(|cached| cached.admits(client, now)) {
            return Ok(self.admitted(cached, client, now).await);
        }
        // A cached binding must not refuse: it may be stale.
        let current = match self.bindings.authoritative(key.id, Some(KeyUse { client, at: now })).await? {
            Some(current) if current.admits(client, now) => return Ok(self.admitted(current, client, now).await),
            Some(current) => Some(current),
            None => self.adopted(cx, key).await?,
        };
        if current.is_none() && !self.config.enrols(now) {
            return Ok(Verdict::Unknown);
        }
        if current.as_ref().is_none_or(|current| self.adds_family(current, client, now)) {
            let slot = self.new_keys.slot(&client_network(client));
            let brought = self.new_keys.hit(slot, self.new_keys_quota, 1, Duration::ZERO, cx.now.instant);
            if !brought.allowed {
                return Ok(Verdict::TooMany(brought.retry_in));
            }
        }
        if let Some(current) = current {
            return Ok(verdict(self.with_client(cx, current).await));
        }
        // In shadow mode the response hook does not run, so that nothing would confirm the binding later.
        let confirmed = self.config.confirm == Confirm::Immediate || cx.shadow;
        let first = FirstUse {
            id: key.id,
            hint: key.hint.clone(),
            network: self.network(client),
            roaming: self.roaming(),
            confirmed,
            at: cx.now.wall,
        };
        // Another client may have bound the key first; its binding may still have room for this client.
        let current = self.bindings.bind_first_use(first).await?;
        Ok(verdict(self.with_client(cx, current).await))
    }

    /// Admits the client, and records now and then that its network is in use.
    async fn admitted(&self, binding: Arc<Binding>, client: IpAddr, now: SystemTime) -> Verdict {
        if binding.is_due(client, now) {
            // The request is admitted even if this write fails.
            let _ = self.bindings.roam(binding.id, self.network(client), now).await;
        }
        Verdict::Admitted(binding)
    }

    /// Whether this use is the first from its address family and may add its network.
    fn adds_family(&self, binding: &Binding, client: IpAddr, now: SystemTime) -> bool {
        self.config.per_family && !binding.banned && binding.lacks_family(client) && self.config.enrols(now)
    }

    /// The binding after the network of this client was added, if the rule has room for it. Unchanged if the store fails:
    /// a known key must not be treated as unknown.
    async fn with_client(&self, cx: &RequestCx<'_>, binding: Arc<Binding>) -> Arc<Binding> {
        let (client, now) = (cx.client(), cx.now.wall);
        let may_add =
            !binding.banned && binding.roaming.is_some() && !binding.admits(client, now) || self.adds_family(&binding, client, now);
        match may_add {
            true => self.bindings.roam(binding.id, self.network(client), now).await.ok().flatten().unwrap_or(binding),
            false => binding,
        }
    }

    /// The binding of the key under an earlier id, moved to the current id.
    async fn adopted(&self, cx: &RequestCx<'_>, key: &Key) -> Result<Option<Arc<Binding>>, StoreError> {
        let earlier = match self.reader.read(cx.request) {
            Ok(Some(text)) => self.hasher.earlier_ids(&text),
            _ => Vec::new(),
        };
        if earlier.is_empty() { Ok(None) } else { self.bindings.adopt(key.id, earlier).await }
    }

    fn missing(&self, reason: &'static str, problem: &str) -> Reply {
        Reply::new(Problem::Unauthenticated, "missing_api_key", reason, format!("{problem} {}", self.instruction))
            .header(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"))
    }

    fn roaming(&self) -> Option<Roaming> {
        match self.config.rule {
            FirstRule::Single => None,
            FirstRule::Roaming { networks_max, window } => Some(Roaming { networks_max, window: window.0 }),
        }
    }

    /// The network that a first use from this client binds.
    fn network(&self, client: IpAddr) -> IpNet {
        self.config.network(client)
    }

    fn intercepted(&self, cx: &RequestCx<'_>, key: Key, binding: &Binding) {
        let user_agent = cx.headers().get(header::USER_AGENT).map(|value| String::from_utf8_lossy(value.as_bytes()));
        self.bindings.intercepted(Intercept {
            id: key.id,
            hint: key.hint,
            client: cx.client(),
            networks: binding.networks.clone(),
            method: cx.request.method.as_str().to_owned(),
            path: truncated(cx.request.uri.path(), PATH_BYTES_MAX),
            user_agent: truncated(&user_agent.unwrap_or_default(), USER_AGENT_BYTES_MAX),
            route: cx.route.to_owned(),
            banned: binding.banned,
            shadow: cx.shadow,
            at: cx.now.wall,
        });
    }

    fn store_failed(&self, cx: &mut RequestCx<'_>, error: &StoreError) -> Flow {
        self.store_failures.inc();
        match self.config.on_store_failure {
            OnStoreFailure::Open if !matches!(error, StoreError::Unsettled(_)) => {
                cx.facts.let_through(Self::NAME);
                Flow::Continue
            }
            OnStoreFailure::Open | OnStoreFailure::Closed => Reply::new(
                Problem::Unavailable,
                "binding_unavailable",
                "store_failure",
                "The API key cannot be checked at the moment. Retry in 1 s.",
            )
            .header(header::RETRY_AFTER, HeaderValue::from_static("1"))
            .detail(error.to_string())
            .into(),
        }
    }
}

/// Whether the response is long-lived: an event stream, or an upgraded connection.
fn is_long_lived(response: &ResponseHeader) -> bool {
    response.status == StatusCode::SWITCHING_PROTOCOLS || is_event_stream(&response.headers)
}
