//! What a check says of a token.

use std::sync::Arc;

use http::{HeaderName, HeaderValue};

use crate::contract::{CallError, Identity, Reply};

/// Why a token is not accepted; the metric's words. Where several modes refuse it, the one that came closest to
/// accepting it is told: the order here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[expect(missing_docs, reason = "`reason` has the metric's words for them")]
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
    /// Whether the mode knows the token for one of its own, and says no to it.
    pub fn is_definite(self) -> bool {
        self >= Rejected::Key
    }

    /// The metric's word for it.
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
    /// Nobody could be asked, whatever the token; the text is for the log.
    Away(Arc<str>),
    /// Somebody was asked, and what came back says nothing, perhaps because of the token.
    Unclear(Arc<str>),
}

impl Verdict {
    /// Of a call of which nothing came.
    pub fn of_error(mode: &str, error: &CallError) -> Self {
        let why = format!("{mode}: {error}").into();
        match error {
            CallError::Away(_) => Verdict::Away(why),
            CallError::Unclear(_) => Verdict::Unclear(why),
        }
    }

    /// Of a status that says nothing of the token: whoever stands before a service that is gone says 502, 503 or 504.
    pub fn of_status(mode: &str, status: u16) -> Self {
        let why = format!("{mode}: answered with {status}").into();
        if matches!(status, 502..=504) { Verdict::Away(why) } else { Verdict::Unclear(why) }
    }

    /// The memory that it takes, about.
    pub fn bytes(&self) -> u64 {
        const USUAL: usize = 256;
        let more = match self {
            Verdict::Accepted(verified) => {
                let fields: usize = verified.fields.iter().map(|(name, value)| name.as_str().len() + value.len() + 64).sum();
                // In memory JSON takes a few times what it takes as text.
                let claims: usize = verified.identity.claims.iter().map(|(name, value)| name.len() + value.to_string().len()).sum();
                fields + 4 * claims
            }
            Verdict::Refused(reply) => reply.body.as_ref().map_or(0, |body| body.bytes.len()) + 512,
            Verdict::Rejected(_) | Verdict::Away(_) | Verdict::Unclear(_) => 0,
        };
        (USUAL + more) as u64
    }
}

impl From<Result<Verified, Rejected>> for Verdict {
    fn from(result: Result<Verified, Rejected>) -> Self {
        match result {
            Ok(verified) => Verdict::Accepted(Arc::new(verified)),
            Err(rejected) => Verdict::Rejected(rejected),
        }
    }
}
