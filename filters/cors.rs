//! # cors
//!
//! Allows web pages of other origins to call the API from a browser (CORS protocol, Fetch standard). The filter answers
//! preflight requests itself and sets the CORS fields of responses. It replaces CORS fields of the upstream.
//!
//! ```yaml
//! cors:
//!   origins: [https://app.example.com, "https://*.preview.example.com"]
//!   methods: [GET, POST]
//!   headers: [authorization, content-type]
//!   expose: [x-request-id]
//!   credentials: false
//!   max_age: 10m
//! ```
//!
//! **Position.** Put this filter before filters that check keys, because a preflight request carries no key. In the
//! top-level `filters` it also covers refusals that happen before a route is found, so that pages can read these errors.
//!
//! **Origins.** A response to an origin that is not listed gets no CORS fields, and the browser hides the response from the
//! page. The request itself can still reach the upstream: CORS is enforced by browsers only.
//!
//! **Wildcards.** `origins: ["*"]` allows all origins. `*` cannot be used in `origins`, `methods`, `headers` or `expose`
//! together with `credentials: true`: browsers then take it as a literal name. `*` in `headers` does not include
//! `authorization`; list it as well. (Chromium would include it; this filter prevents that.)
//!
//! **Echoed fields.** `echo_headers: true` allows all fields that a preflight requests, including `authorization`. It
//! replaces `headers`. Use it for client libraries that send fields of their own, such as the `x-stainless-…` fields of the
//! OpenAI and Anthropic libraries.

use http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use schemars::JsonSchema;
use serde::Deserialize;

use crate::contract::{
    Body, Filter, Flow, Hooks, HumanDuration, Invalid, Problem, Reply, RequestCx, ResponseCx, Result, Site, Source, failure,
};

/// `cors`
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct CorsConfig {
    /// Allowed origins: scheme, host, and the port if it is not the default. `*.` at the start of the host matches one or more
    /// labels. `*` matches all origins.
    pub origins: Vec<String>,
    /// Allowed methods. Default: GET, POST.
    #[serde(default = "default_methods")]
    pub methods: Vec<String>,
    /// Allowed request fields. `*` allows all except authorization. Default: authorization, content-type.
    pub headers: Option<Vec<String>>,
    /// Allow every field that a preflight requests, instead of `headers`. Default: false.
    #[serde(default)]
    pub echo_headers: bool,
    /// Response fields that pages may read. Default: x-request-id, retry-after, ratelimit, ratelimit-policy.
    #[serde(default = "default_expose")]
    pub expose: Vec<String>,
    /// Allow requests with credentials, such as cookies. Default: false.
    #[serde(default)]
    pub credentials: bool,
    /// The time for which browsers cache the answer to a preflight. Default: 10m.
    #[serde(default = "default_max_age")]
    pub max_age: HumanDuration,
}

fn strings(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}
fn default_methods() -> Vec<String> {
    strings(&["GET", "POST"])
}
fn default_headers() -> Vec<String> {
    strings(&["authorization", "content-type"])
}
fn default_expose() -> Vec<String> {
    strings(&["x-request-id", "retry-after", "ratelimit", "ratelimit-policy"])
}
fn default_max_age() -> HumanDuration {
    HumanDuration::secs(600)
}

enum AllowedOrigin {
    Any,
    Exact(String),
    /// The scheme with `://`, and the required suffix of the host and port.
    Subdomain(String, String),
}

/// The longest list of fields that is echoed.
const ECHOED_BYTES_MAX: usize = 4096;

static ANY_ORIGIN: HeaderValue = HeaderValue::from_static("*");

/// The compiled filter.
pub struct Cors {
    origins: Vec<AllowedOrigin>,
    methods: HeaderValue,
    /// `None`: the fields that the preflight requests (`echo_headers`).
    headers: Option<HeaderValue>,
    expose: Option<HeaderValue>,
    credentials: bool,
    max_age: HeaderValue,
}

fn header_list<T: std::str::FromStr>(words: &[String], key: &str, what: &str) -> Result<HeaderValue, Invalid> {
    for (index, word) in words.iter().enumerate() {
        word.parse::<T>().map_err(|_| Invalid::new(format!("`{word}` is not a valid {what}")).index(index).at(key))?;
    }
    HeaderValue::try_from(words.join(", ")).map_err(|e| Invalid::new(e.to_string()).at(key))
}

impl Filter for Cors {
    const NAME: &'static str = "cors";
    const HOOKS: Hooks = Hooks { request: true, response: true, gate_response: true, ..Hooks::NONE };
    const SOURCE: &'static str = include_str!("cors.rs");
    type Config = CorsConfig;
    type State = ();

