//! The listener itself: so many connections, none of which may take its time for ever.

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

use super::extract::Machine;
use crate::cluster::replica::Replica;

/// Connections at a time; further ones wait. The proxy shares its descriptors and its memory with them.
const CONNECTIONS_MAX: usize = 512;
/// How long a header may take to arrive, and a connection may be idle before one.
const HEADER_TIME_MAX: Duration = Duration::from_secs(30);
/// What is under way when another process takes over has so long.
const UNDER_WAY: Duration = Duration::from_secs(2);
/// The largest header, in bytes.
const HEADER_BYTES_MAX: usize = 32 << 10;

/// Serves until another process does: what is under way then has a moment, and streams of events begin anew elsewhere.
pub async fn serve(listener: TcpListener, router: Router, replica: Arc<Replica>) {
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = replica.until_handed_over() => return,
        };
        let (stream, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                not_taken(&error).await;
                continue;
            }
        };
        let (router, replica) = (router.clone(), Arc::clone(&replica));
        tokio::spawn(async move {
            let _place = place;
            let service = service_fn(move |request| answer(router.clone(), peer, request));
            let mut http = http1::Builder::new();
            http.timer(TokioTimer::new()).header_read_timeout(HEADER_TIME_MAX).max_buf_size(HEADER_BYTES_MAX);
            let mut connection = pin!(http.serve_connection(TokioIo::new(stream), service));
            // A client that leaves or talks nonsense is nobody's concern.
            tokio::select! {
                _ = connection.as_mut() => return,
                () = replica.until_handed_over() => connection.as_mut().graceful_shutdown(),
            }
            let _ = tokio::time::timeout(UNDER_WAY, connection).await;
        });
    }
}

/// Serves commands on this machine: whoever can open the socket owns the process, and may do everything.
pub async fn serve_commands(listener: UnixListener, router: Router, replica: Arc<Replica>) {
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = replica.until_handed_over() => return,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                not_taken(&error).await;
                continue;
            }
        };
        if !crate::control::is_owner(&stream) {
            continue;
        }
        let router = router.clone();
        tokio::spawn(async move {
            let _place = place;
            let service = service_fn(move |mut request: hyper::Request<Incoming>| {
                request.extensions_mut().insert(Machine);
                answer(router.clone(), SocketAddr::from(([127, 0, 0, 1], 0)), request)
            });
            let mut http = http1::Builder::new();
            http.timer(TokioTimer::new()).header_read_timeout(HEADER_TIME_MAX);
            let _ = http.serve_connection(TokioIo::new(stream), service).await;
        });
    }
}

async fn not_taken(error: &std::io::Error) {
    tracing::warn!(%error, "the admin listener takes no connection");
    // Out of descriptors, most likely: trying at once would only keep a processor busy.
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
