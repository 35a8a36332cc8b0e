//! Errors as RFC 9457 has them: what went wrong, which field is to blame, and when to try again.

use std::collections::BTreeMap;

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use utoipa::openapi::{Content, Ref, RefOr, Response as Documented, ResponseBuilder};
use utoipa::{IntoResponses, ToSchema};

use crate::operator::Fault;
use crate::operator::sign_in::Refusal;

/// An error, as `application/problem+json` (RFC 9457).
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct Problem {
    /// What kind of error it is, for programs.
    #[serde(rename = "type")]
    #[schema(example = "urn:keylatch:invalid")]
    kind: String,
    /// What kind of error it is, for people.
    title: &'static str,
    /// The status of the answer.
    status: u16,
    /// What went wrong this time, and what to do.
    detail: String,
    /// The field of the request that is to blame.
    #[serde(skip_serializing_if = "Option::is_none")]
    field: Option<String>,
    /// After how many seconds to try again.
    #[serde(skip_serializing_if = "Option::is_none")]
    retry_after: Option<u64>,
}

/// What a handler answers.
pub type Answer<T> = Result<T, Problem>;

impl Problem {
    fn new(status: StatusCode, slug: &str, title: &'static str, detail: impl Into<String>) -> Self {
        Self { kind: format!("urn:keylatch:{slug}"), title, status: status.as_u16(), detail: detail.into(), field: None, retry_after: None }
    }

    /// A field makes no sense.
    pub fn invalid(field: impl Into<String>, why: impl Into<String>) -> Self {
        let field = Some(field.into()).filter(|field| !field.is_empty());
        Self { field, ..Self::new(StatusCode::UNPROCESSABLE_ENTITY, "invalid", "A field makes no sense", why) }
    }

    /// The request cannot be read at all.
    pub fn unreadable(why: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "unreadable", "The request cannot be read", why)
    }

    /// The body is of another kind.
    pub fn not_json() -> Self {
        let why = "the body must be JSON, and say so by `Content-Type: application/json`";
        Self::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "not-json", "The body is no JSON", why)
    }

    /// The body is too large.
    pub fn too_large() -> Self {
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, "too-large", "The body is too large", "a body has at most 64 KiB, a configuration 5 MiB")
    }

    /// Nobody is known to ask.
    pub fn unknown_caller() -> Self {
        let why = "sign in, and send `Authorization: Bearer TOKEN`; the one that was sent is none, has expired, or was revoked";
        Self::new(StatusCode::UNAUTHORIZED, "unauthorized", "Nobody is signed in", why)
    }

    /// Somebody else was faster.
    pub fn is_conflict_of_versions(&self) -> bool {
        self.kind.ends_with(":conflict") && self.detail.contains("changed meanwhile")
    }

    /// The same, in other words.
    pub fn saying(self, detail: impl Into<String>) -> Self {
        Self { detail: detail.into(), ..self }
    }

    /// The same, where its field stands below another one, unless it is one of these.
    #[must_use]
    pub fn below(self, above: &str, but: &[&str]) -> Self {
        let field = self.field.map(|field| if but.contains(&field.as_str()) { field } else { format!("{above}.{field}") });
        Self { field, ..self }
    }

    /// How a sign-in that ended so is counted.
    pub fn sign_in_result(&self) -> &'static str {
        match self.status {
            429 => "locked",
            502 | 503 => "away",
            _ => "wrong",
        }
    }

    /// Whoever asks may not.
    pub fn forbidden(why: impl Into<String>) -> Self {
        Self::new(StatusCode::FORBIDDEN, "forbidden", "This is not yours to do", why)
    }

    /// There is no such thing.
    pub fn missing(why: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, "not-found", "There is no such thing", why)
    }

    /// It has changed since it was looked at.
    pub fn stale(why: impl Into<String>) -> Self {
        Self::new(StatusCode::PRECONDITION_FAILED, "stale", "It was changed meanwhile", why)
    }

    /// The configuration was not taken.
    pub fn refused(why: impl Into<String>) -> Self {
        Self::new(StatusCode::CONFLICT, "refused", "The configuration in force stays", why)
    }
}

