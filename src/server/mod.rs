//! Pingora's server around the proxy: listeners, threads, the way it stops.

mod acceptor;
mod drain;
mod service;
mod stop;

use std::net::{SocketAddr, TcpListener};
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
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

pub use service::Pulse;
pub use stop::Stop;

use crate::config::model::{Listener, Settings};
use crate::http_proxy::{Edge, Shared};
use crate::listener::conn::OnRefusal;
use crate::listener::conn::lingering::Lingered;
use crate::server::acceptor::Door;
use crate::server::drain::Drain;
use service::{Listening, Listens};

/// Attempts Pingora makes at most; `upstreams[].retries` is bounded below it.
const ATTEMPTS_MAX: usize = 12;
const H2_STREAMS_MAX: u32 = 256;
/// Read and write buffers of a client's connection, in bytes. None for reading: headers and bodies are read
/// into buffers of their own, and an idle stream would keep it for nothing.
const READ_BUFFER_BYTES: usize = 0;
const WRITE_BUFFER_BYTES: usize = 1460;

/// Serves on these sockets until `stop` says otherwise, and returns when all is over: when the last connection has ended,
/// or its time is up. What is still open then ends with the process. `started` is called once it serves.
pub fn run(
    shared: &Arc<Shared>,
    settings: &Settings,
    sockets: impl Iterator<Item = (SocketAddr, TcpListener)>,
    stop: watch::Receiver<Stop>,
    house: &tokio::runtime::Handle,
    pulse: &Arc<Pulse>,
    started: impl FnOnce() -> Result<(), String>,
) -> Result<(), String> {
    let (tell, mut told) = mpsc::unbounded_channel();
    let server = build(shared, settings, sockets, &stop, pulse, &tell);
    drop(tell);
    let signals = Signals { stop: stop.clone() };
    let thread = std::thread::Builder::new().name("pingora".into());
    let serving = thread
        .spawn(move || server.run(RunArgs { shutdown_signal: Box::new(signals) }))
        .map_err(|e| format!("no thread for the server: {e}"))?;
    for _ in &settings.listeners {
        if told.blocking_recv() != Some(Listens::Begun) {
            return Err(ENDED.to_owned());
        }
    }
    started()?;
    house.block_on(wait(shared, settings, stop, &serving, told))
}

const ENDED: &str = "the server ended by itself; the lines before this one say why";

/// Waits for the end, and then for what is open.
async fn wait<T>(
    shared: &Shared,
    settings: &Settings,
    mut stop: watch::Receiver<Stop>,
    serving: &std::thread::JoinHandle<T>,
    mut told: mpsc::UnboundedReceiver<Listens>,
) -> Result<(), String> {
    const LOOK_EVERY: Duration = Duration::from_millis(20);
    // A connection that was accepted counts once a thread has turned to it.
    const ACCEPTED: Duration = Duration::from_millis(250);
    // What is cut notes how it ended.
    const LAST_WORDS: Duration = Duration::from_secs(1);
    let (connections, shutdown, listeners) = (&shared.metrics.connections, &settings.shutdown, settings.listeners.len());
    let mut looks = tokio::time::interval(LOOK_EVERY * 10);
    while *stop.borrow_and_update() == Stop::No {
        tokio::select! {
            // Nobody is left to say it: then it is time as well.
            changed = stop.changed() => if changed.is_err() { break },
            _ = looks.tick() => if serving.is_finished() {
                return Err(ENDED.to_owned());
            },
        }
    }
    let mut state = Stop::No;
    let mut over = Instant::now();
    let (mut listening, mut quiet) = (listeners, None);
    // A gauge cannot be waited on, and this runs once, at the end.
    let mut looks = tokio::time::interval(LOOK_EVERY);
    loop {
        let now = *stop.borrow();
        if now != state {
            let most = match now {
                Stop::HandedOver => shutdown.upgrade_drain.0,
                Stop::Cut => Duration::ZERO,
                Stop::No | Stop::Drain | Stop::Now => shutdown.drain.0,
            };
            (state, over) = (now, Instant::now() + most);
            tracing::info!(?most, open = connections.get(), "no new connections; open requests may go on");
        }
        if state == Stop::Now {
            return Ok(());
        }
        while let Ok(Listens::Ended) = told.try_recv() {
            listening -= 1;
        }
        quiet = if listening > 0 || connections.get() != 0 { None } else { quiet.or_else(|| Some(Instant::now())) };
        if quiet.is_some_and(|since| since.elapsed() >= ACCEPTED) {
            return Ok(());
        }
        if Instant::now() >= over {
            tracing::warn!(open = connections.get(), "connections are cut: their time is up");
            shared.metrics.streams.end_all();
            // Nothing tells when the last client has read that it ends: each has so long.
            tokio::time::sleep(LAST_WORDS).await;
            return Ok(());
        }
        looks.tick().await;
    }
}

