//! What a check says of a token.

use std::sync::Arc;

use http::{HeaderName, HeaderValue};

use crate::contract::{Identity, Reply};

/// Why a token is not accepted; the metric's words. Where several modes refuse it, the one that came closest to
/// accepting it is told: the order here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Rejected {
    Unknown,
    Malformed,
    Issuer,
    Algorithm,
    Key,
    Signature,
    Inactive,
    Audience,
    Claims,
    NotYet,
    Expired,
}

impl Rejected {
    pub fn reason(self) -> &'static str {
        match self {
            Rejected::Unknown => "unknown_token",
            Rejected::Malformed => "malformed_token",
            Rejected::Algorithm => "algorithm",
            Rejected::Key => "no_key",
            Rejected::Signature => "signature",
            Rejected::Inactive => "inactive",
            Rejected::Expired => "expired",
            Rejected::NotYet => "not_yet_valid",
            Rejected::Issuer => "issuer",
            Rejected::Audience => "audience",
            Rejected::Claims => "claims",
        }
    }
}

/// A token that was found valid.
#[derive(Clone, Debug)]
pub struct Verified {
    pub identity: Identity,
    /// Seconds since 1970 from which on it is not valid any more.
    pub expires_s: Option<u64>,
    /// Seconds since 1970 before which it is not valid.
    pub from_s: Option<u64>,
    /// What the service that was asked wants the upstream to get.
    pub fields: Vec<(HeaderName, HeaderValue)>,
}

impl Verified {
    /// Somebody of whom nothing more is known.
    pub fn somebody() -> Self {
        Self::new(Identity { subject: None, claims: Arc::default() })
    }

    /// For ever.
    pub fn new(identity: Identity) -> Self {
        Self { identity, expires_s: None, from_s: None, fields: Vec::new() }
    }

    pub fn in_time(&self, now_s: u64) -> Result<(), Rejected> {
        if self.expires_s.is_some_and(|end| now_s >= end) {
            return Err(Rejected::Expired);
        }
        if self.from_s.is_some_and(|start| now_s < start) {
            return Err(Rejected::NotYet);
        }
        Ok(())
    }
}

/// What one mode says.
#[derive(Clone, Debug)]
pub enum Verdict {
    Accepted(Arc<Verified>),
    Rejected(Rejected),
    /// The service that was asked refuses, in its own words.
    Refused(Box<Reply>),
    /// Nobody could be asked; the text is for the log.
    Unasked(Arc<str>),
}

impl From<Result<Verified, Rejected>> for Verdict {
    fn from(result: Result<Verified, Rejected>) -> Self {
        match result {
            Ok(verified) => Verdict::Accepted(Arc::new(verified)),
            Err(rejected) => Verdict::Rejected(rejected),
        }
    }
}
