//! The choice of a server for a request, and of what becomes of a failed attempt. The rules of what may be repeated are here; what
//! is known of servers is in [`crate::upstream`].

use std::os::fd::RawFd;
use std::sync::Arc;
use std::time::Instant;

use pingora::protocols::Digest;
use pingora::proxy::Session;
use pingora::upstreams::peer::HttpPeer;
use pingora::{Error, ErrorType, Result};

use super::errors::NO_SERVER_ERROR;
use super::phases::Edge;
use super::request_context::Exchange;
use crate::upstream::{Address, is_unprocessed, reuse};

/// A kept connection was closed by the server before anything of the request was written.
const STALE_ERROR: ErrorType = ErrorType::Custom("StaleConnection");

impl Edge {
    /// Where the request goes, at its first attempt or a later one.
    pub(super) async fn choose_server(&self, session: &Session, exchange: &mut Exchange) -> Result<Box<HttpPeer>> {
        let client = exchange.facts.client().unwrap_or(exchange.peer);
        let Some(route) = exchange.route() else { return Err(Error::explain(NO_SERVER_ERROR, "no route")) };
        let upstream = Arc::clone(&route.upstream);
        let mut picked = upstream.pick(client, &exchange.attempts, Instant::now());
        if picked.is_none() && upstream.wait_for_addresses().await {
            picked = upstream.pick(client, &exchange.attempts, Instant::now());
        }
        let Some(mut picked) = picked else {
            return Err(match exchange.attempts.error.take() {
                Some(error) => Error::explain(error, "no other server is left to try").into_up(),
                None => Error::explain(NO_SERVER_ERROR, format!("upstream `{}` has no server left to try", upstream.name)),
            });
        };
        if let Some(time) = exchange.attempts.backoff(&picked.address) {
            tokio::time::sleep(time).await;
        }
        if session.is_upgrade_req() {
            picked.peer.options.read_timeout = Some(self.limits.upgrade_idle_timeout.0);
        }
        exchange.server = Some(picked.address);
        exchange.host = picked.host;
        // A second attempt sends the body anew.
        exchange.bytes_in = 0;
        Ok(picked.peer)
    }

    /// There is a connection, new or kept, and nothing was written for this request yet.
    pub(super) fn connected(
        &self,
        session: &Session,
        exchange: &mut Exchange,
        reused: bool,
        fd: RawFd,
        digest: Option<&Digest>,
    ) -> Result<()> {
        let (Some(route), Some(server)) = (exchange.route(), &exchange.server) else { return Ok(()) };
        let upstream = Arc::clone(&route.upstream);
        if upstream.is_revoked(digest) {
            let error = Error::explain(ErrorType::InvalidCert, "the server's certificate was revoked").into_up();
            return Err(self.elsewhere(exchange, error));
        }
        exchange.upstream_connection = reuse::connection(fd);
        exchange.upstream_connection.iter().for_each(|connection| connection.busy());
        // Of an HTTP/2 connection, the task that drives it reads what comes.
        let http1 = upstream.is_http1() || exchange.upstream_connection.as_ref().is_some_and(|connection| connection.is_http1());
        if !reused {
            upstream.succeeded(server);
            if matches!(server, Address::Inet(_)) {
                // The name's other family may have answered first.
                exchange.server = Address::from_raw_fd(fd, true).or(exchange.server.take());
            }
        } else if http1 && !reuse::is_open(fd) {
            return Err(Error::explain(STALE_ERROR, "the server has closed the connection that was kept").into_up());
        } else if http1 && upstream.retries_unsent() && !session.req_header().method.is_idempotent() {
            exchange.upstream_connection.iter().for_each(|connection| connection.begin());
        }
        Ok(())
    }

    /// A server could not be spoken to, or must not be: nothing was sent, so every method may be tried elsewhere, if there is an
    /// elsewhere.
    pub(super) fn elsewhere(&self, exchange: &mut Exchange, mut error: Box<Error>) -> Box<Error> {
        exchange.attempts.unreachable.extend(exchange.server.clone());
        exchange.attempts.error = Some(error.etype().clone());
        let Some(route) = exchange.route() else { return error };
        let upstream = Arc::clone(&route.upstream);
        if let Some(server) = &exchange.server {
            // Asked first: the failure itself begins a look-up.
            let other = upstream.may_find_addresses();
            upstream.failed(server, error.etype());
            self.count_failure(exchange, &error);
            let client = exchange.facts.client().unwrap_or(exchange.peer);
            let other = other || upstream.pick(client, &exchange.attempts, Instant::now()).is_some();
            error.set_retry(other && exchange.attempts.take(upstream.retries()));
        }
        error
    }

    /// An attempt failed after there was a connection.
    pub(super) fn decide_retry(&self, session: &Session, exchange: &mut Exchange, mut error: Box<Error>, reused: bool) -> Box<Error> {
        // Nothing was sent, and it is decided already what comes of it.
        if *error.etype() == ErrorType::InvalidCert {
            return error;
        }
        let connection = exchange.upstream_connection.take();
        exchange.attempts.new_connection |= reused;
        if *error.etype() == STALE_ERROR {
            // It is not the server that failed, and the next attempt has a connection of its own.
            error.set_retry(true);
            return error;
        }
        error.retry.decide_reuse(reused);
        let unsent = reused && connection.is_some_and(|connection| reuse::proves_unsent(&error, &connection));
        let repeatable = session.req_header().method.is_idempotent() && error.retry();
        let again = (repeatable || unsent || is_unprocessed(&error)) && !exchange.responded && !session.as_ref().retry_buffer_truncated();
        let most = exchange.route().map_or(0, |route| route.upstream.retries());
        error.set_retry(again && exchange.attempts.take(most));
        if error.retry() {
            exchange.attempts.failed.extend(exchange.server.clone());
            self.count_failure(exchange, &error);
        }
        error
    }

    fn count_failure(&self, exchange: &Exchange, error: &Error) {
        if let Some(route) = exchange.route() {
            self.shared.metrics.upstream_errors.with_label_values(&[&*route.upstream.name, error.etype().as_str()]).inc();
        }
    }
}
