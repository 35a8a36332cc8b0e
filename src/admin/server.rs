//! Accepts connections of the admin listener and of the command socket, bounded in number and time.

use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::ConnectInfo;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::Semaphore;
use tower_service::Service;

use super::extract::LocalCommand;
use crate::cluster::replica::Replica;

/// Maximum concurrent connections; further ones wait. They share descriptors and memory with the proxy.
const CONNECTIONS_MAX: usize = 512;
/// Timeout for the arrival of a request header, idle time included.
const HEADER_TIME_MAX: Duration = Duration::from_secs(30);
/// Time for requests in progress after a handover.
const HANDOVER_GRACE: Duration = Duration::from_secs(2);
/// The largest header, in bytes.
const HEADER_BYTES_MAX: usize = 32 << 10;

/// Serves until the handover. Requests in progress get a grace period; clients of event streams reconnect.
pub async fn serve(listener: TcpListener, router: Router, replica: Arc<Replica>) {
    let permits = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let Ok(permit) = Arc::clone(&permits).acquire_owned().await else { return };
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = replica.until_handed_over() => return,
        };
        let (stream, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                accept_failed(&error).await;
                continue;
            }
        };
        let (router, replica) = (router.clone(), Arc::clone(&replica));
        tokio::spawn(async move {
            let _permit = permit;
            let service = service_fn(move |request| answer(router.clone(), peer, request));
            let mut http = http1::Builder::new();
            http.timer(TokioTimer::new()).header_read_timeout(HEADER_TIME_MAX).max_buf_size(HEADER_BYTES_MAX);
            let mut connection = pin!(http.serve_connection(TokioIo::new(stream), service));
            // Disconnects and malformed requests are the client's fault and are not logged.
            tokio::select! {
                _ = connection.as_mut() => return,
                () = replica.until_handed_over() => connection.as_mut().graceful_shutdown(),
            }
            let _ = tokio::time::timeout(HANDOVER_GRACE, connection).await;
        });
    }
}

/// Serves commands on this machine. Only the owner of the process can open the socket, and has every scope.
pub async fn serve_commands(listener: UnixListener, router: Router, replica: Arc<Replica>) {
    let permits = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let Ok(permit) = Arc::clone(&permits).acquire_owned().await else { return };
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = replica.until_handed_over() => return,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                accept_failed(&error).await;
                continue;
            }
        };
        if !crate::control::is_owner(&stream) {
            continue;
        }
        let router = router.clone();
        tokio::spawn(async move {
            let _permit = permit;
            let service = service_fn(move |mut request: hyper::Request<Incoming>| {
                request.extensions_mut().insert(LocalCommand);
                answer(router.clone(), SocketAddr::from(([127, 0, 0, 1], 0)), request)
            });
            let mut http = http1::Builder::new();
            http.timer(TokioTimer::new()).header_read_timeout(HEADER_TIME_MAX);
            let _ = http.serve_connection(TokioIo::new(stream), service).await;
        });
    }
}

async fn accept_failed(error: &std::io::Error) {
    tracing::warn!(%error, "the admin listener cannot accept a connection");
    // The usual cause is a lack of file descriptors; an immediate retry would busy-loop.
    tokio::time::sleep(Duration::from_secs(1)).await;
}

async fn answer(
    mut router: Router,
    peer: SocketAddr,
    mut request: hyper::Request<Incoming>,
) -> Result<axum::response::Response, std::convert::Infallible> {
    request.extensions_mut().insert(ConnectInfo(peer));
    router.call(request).await
}
