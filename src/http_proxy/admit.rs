//! Admits a request or answers it: the gate, the route, and the chain's request hooks. It writes no
//! response.

use std::net::IpAddr;
use std::sync::{Arc, Once};

use http::header;
use keylatch_filters::chain::{Chain, Decision, Outcome};
use keylatch_filters::client_ip::UNNAMED;
use keylatch_filters::contract::{Arrival, ClientAddress, Dialect, RequestCx, Vouched};
use pingora::Result;
use pingora::proxy::Session;

use super::errors::{self, Answer};
use super::fields;
use super::phases::ProxyPhases;
use super::reply::announced_length;
use super::request_context::RequestContext;
use crate::config::model::Underscores;
use crate::listener::conn::{ConnStream, Framing};
use crate::listener::gate;
use crate::listener::path::Slashes;
use crate::listener::policy::ListenerPolicy;
use crate::listener::refusal::{HeadLimits, Policy, Refused};

impl ProxyPhases {
    /// Runs the gate, the route and the chain. `Some`: the response instead of the upstream's.
    pub(super) async fn admit(&self, session: &mut Session, context: &mut RequestContext) -> Result<Option<Answer>> {
        let refuse = |context: &mut RequestContext, refused: Refused| {
            self.state.metrics.refused.with_label_values(&[refused.reason]).inc();
            context.answered = Some(("gate", refused.reason));
            Ok(Some(errors::from_refusal(refused)))
        };
        let Some(policy) = context.routing.snapshot.listener_policy(self.address).cloned() else { return Ok(Some(errors::INTERNAL)) };
        let passed = match self.gate(&policy, session, context) {
            Ok(passed) => passed,
            Err(refused) => {
                // The start of the next request on this connection cannot be trusted.
                session.set_keepalive(None);
                return refuse(context, refused);
            }
        };
        if let Some(answer) = self.acme(session, context).await {
            return Ok(Some(answer));
        }
        if !context.conn.as_ref().is_some_and(|conn| conn.client_cert.is_valid(policy.clients(), context.now.wall)) {
            session.set_keepalive(None);
            return refuse(context, gate::NO_CERTIFICATE);
        }
        let vouched = match &policy.origin {
            None => Some(Vouched::Nothing),
            Some(origin) => origin.take(session.req_header_mut()),
        };
        let Some(vouched) = vouched else { return refuse(context, gate::NO_ORIGIN_SECRET) };
        put_arrival(context, vouched);
        let request = session.req_header();
        context.dialect = Dialect::of_path(request.uri.path());
        if self.state.live.in_maintenance() {
            context.answered = Some(("maintenance", "maintenance"));
            return Ok(Some(errors::maintenance()));
        }
        let host = request.headers.get(header::HOST).and_then(|host| host.to_str().ok()).unwrap_or_default();
        let snapshot = Arc::clone(&context.routing.snapshot);
        let Some((index, route)) = snapshot.route(&request.method, host, request.uri.path()) else {
            let refused = self.run_chain(&snapshot.unrouted, "-", session, context).await?;
            if refused.is_none() {
                context.answered = Some(("no_route", "no_route"));
            }
            return Ok(Some(refused.unwrap_or(errors::NO_ROUTE)));
        };
        if passed.encoded_slash && !route.allow_encoded_slash {
            return refuse(context, gate::ENCODED_SLASH);
        }
        context.routing.resolve(index);
        context.dialect = route.dialect.unwrap_or(context.dialect);
        match self.run_chain(&route.chain, &route.name, session, context).await? {
            Some(answer) => Ok(Some(answer)),
            None => self.too_large(session, context),
        }
    }

    /// Answers an ACME HTTP-01 challenge (RFC 8555, section 8.3). The CA has no certificate and no
    /// key, so this precedes those checks.
    async fn acme(&self, session: &Session, context: &mut RequestContext) -> Option<Answer> {
        const WELL_KNOWN: &str = "/.well-known/acme-challenge/";
        let token = session.req_header().uri.path().strip_prefix(WELL_KNOWN)?;
        context.routing.snapshot.settings.acme.as_ref()?;
        let answer = self.state.acme.answer_http(token).await?;
        context.answered = Some(("acme", "acme_challenge"));
        Some(errors::plain(answer))
    }

