//! Logs, metrics, the access log.

pub mod access;
pub mod counted;
pub mod line_queue;
pub mod logs;
pub mod metrics;
pub mod sampler;
pub mod streams;
pub mod top_k;
