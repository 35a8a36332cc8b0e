//! Errors of the admin API as problem details (RFC 9457), and the mapping from [`Fault`] and [`Refusal`] to them.

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
    /// The kind of error, for programs.
    #[serde(rename = "type")]
    #[schema(example = "urn:keylatch:invalid")]
    kind: String,
    /// The kind of error, for people.
    title: &'static str,
    /// The HTTP status.
    status: u16,
    /// What is wrong with this request, and what to do.
    detail: String,
    /// The invalid field of the request.
    #[serde(skip_serializing_if = "Option::is_none")]
    field: Option<String>,
    /// Seconds to wait before a retry.
    #[serde(skip_serializing_if = "Option::is_none")]
    retry_after: Option<u64>,
}

/// The result of a handler.
pub type Answer<T> = Result<T, Problem>;

impl Problem {
    fn new(status: StatusCode, slug: &str, title: &'static str, detail: impl Into<String>) -> Self {
        Self { kind: format!("urn:keylatch:{slug}"), title, status: status.as_u16(), detail: detail.into(), field: None, retry_after: None }
    }

    /// 422: a field is invalid.
    pub fn invalid(field: impl Into<String>, why: impl Into<String>) -> Self {
        let field = Some(field.into()).filter(|field| !field.is_empty());
        Self { field, ..Self::new(StatusCode::UNPROCESSABLE_ENTITY, "invalid", "Invalid field", why) }
    }

    /// 400: the request is malformed.
    pub fn unreadable(why: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "unreadable", "Malformed request", why)
    }

    /// 415: the body is not JSON.
    pub fn not_json() -> Self {
        let why = "send a JSON body with `Content-Type: application/json`";
        Self::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "not-json", "Unsupported media type", why)
    }

    /// 413: the body is too large.
    pub fn too_large() -> Self {
        Self::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            "too-large",
            "Request body too large",
            "a request body must not exceed 64 KiB, a configuration 5 MiB",
        )
    }

    /// 401: no valid token.
    pub fn unknown_caller() -> Self {
        let why = "the token is missing, invalid, expired or revoked; sign in, and send `Authorization: Bearer TOKEN`";
        Self::new(StatusCode::UNAUTHORIZED, "unauthorized", "Not signed in", why)
    }

    /// Whether this is a conflict with a concurrent change.
    pub fn is_conflict_of_versions(&self) -> bool {
        self.kind.ends_with(":conflict") && self.detail.contains("changed meanwhile")
    }

    /// The same problem with another detail.
    pub fn saying(self, detail: impl Into<String>) -> Self {
        Self { detail: detail.into(), ..self }
    }

    /// The same problem with its field prefixed by `above`, unless the field is one of `but`.
    #[must_use]
    pub fn below(self, above: &str, but: &[&str]) -> Self {
        let field = self.field.map(|field| if but.contains(&field.as_str()) { field } else { format!("{above}.{field}") });
        Self { field, ..self }
    }

    /// The label of the sign-in metric for this failure.
    pub fn sign_in_result(&self) -> &'static str {
        match self.status {
            429 => "locked",
            502 | 503 => "away",
            _ => "wrong",
        }
    }

    /// 403: the caller lacks permission.
    pub fn forbidden(why: impl Into<String>) -> Self {
        Self::new(StatusCode::FORBIDDEN, "forbidden", "Forbidden", why)
    }

    /// 404: the object does not exist.
    pub fn missing(why: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, "not-found", "Not found", why)
    }

    /// 412: the object has another version than `If-Match`.
    pub fn stale(why: impl Into<String>) -> Self {
        Self::new(StatusCode::PRECONDITION_FAILED, "stale", "Changed meanwhile", why)
    }

    /// 409: the new configuration was rejected.
    pub fn refused(why: impl Into<String>) -> Self {
        Self::new(StatusCode::CONFLICT, "refused", "Configuration rejected", why)
    }
}

impl From<Fault> for Problem {
    fn from(fault: Fault) -> Self {
        match fault {
            Fault::Invalid { field, why } => Self::invalid(field, why),
            Fault::NotFound(why) => Self::missing(why),
            Fault::Conflict(why) => Self::new(StatusCode::CONFLICT, "conflict", "Conflict with the current state", why),
            Fault::Forbidden(why) => Self::forbidden(why),
            Fault::Unavailable(why) => {
                let away = Self::new(StatusCode::SERVICE_UNAVAILABLE, "store-away", "Store unavailable", why);
                Self { retry_after: Some(1), ..away }
            }
            Fault::External(why) => Self::new(StatusCode::BAD_GATEWAY, "elsewhere", "External service failed", why),
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
                let why = format!("too many failed sign-ins; try again in {seconds} s");
                let locked = Self::new(StatusCode::TOO_MANY_REQUESTS, "locked", "Too many failed sign-ins", why);
                Self { retry_after: Some(seconds), ..locked }
            }
            Refusal::Unavailable(why) => Fault::Unavailable(why).into(),
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

/// All errors that an operation can return, for the OpenAPI document.
pub struct Problems;

/// The statuses of errors and their descriptions.
const STATUSES: [(&str, &str); 12] = [
    ("400", "The request is malformed."),
    ("401", "The token is missing, invalid, expired or revoked."),
    ("403", "The role or the token's scopes do not allow the operation, or the request is cross-origin."),
    ("404", "The object does not exist."),
    ("409", "The request conflicts with the current state."),
    ("412", "The object no longer has the version in `If-Match`."),
    ("413", "The body exceeds the size limit."),
    ("415", "The body is not JSON."),
    ("422", "A field is invalid; `field` names it."),
    ("429", "Too many failed sign-ins. Retry after `Retry-After` seconds."),
    ("502", "Another service (an OpenID Connect provider, another replica) failed."),
    ("503", "The store is unavailable. Retry after `Retry-After` seconds."),
];

impl Problems {
    /// The shared responses that [`IntoResponses`] refers to.
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

/// The fallback for unknown paths.
pub async fn no_such_call() -> Problem {
    Problem::missing("no operation has this path; see /admin/api/openapi.json")
}

/// The fallback for unsupported methods.
pub async fn no_such_method() -> Problem {
    Problem::new(
        StatusCode::METHOD_NOT_ALLOWED,
        "method",
        "Method not allowed",
        "this path does not support the method; see /admin/api/openapi.json",
    )
}
