//! What the process says of itself, on standard error.

use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::writer::MakeWriterExt;

use crate::config::model::{Format, Level, Log};

/// Begins to log. `KEYLATCH_LOG`, if set, overrides the level, in `tracing`'s directives.
///
/// Pingora's proxy reports each failed request itself, with the query string; those lines are left out,
/// since our access log has them without it.
pub fn begin(config: &Log) {
    let level = match config.level {
        Level::Error => "error",
        Level::Warn => "warn",
        Level::Info => "info",
        Level::Debug => "debug",
    };
    let ours = format!("warn,keylatch={level},keylatch_filters={level},pingora_proxy=off,pingora_core::server=error,pingora_core::apps=off,pingora_core::services=error");
    let filter = EnvFilter::try_from_env("KEYLATCH_LOG").unwrap_or_else(|_| EnvFilter::new(ours));
    let writer = std::io::stderr.with_max_level(tracing::Level::TRACE);
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(writer).with_target(false).with_ansi(false);
    // A second call changes nothing: tests start several servers in one process.
    let _ = match config.format {
        Format::Text => builder.try_init(),
        Format::Json => builder.json().try_init(),
    };
}
