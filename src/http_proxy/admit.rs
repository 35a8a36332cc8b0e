//! What a request goes through before it may go on: the gate, the route, the chain.

use std::net::IpAddr;
use std::sync::{Arc, Once};

use http::header;
use keylatch_filters::chain::{Chain, Decision};
use keylatch_filters::client_ip::UNNAMED;
use keylatch_filters::contract::{Arrival, ClientAddress, Dialect, RequestCx, Vouched};
use pingora::Result;
use pingora::proxy::Session;

use super::errors::{self, Answer};
use super::fields;
use super::phases::Edge;
use super::reply::announced;
use super::request_context::Exchange;
use crate::config::model::Underscores;
use crate::listener::conn::{ConnStream, Framing};
use crate::listener::gate;
use crate::listener::path::Slashes;
use crate::listener::policy::Entry;
use crate::listener::refusal::{HeadLimits, Policy, Refused};

impl Edge {
    /// The gate, the route, the chain. `Some`: the answer instead of the upstream's.
    pub(super) async fn admit(&self, session: &mut Session, exchange: &mut Exchange) -> Result<Option<Answer>> {
        let refuse = |exchange: &mut Exchange, refused: Refused| {
            self.shared.metrics.refused.with_label_values(&[refused.reason]).inc();
            exchange.answered = Some(("gate", refused.reason));
            Ok(Some(errors::of_refused(refused)))
        };
        let Some(entry) = exchange.snapshot.entry(self.address).cloned() else { return Ok(Some(errors::INTERNAL)) };
        let passed = match self.gate(&entry, session, exchange) {
            Ok(passed) => passed,
            Err(refused) => {
                // Nothing that follows on this connection can be trusted to begin where we think it does.
                session.set_keepalive(None);
                return refuse(exchange, refused);
            }
        };
        if let Some(answer) = self.acme(session, exchange).await {
            return Ok(Some(answer));
        }
        if !exchange.conn.as_ref().is_some_and(|conn| conn.allowed.still(entry.clients(), exchange.now.wall)) {
            session.set_keepalive(None);
            return refuse(exchange, gate::NO_CERTIFICATE);
        }
        let vouched = match &entry.origin {
            None => Some(Vouched::Nothing),
            Some(origin) => origin.take(session.req_header_mut()),
        };
        let Some(vouched) = vouched else { return refuse(exchange, gate::NO_ORIGIN_SECRET) };
        arrival(exchange, vouched);
        let request = session.req_header();
        exchange.dialect = Dialect::of_path(request.uri.path());
        if self.shared.live.in_maintenance() {
            exchange.answered = Some(("gate", "maintenance"));
            return Ok(Some(errors::maintenance()));
        }
        let host = request.headers.get(header::HOST).and_then(|host| host.to_str().ok()).unwrap_or_default();
        let snapshot = Arc::clone(&exchange.snapshot);
        let Some((index, route)) = snapshot.route(&request.method, host, request.uri.path()) else {
            let refused = self.run_chain(&snapshot.unrouted, "-", session, exchange).await?;
            if refused.is_none() {
                exchange.answered = Some(("gate", "no_route"));
            }
            return Ok(Some(refused.unwrap_or(errors::NO_ROUTE)));
        };
        if passed.encoded_slash && !route.allow_encoded_slash {
            return refuse(exchange, gate::ENCODED_SLASH);
        }
        exchange.route = Some(index);
        exchange.dialect = route.dialect.unwrap_or(exchange.dialect);
        match self.run_chain(&route.chain, &route.name, session, exchange).await? {
            Some(answer) => Ok(Some(answer)),
            None => self.too_large(session, exchange),
        }
    }

    /// A CA looks whose a name is (RFC 8555, section 8.3). It comes as anybody, so it is answered before anything else is asked.
    async fn acme(&self, session: &Session, exchange: &mut Exchange) -> Option<Answer> {
        const WELL_KNOWN: &str = "/.well-known/acme-challenge/";
        let token = session.req_header().uri.path().strip_prefix(WELL_KNOWN)?;
        exchange.snapshot.settings.acme.as_ref()?;
        let answer = self.shared.acme.answer_http(token).await?;
        exchange.answered = Some(("gate", "acme_challenge"));
        Some(errors::plain(answer))
    }

