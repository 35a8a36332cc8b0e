//! What the process says of itself, on standard error.

use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::writer::MakeWriterExt;

use crate::config::model::{Format, Level, Log};

/// What libraries under us would tell of requests holds header fields, keys among them, and query strings:
/// whatever level is asked for, they only tell what is wrong with themselves.
const QUIET: &str = "pingora_proxy=off,pingora_core::apps=off,pingora_core::protocols=off,pingora_core::connectors=warn,\
    pingora_core::server=error,pingora_core::services=error,pingora_core=warn,pingora_load_balancing=warn,h2=warn,hyper=warn,hyper_util=warn,\
    sqlx=warn,axum=warn,tokio_util=warn";

/// Begins to log. `KEYLATCH_LOG`, if set, overrides the level, in `tracing`'s directives; for the libraries
/// of [`QUIET`] it changes nothing.
pub fn begin(config: &Log) {
    let level = match config.level {
        Level::Error => "error",
        Level::Warn => "warn",
        Level::Info => "info",
        Level::Debug => "debug",
    };
    let asked = std::env::var("KEYLATCH_LOG").unwrap_or_else(|_| format!("warn,keylatch={level},keylatch_filters={level}"));
    // A directive for a library would override QUIET: only levels and directives for our own crates count.
    let ours = |directive: &&str| !directive.contains(['=', ':', '[']) || directive.trim().starts_with("keylatch");
    let wanted = asked.split(',').filter(ours).collect::<Vec<_>>().join(",");
    let filter = EnvFilter::try_new(format!("{wanted},{QUIET}")).unwrap_or_else(|_| EnvFilter::new(format!("{level},{QUIET}")));
    let writer = std::io::stderr.with_max_level(tracing::Level::TRACE);
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(writer).with_target(false).with_ansi(false);
    // A second call changes nothing: tests start several servers in one process.
    let _ = match config.format {
        Format::Text => builder.try_init(),
        Format::Json => builder.json().try_init(),
    };
}
