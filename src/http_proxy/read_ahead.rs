//! Reads a request body before an upstream is chosen, until its model is known or a limit is
//! reached; to its end if a filter reads its parameters. Filters read the result, the facts
//! [`RequestModel`] and [`RequestParameters`].

use std::sync::Arc;

use bytes::Bytes;
use http::{StatusCode, header};
use keylatch_filters::body_scan::{ModelScan, ModelSource, Scanned};
use keylatch_filters::contract::{RequestModel, UnknownModel};
use keylatch_filters::usage_scan::{RequestParameters, RequestScan};
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

/// What is read from a body.
struct BodyReader {
    /// Looks for the model, unless the header names it.
    model: Option<ModelScan>,
    /// Reads the parameters, if a filter needs them.
    parameters: Option<Box<RequestScan>>,
    /// Two models are an error; otherwise the model is then unknown.
    model_enforced: bool,
}

/// What is known about a body.
enum Reading {
    /// More must be read.
    More,
    /// Nothing more must be read. The model that the body names.
    Done(Option<RequestModel>),
    /// It names two models.
    TwoModels,
}

impl BodyReader {
    fn feed(&mut self, piece: &[u8]) {
        self.model.iter_mut().for_each(|scan| scan.feed(piece));
        self.parameters.iter_mut().for_each(|scan| scan.feed(piece));
    }

    fn reading(&mut self, ended: bool) -> Reading {
        let Some(scan) = &mut self.model else { return if ended { Reading::Done(None) } else { Reading::More } };
        match scan.scanned(ended) {
            Scanned::Two if self.model_enforced => Reading::TwoModels,
            Scanned::Two => Reading::Done(Some(RequestModel::Unknown(UnknownModel::Unreadable))),
            Scanned::Model(model) if ended || self.parameters.is_none() => Reading::Done(Some(model)),
            Scanned::Model(_) | Scanned::Nothing => Reading::More,
        }
    }

    /// The model if no more of the body is read.
    fn model_so_far(&mut self, unknown: UnknownModel) -> Option<RequestModel> {
        match self.model.as_mut()?.scanned(false) {
            Scanned::Model(model) => Some(model),
            Scanned::Nothing | Scanned::Two => Some(RequestModel::Unknown(unknown)),
        }
    }
}

impl ProxyPhases {
    /// Stores the model and the parameters of the request as facts. Returns an answer if the request
    /// is refused instead.
    pub(super) async fn read_model(&self, session: &mut Session, context: &mut RequestContext) -> Result<Option<Answer>> {
        let has_body = !session.is_body_done();
        let chain = context.routing.chain();
        let (reads_parameters, model_enforced) = (chain.reads_parameters(), chain.enforces_model());
        let source = ModelSource::of_request(session.req_header(), has_body, context.upgrades);
        let parameters = (reads_parameters && has_body && !context.upgrades).then(Box::<RequestScan>::default);
        let mut reader = BodyReader { model: None, parameters, model_enforced };
        match source {
            ModelSource::Header(model) => context.facts.put(model),
            ModelSource::Body(scan) => reader.model = Some(scan),
        }
        if reader.model.is_none() && reader.parameters.is_none() {
            if reads_parameters {
                context.facts.put(RequestParameters::default());
            }
            return Ok(None);
        }
        if let Some(answer) = self.too_large(session, context)? {
            return Ok(Some(answer));
        }
        self.ask_for_body(session, context).await?;
        let mut ahead = BodyAhead::new(&self.ahead_budget);
        let (mut pace, mut ended) = (BodyPace::new((&self.limits).into()), false);
        let model = loop {
            match reader.reading(ended) {
                Reading::More => {}
                Reading::Done(model) => break model,
                Reading::TwoModels => {
                    context.answered = Some(("proxy", errors::TWO_MODELS.code));
                    return Ok(Some(errors::TWO_MODELS));
                }
            }
            if ahead.len() >= self.limits.read_ahead_bytes.0 {
                break reader.model_so_far(UnknownModel::TooFar);
            }
            let piece = self.read_piece(session, &mut pace).await?;
            ended = piece.is_none() || session.is_body_done();
            let Some(piece) = piece else { continue };
            reader.feed(&piece);
            let within_budget = ahead.push(piece);
            context.bytes_in = ahead.len();
            if ahead.len() > self.limits.body_bytes.0 {
                context.answered = Some(("body_limit", "body_bytes"));
                return Ok(Some(errors::BODY_TOO_LARGE));
            }
            if !within_budget {
                break reader.model_so_far(UnknownModel::Busy);
            }
        };
        ahead.flush_tail();
        self.put_read(context, reader, model, ended, ahead);
        Ok(None)
    }

    /// Stores what was read.
    fn put_read(&self, context: &mut RequestContext, reader: BodyReader, model: Option<RequestModel>, ended: bool, ahead: BodyAhead) {
        if let (Some(RequestModel::Named(model)), Some(scan)) = (&model, reader.model)
            && !ended
            && reader.model_enforced
        {
            context.model_watch = Some(ModelWatch::new(scan, Arc::clone(model), ahead.len()));
        }
        if let Some(model) = model {
            context.facts.put(model);
        }
        if let Some(mut scan) = reader.parameters {
            context.facts.put(scan.finish());
        }
        context.ahead = Some(ahead);
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
