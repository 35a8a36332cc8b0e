//! The refusals of `key_binding`. They tell the client neither the owner of a key nor the bound network.

use std::time::Duration;

use http::{HeaderValue, header};

use crate::contract::{Binding, KeyError, Problem, Reply};
use crate::limiting::ceil_s;

/// A ban and another network get the same response, so that a client with a stolen key cannot tell them apart.
pub fn refusal(binding: &Binding) -> Reply {
    forbidden(if binding.banned { "banned" } else { "other_network" })
}

pub fn forbidden(reason: &'static str) -> Reply {
    Reply::new(Problem::Forbidden, "key_not_allowed_here", reason, "This API key cannot be used from your network.")
}

pub fn too_many(wait: Duration) -> Reply {
    let seconds = ceil_s(wait).max(1);
    let message = format!("Too many new API keys from your address. Retry after {seconds} s.");
    Reply::new(Problem::RateLimited, "too_many_new_keys", "new_keys", message).header(header::RETRY_AFTER, HeaderValue::from(seconds))
}

pub fn malformed(error: KeyError) -> Reply {
    let message = match error {
        KeyError::Two => "The request carries two different API keys. Send one.".to_owned(),
        KeyError::TooLong(bytes) => format!("The API key is longer than {bytes} bytes."),
        KeyError::Malformed | KeyError::InQuery => "The API key is malformed.".to_owned(),
    };
    Reply::new(Problem::BadRequest, "malformed_api_key", error.reason(), message)
}
