//! Runs Pingora's server: listeners, threads, and shutdown. Requests are handled in `http_proxy`.

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
use crate::http_proxy::{AheadBudget, ProxyPhases, ProxyState};
use crate::listener::admission::OpenConnections;
use crate::listener::conn::OnRefusal;
use crate::listener::conn::lingering::Lingered;
use crate::server::acceptor::Acceptor;
use crate::server::drain::Drain;
use service::{ListenerEvent, ListenerService};

/// The most attempts per request in Pingora; `upstreams[].retries` is limited below it.
const ATTEMPTS_MAX: usize = 12;
const H2_STREAMS_MAX: u32 = 256;
/// The idle connections to upstreams that are kept, of all workers together.
const UPSTREAM_IDLE_MAX: usize = 1024;
/// If this variable is set, every worker has a runtime with one thread and its own idle connections
/// to upstreams, and no work moves between workers. An experiment, not part of the configuration.
const RUNTIME_PER_WORKER: &str = "KEYLATCH_RUNTIME_PER_WORKER";
/// The read and write buffers of a client connection, in bytes. No read buffer: headers and bodies
/// are read into buffers of their own, and an idle stream would keep it for nothing.
const READ_BUFFER_BYTES: usize = 0;
const WRITE_BUFFER_BYTES: usize = 1460;

/// Serves on these sockets until `stop` changes. Returns when the last connection has ended, or the
/// drain is over; open requests then end with the process. `started` is called once all listeners
/// accept.
pub fn run(
    state: &Arc<ProxyState>,
    settings: &Settings,
    sockets: impl Iterator<Item = (SocketAddr, TcpListener)>,
    stop: watch::Receiver<Stop>,
    background: &tokio::runtime::Handle,
    pulse: &Arc<Pulse>,
    started: impl FnOnce() -> Result<(), String>,
) -> Result<(), String> {
    let (event_sender, mut events) = mpsc::unbounded_channel();
    let (server, services) = build(state, settings, sockets, &stop, pulse, &event_sender)?;
    drop(event_sender);
    let signals = Signals { stop: stop.clone() };
    let thread = std::thread::Builder::new().name("pingora".into());
    let serving = thread
        .spawn(move || server.run(RunArgs { shutdown_signal: Box::new(signals) }))
        .map_err(|e| format!("the server thread cannot be started: {e}"))?;
    for _ in 0..services {
        if events.blocking_recv() != Some(ListenerEvent::Begun) {
            return Err(ENDED.to_owned());
        }
    }
    started()?;
    background.block_on(wait(state, settings, stop, &serving, events, services))
}

const ENDED: &str = "the server ended unexpectedly; see the log lines before this one";

/// Waits for the stop, then for open connections.
async fn wait<T>(
    state: &ProxyState,
    settings: &Settings,
    mut stop: watch::Receiver<Stop>,
    serving: &std::thread::JoinHandle<T>,
    mut events: mpsc::UnboundedReceiver<ListenerEvent>,
    services: usize,
) -> Result<(), String> {
    const POLL_INTERVAL: Duration = Duration::from_millis(20);
    // An accepted connection is counted only once a thread has handled it.
    const ACCEPT_GRACE: Duration = Duration::from_millis(250);
    // Time for cut connections to write their last event and log line.
    const CUT_GRACE: Duration = Duration::from_secs(1);
    let (connections, shutdown) = (&state.metrics.connections, &settings.shutdown);
    let mut poll = tokio::time::interval(POLL_INTERVAL * 10);
    while *stop.borrow_and_update() == Stop::No {
        tokio::select! {
            // An error means that the sender is gone: stop as well.
            changed = stop.changed() => if changed.is_err() { break },
            _ = poll.tick() => if serving.is_finished() {
                return Err(ENDED.to_owned());
            },
        }
    }
    let mut stage = Stop::No;
    let mut over = Instant::now();
    let (mut listening, mut quiet) = (services, None);
    // A gauge cannot be awaited, and this loop runs once, at the end.
    let mut poll = tokio::time::interval(POLL_INTERVAL);
    loop {
        let now = *stop.borrow();
        if now != stage {
            let most = match now {
                Stop::HandedOver => shutdown.upgrade_drain.0,
                Stop::Cut => Duration::ZERO,
                Stop::No | Stop::Drain | Stop::Now => shutdown.drain.0,
            };
            (stage, over) = (now, Instant::now() + most);
            tracing::info!(?most, open = connections.get(), "draining: no new connections; open requests continue");
        }
        if stage == Stop::Now {
            return Ok(());
        }
        while let Ok(ListenerEvent::Ended) = events.try_recv() {
            listening -= 1;
        }
        quiet = if listening > 0 || connections.get() != 0 { None } else { quiet.or_else(|| Some(Instant::now())) };
        if quiet.is_some_and(|since| since.elapsed() >= ACCEPT_GRACE) {
            return Ok(());
        }
        if Instant::now() >= over {
            tracing::warn!(open = connections.get(), "drain timeout reached: closing the remaining connections");
            state.metrics.streams.end_all();
            // There is no signal that the last client has read the end.
            tokio::time::sleep(CUT_GRACE).await;
            return Ok(());
        }
        poll.tick().await;
    }
}

