//! Pingora's phases, in the order in which they run. Each is thin: what it does is said elsewhere.

use std::net::SocketAddr;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use http::{StatusCode, header};
use keylatch_filters::contract::{BodyCx, CancellationHandle, Source, StreamPlan, UpstreamCx};
use keylatch_filters::contract::{is_event_stream, is_json_lines};
use pingora::http::{RequestHeader, ResponseHeader};
use pingora::modules::http::HttpModules;
use pingora::protocols::Digest;
use pingora::proxy::{FailToProxy, ProxyHttp, ProxyWarnLogContext, Session};
use pingora::upstreams::peer::HttpPeer;
use pingora::{Error, ErrorSource, ErrorType, Result};

use super::base_path::prepend_base_path;
use super::errors::{self, BODY_ERROR, BODY_RATE_ERROR};
use super::reply::{self, Rest};
use super::request_context::Exchange;
use super::state::Shared;
use super::{fields, timed_session};
use crate::config::model::Limits;
use crate::listener::conn::lingering;
use crate::listener::connection_options::has_option;
use crate::listener::underscores;

/// The proxy behind one listener.
pub struct Edge {
    /// What all listeners share.
    pub shared: Arc<Shared>,
    /// Where this one listens.
    pub address: SocketAddr,
    /// What this one allows.
    pub limits: Limits,
}

#[async_trait]
impl ProxyHttp for Edge {
    /// Boxed: Pingora moves it several times, and it is not small.
    type CTX = Box<Exchange>;

    fn new_ctx(&self) -> Box<Exchange> {
        Box::new(Exchange::begin(self.shared.snapshot.load_full()))
    }

    /// None: Pingora's default is a compression we never want on streams.
    fn init_downstream_modules(&self, _modules: &mut HttpModules) {}

    async fn request_filter(&self, session: &mut Session, exchange: &mut Box<Exchange>) -> Result<bool> {
        exchange.now = keylatch_filters::contract::Now::read();
        session.set_read_timeout(Some(self.limits.body_timeout.0));
        session.set_write_timeout(Some(self.limits.write_timeout.0));
        // No request that follows is processed (RFC 9112, section 9.6).
        if has_option(&session.req_header().headers, "close") {
            session.set_keepalive(None);
        }
        // Not where Pingora has decided against reuse already, as it does while it stops.
        if session.get_keepalive().is_some() {
            session.set_keepalive(Some(self.limits.idle_timeout.0.as_secs().max(1)));
        }
        // HTTP/1.0 knows no informational responses (RFC 9110, section 15.2).
        let old = session.req_header().version == http::Version::HTTP_10;
        session.downstream_session.set_ignore_info_resp(old);
        let Some(mut answer) = self.admit(session, exchange).await? else {
            // What it becomes if the upstream agrees has no body in the middle of which one could be silent.
            if session.is_upgrade_req() {
                session.set_read_timeout(Some(self.limits.upgrade_idle_timeout.0));
            }
            return Ok(false);
        };
        answer.hint_at_retry(self.limits.client_retry_max.0);
        // After a refusal of the gate's nothing that follows is looked at.
        let rest = if session.get_keepalive().is_some() || session.is_http2() { Rest::Drained } else { Rest::Ignored };
        reply::write(session, exchange, &answer, rest).await?;
        Ok(true)
    }

    async fn request_body_filter(
        &self,
        session: &mut Session,
        body: &mut Option<Bytes>,
        end: bool,
        exchange: &mut Box<Exchange>,
    ) -> Result<()> {
        exchange.bytes_in += body.as_ref().map_or(0, |bytes| bytes.len() as u64);
        // The gate lets no body pass beside an upgrade: this is the other protocol's, and may go on for hours.
        if session.is_upgrade_req() {
            return Ok(());
        }
        if exchange.bytes_in > self.limits.body_bytes.0 {
            return Err(Error::explain(BODY_ERROR, "the request's body is larger than the listener allows").into_down());
        }
        let Some(route) = exchange.route.and_then(|index| exchange.snapshot.routes.get(index)) else { return Ok(()) };
        if route.chain.reads_request_body() {
            let mut cx = BodyCx { body, end, facts: &mut exchange.facts };
            let hooks = route.chain.request_body(&mut cx, &mut exchange.progress);
            hooks.map_err(|failure| errors::of_failure(&failure))?;
        }
        // Pingora writes an empty last piece as the last chunk, and then ends the body with another one.
        if end && body.as_ref().is_some_and(Bytes::is_empty) {
            *body = None;
        }
        Ok(())
    }

    async fn upstream_peer(&self, session: &mut Session, exchange: &mut Box<Exchange>) -> Result<Box<HttpPeer>> {
        self.choose_server(session, exchange).await
    }

    async fn connected_to_upstream(
        &self,
        session: &mut Session,
        reused: bool,
        _peer: &HttpPeer,
        fd: std::os::unix::io::RawFd,
        digest: Option<&Digest>,
        exchange: &mut Box<Exchange>,
    ) -> Result<()> {
        self.connected(session, exchange, reused, fd, digest)
    }