fn build(
    shared: &Arc<Shared>,
    settings: &Settings,
    sockets: impl Iterator<Item = (SocketAddr, TcpListener)>,
    stop: &watch::Receiver<Stop>,
    pulse: &Arc<Pulse>,
    tell: &mpsc::UnboundedSender<Listens>,
) -> Server {
    let longest = settings.shutdown.drain.0.max(settings.shutdown.upgrade_drain.0);
    let threads = match settings.workers {
        0 => std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
        some => some,
    };
    let conf = ServerConf {
        threads,
        max_retries: ATTEMPTS_MAX,
        upstream_keepalive_pool_size: 1024,
        // Pingora waits for this long, whether or not anything is open; `run` returns before.
        grace_period_seconds: Some(longest.as_secs() + 5),
        graceful_shutdown_timeout_seconds: Some(1),
        ..ServerConf::default()
    };
    let mut server = Server::new_with_opt_and_conf(None, conf);
    server.bootstrap();
    for (address, socket) in sockets {
        // What was started with is what was compiled.
        let listener = settings.listeners.iter().find(|listener| listener.address == address);
        if let Some(listener) = listener {
            let drain =
                Drain { stop: stop.clone(), shutdown: settings.shutdown.clone(), close_timeout: listener.limits.lingering_timeout.0 };
            let service = service(shared, listener, drain, &Arc::clone(&server.configuration));
            server.add_service(Listening::new(service, &address.to_string(), socket, Arc::clone(pulse), tell.clone()));
        }
    }
    server
}

fn service(shared: &Arc<Shared>, listener: &Listener, drain: Drain, conf: &Arc<ServerConf>) -> Service<Door> {
    let edge = Edge { shared: Arc::clone(shared), address: listener.address, limits: listener.limits.clone() };
    let mut proxy = HttpProxy::new(edge, Arc::clone(conf));
    let mut options = HttpServerOptions::default();
    options.h2c = listener.h2c;
    options.keepalive_request_limit = Some(listener.limits.requests_per_connection);
    // The gate refuses CONNECT; Pingora would do so without a log line.
    options.allow_connect_method_proxying = true;
    options.h2_idle_timeout = Some(listener.limits.idle_timeout.0);
    proxy.server_options = Some(options);
    let mut h2 = default_h2_options();
    h2.max_header_list_size(u32::try_from(listener.limits.header_bytes.0).unwrap_or(u32::MAX)).max_concurrent_streams(H2_STREAMS_MAX);
    proxy.h2_options = Some(h2);
    proxy.handle_init_modules();
    for lingered in Lingered::ALL {
        shared.metrics.lingering.with_label_values(&[lingered.as_str()]);
    }
    let refused = shared.metrics.refused.clone();
    let on_refusal: OnRefusal = Arc::new(move |reason| refused.with_label_values(&[reason]).inc());
    let door = Door::new(Arc::new(proxy), Arc::clone(shared), listener, drain, on_refusal);
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
            Stop::No | Stop::HandedOver | Stop::Drain | Stop::Cut => ShutdownSignal::GracefulTerminate,
        }
    }
}
