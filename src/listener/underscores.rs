//! Handles field names with an underscore: CGI and its successors (WSGI, Rack, PHP) read
//! `X_Real_IP` and `X-Real-IP` as one variable. It knows no other ambiguity.

use http::{HeaderMap, HeaderName};
use keylatch_filters::contract::{ADDRESS_FIELDS, ProxyFields, is_framing};
use pingora::http::RequestHeader;

use super::refusal::{Refused, bad};
use crate::config::model::Underscores;

/// Fields that identify a client or a request, besides those that proxies set.
const IDENTITY_FIELDS: [&str; 8] =
    ["api-key", "authorization", "cookie", "host", "traceparent", "x-api-key", "x-goog-api-key", "x-request-id"];

/// Drops or refuses such fields, as the listener is configured. Returns the number of dropped
/// fields.
pub fn apply_policy(head: &mut RequestHeader, policy: Underscores) -> Result<u64, Refused> {
    if !head.headers.keys().any(has_underscore) {
        return Ok(0);
    }
    match policy {
        Underscores::Refuse => Err(bad("underscore_in_header")),
        Underscores::Drop => Ok(remove(head, |_, _| true)),
        // Even if allowed, none may be mistaken for an identity, proxy or framing field.
        Underscores::Allow => {
            let proxies = ProxyFields::standard();
            Ok(remove(head, |headers, dashed| {
                let known = IDENTITY_FIELDS.contains(&dashed) || ADDRESS_FIELDS.contains(&dashed) || proxies.has(dashed);
                known || headers.contains_key(dashed) || HeaderName::from_bytes(dashed.as_bytes()).is_ok_and(|name| is_framing(&name))
            }))
        }
    }
}

/// Drops fields that the upstream could mistake for another field of the request, which a filter
/// may have set. Returns their number. Needed only where underscores are allowed.
pub fn drop_lookalikes(upstream: &mut RequestHeader) -> u64 {
    if !upstream.headers.keys().any(has_underscore) {
        return 0;
    }
    remove(upstream, |headers, dashed| headers.contains_key(dashed))
}

fn has_underscore(name: &HeaderName) -> bool {
    memchr::memchr(b'_', name.as_str().as_bytes()).is_some()
}

/// Removes each field if `goes` is true for its name with dashes.
fn remove(head: &mut RequestHeader, goes: impl Fn(&HeaderMap, &str) -> bool) -> u64 {
    let spelled = head.headers.keys().filter(|name| has_underscore(name) && goes(&head.headers, &name.as_str().replace('_', "-")));
    let spelled: Vec<HeaderName> = spelled.cloned().collect();
    let count = spelled.iter().map(|name| head.headers.get_all(name).iter().count() as u64).sum();
    for name in &spelled {
        head.remove_header(name);
    }
    count
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head(names: &[&'static str]) -> RequestHeader {
        let mut head = RequestHeader::build("GET", b"/", None).unwrap();
        for name in names {
            head.append_header(*name, "a").unwrap();
        }
        head
    }

    fn left(names: &[&'static str], policy: Underscores) -> Result<(Vec<String>, u64), &'static str> {
        let mut head = head(names);
        let dropped = apply_policy(&mut head, policy).map_err(|refused| refused.reason)?;
        let mut left: Vec<String> = head.headers.keys().map(|name| name.as_str().to_owned()).collect();
        left.sort();
        Ok((left, dropped))
    }

    #[test]
    fn each_choice() {
        let names = ["x_team", "x_team", "x-real-ip", "accept"];
        let own = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        assert_eq!(left(&names, Underscores::Drop), Ok((own(&["accept", "x-real-ip"]), 2)));
        assert_eq!(left(&names, Underscores::Allow), Ok((own(&["accept", "x-real-ip", "x_team"]), 0)));
        assert_eq!(left(&names, Underscores::Refuse), Err("underscore_in_header"));
        for what in [Underscores::Drop, Underscores::Allow, Underscores::Refuse] {
            assert_eq!(left(&["accept"], what), Ok((own(&["accept"]), 0)));
        }
    }

    #[test]
    fn allowed_fields_cannot_imitate_others() {
        for name in [
            "x_real_ip",
            "x-real_ip",
            "x_forwarded_for",
            "cf_connecting_ip",
            "x_original_url",
            "remote_user",
            "content_length",
            "transfer_encoding",
            "ho_st",
            "x_api_key",
        ] {
            let gone = left(&[name], Underscores::Allow).unwrap().1 == 1;
            assert_eq!(gone, name != "ho_st", "{name}");
        }
        // A field that the request has with dashes, too, and one that a filter has set.
        assert_eq!(left(&["x_team", "x-team"], Underscores::Allow).unwrap().1, 1);
        let mut upstream = head(&["x_user_id", "x_team"]);
        upstream.append_header("X-User-Id", "7").unwrap();
        assert_eq!(drop_lookalikes(&mut upstream), 1);
        assert!(upstream.headers.contains_key("x_team") && !upstream.headers.contains_key("x_user_id"));
    }
}
