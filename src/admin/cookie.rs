//! Cookies of the console. None of them authenticates; all are `HttpOnly` and `SameSite=Strict`.

use axum::http::{HeaderMap, HeaderName, HeaderValue, header};

/// A cookie.
pub struct Cookie {
    /// Its name.
    pub name: &'static str,
    /// The path below which browsers send it.
    pub path: &'static str,
}

impl Cookie {
    /// The value sent by the browser, if there is exactly one.
    pub fn read<'h>(&self, headers: &'h HeaderMap) -> Option<&'h str> {
        let fields = headers.get_all(header::COOKIE).iter().filter_map(|field| field.to_str().ok());
        let pairs = fields.flat_map(|field| field.split(';')).filter_map(|pair| pair.trim().split_once('='));
        let mut values = pairs.filter(|(name, _)| *name == self.name).map(|(_, value)| value);
        // With two values, one may come from a sibling domain.
        values.next().filter(|_| values.next().is_none())
    }

    /// The `Set-Cookie` header; 0 seconds deletes the cookie. Over https it is `Secure`.
    pub fn set(&self, value: &str, seconds: u64, headers: &HeaderMap) -> [(HeaderName, HeaderValue); 1] {
        let by_https = headers.get(header::ORIGIN).is_some_and(|origin| origin.as_bytes().starts_with(b"https:"));
        let (name, path, secure) = (self.name, self.path, if by_https { "; Secure" } else { "" });
        let text = format!("{name}={value}; Path={path}; Max-Age={seconds}; HttpOnly; SameSite=Strict{secure}");
        [(header::SET_COOKIE, HeaderValue::from_str(&text).unwrap_or(HeaderValue::from_static("")))]
    }
}
