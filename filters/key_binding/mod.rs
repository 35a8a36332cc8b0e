//! # key_binding
//!
//! Binds an API key to the network that uses it first. From another network the key gets a 403 that
//! says neither whose key it is nor which network is bound; the attempt is recorded as an intercept.
//! The key itself is never stored: its HMAC-SHA256 stands for it.
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
//! `enrol` says what becomes of a key that nobody has bound: `first_use` binds it, `known_only` refuses it, and
//! `{window: {until: 2026-12-01T00:00:00Z}}` binds it until then. With `confirm: upstream` a first use holds at once,
//! and goes again if the upstream answers with 401 or 403, or if it answers with neither a success nor 429 within
//! `retention.unconfirmed`: keys that somebody made up do not fill the store. Say `immediate` where the upstream never
//! sees the client's key, and check it before this filter. `new_keys_per_client` bounds the first uses from one address.
//!
//! `from` lists the places where a key may stand: `authorization`, `x-api-key`, `api-key`, `x-goog-api-key`,
//! `mj-api-secret`, `sec-websocket-protocol` (these are the default), `query-key` (the parameter `key` of Gemini clients),
//! and `{header: NAME}` for any other field. `Bearer ` in front of a key is skipped in `authorization`, `mj-api-secret` and
//! `{header: NAME}`; an empty key is none.
//! The lines of a known field that is not listed do not reach the upstream. A key in the query that is not listed is
//! refused with 401, also with `on_missing: allow`. Two different keys in one request are refused with 400: one could be
//! judged and the other served. A key longer than `key_bytes` is refused with 400.
//!
//! A key that is a signed token (JWS) is named by its header and payload. Its signature does not count: an ECDSA signature
//! can be rewritten into another valid one without the signer's key. Since anybody can write a header and a payload, use
//! `confirm: immediate` with such tokens only behind a `bearer` that verifies them.
//! A binding's rule is `single` (one network), `multiple` (a list), `all`, or `roaming`: up to `networks_max` networks
//! at a time, each of which makes room for another when it was not used for `window`. First use makes a `single` one,
//! or with `rule: {roaming: {networks_max: 3, window: 24h}}` a roaming one. A banned key is refused from everywhere.
//!
//! A client with IPv4 and IPv6 uses either. With `per_family`, a `single` binding that a first use has made takes the network
//! of the first use from the other address family, too, as long as `enrol` lets first uses bind; such a use counts towards
//! `new_keys_per_client`. Say `per_family: false` where clients have one address family: then no other network can be added.
//!
//! In shadow mode keys are bound and judged, and no request is refused. A request that would be refused is recorded as an
//! intercept with the mark `shadow`: `keylatch intercepts list --shadow only`. `alerts.intercepts.shadow` includes them in alerts.
//! Needs `client_ip` before it, or else it judges by the peer.

mod config;
mod dry_run;

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use http::{HeaderName, HeaderValue, StatusCode, header};
use ipnet::IpNet;
use pingora_http::ResponseHeader;
use prometheus::IntCounter;

use crate::contract::{
    Binding, Bindings, Filter, FirstUse, Flow, Hooks, Intercept, Invalid, Key, KeyError, KeyForm, KeyHasher, KeyReader, KeySource, Leash,
    Problem, Quota, Reply, RequestCx, ResponseCx, Result, Roaming, Site, Source, StoreError, UnlistedQuery, UpstreamCx, failure,
    is_event_stream, key_bytes_bound,
};
use crate::limiting::gcra::GcraTable;
use crate::limiting::{ceil_s, client_network};
pub use config::{Config, Confirm, Enrol, FirstRule, OnBan, OnMissing, OnStoreFailure};

const USER_AGENT_BYTES_MAX: usize = 256;
const PATH_BYTES_MAX: usize = 512;

