//! The proxy: connections, the gate, Pingora's phases, the clock of streams, and what the client gets when
//! something goes wrong. The only place that sees a `Session`.

mod admit;
mod chunks;
mod clock;
mod conn;
mod connection_options;
mod dialects;
mod door;
mod drain;
mod edge;
pub mod errors;
mod exchange;
mod fields;
pub mod gate;
mod head;
mod header_check;
mod listening;
pub mod path;
mod reply;
mod server;
mod stream;
mod target;
mod timed_session;
mod underscores;
mod upstream_choice;

pub use edge::Shared;
pub use listening::Pulse;
pub use server::{Stop, run};
