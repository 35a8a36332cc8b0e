//! Logs, metrics, the access log.

pub mod access;
pub mod logs;
pub mod metrics;
