//! What the process says of itself, on standard error.

use std::sync::OnceLock;

use tracing_subscriber::fmt::writer::MakeWriterExt;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer, Registry, reload};

use crate::config::model::{Format, Level, Log};

/// What libraries under us would tell of requests holds header fields, keys among them, and query strings:
/// whatever level is asked for, they only tell what is wrong with themselves.
const QUIET: &str = "pingora_proxy=off,pingora_core::apps=off,pingora_core::protocols=off,pingora_core::connectors=warn,\
    pingora_core::server=error,pingora_core::services=error,pingora_core=warn,pingora_load_balancing=warn,h2=warn,hyper=warn,hyper_util=warn,\
    sqlx=warn,axum=warn,tokio_util=warn";

/// By which the level is changed while it runs, and what the file says.
static CHANGED: OnceLock<(reload::Handle<EnvFilter, Registry>, &'static str)> = OnceLock::new();

/// Begins to log. `KEYLATCH_LOG`, if set, overrides the level, in `tracing`'s directives; for the libraries
/// of [`QUIET`] it changes nothing.
pub fn begin(config: &Log) {
    let level = match config.level {
        Level::Error => "error",
        Level::Warn => "warn",
        Level::Info => "info",
        Level::Debug => "debug",
    };
    let (filter, handle) = reload::Layer::new(filter(level));
    let writer = std::io::stderr.with_max_level(tracing::Level::TRACE);
    let layer = tracing_subscriber::fmt::layer().with_writer(writer).with_target(false).with_ansi(false);
    let layer: Box<dyn Layer<_> + Send + Sync> = match config.format {
        Format::Text => layer.boxed(),
        Format::Json => layer.json().boxed(),
    };
    // A second call changes nothing: tests start several servers in one process.
    if tracing_subscriber::registry().with(filter).with(layer).try_init().is_ok() {
        let _ = CHANGED.set((handle, level));
    }
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
