//! Pingora's server around the proxy: listeners, threads, the way it stops.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use pingora::apps::HttpServerOptions;
use pingora::listeners::ListenerConfig;
use pingora::protocols::http::v2::server::default_h2_options;
use pingora::protocols::l4::stream::L4BufferSettings;
use pingora::proxy::HttpProxy;
use pingora::server::configuration::ServerConf;
use pingora::server::{RunArgs, Server, ShutdownSignal, ShutdownSignalWatch};
use pingora::services::listening::Service;
use tokio::sync::watch;

use super::conn::OnRefusal;
use super::door::Door;
use super::edge::{Edge, Shared};
use crate::config::model::{Listener, Settings};
use crate::entry::Entry;

/// Attempts Pingora makes at most; `upstreams[].retries` is bounded below it.
const ATTEMPTS_MAX: usize = 12;
const H2_STREAMS_MAX: u32 = 256;
/// Read and write buffers of a client's connection, in bytes. None for reading: headers and bodies are read
/// into buffers of their own, and an idle stream would keep it for nothing.
const READ_BUFFER_BYTES: usize = 0;
const WRITE_BUFFER_BYTES: usize = 1460;

/// When and how to stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// Not yet.
    No,
    /// Open requests may go on for a while.
    Drain,
    /// At once.
    Now,
}

/// Serves until `stop` says otherwise, and returns when all is over: when the last connection has ended,
/// or its time is up. What is still open then ends with the process.
pub fn run(
    shared: &Arc<Shared>,
    settings: &Settings,
    mut stop: watch::Receiver<Stop>,
    house: &tokio::runtime::Handle,
) -> Result<(), String> {
    for listener in &settings.listeners {
        // Pingora panics when it cannot listen; so it is tried first, and said in words.
        std::net::TcpListener::bind(listener.address).map_err(|e| format!("cannot listen on {}: {e}", listener.address))?;
    }
    let drain = settings.shutdown.drain.0;
    let server = build(shared, settings, drain);
    let signals = Signals { stop: stop.clone() };
    let thread = std::thread::Builder::new().name("pingora".into());
    let serving = thread
        .spawn(move || server.run(RunArgs { shutdown_signal: Box::new(signals) }))
        .map_err(|e| format!("no thread for the server: {e}"))?;
    let connections = shared.metrics.connections.clone();
    house.block_on(async move {
        const LOOK_EVERY: Duration = Duration::from_millis(20);
        let mut looks = tokio::time::interval(LOOK_EVERY * 10);
        loop {
            tokio::select! {
                wanted = stop.wait_for(|stop| *stop != Stop::No) => match wanted.as_deref() {
                    Ok(Stop::Now) => return Ok(()),
                    _ => break,
                },
                _ = looks.tick() => if serving.is_finished() {
                    return Err("the server ended by itself; the lines before this one say why".to_owned());
                },
            }
        }
        tracing::info!(?drain, open = connections.get(), "no new connections; open requests may go on");
        let over = tokio::time::Instant::now() + drain;
        while connections.get() > 0 && tokio::time::Instant::now() < over && *stop.borrow() != Stop::Now {
            // A gauge cannot be waited on, and this runs once, at the end.
            tokio::time::sleep(LOOK_EVERY).await;
        }
        if connections.get() > 0 {
            tracing::warn!(open = connections.get(), "connections are cut: their time is up");
        }
        Ok(())
    })
}

fn build(shared: &Arc<Shared>, settings: &Settings, drain: Duration) -> Server {
    let threads = match settings.workers {
        0 => std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
        some => some,
    };
    let conf = ServerConf {
        threads,
        max_retries: ATTEMPTS_MAX,
        upstream_keepalive_pool_size: 1024,
        // Pingora waits for this long, whether or not anything is open; `run` returns before.
        grace_period_seconds: Some(drain.as_secs() + 5),
        graceful_shutdown_timeout_seconds: Some(1),
        ..ServerConf::default()
    };
    let mut server = Server::new_with_opt_and_conf(None, conf);
    server.bootstrap();
    let snapshot = shared.snapshot.load();
    for listener in &settings.listeners {
        // What was started with is what was compiled.
        if let Some(entry) = snapshot.entry(listener.address) {
            server.add_service(service(shared, listener, entry, &Arc::clone(&server.configuration)));
        }
    }
    server
}

fn service(shared: &Arc<Shared>, listener: &Listener, entry: &Arc<Entry>, conf: &Arc<ServerConf>) -> Service<Door> {
    let edge = Edge { shared: Arc::clone(shared), entry: Arc::clone(entry), limits: listener.limits.clone() };
    let mut proxy = HttpProxy::new(edge, Arc::clone(conf));
    let mut options = HttpServerOptions::default();
    options.h2c = listener.h2c;
    options.keepalive_request_limit = Some(listener.limits.requests_per_connection);
    options.h2_idle_timeout = Some(listener.limits.idle_timeout.0);
    proxy.server_options = Some(options);
    let mut h2 = default_h2_options();
    h2.max_header_list_size(u32::try_from(listener.limits.header_bytes.0).unwrap_or(u32::MAX)).max_concurrent_streams(H2_STREAMS_MAX);
    proxy.h2_options = Some(h2);
    proxy.handle_init_modules();
    let refused = shared.metrics.refused.clone();
    let on_refusal: OnRefusal = Arc::new(move |reason| refused.with_label_values(&[reason]).inc());
    let door = Door::new(Arc::new(proxy), Arc::clone(shared), Arc::clone(entry), &listener.limits, on_refusal);
    let mut service = Service::new(format!("listener {}", listener.address), door);
    let endpoint =
        ListenerConfig::tcp(listener.address.to_string()).l4_buffer(L4BufferSettings::new(READ_BUFFER_BYTES, WRITE_BUFFER_BYTES));
    service.add_listener(endpoint);
    service
}

struct Signals {
    stop: watch::Receiver<Stop>,
}

#[async_trait]
impl ShutdownSignalWatch for Signals {
    async fn recv(&self) -> ShutdownSignal {
        let mut stop = self.stop.clone();
        // An error means that nobody is left to ask: then it is time to stop as well.
        let wanted = stop.wait_for(|stop| *stop != Stop::No).await.map_or(Stop::Drain, |stop| *stop);
        match wanted {
            Stop::Now => ShutdownSignal::FastShutdown,
            Stop::No | Stop::Drain => ShutdownSignal::GracefulTerminate,
        }
    }
}
