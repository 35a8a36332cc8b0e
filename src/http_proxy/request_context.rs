//! The context of one request and its response, shared by the phases. It decides nothing.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use http::{StatusCode, Uri};
use keylatch_filters::chain::{Chain, Progress};
use keylatch_filters::contract::{ClientAddress, Dialect, Facts, Identity, Key, LetThrough, LogCx, Now, RequestIds, Tags, UsageRecord};
use pingora::proxy::Session;

use super::body_ahead::BodyAhead;
use super::model_watch::ModelWatch;
use super::state::ProxyState;
use super::stream_state::StreamState;
use super::timed_session::{self, SessionSlot};
use crate::compile::{Route, Snapshot};
use crate::listener::conn::Conn;
use crate::telemetry::access::AccessLine;
use crate::telemetry::streams::{OpenStream, StreamInfo};
use crate::upstream::reuse::Connection;
use crate::upstream::{Address, Attempts};

/// The route of one request, resolved once. A field of its own, so that a phase can borrow the
/// route together with the facts.
pub struct Routing {
    /// The configuration that applies from its start to its end.
    pub snapshot: Arc<Snapshot>,
    /// The index of the route.
    index: Option<usize>,
}

impl Routing {
    /// Sets the route that matches.
    pub fn resolve(&mut self, index: usize) {
        self.index = Some(index);
    }

    /// The route, once it is known.
    pub fn route(&self) -> Option<&Route> {
        self.snapshot.routes.get(self.index?)
    }

    /// The chain of the route, or the one for requests without a route.
    pub fn chain(&self) -> &Chain {
        self.route().map_or(&self.snapshot.unrouted, |route| &route.chain)
    }
}

/// The context of one request.
pub struct RequestContext {
    /// Its route and configuration.
    pub routing: Routing,
    /// The facts that filters have added.
    pub facts: Facts,
    /// Its progress in the chain.
    pub progress: Progress,
    /// When its header was complete.
    pub now: Now,
    /// The peer of the connection.
    pub peer: IpAddr,
    /// The connection.
    pub conn: Option<Arc<Conn>>,
    /// The dialect of errors.
    pub dialect: Dialect,
    /// What answered instead of the upstream (a filter, `gate`, `acme`, `maintenance`, `no_route`,
    /// `body_limit` or `proxy`), and the reason.
    pub answered: Option<(&'static str, &'static str)>,
    /// Details of the reason for the log only.
    pub detail: Option<String>,
    /// The server in use.
    pub server: Option<Address>,
    /// The upstream attempts so far.
    pub attempts: Attempts,
    /// The connection to the server, if it is known.
    pub upstream_connection: Option<Arc<Connection>>,
    /// The upstream has begun its response.
    pub responded: bool,
    /// The `Host` for the chosen server, if it differs from the client's.
    pub host: Option<String>,
    /// The target for the upstream, if the client's spelling differs from the normalised one.
    pub spelled_target: Option<Uri>,
    /// It requests an upgrade to another protocol, and the gate has allowed that.
    pub upgrades: bool,
    /// The listener allows field names with an underscore.
    pub underscores_allowed: bool,
    /// Bytes of the request body so far.
    pub bytes_in: u64,
    /// The part of the body that was read ahead, until the session sends it.
    pub ahead: Option<BodyAhead>,
    /// Reads the rest of it.
    pub model_watch: Option<ModelWatch>,
    /// The client was asked for its body, so the upstream need not ask.
    pub body_asked_for: bool,
    /// Time to the first byte of the response body.
    pub first_byte: Option<Duration>,
    /// The real session while a timed one replaces it.
    pub session_slot: Option<SessionSlot>,
    /// The registration as an open connection after an upgrade.
    pub open: Option<OpenStream>,
    /// The status of an upstream response that came after an early response of Keylatch.
    pub late_status: Option<StatusCode>,
    /// The error, for the log.
    pub error: Option<String>,
}

impl RequestContext {
    /// A context that begins now.
    pub fn begin(snapshot: Arc<Snapshot>) -> Self {
        Self {
            routing: Routing { snapshot, index: None },
            facts: Facts::default(),
            progress: Progress::default(),
            now: Now::read(),
            peer: IpAddr::from([0, 0, 0, 0]),
            conn: None,
            dialect: Dialect::OpenAi,
            answered: None,
            detail: None,
            server: None,
            attempts: Attempts::default(),
            upstream_connection: None,
            responded: false,
            host: None,
            spelled_target: None,
            upgrades: false,
            underscores_allowed: false,
            bytes_in: 0,
            ahead: None,
            model_watch: None,
            body_asked_for: false,
            first_byte: None,
            session_slot: None,
            open: None,
            late_status: None,
            error: None,
        }
    }

    /// Its route, once it is known.
    pub fn route(&self) -> Option<&Route> {
        self.routing.route()
    }

    /// Restores the real session. `None`: none replaces it.
    pub fn restore_session(&mut self, session: &mut Session) -> Option<StreamState> {
        timed_session::restore(&mut session.downstream_session, &self.session_slot.take()?)
    }

    /// Its id in logs.
    pub fn request_id(&self) -> Option<&str> {
        self.facts.get::<RequestIds>().map(|ids| ids.request_id.as_str())
    }

