//! # cors
//!
//! Lets pages of other origins call the API from a browser (Fetch, "CORS protocol"): answers preflights by itself, and
//! marks responses. What the upstream says of it gives way.
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
//! `origins: ["*"]` is every origin; it does not go with `credentials`, and neither does `*` in `methods`, `headers` or
//! `expose`: with credentials, browsers read it as a name. A `*` in `headers` never covers `authorization` (Chromium would
//! let it): list it, too.
//! `echo_headers: true` allows every field that a preflight asks for, `authorization` too, in place of `headers`: client
//! libraries send fields of their own, such as the `x-stainless-…` ones of OpenAI's and Anthropic's.
//!
//! An origin that is not listed gets no marks, and its browser keeps the response from the page: the request itself may
//! pass, since only browsers ask. Put this filter before those that check keys: a preflight carries none. Among the
//! top-level `filters` it also marks what is refused before a route is found, so that a page can read the error.

use http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use schemars::JsonSchema;
use serde::Deserialize;

use crate::contract::{
    Body, Filter, Flow, Hooks, HumanDuration, Invalid, Problem, Reply, RequestCx, ResponseCx, Result, Site, Source, failure,
};

/// `cors`
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The origins: scheme, host, and port where it is not the usual one; `*.` in the host stands for one label or
    /// more; `*` alone for all.
    pub origins: Vec<String>,
    /// The methods they may use. Default: GET, POST.
    #[serde(default = "methods")]
    pub methods: Vec<String>,
    /// The fields they may send; `*` is all but authorization. Default: authorization, content-type.
    pub headers: Option<Vec<String>>,
    /// Whether they may send every field that their preflight asks for, in place of `headers`. Default: false.
    #[serde(default)]
    pub echo_headers: bool,
    /// The fields of a response that they may read. Default: x-request-id, retry-after, ratelimit, ratelimit-policy.
    #[serde(default = "expose")]
    pub expose: Vec<String>,
    /// Whether cookies and the like may come along. Default: false.
    #[serde(default)]
    pub credentials: bool,
    /// How long a browser remembers the answer to a preflight. Default: 10m.
    #[serde(default = "ten_minutes")]
    pub max_age: HumanDuration,
}

fn words(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}
fn methods() -> Vec<String> {
    words(&["GET", "POST"])
}
fn headers() -> Vec<String> {
    words(&["authorization", "content-type"])
}
fn expose() -> Vec<String> {
    words(&["x-request-id", "retry-after", "ratelimit", "ratelimit-policy"])
}
fn ten_minutes() -> HumanDuration {
    HumanDuration::secs(600)
}

enum Origin {
    Any,
    Exact(String),
    /// Scheme with `://`, and what the rest ends with.
    Below(String, String),
}

/// A longer list of fields is not echoed.
const ECHOED_BYTES_MAX: usize = 4096;

static ANYBODY: HeaderValue = HeaderValue::from_static("*");

/// The compiled filter.
pub struct Cors {
    origins: Vec<Origin>,
    methods: HeaderValue,
    /// `None`: what the preflight asks for.
    headers: Option<HeaderValue>,
    expose: Option<HeaderValue>,
    credentials: bool,
    max_age: HeaderValue,
}

fn list<T: std::str::FromStr>(words: &[String], key: &str, what: &str) -> Result<HeaderValue, Invalid> {
    for (index, word) in words.iter().enumerate() {
        word.parse::<T>().map_err(|_| Invalid::new(format!("`{word}` is not a {what}")).index(index).at(key))?;
    }
    HeaderValue::try_from(words.join(", ")).map_err(|e| Invalid::new(e.to_string()).at(key))
}

impl Filter for Cors {
    const NAME: &'static str = "cors";
    const HOOKS: Hooks = Hooks { request: true, response: true, gate_response: true, ..Hooks::NONE };
    const SOURCE: &'static str = include_str!("cors.rs");
    type Config = Config;
    type State = ();