impl From<Fault> for Problem {
    fn from(fault: Fault) -> Self {
        match fault {
            Fault::Invalid { field, why } => Self::invalid(field, why),
            Fault::Missing(why) => Self::missing(why),
            Fault::Conflict(why) => Self::new(StatusCode::CONFLICT, "conflict", "It is not as you believe", why),
            Fault::Forbidden(why) => Self::forbidden(why),
            Fault::Away(why) => {
                let away = Self::new(StatusCode::SERVICE_UNAVAILABLE, "store-away", "The store does not answer", why);
                Self { retry_after: Some(1), ..away }
            }
            Fault::Elsewhere(why) => Self::new(StatusCode::BAD_GATEWAY, "elsewhere", "Another service does not answer as it should", why),
        }
    }
}

impl From<keylatch_filters::contract::StoreError> for Problem {
    fn from(error: keylatch_filters::contract::StoreError) -> Self {
        Fault::from(error).into()
    }
}

impl From<Refusal> for Problem {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::Wrong => Self::unknown_caller(),
            Refusal::Locked(seconds) => {
                let why = format!("too many sign-ins have failed; try again in {seconds} s");
                let locked = Self::new(StatusCode::TOO_MANY_REQUESTS, "locked", "Too many sign-ins have failed", why);
                Self { retry_after: Some(seconds), ..locked }
            }
            Refusal::Away(why) => Fault::Away(why).into(),
        }
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let body = serde_json::to_vec(&self).unwrap_or_default();
        let mut response = (status, [(header::CONTENT_TYPE, "application/problem+json")], body).into_response();
        if let Some(seconds) = self.retry_after {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        if status == StatusCode::UNAUTHORIZED {
            response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer realm=\"keylatch\""));
        }
        response
    }
}

/// Every error a call may answer with, for the document.
pub struct Problems;

/// The statuses of errors, and what each means.
const STATUSES: [(&str, &str); 12] = [
    ("400", "The request cannot be read."),
    ("401", "Nobody is signed in."),
    ("403", "The role or the token's scopes do not allow it, or the request comes from another site."),
    ("404", "There is no such thing."),
    ("409", "It is not as the request believes."),
    ("412", "It has changed since the version in `If-Match`."),
    ("413", "The body is too large."),
    ("415", "The body is no JSON."),
    ("422", "A field makes no sense; `field` says which."),
    ("429", "Too many sign-ins have failed."),
    ("502", "Another service does not answer as it should."),
    ("503", "The store does not answer."),
];

impl Problems {
    /// What [`IntoResponses`] refers to.
    pub fn described() -> impl Iterator<Item = (String, RefOr<Documented>)> {
        let content = || Content::new(Some(Ref::from_schema_name("Problem")));
        let response = move |text: &str| ResponseBuilder::new().description(text).content("application/problem+json", content()).build();
        STATUSES.into_iter().map(move |(status, text)| (format!("Problem{status}"), response(text).into()))
    }
}

impl IntoResponses for Problems {
    fn responses() -> BTreeMap<String, RefOr<Documented>> {
        let reference = |status| RefOr::Ref(Ref::from_response_name(format!("Problem{status}")));
        STATUSES.into_iter().map(|(status, _)| (status.to_owned(), reference(status))).collect()
    }
}

/// For paths that no call has.
pub async fn no_such_call() -> Problem {
    Problem::missing("there is no such call; /admin/api/openapi.json lists them")
}

/// For methods that a call does not have.
pub async fn no_such_method() -> Problem {
    Problem::new(StatusCode::METHOD_NOT_ALLOWED, "method", "This call has no such method", "/admin/api/openapi.json lists them")
}
