//! Pingora's phases in the order in which they run. The longer steps are in other modules of this
//! folder; limits of the body and failures are handled here.

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
use super::body_ahead::AheadBudget;
use super::errors::{self, BODY_ERROR, BODY_RATE_ERROR};
use super::informational::keep_open_after_informational;
use super::reply::{self, RemainingBody};
use super::request_context::RequestContext;
use super::state::ProxyState;
use super::{fields, timed_session};
use crate::config::model::Limits;
use crate::listener::conn::lingering;
use crate::listener::connection_options::has_option;
use crate::listener::underscores;

/// The proxy of one listener.
pub struct ProxyPhases {
    /// The state that all listeners share.
    pub state: Arc<ProxyState>,
    /// The address of the listener.
    pub address: SocketAddr,
    /// The limits of the listener.
    pub limits: Limits,
    /// The memory for bodies that are read ahead.
    pub ahead_budget: Arc<AheadBudget>,
}

#[async_trait]
impl ProxyHttp for ProxyPhases {
    /// Boxed: Pingora moves it several times, and it is large.
    type CTX = Box<RequestContext>;

    fn new_ctx(&self) -> Box<RequestContext> {
        Box::new(RequestContext::begin(self.state.snapshot.load_full()))
    }

    /// No modules: Pingora's default is compression, which would delay streams.
    fn init_downstream_modules(&self, _modules: &mut HttpModules) {}

    async fn request_filter(&self, session: &mut Session, context: &mut Box<RequestContext>) -> Result<bool> {
        context.now = keylatch_filters::contract::Now::read();
        session.set_read_timeout(Some(self.limits.body_timeout.0));
        session.set_write_timeout(Some(self.limits.write_timeout.0));
        // No further request is processed (RFC 9112, section 9.6).
        if has_option(&session.req_header().headers, "close") {
            session.set_keepalive(None);
        }
        // Pingora has disabled reuse already while it stops.
        if session.get_keepalive().is_some() {
            session.set_keepalive(Some(self.limits.idle_timeout.0.as_secs().max(1)));
        }
        // HTTP/1.0 has no informational responses (RFC 9110, section 15.2).
        let old = session.req_header().version == http::Version::HTTP_10;
        session.downstream_session.set_ignore_info_resp(old);
        let Some(mut answer) = self.admit(session, context).await? else {
            // An upgraded connection has no request body, so another timeout applies.
            if context.upgrades {
                session.set_read_timeout(Some(self.limits.upgrade_idle_timeout.0));
            }
            return Ok(false);
        };
        answer.discourage_long_retry(self.limits.client_retry_max.0);
        // After a refusal by the gate, the rest of the connection is not read.
        let rest = if session.get_keepalive().is_some() || session.is_http2() { RemainingBody::Drained } else { RemainingBody::Ignored };
        reply::write(session, context, &answer, rest).await?;
        Ok(true)
    }

    async fn request_body_filter(
        &self,
        _session: &mut Session,
        body: &mut Option<Bytes>,
        end: bool,
        context: &mut Box<RequestContext>,
    ) -> Result<()> {
        let position = context.bytes_in;
        context.bytes_in += body.as_ref().map_or(0, |bytes| bytes.len() as u64);
        // The gate allows no body with an upgrade. These bytes belong to the other protocol, which
        // has no size limit.
        if context.upgrades {
            return Ok(());
        }
        if context.bytes_in > self.limits.body_bytes.0 {
            return Err(Error::explain(BODY_ERROR, "the request body is larger than the listener allows").into_down());
        }
        if let (Some(watch), Some(body)) = (&mut context.model_watch, &body) {
            watch.feed(position, body)?;
        }
        let Some(route) = context.routing.route() else { return Ok(()) };
        if route.chain.reads_request_body() {
            let mut cx = BodyCx { body, end, facts: &mut context.facts, begun: context.now.instant };
            let hooks = route.chain.request_body(&mut cx, &mut context.progress);
            hooks.map_err(|failure| errors::from_failure(&failure))?;
        }
        // Pingora would write an empty last piece as the last chunk, and then write another one.
        if end && body.as_ref().is_some_and(Bytes::is_empty) {
            *body = None;
        }
        Ok(())
    }

    async fn upstream_peer(&self, _session: &mut Session, context: &mut Box<RequestContext>) -> Result<Box<HttpPeer>> {
        self.choose_server(context).await
    }

    async fn connected_to_upstream(
        &self,
        session: &mut Session,
        reused: bool,
        _peer: &HttpPeer,
        fd: std::os::unix::io::RawFd,
        digest: Option<&Digest>,
        context: &mut Box<RequestContext>,
    ) -> Result<()> {
        self.connected(session, context, reused, fd, digest)
    }

    fn fail_to_connect(
        &self,
        _session: &mut Session,
        _peer: &HttpPeer,
        context: &mut Box<RequestContext>,
        error: Box<Error>,
    ) -> Box<Error> {
        self.connect_failed(context, error)
    }

