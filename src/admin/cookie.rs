//! Cookies: none of them signs anybody in, scripts cannot read them, and no other site's pages have them sent.

use axum::http::{HeaderMap, HeaderName, HeaderValue, header};

/// One of them.
pub struct Cookie {
    /// Its name.
    pub name: &'static str,
    /// Below which path it is sent.
    pub path: &'static str,
}

impl Cookie {
    /// What the browser holds, if it holds one.
    pub fn held<'h>(&self, headers: &'h HeaderMap) -> Option<&'h str> {
        let fields = headers.get_all(header::COOKIE).iter().filter_map(|field| field.to_str().ok());
        let pairs = fields.flat_map(|field| field.split(';')).filter_map(|pair| pair.trim().split_once('='));
        let mut held = pairs.filter(|(name, _)| *name == self.name).map(|(_, value)| value);
        // Of two, a site beside this one may have set one.
        held.next().filter(|_| held.next().is_none())
    }

    /// The field by which it holds this from now on; 0 seconds: nothing any more. Where the browser came by https it keeps it to
    /// that.
    pub fn set(&self, value: &str, seconds: u64, headers: &HeaderMap) -> [(HeaderName, HeaderValue); 1] {
        let by_https = headers.get(header::ORIGIN).is_some_and(|origin| origin.as_bytes().starts_with(b"https:"));
        let (name, path, secure) = (self.name, self.path, if by_https { "; Secure" } else { "" });
        let text = format!("{name}={value}; Path={path}; Max-Age={seconds}; HttpOnly; SameSite=Strict{secure}");
        [(header::SET_COOKIE, HeaderValue::from_str(&text).unwrap_or(HeaderValue::from_static("")))]
    }
}