/// The compiled filter.
pub struct KeyBinding {
    config: Config,
    reader: KeyReader,
    /// Fields that could carry a key and are not read.
    unread: Vec<(KeySource, HeaderName)>,
    /// How a client sends a key.
    instruction: String,
    hasher: KeyHasher,
    bindings: Arc<dyn Bindings>,
    /// First uses by client.
    new_keys: Arc<GcraTable>,
    new_keys_quota: Quota,
    store_failures: IntCounter,
}

/// How many clients are remembered for their first uses.
const NEW_KEYS_CLIENTS_MAX: usize = 100_000;

/// What came of looking at a key.
enum Verdict {
    /// May pass.
    Admitted(Arc<Binding>),
    /// Bound elsewhere, or banned.
    Refused(Arc<Binding>),
    /// Nobody has bound it, and nobody may.
    Unknown,
    /// This client has brought too many new ones; until it may bring one more.
    TooMany(Duration),
}

impl Filter for KeyBinding {
    const NAME: &'static str = "key_binding";
    const HOOKS: Hooks = Hooks { request: true, upstream_request: true, response: true, ..Hooks::NONE };
    const SOURCE: &'static str = include_str!("mod.rs");
    type Config = Config;
    /// Who was admitted by which binding.
    type State = Option<(IpAddr, Arc<Binding>)>;

    fn compile(config: Config, site: &mut Site<'_>) -> Result<Self, Invalid> {
        config.check()?;
        Ok(Self {
            reader: KeyReader::new(
                &config.from,
                key_bytes_bound(config.key_bytes).map_err(|invalid| invalid.at("key_bytes"))?,
                UnlistedQuery::Refused,
                site.ports.hasher.form(),
            )
            .map_err(|invalid| invalid.at("from"))?,
            unread: unread(&config.from)?,
            instruction: config.from.first().map(KeySource::instruction).unwrap_or_default(),
            hasher: site.ports.hasher.clone(),
            bindings: Arc::clone(&site.ports.bindings),
            // One for all places: several chains are no way to more.
            new_keys: site.keep("key_binding.new_keys", || GcraTable::new(NEW_KEYS_CLIENTS_MAX)),
            new_keys_quota: Quota::new(config.new_keys_per_client.interval(), config.new_keys_per_client.count),
            store_failures: site.counter(
                "binding_store_failures_total",
                "Requests whose binding could not be looked up, by what was done.",
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
                return Ok(self.missing(KeyError::InQuery.reason(), "An API key in the query is not accepted here.").into());
            }
            Err(error) => return Ok(malformed(error).into()),
        };
        cx.facts.put(key.clone());
        let dry_run = cx.is_dry_run();
        let verdict = if dry_run { self.foresee(cx, &key).await } else { self.judge(cx, &key).await };
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
            Ok(Verdict::Unknown) => Ok(not_here("unknown_key").into()),
            Ok(Verdict::TooMany(wait)) => Ok(too_many(wait).into()),
            Err(error) => Ok(self.store_failed(cx, &error)),
        }
    }

    /// The upstream's word on a key that was new; and a stream that begins can be ended from now on.
    fn response(&self, cx: &mut ResponseCx<'_>, admitted: &mut Self::State) -> Result<()> {
        let Some((client, binding)) = admitted else { return Ok(()) };
        if self.config.on_ban == OnBan::Cut && lasts(cx.response) && cx.facts.get::<Arc<Leash>>().is_none() {
            cx.facts.put(self.bindings.leash(binding.id, *client));
        }
        if cx.source == Source::Upstream && !binding.confirmed {
            match cx.response.status {
                StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => self.bindings.release(binding),
                // A quota is somebody's: the key is known.
                status if status.is_success() || matches!(status, StatusCode::TOO_MANY_REQUESTS | StatusCode::SWITCHING_PROTOCOLS) => {
                    self.bindings.confirm(binding)
                }
                // Says nothing of the key; the next answer may.
                _ => {}
            }
        }
        Ok(())
    }

