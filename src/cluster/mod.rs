//! Which replicas share a store, and what this process is called among them.

pub mod replica;