    fn compile(config: CorsConfig, _site: &mut Site<'_>) -> Result<Self, Invalid> {
        if config.origins.is_empty() {
            return Err(Invalid::new("list at least one origin").at("origins"));
        }
        if config.methods.is_empty() {
            return Err(Invalid::new("list at least one method").at("methods"));
        }
        let origins = config.origins.iter().enumerate().map(|(index, text)| parse_origin(text).map_err(|e| e.index(index).at("origins")));
        let origins: Vec<AllowedOrigin> = origins.collect::<Result<_, _>>()?;
        if config.credentials && origins.iter().any(|origin| matches!(origin, AllowedOrigin::Any)) {
            return Err(Invalid::new("cannot be combined with the origin `*`: any page could use the credentials of its visitors")
                .at("credentials"));
        }
        let headers = match (config.headers, config.echo_headers) {
            (Some(_), true) => {
                return Err(
                    Invalid::new("cannot be combined with `headers`, since it allows every field; remove one of them").at("echo_headers")
                );
            }
            (None, true) => None,
            (given, false) => Some(given.unwrap_or_else(default_headers)),
        };
        for (key, words) in [("methods", Some(&config.methods)), ("headers", headers.as_ref()), ("expose", Some(&config.expose))] {
            let star = words.and_then(|words| words.iter().position(|word| word == "*"));
            if let Some(index) = star.filter(|_| config.credentials) {
                return Err(Invalid::new("`*` cannot be combined with `credentials: true`, because browsers take it as a literal name")
                    .index(index)
                    .at(key));
            }
        }
        let expose =
            if config.expose.is_empty() { None } else { Some(header_list::<header::HeaderName>(&config.expose, "expose", "field name")?) };
        Ok(Self {
            origins,
            methods: header_list::<Method>(&config.methods, "methods", "method")?,
            headers: headers.map(|words| header_list::<header::HeaderName>(&words, "headers", "field name")).transpose()?,
            expose,
            credentials: config.credentials,
            max_age: HeaderValue::from(config.max_age.0.as_secs()),
        })
    }

    async fn request(&self, cx: &mut RequestCx<'_>, (): &mut ()) -> Result<Flow> {
        let headers = cx.headers();
        let preflight = cx.request.method == Method::OPTIONS
            && headers.contains_key(header::ORIGIN)
            && headers.contains_key(header::ACCESS_CONTROL_REQUEST_METHOD);
        if !preflight {
            return Ok(Flow::Continue);
        }
        // A preflight response is not a refusal. The `response` hook adds the fields common to all responses.
        let mut reply = Reply::new(Problem::Answer, "preflight", "preflight", "").status(StatusCode::NO_CONTENT).body(Body::default());
        if headers.get(header::ORIGIN).is_some_and(|origin| self.allows(origin)) {
            reply = reply
                .header(header::ACCESS_CONTROL_ALLOW_METHODS, self.methods.clone())
                .header(header::ACCESS_CONTROL_MAX_AGE, self.max_age.clone());
            if let Some(headers) = self.allowed_fields(headers) {
                reply = reply.header(header::ACCESS_CONTROL_ALLOW_HEADERS, headers);
            }
        }
        if self.headers.is_none() {
            reply = reply.header(header::VARY, HeaderValue::from_static("Access-Control-Request-Headers"));
        }
        Ok(reply.into())
    }

    fn response(&self, cx: &mut ResponseCx<'_>, (): &mut ()) -> Result<()> {
        if cx.source == Source::Upstream {
            for name in [
                header::ACCESS_CONTROL_ALLOW_ORIGIN,
                header::ACCESS_CONTROL_ALLOW_CREDENTIALS,
                header::ACCESS_CONTROL_EXPOSE_HEADERS,
                header::ACCESS_CONTROL_ALLOW_METHODS,
                header::ACCESS_CONTROL_ALLOW_HEADERS,
                header::ACCESS_CONTROL_MAX_AGE,
            ] {
                cx.response.remove_header(&name);
            }
        }
        let any_origin = self.origins.iter().any(|origin| matches!(origin, AllowedOrigin::Any));
        if !any_origin {
            // The response differs by origin, so shared caches must store it per origin.
            cx.response.append_header(header::VARY, HeaderValue::from_static("Origin")).map_err(failure)?;
        }
        let origin = cx.request.headers.get(header::ORIGIN);
        // With `*`, responses without an `Origin` get the fields too: a shared cache may serve them to a page later.
        let Some(origin) = origin.filter(|origin| self.allows(origin)).or(any_origin.then_some(&ANY_ORIGIN)) else { return Ok(()) };
        let value = if any_origin { HeaderValue::from_static("*") } else { origin.clone() };
        cx.response.insert_header(header::ACCESS_CONTROL_ALLOW_ORIGIN, value).map_err(failure)?;
        if self.credentials {
            let yes = HeaderValue::from_static("true");
            cx.response.insert_header(header::ACCESS_CONTROL_ALLOW_CREDENTIALS, yes).map_err(failure)?;
        }
        if let Some(expose) = &self.expose {
            cx.response.insert_header(header::ACCESS_CONTROL_EXPOSE_HEADERS, expose.clone()).map_err(failure)?;
        }
        Ok(())
    }
}

