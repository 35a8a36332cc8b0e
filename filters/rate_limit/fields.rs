//! The response fields that describe limits. It writes headers and counts nothing.

use http::{HeaderName, HeaderValue};
use pingora_http::ResponseHeader;

use super::policy::LimitPolicy;
use crate::contract::{Outcome, Result, failure};
use crate::limiting::ceil_s;

const POLICY: HeaderName = HeaderName::from_static("ratelimit-policy");
const LIMIT: HeaderName = HeaderName::from_static("ratelimit");

/// Adds `RateLimit-Policy` and `RateLimit` as structured fields, one member of each per limit.
pub fn ietf(response: &mut ResponseHeader, policy: &LimitPolicy, outcome: Outcome) -> Result<()> {
    let mut state = String::with_capacity(policy.name.len() + 32);
    let mut digits = itoa::Buffer::new();
    state.extend(["\"", &policy.name, "\";r=", digits.format(outcome.remaining)]);
    state.extend([";t=", digits.format(ceil_s(outcome.more_in))]);
    let state = HeaderValue::try_from(state).map_err(failure)?;
    response.append_header(POLICY, policy.field.clone()).map_err(failure)?;
    response.append_header(LIMIT, state).map_err(failure)?;
    Ok(())
}

/// Sets `x-ratelimit-limit-requests`, `-remaining-requests` and `-reset-requests` in the format of OpenAI's API. They
/// replace the upstream's own fields, because the client is limited by this filter.
pub fn openai(response: &mut ResponseHeader, policy: &LimitPolicy, outcome: Outcome) -> Result<()> {
    let reset = humantime::format_duration(std::time::Duration::from_secs(ceil_s(outcome.full_in))).to_string().replace(' ', "");
    for (name, value) in [
        ("x-ratelimit-limit-requests", policy.most.to_string()),
        ("x-ratelimit-remaining-requests", outcome.remaining.to_string()),
        ("x-ratelimit-reset-requests", reset),
    ] {
        response.insert_header(name, value).map_err(failure)?;
    }
    Ok(())
}
