//! The replicas that share a store, and the identity of this process among them. Calls between replicas are not here.

pub mod replica;