    fn fail_to_connect(&self, _session: &mut Session, _peer: &HttpPeer, exchange: &mut Box<Exchange>, error: Box<Error>) -> Box<Error> {
        self.elsewhere(exchange, error)
    }

    fn error_while_proxy(
        &self,
        peer: &HttpPeer,
        session: &mut Session,
        error: Box<Error>,
        exchange: &mut Box<Exchange>,
        reused: bool,
    ) -> Box<Error> {
        self.decide_retry(session, exchange, error, reused).more_context(format!("Peer: {peer}"))
    }

    async fn upstream_request_filter(
        &self,
        session: &mut Session,
        upstream: &mut RequestHeader,
        exchange: &mut Box<Exchange>,
    ) -> Result<()> {
        if let Some(target) = &exchange.spelled_target {
            upstream.set_uri(target.clone());
        }
        if let Some(host) = &exchange.host {
            upstream.insert_header(header::HOST, host.as_str())?;
        }
        let Some(route) = exchange.route.and_then(|index| exchange.snapshot.routes.get(index)) else { return Ok(()) };
        let mut cx = UpstreamCx { upstream, request: session.req_header(), facts: &mut exchange.facts, peer: exchange.peer };
        let hooks = route.chain.upstream_request(&mut cx, &mut exchange.progress);
        hooks.map_err(|failure| errors::of_failure(&failure))?;
        let dropped = if exchange.underscores_allowed { underscores::drop_lookalikes(upstream) } else { 0 };
        if dropped > 0 {
            self.shared.metrics.dropped_fields.with_label_values(&[fields::UNDERSCORE]).inc_by(dropped);
        }
        prepend_base_path(route, upstream)?;
        if exchange.home.is_some() {
            return Ok(());
        }
        match exchange.facts.get::<StreamPlan>().filter(|plan| plan.acts_before_headers()).cloned() {
            Some(plan) => {
                let early = plan.before_headers.is_some() || plan.json_padding.is_some();
                self.start_clock(session, exchange, plan, early)
            }
            // Pingora has no deadline for the body of an HTTP/2 request: the clock keeps it.
            None if session.is_http2() && !session.is_body_done() => {
                self.start_clock(session, exchange, StreamPlan::none(self.limits.write_timeout.0), false)
            }
            None => Ok(()),
        }
    }

    async fn upstream_response_filter(
        &self,
        session: &mut Session,
        response: &mut ResponseHeader,
        exchange: &mut Box<Exchange>,
    ) -> Result<()> {
        let upgraded = response.status == StatusCode::SWITCHING_PROTOCOLS && session.is_upgrade_req();
        if response.status.is_informational() && !upgraded {
            // The client has not asked for another protocol, and would read what follows as HTTP.
            if response.status == StatusCode::SWITCHING_PROTOCOLS {
                return Err(Error::explain(ErrorType::InvalidHTTPHeader, "a 101 that was not asked for").into_up());
            }
            return Ok(());
        }
        exchange.responded = true;
        if let (Some(route), Some(server)) = (exchange.route(), &exchange.server) {
            route.upstream.observe(server, &response.headers);
            exchange.upstream_connection.iter().for_each(|connection| connection.responded(response.version));
        }
        let stream = is_event_stream(&response.headers) || is_json_lines(&response.headers);
        fields::lower_response(response);
        reply::response_hooks(session, exchange, response, Source::Upstream)?;
        if upgraded {
            self.hold_upgraded(session, exchange);
            return Ok(());
        }
        // Without a plan a stream is watched over all the same: it is shown to operators, who may end it, and ends with its key.
        let whole = !response.status.is_success() || response.status == StatusCode::NO_CONTENT;
        let watched =
            stream && !whole && session.req_header().method != http::Method::HEAD && !response.headers.contains_key(header::CONTENT_LENGTH);
        let plan = exchange.facts.get::<StreamPlan>().filter(|_| stream).cloned();
        let plan = plan.or_else(|| watched.then(|| StreamPlan::none(self.limits.write_timeout.0)));
        match (plan, &exchange.home) {
            (Some(plan), Some(home)) => {
                timed_session::adopt(&mut session.downstream_session, home, plan, exchange.facts.get::<Arc<CancellationHandle>>().cloned());
            }
            (Some(plan), None) => self.start_clock(session, exchange, plan, false)?,
            (None, _) => {}
        }
        Ok(())
    }

    async fn response_filter(&self, session: &mut Session, response: &mut ResponseHeader, exchange: &mut Box<Exchange>) -> Result<()> {
        if let Some(conn) = exchange.conn.as_ref().filter(|_| !response.status.is_informational()) {
            conn.response_begins();
        }
        fields::settle_framing(response, session.req_header().version);
        Ok(())
    }