/// The fields that a preflight requests, if the list is valid and at most [`ECHOED_BYTES_MAX`] long.
fn requested_fields(headers: &HeaderMap) -> Option<HeaderValue> {
    let requested = headers.get(header::ACCESS_CONTROL_REQUEST_HEADERS)?;
    let names = requested.to_str().ok().filter(|names| names.len() <= ECHOED_BYTES_MAX)?;
    names.split(',').all(|name| name.trim().parse::<header::HeaderName>().is_ok()).then(|| requested.clone())
}

/// Whether a list of fields contains a name.
fn contains_name(list: &HeaderValue, name: &str) -> bool {
    list.to_str().is_ok_and(|list| list.split(',').any(|item| item.trim().eq_ignore_ascii_case(name)))
}

impl Cors {
    /// The value of `Access-Control-Allow-Headers` for a preflight. Some browsers let `*` include `authorization`, against the
    /// Fetch standard. A preflight that requests `authorization` therefore gets no value unless it is listed.
    fn allowed_fields(&self, headers: &HeaderMap) -> Option<HeaderValue> {
        let Some(allowed) = &self.headers else { return requested_fields(headers) };
        let mut lines = headers.get_all(header::ACCESS_CONTROL_REQUEST_HEADERS).iter();
        let only_wildcard = contains_name(allowed, "*") && !contains_name(allowed, "authorization");
        let is_refused = only_wildcard && lines.any(|line| contains_name(line, "authorization"));
        (!is_refused).then(|| allowed.clone())
    }

    fn allows(&self, origin: &HeaderValue) -> bool {
        let Ok(origin) = origin.to_str() else { return false };
        self.origins.iter().any(|allowed| match allowed {
            AllowedOrigin::Any => true,
            AllowedOrigin::Exact(exact) => exact == origin,
            AllowedOrigin::Subdomain(scheme, end) => {
                let label = origin.strip_prefix(scheme.as_str()).and_then(|rest| rest.strip_suffix(end.as_str()));
                label.is_some_and(|label| !label.is_empty() && label.bytes().all(|b| b.is_ascii_alphanumeric() || b"-.".contains(&b)))
            }
        })
    }
}

