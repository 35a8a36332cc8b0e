//! From a connection to a checked HTTP request: PROXY protocol, TLS, header limits, the framing of
//! bodies, and the gate that normalises or refuses a request. It knows no route and no filter.

pub mod admission;
pub mod conn;
pub mod connection_options;
pub mod gate;
pub mod header_check;
pub mod path;
pub mod policy;
pub mod refusal;
pub mod target;
pub mod underscores;