    fn error_while_proxy(
        &self,
        peer: &HttpPeer,
        session: &mut Session,
        error: Box<Error>,
        context: &mut Box<RequestContext>,
        reused: bool,
    ) -> Box<Error> {
        self.decide_retry(session, context, error, reused).more_context(format!("Peer: {peer}"))
    }

    async fn upstream_request_filter(
        &self,
        session: &mut Session,
        upstream: &mut RequestHeader,
        context: &mut Box<RequestContext>,
    ) -> Result<()> {
        if let Some(target) = &context.spelled_target {
            upstream.set_uri(target.clone());
        }
        if let Some(host) = &context.host {
            upstream.insert_header(header::HOST, host.as_str())?;
        }
        let Some(route) = context.routing.route() else { return Ok(()) };
        let mut cx = UpstreamCx { upstream, request: session.req_header(), facts: &mut context.facts, peer: context.peer };
        let hooks = route.chain.upstream_request(&mut cx, &mut context.progress);
        hooks.map_err(|failure| errors::from_failure(&failure))?;
        let dropped = if context.underscores_allowed { underscores::drop_lookalikes(upstream) } else { 0 };
        if dropped > 0 {
            self.state.metrics.dropped_fields.with_label_values(&[fields::UNDERSCORE]).inc_by(dropped);
        }
        prepend_base_path(route, upstream)?;
        if context.body_asked_for {
            upstream.remove_header(&header::EXPECT);
        }
        if context.upgrades && upstream.version == http::Version::HTTP_11 {
            self.await_protocol_switch(session, context);
        }
        if context.session_slot.is_some() {
            return Ok(());
        }
        match context.facts.get::<StreamPlan>().filter(|plan| plan.acts_before_headers()).cloned() {
            Some(plan) => {
                let early = plan.before_headers.is_some() || plan.json_padding.is_some();
                self.start_timed_stream(session, context, plan, early)
            }
            // The timed session sends what was read ahead. And Pingora has no deadline for the body
            // of an HTTP/2 request: the timed session enforces it.
            None if context.ahead.is_some() || session.is_http2() && !session.is_body_done() => {
                self.start_timed_stream(session, context, StreamPlan::none(self.limits.write_timeout.0), false)
            }
            None => Ok(()),
        }
    }

    async fn upstream_response_filter(
        &self,
        session: &mut Session,
        response: &mut ResponseHeader,
        context: &mut Box<RequestContext>,
    ) -> Result<()> {
        let upgraded = response.status == StatusCode::SWITCHING_PROTOCOLS && context.upgrades;
        keep_open_after_informational(&mut session.downstream_session, response.status.is_informational() && !upgraded);
        if response.status.is_informational() && !upgraded {
            // The client did not request an upgrade, and would read the following bytes as HTTP.
            if response.status == StatusCode::SWITCHING_PROTOCOLS {
                return Err(Error::explain(ErrorType::InvalidHTTPHeader, "the upstream sent 101 to a request without an upgrade").into_up());
            }
            return Ok(());
        }
        context.responded = true;
        if context.upgrades {
            context.restore_session(session);
        }
        if let (Some(route), Some(server)) = (context.route(), &context.server) {
            route.upstream.observe(server, &response.headers);
            context.upstream_connection.iter().for_each(|connection| connection.responded(response.version));
        }
        let stream = is_event_stream(&response.headers) || is_json_lines(&response.headers);
        fields::lower_response(response);
        reply::response_hooks(session, context, response, Source::Upstream)?;
        if upgraded {
            self.track_upgraded(session, context);
            return Ok(());
        }
        // A stream without a plan is timed as well, so that operators can list and end it, and its
        // key's binding can end it.
        let whole = !response.status.is_success() || response.status == StatusCode::NO_CONTENT;
        let watched =
            stream && !whole && session.req_header().method != http::Method::HEAD && !response.headers.contains_key(header::CONTENT_LENGTH);
        let plan = context.facts.get::<StreamPlan>().filter(|_| stream).cloned();
        let plan = plan.or_else(|| watched.then(|| StreamPlan::none(self.limits.write_timeout.0)));
        match (plan, &context.session_slot) {
            (Some(plan), Some(session_slot)) => {
                timed_session::adopt(
                    &mut session.downstream_session,
                    session_slot,
                    plan,
                    context.facts.get::<Arc<CancellationHandle>>().cloned(),
                );
            }
            (Some(plan), None) => self.start_timed_stream(session, context, plan, false)?,
            (None, _) => {}
        }
        Ok(())
    }

    async fn response_filter(&self, session: &mut Session, response: &mut ResponseHeader, context: &mut Box<RequestContext>) -> Result<()> {
        if let Some(conn) = context.conn.as_ref().filter(|_| !response.status.is_informational()) {
            conn.response_begun();
        }
        fields::fix_framing(response, session.req_header().version);
        Ok(())
    }