/// The server and the number of its services.
fn build(
    state: &Arc<ProxyState>,
    settings: &Settings,
    sockets: impl Iterator<Item = (SocketAddr, TcpListener)>,
    stop: &watch::Receiver<Stop>,
    pulse: &Arc<Pulse>,
    event_sender: &mpsc::UnboundedSender<ListenerEvent>,
) -> Result<(Server, usize), String> {
    let longest = settings.shutdown.drain.0.max(settings.shutdown.upgrade_drain.0);
    let workers = match settings.workers {
        0 => std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
        some => some,
    };
    let per_worker = std::env::var_os(RUNTIME_PER_WORKER).is_some();
    let (threads, copies) = if per_worker { (1, workers) } else { (workers, 1) };
    let conf = ServerConf {
        threads,
        work_stealing: !per_worker,
        max_retries: ATTEMPTS_MAX,
        upstream_keepalive_pool_size: UPSTREAM_IDLE_MAX.div_ceil(copies),
        // Pingora always waits this long; `run` returns earlier.
        grace_period_seconds: Some(longest.as_secs() + 5),
        graceful_shutdown_timeout_seconds: Some(1),
        ..ServerConf::default()
    };
    let mut server = Server::new_with_opt_and_conf(None, conf);
    server.bootstrap();
    let mut services = 0;
    for (address, socket) in sockets {
        // The sockets were opened from the same settings.
        let listener = settings.listeners.iter().find(|listener| listener.address == address);
        let Some(listener) = listener else { continue };
        let budgets = Budgets::new(state, listener);
        for _ in 0..copies {
            let socket = socket.try_clone().map_err(|e| format!("the socket of {address} cannot be shared: {e}"))?;
            let drain =
                Drain { stop: stop.clone(), shutdown: settings.shutdown.clone(), close_timeout: listener.limits.lingering_timeout.0 };
            let service = service(state, listener, &budgets, drain, &Arc::clone(&server.configuration));
            server.add_service(ListenerService::new(service, &address.to_string(), socket, Arc::clone(pulse), event_sender.clone()));
            services += 1;
        }
    }
    Ok((server, services))
}

/// The limits of a listener that all its workers use together.
struct Budgets {
    connections: Arc<OpenConnections>,
    ahead: Arc<AheadBudget>,
}

impl Budgets {
    fn new(state: &ProxyState, listener: &Listener) -> Self {
        let limits = &listener.limits;
        Self {
            connections: OpenConnections::new(limits.connections, limits.connections_per_peer, state.metrics.connections.clone()),
            ahead: AheadBudget::new(limits.read_ahead_total_bytes.0),
        }
    }
}

fn service(state: &Arc<ProxyState>, listener: &Listener, budgets: &Budgets, drain: Drain, conf: &Arc<ServerConf>) -> Service<Acceptor> {
    let phases = ProxyPhases {
        state: Arc::clone(state),
        address: listener.address,
        limits: listener.limits.clone(),
        ahead_budget: Arc::clone(&budgets.ahead),
    };
    let mut proxy = HttpProxy::new(phases, Arc::clone(conf));
    let mut options = HttpServerOptions::default();
    options.h2c = listener.h2c;
    options.keepalive_request_limit = Some(listener.limits.requests_per_connection);
    // The gate refuses CONNECT; Pingora would refuse it without a log line.
    options.allow_connect_method_proxying = true;
    options.h2_idle_timeout = Some(listener.limits.idle_timeout.0);
    proxy.server_options = Some(options);
    let mut h2 = default_h2_options();
    h2.max_header_list_size(u32::try_from(listener.limits.header_bytes.0).unwrap_or(u32::MAX)).max_concurrent_streams(H2_STREAMS_MAX);
    proxy.h2_options = Some(h2);
    proxy.handle_init_modules();
    for lingered in Lingered::ALL {
        state.metrics.lingering.with_label_values(&[lingered.as_str()]);
    }
    let refused = state.metrics.refused.clone();
    let on_refusal: OnRefusal = Arc::new(move |reason| refused.with_label_values(&[reason]).inc());
    let acceptor = Acceptor::new(Arc::new(proxy), Arc::clone(state), listener, Arc::clone(&budgets.connections), drain, on_refusal);
    let mut service = Service::new(format!("listener {}", listener.address), acceptor);
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
        // An error means that the sender is gone: stop as well.
        let wanted = stop.wait_for(|stop| *stop != Stop::No).await.map_or(Stop::Drain, |stop| *stop);
        match wanted {
            Stop::Now => ShutdownSignal::FastShutdown,
            Stop::No | Stop::HandedOver | Stop::Drain | Stop::Cut => ShutdownSignal::GracefulTerminate,
        }
    }
}