    /// What was not judged here must not be found by the upstream.
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
    async fn judge(&self, cx: &RequestCx<'_>, key: &Key) -> Result<Verdict, StoreError> {
        let (client, now) = (cx.client(), cx.now.wall);
        let verdict =
            |binding: Arc<Binding>| if binding.admits(client, now) { Verdict::Admitted(binding) } else { Verdict::Refused(binding) };
        let known = match self.bindings.peek(&key.id) {
            None => self.bindings.recall(key.id).await,
            known => known,
        };
        if let Some(known) = known.clone().filter(|known| known.admits(client, now)) {
            if known.is_due(client, now) {
                // Admitted whatever comes of it.
                let _ = self.bindings.roam(key.id, self.network(client), now).await;
            }
            return Ok(Verdict::Admitted(known));
        }
        // What this process remembers may be old: nobody is refused on its word alone. But where nobody
        // can be asked it counts: a key that is known to be bound or banned is not an unknown one.
        let holds = match (self.bindings.look_up(key.id).await, known) {
            (Err(_), Some(known)) => Some(known),
            (holds, _) => holds?,
        };
        let holds = match holds {
            Some(holds) => Some(holds),
            None => self.adopted(cx, key).await?,
        };
        if holds.is_none() && !self.config.enrols(now) {
            return Ok(Verdict::Unknown);
        }
        if holds.as_ref().is_none_or(|holds| self.adds_family(holds, client, now)) {
            let slot = self.new_keys.slot(&client_network(client));
            let brought = self.new_keys.hit(slot, self.new_keys_quota, 1, Duration::ZERO, cx.now.instant);
            if !brought.allowed {
                return Ok(Verdict::TooMany(brought.retry_in));
            }
        }
        if let Some(holds) = holds {
            return Ok(verdict(self.roamed(cx, holds).await));
        }
        // In shadow mode no response is seen, so nothing could confirm it later.
        let confirmed = self.config.confirm == Confirm::Immediate || cx.shadow;
        let first = FirstUse {
            id: key.id,
            hint: key.hint.clone(),
            network: self.network(client),
            roaming: self.roaming(),
            confirmed,
            at: cx.now.wall,
        };
        // Another client may have been first, and may have left room for this one.
        let holds = self.bindings.latch(first).await?;
        Ok(verdict(self.roamed(cx, holds).await))
    }

    /// Whether this use is the first one of its address family, and may bind it.
    fn adds_family(&self, holds: &Binding, client: IpAddr, now: SystemTime) -> bool {
        self.config.per_family && !holds.banned && holds.lacks_family(client) && self.config.enrols(now)
    }

    /// The binding after its rule has made room for this client, if it has room. If the store cannot say, the binding as it
    /// is: a known key is not an unknown one.
    async fn roamed(&self, cx: &RequestCx<'_>, holds: Arc<Binding>) -> Arc<Binding> {
        let (client, now) = (cx.client(), cx.now.wall);
        let roams = !holds.banned && holds.roaming.is_some() && !holds.admits(client, now) || self.adds_family(&holds, client, now);
        match roams {
            true => self.bindings.roam(holds.id, self.network(client), now).await.ok().flatten().unwrap_or(holds),
            false => holds,
        }
    }

    /// The binding that the key has under an id from before.
    async fn adopted(&self, cx: &RequestCx<'_>, key: &Key) -> Result<Option<Arc<Binding>>, StoreError> {
        let earlier = match self.reader.read(cx.request) {
            Ok(Some(text)) => self.hasher.earlier_ids(&text),
            _ => Vec::new(),
        };
        if earlier.is_empty() { Ok(None) } else { self.bindings.adopt(key.id, earlier).await }
    }

