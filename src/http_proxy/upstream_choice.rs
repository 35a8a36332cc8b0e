//! Chooses a server for a request, and decides on retries. The rules for repeating are here; the
//! state of servers is in [`crate::upstream`].

use std::os::fd::RawFd;
use std::sync::Arc;
use std::time::Instant;

use pingora::protocols::Digest;
use pingora::proxy::Session;
use pingora::upstreams::peer::HttpPeer;
use pingora::{Error, ErrorSource, ErrorType, Result};

use super::errors::NO_SERVER_ERROR;
use super::phases::ProxyPhases;
use super::request_context::RequestContext;
use crate::upstream::{Address, is_unprocessed, reuse};

/// The server closed a pooled connection before anything of the request was written.
const STALE_ERROR: ErrorType = ErrorType::Custom("StaleConnection");

impl ProxyPhases {
    /// The server for the next attempt.
    pub(super) async fn choose_server(&self, context: &mut RequestContext) -> Result<Box<HttpPeer>> {
        let client = context.facts.client().unwrap_or(context.peer);
        let Some(route) = context.route() else { return Err(Error::explain(NO_SERVER_ERROR, "no route")) };
        let upstream = Arc::clone(&route.upstream);
        let mut picked = upstream.pick(client, &context.attempts, Instant::now());
        if picked.is_none() && upstream.wait_for_addresses().await {
            picked = upstream.pick(client, &context.attempts, Instant::now());
        }
        let Some(mut picked) = picked else {
            return Err(match context.attempts.error.take() {
                Some(error) => Error::explain(error, "no server is left to try").into_up(),
                None => Error::explain(NO_SERVER_ERROR, format!("upstream `{}` has no server left to try", upstream.name)),
            });
        };
        // A server that has just failed gets time to recover before the next attempt.
        if let Some(time) = context.attempts.backoff(&picked.address) {
            tokio::time::sleep(time).await;
        }
        if context.upgrades {
            picked.peer.options.read_timeout = Some(self.limits.upgrade_idle_timeout.0);
            // HTTP/2 has no upgrade, so ALPN must not choose it.
            if upstream.may_speak_http1() {
                picked.peer.options.set_http_version(1, 1);
            }
        }
        context.server = Some(picked.address);
        context.host = picked.host;
        // A retry sends the body again.
        context.bytes_in = 0;
        Ok(picked.peer)
    }

    /// Handles a connection, new or pooled, before anything of the request is written.
    pub(super) fn connected(
        &self,
        session: &Session,
        context: &mut RequestContext,
        reused: bool,
        fd: RawFd,
        digest: Option<&Digest>,
    ) -> Result<()> {
        let (Some(route), Some(server)) = (context.route(), &context.server) else { return Ok(()) };
        let upstream = Arc::clone(&route.upstream);
        if upstream.is_revoked(digest) {
            let error = Error::explain(ErrorType::InvalidCert, "the server's certificate was revoked").into_up();
            return Err(self.connect_failed(context, error));
        }
        context.upstream_connection = reuse::connection(fd);
        context.upstream_connection.iter().for_each(|connection| connection.busy());
        // On HTTP/2, the connection's own task reads incoming data.
        let http1 = upstream.is_http1() || context.upstream_connection.as_ref().is_some_and(|connection| connection.is_http1());
        if !reused {
            upstream.succeeded(server);
            if matches!(server, Address::Inet(_)) {
                // An address of the other family may have connected first.
                context.server = Address::from_raw_fd(fd, true).or(context.server.take());
            }
        } else if http1 && !reuse::is_open(fd) {
            return Err(Error::explain(STALE_ERROR, "the server closed the pooled connection").into_up());
        } else if http1 && upstream.retries_unsent() && !session.req_header().method.is_idempotent() {
            context.upstream_connection.iter().for_each(|connection| connection.begin());
        }
        Ok(())
    }

    /// Handles a failed connection: nothing was sent, so every method may be retried on another
    /// server, if there is one.
    pub(super) fn connect_failed(&self, context: &mut RequestContext, mut error: Box<Error>) -> Box<Error> {
        context.attempts.unreachable.extend(context.server.clone());
        context.attempts.error = Some(error.etype().clone());
        let Some(route) = context.route() else { return error };
        let upstream = Arc::clone(&route.upstream);
        if let Some(server) = &context.server {
            // Evaluated first: the failure itself starts a look-up.
            let other = upstream.may_find_addresses();
            upstream.failed(server, error.etype());
            self.count_failure(context, &error);
            let client = context.facts.client().unwrap_or(context.peer);
            let other = other || upstream.pick(client, &context.attempts, Instant::now()).is_some();
            error.set_retry(other && context.attempts.take(upstream.retries()));
        }
        error
    }

    /// Decides on a retry after an attempt failed on an established connection.
    pub(super) fn decide_retry(&self, session: &Session, context: &mut RequestContext, mut error: Box<Error>, reused: bool) -> Box<Error> {
        // Decided in `connected` already.
        if *error.etype() == ErrorType::InvalidCert {
            return error;
        }
        let connection = context.upstream_connection.take();
        context.attempts.new_connection |= reused;
        if *error.etype() == STALE_ERROR {
            // The server did not fail, and the next attempt uses a new connection.
            error.set_retry(true);
            return error;
        }
        error.retry.decide_reuse(reused);
        let unsent = reused && connection.is_some_and(|connection| reuse::proves_unsent(&error, &connection));
        let repeatable = session.req_header().method.is_idempotent() && error.retry();
        let retry = (repeatable || unsent || is_unprocessed(&error)) && !context.responded && !session.as_ref().retry_buffer_truncated();
        let retries_max = context.route().map_or(0, |route| route.upstream.retries());
        error.set_retry(retry && context.attempts.take(retries_max));
        if error.retry() {
            context.attempts.failed.extend(context.server.clone());
            self.count_failure(context, &error);
        }
        error
    }

    /// Counts an error of the upstream after its connection was established.
    pub(super) fn count_upstream_error(&self, context: &RequestContext, error: &Error) {
        if *error.esource() == ErrorSource::Upstream {
            self.count_failure(context, error);
        }
    }

    fn count_failure(&self, context: &RequestContext, error: &Error) {
        if let Some(route) = context.route() {
            self.state.metrics.upstream_errors.with_label_values(&[&*route.upstream.name, error.etype().as_str()]).inc();
        }
    }
}