    fn response_body_filter(
        &self,
        _session: &mut Session,
        body: &mut Option<Bytes>,
        end: bool,
        exchange: &mut Box<Exchange>,
    ) -> Result<Option<std::time::Duration>> {
        if exchange.first_byte.is_none() && body.as_ref().is_some_and(|bytes| !bytes.is_empty()) {
            exchange.first_byte = Some(exchange.elapsed());
        }
        if let Some(route) = exchange.route.and_then(|index| exchange.snapshot.routes.get(index))
            && route.chain.reads_response_body()
        {
            let mut cx = BodyCx { body, end, facts: &mut exchange.facts };
            let hooks = route.chain.response_body(&mut cx, &mut exchange.progress);
            hooks.map_err(|failure| errors::of_failure(&failure))?;
        }
        Ok(None)
    }

    async fn fail_to_proxy(&self, session: &mut Session, error: &Error, exchange: &mut Box<Exchange>) -> FailToProxy {
        let cancelled = exchange.conn.as_ref().and_then(|conn| conn.cancelled()).map(errors::cancellation_error);
        exchange.error = Some(describe(cancelled.as_deref().unwrap_or(error)));
        let clock = exchange.home.take().and_then(|home| timed_session::restore(&mut session.downstream_session, &home));
        exchange.note_late_answer(clock.as_ref());
        let gone = FailToProxy { error_code: 0, can_reuse_downstream: false };
        let answer = match &exchange.conn {
            // HTTP/1: to Pingora the client has left.
            Some(conn) if conn.body_bad() => Some(errors::BAD_BODY),
            Some(conn) if conn.body_slow() => Some(errors::SLOW_BODY),
            _ => errors::of_error(error),
        };
        let Some(answer) = answer else { return gone };
        if *error.etype() == BODY_RATE_ERROR || exchange.conn.as_ref().is_some_and(|conn| conn.body_slow()) {
            self.shared.metrics.refused.with_label_values(&["body_min_rate"]).inc();
        }
        if let (ErrorSource::Upstream, Some(route)) = (error.esource(), exchange.route())
            && !matches!(error.etype(), ErrorType::ConnectRefused | ErrorType::ConnectTimedout)
        {
            self.shared.metrics.upstream_errors.with_label_values(&[&*route.upstream.name, error.etype().as_str()]).inc();
        }
        session.set_keepalive(None);
        let said = session.response_written().map(|response| response.status);
        // What has become of an upgraded connection is not HTTP.
        let begun = said.is_some_and(|status| !status.is_informational() || status == StatusCode::SWITCHING_PROTOCOLS);
        if begun {
            // Whether or not it could be told, Pingora ends the connection here.
            if !matches!(self.end_stream(session, clock, &answer).await, Ok(true)) {
                session.downstream_session.shutdown().await;
            }
            return gone;
        }
        if exchange.answered.is_none() {
            exchange.answered = Some(("proxy", answer.code));
        }
        // The client may have left meanwhile; there is nobody to tell then.
        let _ = reply::write(session, exchange, &answer, Rest::Ignored).await;
        FailToProxy { error_code: answer.status.as_u16(), can_reuse_downstream: false }
    }

    async fn logging(&self, session: &mut Session, error: Option<&Error>, exchange: &mut Box<Exchange>) {
        if let Some(home) = exchange.home.take() {
            let clock = timed_session::restore(&mut session.downstream_session, &home);
            exchange.note_late_answer(clock.as_ref());
        }
        if exchange.error.is_none() {
            exchange.error = error.map(describe);
        }
        exchange.end(session, &self.shared);
        if session.is_body_done() && !session.is_upgrade_req() {
            exchange.conn.iter().for_each(|conn| conn.exchange_over());
        } else {
            // The next request would begin somewhere inside this one's body, or what was to be another protocol.
            session.set_keepalive(None);
        }
        // On HTTP/1 the acceptor does the same for the connection.
        if session.is_http2() && !session.is_body_done() && (error.is_none() || exchange.answered.is_some()) {
            let lingered = lingering::discard_body(&mut session.downstream_session, (&self.limits).into()).await;
            self.shared.metrics.lingering.with_label_values(&[lingered.as_str()]).inc();
        }
    }

    /// The access line tells it, without the query string.
    fn suppress_error_log(&self, _session: &Session, _exchange: &Box<Exchange>, _error: &Error) -> bool {
        true
    }

    fn suppress_proxy_warn_log(
        &self,
        _session: &Session,
        _exchange: &Box<Exchange>,
        _error: &Error,
        _context: ProxyWarnLogContext,
    ) -> bool {
        true
    }

    fn request_summary(&self, session: &Session, _exchange: &Box<Exchange>) -> String {
        format!("{} {}", session.req_header().method, session.req_header().uri.path())
    }
}

/// An error for the log: whose it is and of which kind. Its context may hold a request's bytes, but for a handshake's, which comes
/// before any.
fn describe(error: &Error) -> String {
    match (error.etype(), error.esource()) {
        (ErrorType::TLSHandshakeFailure | ErrorType::InvalidCert | ErrorType::HandshakeError, ErrorSource::Upstream) => error.to_string(),
        _ => format!("{} {}", error.esource().as_str(), error.etype().as_str()),
    }
}