    fn response_body_filter(
        &self,
        _session: &mut Session,
        body: &mut Option<Bytes>,
        end: bool,
        context: &mut Box<RequestContext>,
    ) -> Result<Option<std::time::Duration>> {
        if context.first_byte.is_none() && body.as_ref().is_some_and(|bytes| !bytes.is_empty()) {
            context.first_byte = Some(context.elapsed());
        }
        if let Some(route) = context.routing.route()
            && route.chain.reads_response_body()
        {
            let mut cx = BodyCx { body, end, facts: &mut context.facts, begun: context.now.instant };
            let hooks = route.chain.response_body(&mut cx, &mut context.progress);
            hooks.map_err(|failure| errors::from_failure(&failure))?;
        }
        Ok(None)
    }

    async fn fail_to_proxy(&self, session: &mut Session, error: &Error, context: &mut Box<RequestContext>) -> FailToProxy {
        let cancelled = context.conn.as_ref().and_then(|conn| conn.cancelled()).map(errors::from_cancellation);
        context.error = Some(describe(cancelled.as_deref().unwrap_or(error)));
        let stream = context.restore_session(session);
        context.note_late_answer(stream.as_ref());
        let gone = FailToProxy { error_code: 0, can_reuse_downstream: false };
        let answer = match &context.conn {
            // On HTTP/1, the connection layer reports this to Pingora as a client that has left.
            Some(conn) if conn.body_bad() => Some(errors::BAD_BODY),
            Some(conn) if conn.body_slow() => Some(errors::SLOW_BODY),
            _ => errors::from_error(error),
        };
        let Some(answer) = answer else { return gone };
        if *error.etype() == BODY_RATE_ERROR || context.conn.as_ref().is_some_and(|conn| conn.body_slow()) {
            self.state.metrics.refused.with_label_values(&["body_min_rate"]).inc();
        }
        if !matches!(error.etype(), ErrorType::ConnectRefused | ErrorType::ConnectTimedout) {
            self.count_upstream_error(context, error);
        }
        session.set_keepalive(None);
        let written = session.response_written().map(|response| response.status);
        // An upgraded connection no longer carries HTTP.
        let begun = written.is_some_and(|status| !status.is_informational() || status == StatusCode::SWITCHING_PROTOCOLS);
        if begun {
            // Pingora ends the connection here, whether or not the error was sent.
            if !matches!(self.end_stream(session, stream, &answer).await, Ok(true)) {
                session.downstream_session.shutdown().await;
            }
            return gone;
        }
        if context.answered.is_none() {
            context.answered = Some(("proxy", answer.code));
        }
        // An error means that the client has left.
        let _ = reply::write(session, context, &answer, RemainingBody::Ignored).await;
        FailToProxy { error_code: answer.status.as_u16(), can_reuse_downstream: false }
    }

    async fn logging(&self, session: &mut Session, error: Option<&Error>, context: &mut Box<RequestContext>) {
        let stream = context.restore_session(session);
        context.note_late_answer(stream.as_ref());
        if let Some(failure) = stream.and_then(|stream| stream.failure) {
            self.count_upstream_error(context, &failure);
            context.error = Some(describe(&failure));
        }
        if context.error.is_none() {
            context.error = error.map(describe);
        }
        context.finish(session, &self.state);
        if session.is_body_done() && !context.upgrades {
            context.conn.iter().for_each(|conn| conn.request_finished());
        } else {
            // Unread bytes of this body, or of another protocol, would be parsed as the next
            // request.
            session.set_keepalive(None);
        }
        // On HTTP/1, the acceptor does the same for the connection.
        if session.is_http2() && !session.is_body_done() && (error.is_none() || context.answered.is_some()) {
            let lingered = lingering::discard_body(&mut session.downstream_session, (&self.limits).into()).await;
            self.state.metrics.lingering.with_label_values(&[lingered.as_str()]).inc();
        }
    }

    /// The access log has the error, without the query string.
    fn suppress_error_log(&self, _session: &Session, _request: &Box<RequestContext>, _error: &Error) -> bool {
        true
    }

    fn suppress_proxy_warn_log(
        &self,
        _session: &Session,
        _request: &Box<RequestContext>,
        _error: &Error,
        _context: ProxyWarnLogContext,
    ) -> bool {
        true
    }

    fn request_summary(&self, session: &Session, _request: &Box<RequestContext>) -> String {
        format!("{} {}", session.req_header().method, session.req_header().uri.path())
    }
}

/// An error for the log: its source and type. The context may contain request bytes, except for
/// handshakes, which precede them.
fn describe(error: &Error) -> String {
    match (error.etype(), error.esource()) {
        (ErrorType::TLSHandshakeFailure | ErrorType::InvalidCert | ErrorType::HandshakeError, ErrorSource::Upstream) => error.to_string(),
        _ => format!("{} {}", error.esource().as_str(), error.etype().as_str()),
    }
}
