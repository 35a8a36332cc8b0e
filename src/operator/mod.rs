//! What operators do, whoever carries it in: commands and the admin API say it in their own words, and mean this.

pub mod access;
pub mod accounts;
pub mod bindings;

pub mod explain;
pub mod limits;
pub mod oidc;
pub mod passwords;
pub mod ranges;
pub mod replica_answers;
pub mod replica_questions;
pub mod replicas;
pub mod settings;
pub mod sign_in;
pub mod streams;

use std::borrow::Cow;
use std::fmt;

use keylatch_filters::contract::StoreError;

/// Why something was not done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// What was said makes no sense.
    Invalid {
        /// The field to blame, as the admin API calls it.
        field: Cow<'static, str>,
        /// What is wrong, and what to do.
        why: String,
    },
    /// There is no such thing.
    Missing(String),
    /// It is not as whoever asked believes.
    Conflict(String),
    /// Whoever asks may not.
    Forbidden(String),
    /// The store does not answer.
    Away(String),
    /// Another service does not answer, or not as it should.
    Elsewhere(String),
}

impl Fault {
    /// What was said makes no sense.
    pub fn invalid(field: impl Into<Cow<'static, str>>, why: impl Into<String>) -> Self {
        Fault::Invalid { field: field.into(), why: why.into() }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Fault::Invalid { why, .. } => f.write_str(why),
            Fault::Missing(why) | Fault::Conflict(why) | Fault::Forbidden(why) | Fault::Away(why) | Fault::Elsewhere(why) => {
                f.write_str(why)
            }
        }
    }
}

impl From<StoreError> for Fault {
    fn from(error: StoreError) -> Self {
        Fault::Away(error.to_string())
    }
}

impl From<Fault> for String {
    fn from(fault: Fault) -> Self {
        fault.to_string()
    }
}
