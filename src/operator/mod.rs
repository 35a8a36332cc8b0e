//! Use cases shared by the commands and the admin API.
//! They know neither HTTP nor the terminal; callers turn their results and [`Fault`]s into answers.

pub mod access;
pub mod accounts;
pub mod bindings;
mod callers;

pub mod explain;
pub mod limits;
pub mod local_queries;
pub mod oidc;
pub mod passwords;
pub mod ranges;
pub mod replica_query;
pub mod replica_rpc;
pub mod settings;
pub mod sign_in;
pub mod streams;
pub mod usage;

use std::borrow::Cow;
use std::fmt;

use keylatch_filters::contract::StoreError;

/// Why an operation failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// An input is invalid.
    Invalid {
        /// The invalid field, under its name in the admin API.
        field: Cow<'static, str>,
        /// What is wrong, and how to correct it.
        why: String,
    },
    /// The object does not exist.
    NotFound(String),
    /// The current state does not allow the operation.
    Conflict(String),
    /// The caller lacks permission.
    Forbidden(String),
    /// The store, or another part of this process, is unavailable.
    Unavailable(String),
    /// Another service (a provider, another replica) fails or answers incorrectly.
    External(String),
}

impl Fault {
    /// An input is invalid.
    pub fn invalid(field: impl Into<Cow<'static, str>>, why: impl Into<String>) -> Self {
        Fault::Invalid { field: field.into(), why: why.into() }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Fault::Invalid { why, .. } => f.write_str(why),
            Fault::NotFound(why) | Fault::Conflict(why) | Fault::Forbidden(why) | Fault::Unavailable(why) | Fault::External(why) => {
                f.write_str(why)
            }
        }
    }
}

impl From<StoreError> for Fault {
    fn from(error: StoreError) -> Self {
        Fault::Unavailable(error.to_string())
    }
}

impl From<Fault> for String {
    fn from(fault: Fault) -> Self {
        fault.to_string()
    }
}
