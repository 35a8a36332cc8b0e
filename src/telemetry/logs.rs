//! The log of the process, on standard error.
//!
//! Lines go through a bounded queue: if the reader of standard error is too slow, lines are dropped and counted, and the
//! process never blocks.

use std::io::{self, Write};
use std::sync::OnceLock;
use std::time::Duration;

use prometheus::IntCounter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer, Registry, reload};

use super::line_queue::{Limits, LineQueue};
use crate::config::model::{Format, Level, Log};

/// No pause and one write for each line: another process may share the pipe, and lines must not mix.
const LIMITS: Limits = Limits { waiting_bytes_max: 1 << 20, pause: Duration::ZERO };

/// The longest wait for the last lines at shutdown or after a panic.
const FLUSH_WAIT_MAX: Duration = Duration::from_secs(1);

/// Levels of libraries. Their messages about requests may hold keys, header fields and query strings, so at every configured
/// level they log only their own errors.
const QUIET: &str = "pingora_proxy=off,pingora_core::apps=off,pingora_core::protocols=off,pingora_core::connectors=warn,\
    pingora_core::server=error,pingora_core::services=error,pingora_core=warn,pingora_load_balancing=warn,h2=warn,hyper=warn,hyper_util=warn,\
    sqlx=warn,axum=warn,tokio_util=warn";

/// The handle that changes the level at run time, and the level of the configuration file.
static CHANGED: OnceLock<(reload::Handle<EnvFilter, Registry>, &'static str)> = OnceLock::new();

/// The queue to standard error, once logging has begun.
static QUEUE: OnceLock<LineQueue> = OnceLock::new();

static DROPPED: OnceLock<IntCounter> = OnceLock::new();

/// The counter of dropped lines. It belongs to the process and not to a registry, because the queue exists before any registry.
pub fn dropped() -> prometheus::Result<IntCounter> {
    if let Some(counter) = DROPPED.get() {
        return Ok(counter.clone());
    }
    let made =
        IntCounter::new("keylatch_log_lost_total", "Log lines that were dropped because the reader of standard error was too slow.")?;
    Ok(DROPPED.get_or_init(|| made).clone())
}

/// Writes unformatted text to standard error, through the queue once logging has begun.
pub fn print(text: &str) {
    match QUEUE.get() {
        Some(queue) => queue.push(|out| {
            out.extend_from_slice(text.as_bytes());
            out.push(b'\n');
        }),
        None => eprintln!("{text}"),
    }
}

/// Waits until all lines are written, for at most one second.
pub fn flush() {
    if let Some(queue) = QUEUE.get() {
        queue.flush(FLUSH_WAIT_MAX);
    }
}

/// A writer into the queue. The subscriber writes each event with one call.
struct QueueWriter(&'static LineQueue);

impl Write for QueueWriter {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.0.push(|out| out.extend_from_slice(line));
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The queue, started by the first call.
fn queue() -> Result<&'static LineQueue, String> {
    if let Some(queue) = QUEUE.get() {
        return Ok(queue);
    }
    let counter = dropped().map_err(|error| format!("cannot create the counter of lost log lines: {error}"))?;
    let write = |lines: &[u8]| lines.split_inclusive(|byte| *byte == b'\n').try_for_each(|line| io::stderr().write_all(line));
    let made = LineQueue::start("log", LIMITS, counter, write).map_err(|error| format!("cannot start the log thread: {error}"))?;
    Ok(QUEUE.get_or_init(|| made))
}

/// Sends panic messages through the queue. The default hook writes to standard error directly and could block.
fn print_panics() {
    std::panic::set_hook(Box::new(|panic| {
        let thread = std::thread::current();
        let backtrace = std::backtrace::Backtrace::capture();
        let mut text = format!("thread '{}' {panic}", thread.name().unwrap_or("<unnamed>"));
        if backtrace.status() == std::backtrace::BacktraceStatus::Captured {
            text = format!("{text}\nstack backtrace:\n{backtrace}");
        }
        print(&text);
        // A panic of the main thread ends the process, so the message must be written now.
        flush();
    }));
}

/// Starts logging. `KEYLATCH_LOG` overrides the level with directives of `tracing`, except for the libraries in [`QUIET`].
pub fn begin(config: &Log) -> Result<(), String> {
    let queue = queue()?;
    let level = match config.level {
        Level::Error => "error",
        Level::Warn => "warn",
        Level::Info => "info",
        Level::Debug => "debug",
    };
    let (filter, handle) = reload::Layer::new(filter(level));
    let layer = tracing_subscriber::fmt::layer().with_writer(|| QueueWriter(queue)).with_target(false).with_ansi(false);
    let layer: Box<dyn Layer<_> + Send + Sync> = match config.format {
        Format::Text => layer.boxed(),
        Format::Json => layer.json().boxed(),
    };
    // A second call changes nothing: tests start several servers in one process.
    if tracing_subscriber::registry().with(filter).with(layer).try_init().is_ok() {
        let _ = CHANGED.set((handle, level));
        print_panics();
    }
    Ok(())
}

/// Sets the lowest level that is logged; `None` restores that of the configuration file.
pub fn set_level(level: Option<&str>) {
    if let Some((handle, of_file)) = CHANGED.get() {
        let wanted = filter(level.unwrap_or(of_file));
        // A reload of the filter invalidates the cache of every call site, so it happens only on a change.
        if handle.with_current(|current| current.to_string() != wanted.to_string()).unwrap_or(false) && handle.reload(wanted).is_ok() {
            tracing::warn!(level = level.unwrap_or(of_file), "the log level has changed");
        }
    }
}

fn filter(level: &str) -> EnvFilter {
    let directives = std::env::var("KEYLATCH_LOG").unwrap_or_else(|_| format!("warn,keylatch={level},keylatch_filters={level}"));
    // A directive for a library would override QUIET, so only levels and directives for our own crates are kept.
    let ours = |directive: &&str| !directive.contains(['=', ':', '[']) || directive.trim().starts_with("keylatch");
    let wanted = directives.split(',').filter(ours).collect::<Vec<_>>().join(",");
    EnvFilter::try_new(format!("{wanted},{QUIET}")).unwrap_or_else(|_| EnvFilter::new(format!("{level},{QUIET}")))
}
