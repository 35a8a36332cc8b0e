//! Keylatch: a programmable edge proxy for model APIs.
//!
//! ARCHITECTURE.md has the code map. The binary is `main.rs`; this library exists so that tests and fuzzers
//! reach the parts that need no socket.

pub mod acme;
pub mod admin;
pub mod alerts;
pub mod breaker;
pub mod cli;
pub mod config;
pub mod control;
pub mod doctor;
pub mod entry;
pub mod every;
pub mod live;
pub mod outbound;
pub mod process;
pub mod proxy;
pub mod reference;
pub mod reload;
pub mod service;
pub mod store;
pub mod telemetry;
pub mod upstream;
pub mod watch;
