//! Checks URLs that the process calls by itself. Resolves no name; `outbound` checks the resolved
//! addresses.

use std::net::IpAddr;

use reqwest::Url;

use super::public_address::is_public;

/// Parses and checks a URL without a network call. The error quotes no part of it: a URL may be a
/// secret.
pub fn target(url: &str, private: bool) -> Result<Url, String> {
    let url = Url::parse(url).map_err(|_| "must be a URL, such as `https://hooks.example.com/services/…`".to_owned())?;
    match url.scheme() {
        "https" => {}
        "http" if private => {}
        "http" => return Err("must begin with `https://`; `allow_private: true` allows `http://` for internal targets".into()),
        _ => return Err("must begin with `https://`".into()),
    }
    let host = url.host_str().ok_or("has no host")?;
    let literal = host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>();
    if !private && (literal.is_ok_and(|address| !is_public(address)) || host == "localhost" || host.ends_with(".localhost")) {
        return Err("is not a public address; `allow_private: true` allows it".into());
    }
    Ok(url)
}