    fn compile(config: Config, _site: &mut Site<'_>) -> Result<Self, Invalid> {
        if config.origins.is_empty() {
            return Err(Invalid::new("name at least one origin").at("origins"));
        }
        if config.methods.is_empty() {
            return Err(Invalid::new("name at least one method").at("methods"));
        }
        let origins = config.origins.iter().enumerate().map(|(index, text)| origin(text).map_err(|e| e.index(index).at("origins")));
        let origins: Vec<Origin> = origins.collect::<Result<_, _>>()?;
        if config.credentials && origins.iter().any(|origin| matches!(origin, Origin::Any)) {
            return Err(Invalid::new("does not go with the origin `*`: any page could act for whoever looks at it").at("credentials"));
        }
        let headers = match (config.headers, config.echo_headers) {
            (Some(_), true) => return Err(Invalid::new("goes without `headers`: it allows every field").at("echo_headers")),
            (None, true) => None,
            (given, false) => Some(given.unwrap_or_else(headers)),
        };
        for (key, words) in [("methods", Some(&config.methods)), ("headers", headers.as_ref()), ("expose", Some(&config.expose))] {
            let star = words.and_then(|words| words.iter().position(|word| word == "*"));
            if let Some(index) = star.filter(|_| config.credentials) {
                return Err(Invalid::new("does not go with `credentials`, where browsers read `*` as a name").index(index).at(key));
            }
        }
        let expose = if config.expose.is_empty() { None } else { Some(list::<header::HeaderName>(&config.expose, "expose", "field")?) };
        Ok(Self {
            origins,
            methods: list::<Method>(&config.methods, "methods", "method")?,
            headers: headers.map(|words| list::<header::HeaderName>(&words, "headers", "field")).transpose()?,
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
        // Not a refusal: the answer that was asked for. The marks are added where every response gets them.
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
        let anybody = self.origins.iter().any(|origin| matches!(origin, Origin::Any));
        if !anybody {
            // Caches must not give one origin what was said to another.
            cx.response.append_header(header::VARY, HeaderValue::from_static("Origin")).map_err(failure)?;
        }
        let origin = cx.request.headers.get(header::ORIGIN);
        // With `*` to everybody: a cache may give a page what somebody else has asked for.
        let Some(origin) = origin.filter(|origin| self.allows(origin)).or(anybody.then_some(&ANYBODY)) else { return Ok(()) };
        let named = if anybody { HeaderValue::from_static("*") } else { origin.clone() };
        cx.response.insert_header(header::ACCESS_CONTROL_ALLOW_ORIGIN, named).map_err(failure)?;
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

/// The fields that a preflight asks for, if they are names of fields and not too many.
fn asked(headers: &HeaderMap) -> Option<HeaderValue> {
    let asked = headers.get(header::ACCESS_CONTROL_REQUEST_HEADERS)?;
    let names = asked.to_str().ok().filter(|names| names.len() <= ECHOED_BYTES_MAX)?;
    names.split(',').all(|name| name.trim().parse::<header::HeaderName>().is_ok()).then(|| asked.clone())
}

/// Whether a list of fields names this one.
fn names(list: &HeaderValue, name: &str) -> bool {
    list.to_str().is_ok_and(|list| list.split(',').any(|item| item.trim().eq_ignore_ascii_case(name)))
}

impl Cors {
    /// The fields that a preflight is told of. Some browsers let `*` cover `authorization`, against the Fetch standard:
    /// one that asks for it is told nothing, unless it is listed.
    fn allowed_fields(&self, headers: &HeaderMap) -> Option<HeaderValue> {
        let Some(allowed) = &self.headers else { return asked(headers) };
        let mut lines = headers.get_all(header::ACCESS_CONTROL_REQUEST_HEADERS).iter();
        let asks = names(allowed, "*") && !names(allowed, "authorization") && lines.any(|line| names(line, "authorization"));
        (!asks).then(|| allowed.clone())
    }

    fn allows(&self, origin: &HeaderValue) -> bool {
        let Ok(origin) = origin.to_str() else { return false };
        self.origins.iter().any(|known| match known {
            Origin::Any => true,
            Origin::Exact(exact) => exact == origin,
            Origin::Below(scheme, end) => {
                let label = origin.strip_prefix(scheme.as_str()).and_then(|rest| rest.strip_suffix(end.as_str()));
                label.is_some_and(|label| !label.is_empty() && label.bytes().all(|b| b.is_ascii_alphanumeric() || b"-.".contains(&b)))
            }
        })
    }
}

/// As browsers write it: scheme and host in lower case, a port only where it is not the usual one, no path.
fn origin(text: &str) -> Result<Origin, Invalid> {
    if text == "*" {
        return Ok(Origin::Any);
    }
    let wrong = || Invalid::new(format!("`{text}` is not an origin; write it as browsers do, such as `https://app.example.com`"));
    let (scheme, rest) = text.split_once("://").ok_or_else(wrong)?;
    let (below, host) = rest.strip_prefix("*.").map_or((false, rest), |host| (true, host));
    let fine = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"-.:[]".contains(&b);
    let parsed = format!("{scheme}://{host}").parse::<http::Uri>().ok();
    let authority = parsed.as_ref().and_then(http::Uri::authority).filter(|authority| authority.as_str() == host);
    let port_ok = authority.is_some_and(|authority| authority.as_str().len() == authority.host().len() || authority.port_u16().is_some());
    let name_ok = authority.is_some_and(|authority| authority.host().bytes().any(|b| b.is_ascii_alphanumeric()));
    let usual = !port_ok || !name_ok || (scheme == "https" && host.ends_with(":443")) || (scheme == "http" && host.ends_with(":80"));
    if scheme.is_empty()
        || !scheme.bytes().all(|b| b.is_ascii_lowercase() || b"+-.".contains(&b))
        || host.is_empty()
        || !host.bytes().all(fine)
        || usual
    {
        return Err(wrong());
    }
    Ok(if below { Origin::Below(format!("{scheme}://"), format!(".{host}")) } else { Origin::Exact(text.to_owned()) })
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
    fn whose_pages_may_call() {
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
    fn a_star_never_covers_authorization() {
        let mut headers = HeaderMap::new();
        headers.insert(header::ACCESS_CONTROL_REQUEST_HEADERS, HeaderValue::from_static("content-type, Authorization"));
        for (listed, told) in
            [(json!(["*"]), None), (json!(["*", "authorization"]), Some("*, authorization")), (json!(["x-a"]), Some("x-a"))]
        {
            let filter = cors(json!({ "origins": ["*"], "headers": listed })).unwrap();
            assert_eq!(filter.allowed_fields(&headers).as_ref().map(|value| value.to_str().unwrap()), told);
        }
        let star = cors(json!({ "origins": ["*"], "headers": ["*"] })).unwrap();
        assert_eq!(star.allowed_fields(&HeaderMap::new()).unwrap(), "*");
    }

    #[test]
    fn what_a_preflight_asks_for_is_echoed_if_it_is_a_list_of_fields() {
        for (asked_for, echoed) in
            [("authorization, x-stainless-os", true), ("x-a", true), ("x a", false), ("", false), ("x-a,,x-b", false)]
        {
            let mut headers = HeaderMap::new();
            headers.insert(header::ACCESS_CONTROL_REQUEST_HEADERS, HeaderValue::from_static(asked_for));
            assert_eq!(asked(&headers).is_some(), echoed, "{asked_for}");
        }
        let mut headers = HeaderMap::new();
        assert_eq!(asked(&headers), None);
        headers.insert(header::ACCESS_CONTROL_REQUEST_HEADERS, HeaderValue::try_from(vec!["x-a"; 2000].join(",")).unwrap());
        assert_eq!(asked(&headers), None);
    }

    #[test]
    fn what_makes_no_sense() {
        for (config, says) in [
            (json!({ "origins": [] }), "at least one origin"),
            (json!({ "origins": ["*"], "credentials": true }), "does not go with the origin `*`"),
            (json!({ "origins": ["app.example.com"] }), "is not an origin"),
            (json!({ "origins": ["https://App.example.com"] }), "is not an origin"),
            (json!({ "origins": ["https://app.example.com/"] }), "is not an origin"),
            (json!({ "origins": ["https://app.example.com:443"] }), "is not an origin"),
            (json!({ "origins": ["*"], "methods": ["GE T"] }), "is not a method"),
            (json!({ "origins": ["*"], "methods": [] }), "at least one method"),
            (json!({ "origins": ["https://app.example.com:"] }), "is not an origin"),
            (json!({ "origins": ["https://a:b"] }), "is not an origin"),
            (json!({ "origins": ["https://-"] }), "is not an origin"),
            (json!({ "origins": ["*"], "headers": ["a b"] }), "is not a field"),
            (json!({ "origins": ["https://a.example"], "credentials": true, "headers": ["*"] }), "does not go with `credentials`"),
            (json!({ "origins": ["https://a.example"], "credentials": true, "methods": ["GET", "*"] }), "does not go with `credentials`"),
            (json!({ "origins": ["https://a.example"], "credentials": true, "expose": ["*"] }), "does not go with `credentials`"),
            (json!({ "origins": ["*"], "headers": ["x-a"], "echo_headers": true }), "goes without `headers`"),
        ] {
            let wrong = cors(config).err().unwrap();
            assert!(wrong.message.contains(says), "{wrong:?}");
        }
    }
}
