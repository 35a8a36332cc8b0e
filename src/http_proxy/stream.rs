//! How an exchange becomes a stream with a clock around it, and how one that has begun ends.

use std::sync::Arc;

use http::{HeaderValue, header};
use keylatch_filters::contract::{CancellationHandle, Source, StreamPlan};
use pingora::Result;
use pingora::http::ResponseHeader;
use pingora::proxy::Session;

use super::errors::Answer;
use super::phases::Edge;
use super::request_context::Exchange;
use super::stream_state::{Clock, Terms};
use super::{reply, timed_session};

impl Edge {
    /// Puts the clock around the client's session.
    pub(super) fn start_clock(&self, session: &mut Session, exchange: &mut Exchange, plan: StreamPlan, early: bool) -> Result<()> {
        let early_header = if early { Some(Box::new(early_header(session, exchange)?)) } else { None };
        let terms = Terms {
            plan,
            early_header,
            dialect: exchange.dialect,
            request_id: exchange.request_id().map(str::to_owned),
            streams: Arc::clone(&self.shared.metrics.streams),
            about: Box::new(exchange.about_stream(session)),
            cancellation: exchange.facts.get::<Arc<CancellationHandle>>().cloned(),
            body_timeout: self.limits.body_timeout.0,
            body_rate: (&self.limits).into(),
        };
        exchange.home = Some(timed_session::install(&mut session.downstream_session, terms, exchange.now.instant.into()));
        Ok(())
    }

    /// The connection is another protocol's from here on. It is watched over as a stream is: shown to operators, who may end it,
    /// and ended with its key.
    pub(super) fn hold_upgraded(&self, session: &Session, exchange: &mut Exchange) {
        let Some(conn) = exchange.conn.clone() else { return };
        let cancellation = exchange.facts.get::<Arc<CancellationHandle>>().cloned().unwrap_or_default();
        conn.attach_cancellation(Arc::clone(&cancellation));
        exchange.open = Some(self.shared.metrics.streams.begin(exchange.about_stream(session), cancellation));
    }

    /// Ends a stream that has begun, as an event if one can still stand. What is left then is a clean end;
    /// otherwise the connection is cut, so that the client knows that something is missing.
    pub(super) async fn end_stream(&self, session: &mut Session, clock: Option<Clock>, answer: &Answer) -> Result<bool> {
        let Some(mut clock) = clock else { return Ok(false) };
        timed_session::settle(&mut session.downstream_session).await?;
        let Some(event) = clock.last_event(answer) else { return Ok(false) };
        session.downstream_session.write_response_body(event, true).await?;
        session.downstream_session.finish_body().await?;
        Ok(true)
    }
}

/// What goes out if the upstream takes too long to its header.
fn early_header(session: &Session, exchange: &mut Exchange) -> Result<ResponseHeader> {
    let mut head = ResponseHeader::build_no_case(200, Some(8))?;
    head.insert_header(header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream; charset=utf-8"))?;
    reply::response_hooks(session, exchange, &mut head, Source::Early)?;
    if session.req_header().version == http::Version::HTTP_11 {
        head.insert_header(header::TRANSFER_ENCODING, HeaderValue::from_static("chunked"))?;
    }
    Ok(head)
}