    fn missing(&self, reason: &'static str, what: &str) -> Reply {
        Reply::new(Problem::Unauthenticated, "missing_api_key", reason, format!("{what} {}", self.instruction))
            .header(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"))
    }

    fn roaming(&self) -> Option<Roaming> {
        match self.config.rule {
            FirstRule::Single => None,
            FirstRule::Roaming { networks_max, window } => Some(Roaming { networks_max, window: window.0 }),
        }
    }

    /// The network a first use binds to.
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
            path: cut(cx.request.uri.path(), PATH_BYTES_MAX),
            user_agent: cut(&user_agent.unwrap_or_default(), USER_AGENT_BYTES_MAX),
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
                "The API key could not be checked right now. Try again shortly.",
            )
            .header(header::RETRY_AFTER, HeaderValue::from_static("1"))
            .detail(error.to_string())
            .into(),
        }
    }
}

/// Whether what this begins may go on for long: an event stream, or what is not HTTP any more.
fn lasts(response: &ResponseHeader) -> bool {
    response.status == StatusCode::SWITCHING_PROTOCOLS || is_event_stream(&response.headers)
}

/// One answer for both: a client with a stolen key learns nothing from the difference.
fn refusal(binding: &Binding) -> Reply {
    not_here(if binding.banned { "banned" } else { "other_network" })
}

fn not_here(reason: &'static str) -> Reply {
    Reply::new(Problem::Forbidden, "key_not_allowed_here", reason, "This API key cannot be used from your network.")
}

fn too_many(wait: Duration) -> Reply {
    let message = "Too many API keys were used for the first time from your address. Try again later.";
    Reply::new(Problem::RateLimited, "too_many_new_keys", "new_keys", message)
        .header(header::RETRY_AFTER, HeaderValue::from(ceil_s(wait).max(1)))
}

fn malformed(error: KeyError) -> Reply {
    let message = match error {
        KeyError::Two => "The request carries two different API keys. Send one.".to_owned(),
        KeyError::TooLong(bytes) => format!("The API key is longer than {bytes} bytes."),
        KeyError::Malformed | KeyError::InQuery => "The API key is malformed.".to_owned(),
    };
    Reply::new(Problem::BadRequest, "malformed_api_key", error.reason(), message)
}

/// The known fields that are not read.
fn unread(from: &[KeySource]) -> Result<Vec<(KeySource, HeaderName)>, Invalid> {
    let read: Vec<_> = from.iter().map(KeySource::header).collect::<Result<_, _>>().map_err(|invalid| invalid.at("from"))?;
    let known = KeySource::FIELDS.into_iter().filter_map(|source| source.header().ok().flatten().map(|name| (source, name)));
    Ok(known.filter(|(_, name)| !read.contains(&Some(name.clone()))).collect())
}

/// Removes the client's lines of a field that is not read. Lines that another filter has set stay, and of WebSocket's
/// protocols all but the keys.
fn remove_keys(source: &KeySource, name: &HeaderName, form: KeyForm, cx: &mut UpstreamCx<'_>) -> Result<()> {
    let sent: Vec<&HeaderValue> = cx.request.headers.get_all(name).iter().collect();
    let goes = |line: &HeaderValue| sent.contains(&line) && source.carries_key(line.as_bytes(), form);
    let lines: Vec<HeaderValue> = cx.upstream.headers.get_all(name).iter().cloned().collect();
    if !lines.iter().any(goes) {
        return Ok(());
    }
    cx.upstream.remove_header(name);
    for line in lines {
        let left = if goes(&line) { source.without_key(line.as_bytes(), form).map(HeaderValue::try_from) } else { Some(Ok(line)) };
        if let Some(line) = left.transpose().map_err(failure)? {
            cx.upstream.append_header(name.clone(), line).map_err(failure)?;
        }
    }
    Ok(())
}

/// The start of `text`, at most `bytes_max` long, cut between characters.
fn cut(text: &str, bytes_max: usize) -> String {
    text[..text.floor_char_boundary(bytes_max)].to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cuts_between_characters() {
        assert_eq!(cut("aé", 2), "a");
        assert_eq!(cut("aé", 3), "aé");
        assert_eq!(cut("", 3), "");
    }
}
