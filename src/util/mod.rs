//! Small and generic helpers without knowledge of the proxy. Imports no other folder of `src`.

pub mod aead;
pub mod breaker;
pub mod failure_log;
pub mod outbound_url;
pub mod pem;
pub mod periodic;
pub mod public_address;
pub mod secure_fs;
pub mod time;