/// Parses an origin as browsers serialise it: scheme and host in lower case, a port only if it is not the default, no path.
fn parse_origin(text: &str) -> Result<AllowedOrigin, Invalid> {
    if text == "*" {
        return Ok(AllowedOrigin::Any);
    }
    let wrong = || Invalid::new(format!("`{text}` is not an origin; write it as browsers send it, such as `https://app.example.com`"));
    let (scheme, rest) = text.split_once("://").ok_or_else(wrong)?;
    let (is_wildcard, host) = rest.strip_prefix("*.").map_or((false, rest), |host| (true, host));
    let allowed = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"-.:[]".contains(&b);
    let parsed = format!("{scheme}://{host}").parse::<http::Uri>().ok();
    let authority = parsed.as_ref().and_then(http::Uri::authority).filter(|authority| authority.as_str() == host);
    let port_ok = authority.is_some_and(|authority| authority.as_str().len() == authority.host().len() || authority.port_u16().is_some());
    let name_ok = authority.is_some_and(|authority| authority.host().bytes().any(|b| b.is_ascii_alphanumeric()));
    let is_wrong = !port_ok || !name_ok || (scheme == "https" && host.ends_with(":443")) || (scheme == "http" && host.ends_with(":80"));
    if scheme.is_empty()
        || !scheme.bytes().all(|b| b.is_ascii_lowercase() || b"+-.".contains(&b))
        || host.is_empty()
        || !host.bytes().all(allowed)
        || is_wrong
    {
        return Err(wrong());
    }
    Ok(if is_wildcard {
        AllowedOrigin::Subdomain(format!("{scheme}://"), format!(".{host}"))
    } else {
        AllowedOrigin::Exact(text.to_owned())
    })
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::contract::decode;
    use crate::testing::with_site;

    fn cors(config: Value) -> std::result::Result<Cors, Invalid> {
        with_site(|site| Cors::compile(decode(config)?, site))
    }

    #[test]
    fn origins_are_matched_exactly_or_by_subdomain() {
        let filter =
            cors(json!({ "origins": ["https://app.example.com", "https://*.preview.example.com", "http://localhost:3000"] })).unwrap();
        for origin in ["https://app.example.com", "https://a.b.preview.example.com", "http://localhost:3000"] {
            assert!(filter.allows(&HeaderValue::from_static(origin)), "{origin}");
        }
        for origin in [
            "null",
            "http://app.example.com",
            "https://app.example.com:8443",
            "https://app.example.com.evil.org",
            "https://preview.example.com",
            "https://.preview.example.com",
            "https://evil.org/.preview.example.com",
            "https://evilpreview.example.com",
            "http://localhost",
        ] {
            assert!(!filter.allows(&HeaderValue::from_static(origin)), "{origin}");
        }
    }

    #[test]
    fn wildcard_never_includes_authorization() {
        let mut headers = HeaderMap::new();
        headers.insert(header::ACCESS_CONTROL_REQUEST_HEADERS, HeaderValue::from_static("content-type, Authorization"));
        for (listed, allowed) in
            [(json!(["*"]), None), (json!(["*", "authorization"]), Some("*, authorization")), (json!(["x-a"]), Some("x-a"))]
        {
            let filter = cors(json!({ "origins": ["*"], "headers": listed })).unwrap();
            assert_eq!(filter.allowed_fields(&headers).as_ref().map(|value| value.to_str().unwrap()), allowed);
        }
        let wildcard = cors(json!({ "origins": ["*"], "headers": ["*"] })).unwrap();
        assert_eq!(wildcard.allowed_fields(&HeaderMap::new()).unwrap(), "*");
    }

    #[test]
    fn requested_fields_are_echoed_if_they_are_valid() {
        for (requested, echoed) in
            [("authorization, x-stainless-os", true), ("x-a", true), ("x a", false), ("", false), ("x-a,,x-b", false)]
        {
            let mut headers = HeaderMap::new();
            headers.insert(header::ACCESS_CONTROL_REQUEST_HEADERS, HeaderValue::from_static(requested));
            assert_eq!(requested_fields(&headers).is_some(), echoed, "{requested}");
        }
        let mut headers = HeaderMap::new();
        assert_eq!(requested_fields(&headers), None);
        headers.insert(header::ACCESS_CONTROL_REQUEST_HEADERS, HeaderValue::try_from(vec!["x-a"; 2000].join(",")).unwrap());
        assert_eq!(requested_fields(&headers), None);
    }

    #[test]
    fn invalid_configurations() {
        for (config, message) in [
            (json!({ "origins": [] }), "at least one origin"),
            (json!({ "origins": ["*"], "credentials": true }), "cannot be combined with the origin `*`"),
            (json!({ "origins": ["app.example.com"] }), "is not an origin"),
            (json!({ "origins": ["https://App.example.com"] }), "is not an origin"),
            (json!({ "origins": ["https://app.example.com/"] }), "is not an origin"),
            (json!({ "origins": ["https://app.example.com:443"] }), "is not an origin"),
            (json!({ "origins": ["*"], "methods": ["GE T"] }), "is not a valid method"),
            (json!({ "origins": ["*"], "methods": [] }), "at least one method"),
            (json!({ "origins": ["https://app.example.com:"] }), "is not an origin"),
            (json!({ "origins": ["https://a:b"] }), "is not an origin"),
            (json!({ "origins": ["https://-"] }), "is not an origin"),
            (json!({ "origins": ["*"], "headers": ["a b"] }), "is not a valid field name"),
            (
                json!({ "origins": ["https://a.example"], "credentials": true, "headers": ["*"] }),
                "cannot be combined with `credentials: true`",
            ),
            (
                json!({ "origins": ["https://a.example"], "credentials": true, "methods": ["GET", "*"] }),
                "cannot be combined with `credentials: true`",
            ),
            (
                json!({ "origins": ["https://a.example"], "credentials": true, "expose": ["*"] }),
                "cannot be combined with `credentials: true`",
            ),
            (json!({ "origins": ["*"], "headers": ["x-a"], "echo_headers": true }), "cannot be combined with `headers`"),
        ] {
            let wrong = cors(config).err().unwrap();
            assert!(wrong.message.contains(message), "{wrong:?}");
        }
    }
}