    /// Runs a chain's request hooks. `Some`: a filter answered.
    async fn run_chain(&self, chain: &Chain, route: &str, session: &Session, exchange: &mut Exchange) -> Result<Option<Answer>> {
        exchange.progress = chain.begin();
        let Exchange { facts, progress, peer, now, dialect, .. } = &mut *exchange;
        let mut cx = RequestCx { request: session.req_header(), facts, peer: *peer, route, dialect: *dialect, now: *now, shadow: false };
        let answer = chain.request(&mut cx, progress).await;
        if facts.get::<ClientAddress>().is_some_and(|client| client.source == UNNAMED) {
            warn_of_unnamed(*peer);
        }
        let reply = answer.map_err(|failure| errors::of_failure(&failure))?;
        let Some(reply) = reply else { return Ok(None) };
        if let Some(Decision { filter, reason, .. }) = exchange.progress.decisions.last() {
            exchange.answered = Some((filter, reason));
        }
        exchange.detail.clone_from(&reply.detail);
        Ok(Some(errors::of_reply(*reply)))
    }

    fn gate(&self, entry: &Entry, session: &mut Session, exchange: &mut Exchange) -> Result<gate::Passed, Refused> {
        let conn = session.digest().and_then(ConnStream::conn_of).cloned();
        if let Some(conn) = &conn {
            exchange.peer = conn.peer;
        }
        let malformed = conn.as_ref().and_then(|conn| conn.malformed()).map(|malformed| malformed.refused);
        let scheme = conn.as_ref().map_or("http", |conn| conn.scheme());
        exchange.conn = conn;
        if let Some(refused) = malformed {
            return Err(refused);
        }
        let limits = HeadLimits { bytes: self.limits.header_bytes.as_usize(), fields: self.limits.headers };
        let raw = session.as_http1().map(|http1| http1.get_headers_raw_bytes());
        let upgrade = session.is_upgrade_req();
        let slashes = if entry.requests.merge_slashes { Slashes::Merge } else { Slashes::Keep };
        let policy = Policy { limits, slashes, underscores: entry.requests.underscores, scheme };
        let mut passed = gate::check(session.req_header_mut(), raw.as_deref(), &policy)?;
        if passed.dropped_fields > 0 {
            self.shared.metrics.dropped_fields.with_label_values(&[fields::UNDERSCORE]).inc_by(passed.dropped_fields);
        }
        exchange.spelled_target = passed.spelled_target.take();
        exchange.underscores_allowed = policy.underscores == Underscores::Allow;
        if upgrade && !session.is_upgrade_req() {
            // Somebody may believe that what follows is another protocol's; nothing will.
            session.set_keepalive(None);
        }
        fields::lower_request(session.req_header_mut());
        if let Some(conn) = &exchange.conn {
            conn.head_complete(framing(session));
        }
        Ok(passed)
    }

    /// A body that announces itself as too large is not waited for.
    fn too_large(&self, session: &Session, exchange: &mut Exchange) -> Result<Option<Answer>> {
        if announced(session).is_some_and(|length| length > self.limits.body_bytes.0) {
            exchange.answered = Some(("gate", "body_bytes"));
            return Ok(Some(errors::BODY_TOO_LARGE));
        }
        Ok(None)
    }
}

/// Says once in a process that a proxy is taken for its clients.
fn warn_of_unnamed(peer: IpAddr) {
    static WARNED: Once = Once::new();
    WARNED.call_once(|| {
        tracing::warn!(
            %peer,
            "a trusted proxy names no client, so the proxy itself is taken for it, and keys bind to it: have it set one of client_ip's \
             `sources`, or set `on_missing: refuse`; later requests like this are only counted in keylatch_client_unnamed_total"
        );
    });
}

/// States how the exchange came in, where there is something to say.
fn arrival(exchange: &mut Exchange, vouched: Vouched) {
    let tls = exchange.conn.as_ref().and_then(|conn| conn.tls.clone());
    if tls.is_some() || vouched != Vouched::Nothing {
        exchange.facts.put(Arrival { vouched, ..tls.unwrap_or_default() });
    }
}

/// How the body of a request that has passed the gate ends.
fn framing(session: &Session) -> Framing {
    let headers = &session.req_header().headers;
    if session.is_upgrade_req() {
        Framing::Upgrade
    } else if headers.contains_key(header::TRANSFER_ENCODING) {
        Framing::Chunked
    } else {
        Framing::Length(announced(session).unwrap_or(0))
    }
}
