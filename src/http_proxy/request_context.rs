//! One request and its response, as the phases see it.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use http::{StatusCode, Uri};
use keylatch_filters::chain::Progress;
use keylatch_filters::contract::{ClientAddress, Dialect, Facts, Identity, Key, LetThrough, LogCx, Now, RequestIds, Tags};
use pingora::proxy::Session;

use super::state::Shared;
use super::stream_state::Clock;
use super::timed_session::Home;
use crate::compile::{Route, Snapshot};
use crate::listener::conn::Conn;
use crate::telemetry::access::AccessLine;
use crate::telemetry::streams::{OpenStream, StreamInfo};
use crate::upstream::reuse::Connection;
use crate::upstream::{Address, Attempts};

/// The state of one exchange.
pub struct Exchange {
    /// The configuration it began under, and ends under.
    pub snapshot: Arc<Snapshot>,
    /// The index of its route.
    pub route: Option<usize>,
    /// What filters found out.
    pub facts: Facts,
    /// Its way through the chain.
    pub progress: Progress,
    /// When its header was complete.
    pub now: Now,
    /// The other end of the connection.
    pub peer: IpAddr,
    /// The connection.
    pub conn: Option<Arc<Conn>>,
    /// In whose shape errors are told.
    pub dialect: Dialect,
    /// Who answered instead of the upstream, and why.
    pub answered: Option<(&'static str, &'static str)>,
    /// What only the log may say of that.
    pub detail: Option<String>,
    /// The server in use.
    pub server: Option<Address>,
    /// What was tried upstream.
    pub attempts: Attempts,
    /// The connection to it, where it is known.
    pub upstream_connection: Option<Arc<Connection>>,
    /// The upstream has begun its response.
    pub responded: bool,
    /// The `Host` the chosen server gets.
    pub host: Option<String>,
    /// The target for the upstream, where the client has spelled it otherwise than it was judged.
    pub spelled_target: Option<Uri>,
    /// Fields with an underscore were let in.
    pub underscores_allowed: bool,
    /// Body bytes that arrived.
    pub bytes_in: u64,
    /// To the upstream's first byte of data.
    pub first_byte: Option<Duration>,
    /// Where the real session is while a timed one takes its place.
    pub home: Option<Home>,
    /// That it is open, once it has become another protocol's.
    pub open: Option<OpenStream>,
    /// The status of the upstream's answer where an answer of ours had gone out before.
    pub late_status: Option<StatusCode>,
    /// What went wrong.
    pub error: Option<String>,
}

impl Exchange {
    /// Begins now.
    pub fn begin(snapshot: Arc<Snapshot>) -> Self {
        Self {
            snapshot,
            route: None,
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
            underscores_allowed: false,
            bytes_in: 0,
            first_byte: None,
            home: None,
            open: None,
            late_status: None,
            error: None,
        }
    }

    /// Its route, once one was found.
    pub fn route(&self) -> Option<&Route> {
        self.snapshot.routes.get(self.route?)
    }

    /// The id it has in logs.
    pub fn request_id(&self) -> Option<&str> {
        self.facts.get::<RequestIds>().map(|ids| ids.request_id.as_str())
    }

    /// What operators see of its stream.
    pub fn about_stream(&self, session: &Session) -> StreamInfo {
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

    /// What a stream's clock knows of an upstream's answer that came after ours.
    pub fn note_late_answer(&mut self, clock: Option<&Clock>) {
        let Some((status, failure)) = clock.and_then(Clock::late_answer) else { return };
        self.late_status = Some(status);
        if failure && self.error.is_none() {
            self.error = Some(format!("the upstream answered {} after the response had begun", status.as_u16()));
        }
    }

    /// The last of an exchange: log hooks, metrics, the access line.
    pub fn end(&mut self, session: &Session, shared: &Shared) {
        self.upstream_connection.take().iter().for_each(|connection| connection.idle());
        let status = session.response_written().map(|response| response.status);
        let duration = self.now.instant.elapsed();
        let snapshot = Arc::clone(&self.snapshot);
        let route = self.route.and_then(|index| snapshot.routes.get(index));
        let name = route.map_or("-", |route| &*route.name);
        if let Some(route) = route {
            let cx = LogCx { request: session.req_header(), status, facts: &self.facts, route: name, duration };
            route.chain.log(&cx, &mut self.progress);
        }
        self.count(name, status, duration, shared);
        if snapshot.settings.log.access {
            self.tell(session, status, duration, shared);
        }
    }

    fn count(&self, route: &str, status: Option<StatusCode>, duration: Duration, shared: &Shared) {
        let metrics = &shared.metrics;
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

    fn tell(&self, session: &Session, status: Option<StatusCode>, duration: Duration, shared: &Shared) {
        let request = session.req_header();
        let client = self.facts.get::<ClientAddress>();
        let ids = self.facts.get::<RequestIds>();
        // Of what could not be parsed Pingora has got something else.
        let malformed = self.conn.as_ref().and_then(|conn| conn.malformed());
        let (method, path) = malformed.map_or((request.method.as_str(), request.uri.path()), |malformed| malformed.line());
        let shadow = self.progress.decisions.iter().filter(|decision| decision.shadow);
        shared.access.write(&AccessLine {
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
            bytes_in: self.bytes_in,
            bytes_out: session.body_bytes_sent() as u64,
            first_byte_ms: self.first_byte,
            duration_ms: duration,
            error: self.error.as_deref(),
        });
    }

    /// Since the request's header was complete.
    pub fn elapsed(&self) -> Duration {
        Instant::now().saturating_duration_since(self.now.instant)
    }
}
