//! What the process says of itself, on standard error.
//!
//! Lines go through a bounded queue: a reader of standard error that is too slow costs lines, which are
//! counted, and never blocks the process.

use std::io::{self, Write};
use std::sync::OnceLock;
use std::time::Duration;

use prometheus::IntCounter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer, Registry, reload};

use super::line_queue::{Limits, LineQueue};
use crate::config::model::{Format, Level, Log};

/// A write for each line: another process may share the pipe, and lines must not mix.
const LIMITS: Limits = Limits { waiting_bytes_max: 1 << 20, pause: Duration::ZERO };

/// How long the end of the process, or a thread that panics, waits for the last lines.
const FLUSH_WAIT_MAX: Duration = Duration::from_secs(1);

/// What libraries under us would tell of requests holds header fields, keys among them, and query strings:
/// whatever level is asked for, they only tell what is wrong with themselves.
const QUIET: &str = "pingora_proxy=off,pingora_core::apps=off,pingora_core::protocols=off,pingora_core::connectors=warn,\
    pingora_core::server=error,pingora_core::services=error,pingora_core=warn,pingora_load_balancing=warn,h2=warn,hyper=warn,hyper_util=warn,\
    sqlx=warn,axum=warn,tokio_util=warn";

/// By which the level is changed while it runs, and what the file says.
static CHANGED: OnceLock<(reload::Handle<EnvFilter, Registry>, &'static str)> = OnceLock::new();

/// The way to standard error, once logging has begun.
static QUEUE: OnceLock<LineQueue> = OnceLock::new();

static DROPPED: OnceLock<IntCounter> = OnceLock::new();

/// The counter of lines that were dropped. It is the process's, not a registry's: the queue is there before any registry.
pub fn dropped() -> prometheus::Result<IntCounter> {
    if let Some(counter) = DROPPED.get() {
        return Ok(counter.clone());
    }
    let made = IntCounter::new("keylatch_log_lost_total", "Lines of the log lost because the reader of standard error was too slow.")?;
    Ok(DROPPED.get_or_init(|| made).clone())
}

/// Writes text to standard error as it is, through the queue once logging has begun.
pub fn print(text: &str) {
    match QUEUE.get() {
        Some(queue) => queue.push(|out| {
            out.extend_from_slice(text.as_bytes());
            out.push(b'\n');
        }),
        None => eprintln!("{text}"),
    }
}

/// Waits until all lines are written, at most a second.
pub fn flush() {
    if let Some(queue) = QUEUE.get() {
        queue.flush(FLUSH_WAIT_MAX);
    }
}

/// One line on its way into the queue: the subscriber writes each event as a whole.
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
    let counter = dropped().map_err(|error| format!("the log's counter cannot be made: {error}"))?;
    let write = |lines: &[u8]| lines.split_inclusive(|byte| *byte == b'\n').try_for_each(|line| io::stderr().write_all(line));
    let made = LineQueue::start("log", LIMITS, counter, write).map_err(|error| format!("no thread for the log: {error}"))?;
    Ok(QUEUE.get_or_init(|| made))
}

/// The default hook writes to standard error itself, and would block there.
fn print_panics() {
    std::panic::set_hook(Box::new(|panic| {
        let thread = std::thread::current();
        let backtrace = std::backtrace::Backtrace::capture();
        let mut text = format!("thread '{}' {panic}", thread.name().unwrap_or("<unnamed>"));
        if backtrace.status() == std::backtrace::BacktraceStatus::Captured {
            text = format!("{text}\nstack backtrace:\n{backtrace}");
        }
        print(&text);
        // The main thread's panic ends the process.
        flush();
    }));
}

/// Begins to log. `KEYLATCH_LOG`, if set, overrides the level, in `tracing`'s directives; for the libraries
/// of [`QUIET`] it changes nothing.
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

/// Tells from this level on; `None`: from that of the file.
pub fn set_level(level: Option<&str>) {
    if let Some((handle, of_file)) = CHANGED.get() {
        let wanted = filter(level.unwrap_or(of_file));
        // Only what is different is changed: that costs every place that logs something.
        if handle.with_current(|current| current.to_string() != wanted.to_string()).unwrap_or(false) && handle.reload(wanted).is_ok() {
            tracing::warn!(level = level.unwrap_or(of_file), "the log's level has changed");
        }
    }
}

fn filter(level: &str) -> EnvFilter {
    let asked = std::env::var("KEYLATCH_LOG").unwrap_or_else(|_| format!("warn,keylatch={level},keylatch_filters={level}"));
    // A directive for a library would override QUIET: only levels and directives for our own crates count.
    let ours = |directive: &&str| !directive.contains(['=', ':', '[']) || directive.trim().starts_with("keylatch");
    let wanted = asked.split(',').filter(ours).collect::<Vec<_>>().join(",");
    EnvFilter::try_new(format!("{wanted},{QUIET}")).unwrap_or_else(|_| EnvFilter::new(format!("{level},{QUIET}")))
}
