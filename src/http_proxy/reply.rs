//! Writes the responses of Keylatch to the client. Their content is decided in `errors`.

use std::time::Duration;

use futures::FutureExt as _;
use http::{HeaderValue, header};
use keylatch_filters::contract::{ResponseCx, Source};
use pingora::Result;
use pingora::http::ResponseHeader;
use pingora::proxy::Session;

use super::errors::{self, Answer};
use super::request_context::RequestContext;

/// A request body up to this size is read to its end, so that the connection can be kept and a
/// reset does not destroy the response.
const DRAINED_BYTES_MAX: u64 = 256 * 1024;
const DRAIN_TIME_MAX: Duration = Duration::from_secs(2);

/// What happens to a request body that is still arriving.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RemainingBody {
    /// It is read to its end if it is small, so that the connection can be kept.
    Drained,
    /// It is not read, and the connection is closed.
    Ignored,
}

/// Writes a response, after the response hooks of the filters that the request has passed.
pub async fn write(session: &mut Session, context: &mut RequestContext, answer: &Answer, rest: RemainingBody) -> Result<()> {
    let (content_type, body) = match &answer.own_body {
        Some(own) => (own.content_type.clone(), own.bytes.clone()),
        None => (Some(HeaderValue::from_static("application/json")), answer.body(context.dialect, context.request_id())),
    };
    let mut head = ResponseHeader::build_no_case(answer.status, Some(8))?;
    for (name, value) in &answer.headers {
        head.append_header(name.clone(), value.clone())?;
    }
    if let Some(content_type) = content_type {
        head.insert_header(header::CONTENT_TYPE, content_type)?;
    }
    // A 204 has no body and no length (RFC 9110, section 8.6).
    if answer.status != http::StatusCode::NO_CONTENT {
        head.insert_header(header::CONTENT_LENGTH, body.len())?;
    }
    head.insert_header(header::CACHE_CONTROL, HeaderValue::from_static("no-store"))?;
    response_hooks(session, context, &mut head, Source::Ours)?;
    let drains = rest == RemainingBody::Drained && can_drain(session);
    if drains {
        session.set_close_on_response_before_downstream_finish(false);
    } else {
        session.set_keepalive(None);
    }
    let no_body = session.req_header().method == http::Method::HEAD || answer.status == http::StatusCode::NO_CONTENT;
    session.write_response_header(Box::new(head), no_body).await?;
    if no_body {
        session.downstream_session.finish_body().await?;
    } else {
        session.write_response_body(Some(body), true).await?;
    }
    if drains && !matches!(tokio::time::timeout(DRAIN_TIME_MAX, session.downstream_session.drain_request_body()).await, Ok(Ok(()))) {
        session.set_keepalive(None);
    }
    Ok(())
}

/// Runs the chain's response hooks.
pub fn response_hooks(session: &Session, context: &mut RequestContext, head: &mut ResponseHeader, source: Source) -> Result<()> {
    let chain = context.routing.chain();
    let mut cx = ResponseCx { response: head, request: session.req_header(), facts: &mut context.facts, source, now: context.now };
    let hooks = chain.response(&mut cx, &mut context.progress);
    hooks.map_err(|failure| errors::from_failure(&failure))
}

/// The `Content-Length` of the request.
pub fn announced_length(session: &Session) -> Option<u64> {
    session.req_header().headers.get(header::CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

/// Whether the rest of the request body is small enough to be read.
fn can_drain(session: &mut Session) -> bool {
    if session.is_body_done() {
        return true;
    }
    if announced_length(session).is_none_or(|length| length > DRAINED_BYTES_MAX) {
        return false;
    }
    if !session.req_header().headers.contains_key(header::EXPECT) {
        return true;
    }
    // With `Expect`, the client may or may not send the body after the refusal: only bytes that
    // have already arrived belong to it.
    matches!(session.downstream_session.drain_request_body().now_or_never(), Some(Ok(()))) && session.is_body_done()
}