    /// Runs the request hooks of a chain. `Some`: a filter answered.
    async fn run_chain(&self, chain: &Chain, route: &str, session: &mut Session, context: &mut RequestContext) -> Result<Option<Answer>> {
        context.progress = chain.begin();
        let reply = loop {
            let RequestContext { facts, progress, peer, now, dialect, .. } = &mut *context;
            let mut cx =
                RequestCx { request: session.req_header(), facts, peer: *peer, route, dialect: *dialect, now: *now, shadow: false };
            let outcome = chain.request(&mut cx, progress).await;
            if facts.get::<ClientAddress>().is_some_and(|client| client.source == UNNAMED) {
                warn_of_unnamed(*peer);
            }
            match outcome.map_err(|failure| errors::from_failure(&failure))? {
                Outcome::Passed => return Ok(None),
                Outcome::Replied(reply) => break reply,
                Outcome::ModelNeeded => {
                    if let Some(answer) = self.read_model(session, context).await? {
                        return Ok(Some(answer));
                    }
                }
            }
        };
        if let Some(Decision { filter, reason, .. }) = context.progress.decisions.last() {
            context.answered = Some((filter, reason));
        }
        context.detail.clone_from(&reply.detail);
        Ok(Some(errors::from_reply(*reply)))
    }

    fn gate(&self, policy: &ListenerPolicy, session: &mut Session, context: &mut RequestContext) -> Result<gate::Passed, Refused> {
        let conn = session.digest().and_then(ConnStream::conn_of).cloned();
        if let Some(conn) = &conn {
            context.peer = conn.peer;
        }
        let malformed = conn.as_ref().and_then(|conn| conn.malformed()).map(|malformed| malformed.refused);
        let scheme = conn.as_ref().map_or("http", |conn| conn.scheme());
        context.conn = conn;
        if let Some(refused) = malformed {
            return Err(refused);
        }
        let limits = HeadLimits { bytes: self.limits.header_bytes.as_usize(), fields: self.limits.headers };
        let raw = session.as_http1().map(|http1| http1.get_headers_raw_bytes());
        let upgrade = session.is_upgrade_req();
        let slashes = if policy.requests.merge_slashes { Slashes::Merge } else { Slashes::Keep };
        let policy = Policy { limits, slashes, underscores: policy.requests.underscores, scheme };
        let mut passed = gate::check(session.req_header_mut(), raw.as_deref(), &policy)?;
        if passed.dropped_fields > 0 {
            self.state.metrics.dropped_fields.with_label_values(&[fields::UNDERSCORE]).inc_by(passed.dropped_fields);
        }
        context.spelled_target = passed.spelled_target.take();
        context.underscores_allowed = policy.underscores == Underscores::Allow;
        context.upgrades = session.is_upgrade_req();
        if upgrade && !context.upgrades {
            // The client may believe that another protocol follows; none does.
            session.set_keepalive(None);
        }
        fields::lower_request(session.req_header_mut());
        if let Some(conn) = &context.conn {
            conn.header_complete(framing(session, context.upgrades));
        }
        Ok(passed)
    }

    /// Refuses a body by its announced length, without reading it.
    pub(super) fn too_large(&self, session: &Session, context: &mut RequestContext) -> Result<Option<Answer>> {
        if announced_length(session).is_some_and(|length| length > self.limits.body_bytes.0) {
            context.answered = Some(("body_limit", "body_bytes"));
            return Ok(Some(errors::BODY_TOO_LARGE));
        }
        Ok(None)
    }
}

/// Warns once per process that a proxy's address is used as the client address.
fn warn_of_unnamed(peer: IpAddr) {
    static WARNED: Once = Once::new();
    WARNED.call_once(|| {
        tracing::warn!(
            %peer,
            "a trusted proxy names no client, so its own address is used, and keys bind to it: make it set one of client_ip's \
             `sources`, or set `on_missing: refuse`. Further requests are only counted in keylatch_client_unnamed_total"
        );
    });
}

/// Adds the arrival facts (TLS, client certificate, origin secret), if there are any.
fn put_arrival(context: &mut RequestContext, vouched: Vouched) {
    let tls = context.conn.as_ref().and_then(|conn| conn.tls.clone());
    if tls.is_some() || vouched != Vouched::Nothing {
        context.facts.put(Arrival { vouched, ..tls.unwrap_or_default() });
    }
}

/// The framing of the body of a request that has passed the gate.
fn framing(session: &Session, upgrades: bool) -> Framing {
    let headers = &session.req_header().headers;
    if upgrades {
        Framing::Upgrade
    } else if headers.contains_key(header::TRANSFER_ENCODING) {
        Framing::Chunked
    } else {
        Framing::Length(announced_length(session).unwrap_or(0))
    }
}
