//! Keylatch: a programmable edge proxy for model APIs.
//!
//! ARCHITECTURE.md has the code map. The binary is `main.rs`; this library exists so that tests and fuzz targets
//! can call the parts that need no socket.

pub mod acme;
pub mod admin;
pub mod alerts;
pub mod bindings;
pub mod cli;
pub mod cluster;
pub mod compile;
pub mod config;
pub mod control;
pub mod doctor;
pub mod http_proxy;
pub mod listener;
pub mod operator;
pub mod outbound;
pub mod process;
pub mod redis;
pub mod reference;
pub mod reload;
pub mod server;
pub mod settings;
pub mod sql;
pub mod telemetry;
pub mod upstream;
pub mod usage;
pub mod util;
pub mod watch;
