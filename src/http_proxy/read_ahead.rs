//! Reads a request body before an upstream is chosen, until its model is known or a limit is
//! reached. Filters read the result, the fact [`RequestModel`].

use std::sync::Arc;

use bytes::Bytes;
use http::{StatusCode, header};
use keylatch_filters::body_scan::{ModelSource, Scanned};
use keylatch_filters::contract::{RequestModel, UnknownModel};
use pingora::http::ResponseHeader;
use pingora::proxy::Session;
use pingora::{Error, ErrorType, Result};
use tokio::time::{Instant, timeout_at};

use super::body_ahead::BodyAhead;
use super::errors::{self, Answer, BODY_RATE_ERROR};
use super::informational::keep_open_after_informational;
use super::model_watch::ModelWatch;
use super::phases::ProxyPhases;
use super::request_context::RequestContext;
use crate::listener::conn::body_rate::BodyPace;

impl ProxyPhases {
    /// Stores the model of the request as a fact. Returns an answer if the request is refused instead.
    pub(super) async fn read_model(&self, session: &mut Session, context: &mut RequestContext) -> Result<Option<Answer>> {
        let has_body = !session.is_body_done();
        let mut scan = match ModelSource::of_request(session.req_header(), has_body, context.upgrades) {
            ModelSource::Header(model) => {
                context.facts.put(model);
                return Ok(None);
            }
            ModelSource::Body(scan) => scan,
        };
        if let Some(answer) = self.too_large(session, context)? {
            return Ok(Some(answer));
        }
        self.ask_for_body(session, context).await?;
        let mut ahead = BodyAhead::new(&self.ahead_budget);
        let (mut pace, mut ended) = (BodyPace::new((&self.limits).into()), false);
        let model = loop {
            match scan.scanned(ended) {
                Scanned::Nothing => {}
                Scanned::Model(model) => break model,
                Scanned::Two if !context.routing.chain().enforces_model() => break RequestModel::Unknown(UnknownModel::Unreadable),
                Scanned::Two => {
                    context.answered = Some(("proxy", errors::TWO_MODELS.code));
                    return Ok(Some(errors::TWO_MODELS));
                }
            }
            if ahead.len() >= self.limits.read_ahead_bytes.0 {
                break RequestModel::Unknown(UnknownModel::TooFar);
            }
            let piece = self.read_piece(session, &mut pace).await?;
            ended = piece.is_none() || session.is_body_done();
            let Some(piece) = piece else { continue };
            scan.feed(&piece);
            let within_budget = ahead.push(piece);
            context.bytes_in = ahead.len();
            if ahead.len() > self.limits.body_bytes.0 {
                context.answered = Some(("body_limit", "body_bytes"));
                return Ok(Some(errors::BODY_TOO_LARGE));
            }
            if !within_budget {
                break RequestModel::Unknown(UnknownModel::Busy);
            }
        };
        ahead.flush_tail();
        if let RequestModel::Named(model) = &model
            && !ended
            && context.routing.chain().enforces_model()
        {
            context.model_watch = Some(ModelWatch::new(scan, Arc::clone(model), ahead.len()));
        }
        context.facts.put(model);
        context.ahead = Some(ahead);
        Ok(None)
    }

    /// Sends `100 Continue` to a client that waits for it (RFC 9110, section 10.1.1). The upstream
    /// is then not asked to send it again.
    async fn ask_for_body(&self, session: &mut Session, context: &mut RequestContext) -> Result<()> {
        let expects = session.req_header().headers.get(header::EXPECT);
        context.body_asked_for = expects.is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"100-continue"));
        if context.body_asked_for {
            let head = ResponseHeader::build(StatusCode::CONTINUE, Some(0))?;
            keep_open_after_informational(&mut session.downstream_session, true);
            session.downstream_session.write_response_header(Box::new(head)).await?;
            keep_open_after_informational(&mut session.downstream_session, false);
        }
        Ok(())
    }

    /// The next piece of the body. On HTTP/1 the connection enforces the deadlines too.
    async fn read_piece(&self, session: &mut Session, pace: &mut BodyPace) -> Result<Option<Bytes>> {
        pace.start_waiting();
        let pause_end = Instant::now() + self.limits.body_timeout.0;
        let rate_end = pace.deadline();
        let end = rate_end.map_or(pause_end, |rate_end| rate_end.min(pause_end));
        match timeout_at(end, session.downstream_session.read_request_body()).await {
            Ok(piece) => {
                let piece = piece.map_err(|error| error.into_down())?;
                pace.arrived(piece.as_ref().map_or(0, Bytes::len));
                Ok(piece)
            }
            Err(_) if end < pause_end => Err(Error::explain(BODY_RATE_ERROR, "the request body arrives too slowly").into_down()),
            Err(_) => Err(Error::explain(ErrorType::ReadTimedout, "the request body stopped arriving").into_down()),
        }
    }
}
