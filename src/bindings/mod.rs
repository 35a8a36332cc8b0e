//! Bindings on the request path: process cache, Redis level, first use, batched writes, and the
//! open streams of each key. [`Store`] wraps an [`Authority`](crate::sql::Authority). Contains no
//! SQL.

mod cache;
mod freshness;
mod health;
mod metrics;
mod open;
mod operator_api;
mod outbox;
mod revalidate;
mod secret;
mod store;
mod stream_registry;
#[cfg(test)]
mod tests;

pub use health::RedisState;
pub use open::{Opened, Purpose, check, migrate, open, open_redis};
pub use secret::{fresh as fresh_secret, known_hasher};
pub use store::Store;
