//! Starts and ends timed streams. The timing rules are in `stream_state`.

use std::sync::Arc;

use http::{HeaderValue, header};
use keylatch_filters::contract::{CancellationHandle, Source, StreamPlan};
use pingora::Result;
use pingora::http::ResponseHeader;
use pingora::proxy::Session;

use super::errors::Answer;
use super::phases::ProxyPhases;
use super::request_context::RequestContext;
use super::stream_state::{StreamState, StreamTerms};
use super::{reply, timed_session};

impl ProxyPhases {
    /// Replaces the client's session by a timed one.
    pub(super) fn start_timed_stream(
        &self,
        session: &mut Session,
        context: &mut RequestContext,
        plan: StreamPlan,
        early: bool,
    ) -> Result<()> {
        let early_header = if early { Some(Box::new(early_header(session, context)?)) } else { None };
        let terms = StreamTerms { early_header, ..self.stream_terms(session, context, plan) };
        let ahead = context.ahead.take();
        context.session_slot = Some(timed_session::install(&mut session.downstream_session, terms, context.now.instant.into(), ahead));
        Ok(())
    }

    fn stream_terms(&self, session: &Session, context: &RequestContext, plan: StreamPlan) -> StreamTerms {
        StreamTerms {
            plan,
            early_header: None,
            dialect: context.dialect,
            request_id: context.request_id().map(str::to_owned),
            streams: Arc::clone(&self.state.metrics.streams),
            info: Box::new(context.stream_info(session)),
            cancellation: context.facts.get::<Arc<CancellationHandle>>().cloned(),
            body_timeout: self.limits.body_timeout.0,
            body_rate: (&self.limits).into(),
        }
    }

    /// Prepares the session of a request to upgrade, for each attempt anew. An early response or a
    /// deadline of a stream would break the upgrade.
    pub(super) fn await_protocol_switch(&self, session: &mut Session, context: &mut RequestContext) {
        context.restore_session(session);
        let terms = self.stream_terms(session, context, StreamPlan::none(self.limits.write_timeout.0));
        context.session_slot =
            Some(timed_session::await_protocol_switch(&mut session.downstream_session, terms, context.now.instant.into()));
    }

    /// Registers an upgraded connection like a stream: operators can list and end it, and its key's
    /// binding can end it.
    pub(super) fn track_upgraded(&self, session: &Session, context: &mut RequestContext) {
        let Some(conn) = context.conn.clone() else { return };
        let cancellation = context.facts.get::<Arc<CancellationHandle>>().cloned().unwrap_or_default();
        conn.set_cancellation(Arc::clone(&cancellation));
        context.open = Some(self.state.metrics.streams.begin(context.stream_info(session), cancellation));
    }

    /// Ends a stream that has begun. Returns whether an error event could be sent; otherwise the
    /// caller must cut the connection, so that the client notices the missing data.
    pub(super) async fn end_stream(&self, session: &mut Session, stream: Option<StreamState>, answer: &Answer) -> Result<bool> {
        let Some(mut stream) = stream else { return Ok(false) };
        if session.response_written().is_some_and(|head| head.headers.contains_key(header::CONTENT_LENGTH)) {
            return Ok(false);
        }
        timed_session::complete_frame(&mut session.downstream_session).await?;
        let Some(event) = stream.last_event(answer) else { return Ok(false) };
        session.downstream_session.write_response_body(event, true).await?;
        session.downstream_session.finish_body().await?;
        Ok(true)
    }
}

/// The header of an early response, sent if the upstream header is late.
fn early_header(session: &Session, context: &mut RequestContext) -> Result<ResponseHeader> {
    let mut head = ResponseHeader::build_no_case(200, Some(8))?;
    head.insert_header(header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream; charset=utf-8"))?;
    reply::response_hooks(session, context, &mut head, Source::Early)?;
    if session.req_header().version == http::Version::HTTP_11 {
        head.insert_header(header::TRANSFER_ENCODING, HeaderValue::from_static("chunked"))?;
    }
    Ok(head)
}
