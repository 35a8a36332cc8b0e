//! Telemetry: the process log, the access log, metrics, open streams, and reports to the store. It decides nothing about requests.

pub mod access;
pub mod counted;
pub mod line_queue;
pub mod logs;
pub mod metrics;
pub mod sampler;
pub mod streams;
pub mod top_k;
