//! The verdict of a mode on a token. It knows no HTTP status.

use std::sync::Arc;

use http::{HeaderName, HeaderValue};

use crate::contract::{CallError, Identity, Reply};

/// The reason why a token is rejected. If several modes reject it, the greatest reason is reported: that of the mode that came
/// closest to accepting the token. The variants are in the order of the checks, on which `is_definite` and the comparison depend.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[expect(missing_docs, reason = "`reason` has their names")]
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
    /// Whether the mode recognises the token as one of its own and rejects it.
    pub fn is_definite(self) -> bool {
        self >= Rejected::Key
    }

    /// The reason for metrics and the log.
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

/// A valid token.
#[derive(Clone, Debug)]
pub struct Verified {
    pub identity: Identity,
    /// The end of its validity, in seconds since 1970.
    pub expires_s: Option<u64>,
    /// The start of its validity, in seconds since 1970.
    pub from_s: Option<u64>,
    /// The fields from the service for the upstream.
    pub fields: Vec<(HeaderName, HeaderValue)>,
}

impl Verified {
    /// A valid token without an identity.
    pub fn anonymous() -> Self {
        Self::new(Identity { subject: None, claims: Arc::default() })
    }

    /// A token without time limits.
    pub fn new(identity: Identity) -> Self {
        Self { identity, expires_s: None, from_s: None, fields: Vec::new() }
    }

    pub fn check_time(&self, now_s: u64) -> Result<(), Rejected> {
        if self.expires_s.is_some_and(|end| now_s >= end) {
            return Err(Rejected::Expired);
        }
        if self.from_s.is_some_and(|start| now_s < start) {
            return Err(Rejected::NotYet);
        }
        Ok(())
    }
}

/// The verdict of one item of `bearer.accept`.
#[derive(Clone, Debug)]
pub enum Verdict {
    Accepted(Arc<Verified>),
    Rejected(Rejected),
    /// The service has refused the token; the reply is its own.
    Refused(Box<Reply>),
    /// The service is unavailable; the token is not the cause. The text is for the log.
    Away(Arc<str>),
    /// The service gave no usable answer; the token may be the cause. The text is for the log.
    Unclear(Arc<str>),
}

impl Verdict {
    /// The verdict after a failed call.
    pub fn from_call_error(mode: &str, error: &CallError) -> Self {
        let why = format!("{mode}: {error}").into();
        match error {
            CallError::Away(_) => Verdict::Away(why),
            CallError::Unclear(_) => Verdict::Unclear(why),
        }
    }

    /// The verdict after a status that tells nothing about the token. 502 to 504 mean that the service is unavailable.
    pub fn from_status(mode: &str, status: u16) -> Self {
        let why = format!("{mode}: answered with {status}").into();
        if matches!(status, 502..=504) { Verdict::Away(why) } else { Verdict::Unclear(why) }
    }

    /// The approximate memory of the verdict, in bytes.
    pub fn memory_bytes(&self) -> u64 {
        const USUAL: usize = 256;
        let more = match self {
            Verdict::Accepted(verified) => {
                let fields: usize = verified.fields.iter().map(|(name, value)| name.as_str().len() + value.len() + 64).sum();
                // JSON in memory takes a few times the size of its text.
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