    /// The description of its stream for operators.
    pub fn stream_info(&self, session: &Session) -> StreamInfo {
        StreamInfo {
            started_at: self.now.wall,
            route: self.route().map_or_else(|| "-".into(), |route| route.name.to_string()),
            client: self.facts.get::<ClientAddress>().map_or(self.peer, |client| client.address),
            key: self.facts.get::<Key>().cloned(),
            subject: self.facts.get::<Identity>().and_then(|identity| identity.subject.as_deref().map(str::to_owned)),
            path: session.req_header().uri.path().to_owned(),
            request_id: self.request_id().map(str::to_owned),
            upstream: self.server.clone(),
        }
    }

    /// Takes over the status of a late upstream response from the stream's state.
    pub fn note_late_answer(&mut self, stream: Option<&StreamState>) {
        let Some((status, failure)) = stream.and_then(StreamState::late_answer) else { return };
        self.late_status = Some(status);
        if failure && self.error.is_none() {
            self.error = Some(format!("the upstream answered {} after the response had begun", status.as_u16()));
        }
    }

    /// Ends the request: log hooks, metrics, access log.
    pub fn finish(&mut self, session: &Session, state: &ProxyState) {
        self.upstream_connection.take().iter().for_each(|connection| connection.idle());
        let status = session.response_written().map(|response| response.status);
        let duration = self.now.instant.elapsed();
        let route = self.routing.route();
        let name = route.map_or("-", |route| &*route.name);
        if let Some(route) = route {
            let (route_name, upstream) = (&route.name, &route.upstream.name);
            let (request, facts, now) = (session.req_header(), &mut self.facts, self.now);
            let mut cx = LogCx { request, status, facts, route: route_name, upstream, now, duration };
            route.chain.log(&mut cx, &mut self.progress);
        }
        self.count(name, status, duration, state);
        if self.routing.snapshot.settings.log.access {
            self.write_access_line(session, status, duration, state);
        }
    }

    fn count(&self, route: &str, status: Option<StatusCode>, duration: Duration, state: &ProxyState) {
        let metrics = &state.metrics;
        let code = status.map_or(0, |status| status.as_u16());
        let status = status.as_ref().map_or("0", StatusCode::as_str);
        metrics.requests.with_label_values(&[route, status]).inc();
        metrics.duration.with_label_values(&[route]).observe(duration.as_secs_f64());
        if let Some(late) = &self.late_status {
            metrics.late_answers.with_label_values(&[route, late.as_str()]).inc();
        }
        if let Some(first_byte) = self.first_byte {
            metrics.first_byte.with_label_values(&[route]).observe(first_byte.as_secs_f64());
        }
        let client = self.facts.get::<ClientAddress>().map_or(self.peer, |client| client.address);
        metrics.top_requesters.count(client, self.facts.get::<Key>(), code);
        for decision in &self.progress.decisions {
            let outcome = match (decision.shadow, decision.answer) {
                (true, _) => "shadow",
                (false, true) => "answered",
                (false, false) => "refused",
            };
            metrics.decisions.with_label_values(&[decision.filter, decision.reason, outcome]).inc();
        }
    }

    fn write_access_line(&self, session: &Session, status: Option<StatusCode>, duration: Duration, state: &ProxyState) {
        let request = session.req_header();
        let client = self.facts.get::<ClientAddress>();
        let ids = self.facts.get::<RequestIds>();
        // For a request that could not be parsed, Pingora got a replacement.
        let malformed = self.conn.as_ref().and_then(|conn| conn.malformed());
        let (method, path) = malformed.map_or((request.method.as_str(), request.uri.path()), |malformed| malformed.line());
        let shadow = self.progress.decisions.iter().filter(|decision| decision.shadow);
        state.access.write(&AccessLine {
            time: self.now.wall,
            request_id: ids.map(|ids| ids.request_id.as_str()),
            trace_id: ids.and_then(|ids| ids.trace_id.as_deref()),
            client: client.map_or(self.peer, |client| client.address),
            client_source: client.map_or("peer", |client| client.source),
            peer: self.peer,
            key: self.facts.get::<Key>().map(|key| key.id),
            subject: self.facts.get::<Identity>().and_then(|identity| identity.subject.as_deref()),
            route: self.route().map(|route| &*route.name),
            method,
            path,
            http: match request.version {
                http::Version::HTTP_2 => "2",
                http::Version::HTTP_10 => "1.0",
                _ => "1.1",
            },
            status: status.map_or(0, |status| status.as_u16()),
            answered_by: self.answered.map(|(by, _)| by),
            reason: self.answered.map(|(_, reason)| reason),
            detail: self.detail.as_deref(),
            shadow: shadow.map(|decision| (decision.filter, decision.reason)).collect(),
            let_through: self.facts.get::<LetThrough>().map_or(&[], |filters| &filters.0),
            tags: self.facts.get::<Tags>().map_or(&[], |tags| &tags.0),
            upstream: self.server.as_ref(),
            late_status: self.late_status.map(|status| status.as_u16()),
            usage: self.facts.get::<UsageRecord>(),
            bytes_in: self.bytes_in,
            bytes_out: session.body_bytes_sent() as u64,
            first_byte_ms: self.first_byte,
            duration_ms: duration,
            error: self.error.as_deref(),
        });
    }

    /// Time since the request header was complete.
    pub fn elapsed(&self) -> Duration {
        Instant::now().saturating_duration_since(self.now.instant)
    }
}
