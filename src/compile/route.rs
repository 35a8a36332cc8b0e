//! A compiled route and its matcher. The order of routes belongs to [`super::Snapshot`].

use std::sync::Arc;

use http::Method;
use keylatch_filters::chain::Chain;
use keylatch_filters::contract::{Dialect, Invalid, host_name};

use crate::config::model::Match;
use crate::upstream::Upstream;

/// A compiled route.
pub struct Route {
    /// The route's name.
    pub name: Arc<str>,
    /// The filters of its requests, the top-level ones first.
    pub chain: Chain,
    /// The upstream of its requests.
    pub upstream: Arc<Upstream>,
    /// Whether paths may contain `%2F`.
    pub allow_encoded_slash: bool,
    /// The API of its clients; `None`: derived from the path.
    pub dialect: Option<Dialect>,
    pub(super) matcher: Matcher,
}

impl Route {
    /// Whether the route matches. `path` is normalised and without its query.
    pub fn matches(&self, method: &Method, host: &str, path: &str) -> bool {
        self.matcher.matches(method, host, path)
    }
}

/// A compiled [`Match`].
#[derive(Debug, Default)]
pub struct Matcher {
    hosts: Vec<HostPattern>,
    paths: Vec<PathPattern>,
    except_paths: Vec<PathPattern>,
    methods: Vec<Method>,
}

#[derive(Debug)]
enum HostPattern {
    Exact(String),
    /// A suffix with its leading dot.
    Below(String),
}

#[derive(Debug)]
enum PathPattern {
    Exact(String),
    /// A prefix without the trailing `/*`.
    Below(String),
    /// Segments, with `*` for any single segment.
    Segments {
        /// `None`: any non-empty segment.
        segments: Vec<Option<String>>,
        /// Whether the pattern ends with `/*`.
        below: bool,
    },
}

impl Matcher {
    pub(super) fn compile(config: &Match) -> Result<Self, Invalid> {
        let each = |list: &[String], key: &'static str| -> Vec<(usize, String, &'static str)> {
            list.iter().cloned().enumerate().map(|(index, text)| (index, text, key)).collect()
        };
        let host = |(index, text, key): (usize, String, &'static str)| {
            let text = text.to_ascii_lowercase();
            let bare = text.strip_prefix("*.").unwrap_or(&text);
            if bare.is_empty() || bare.contains(['*', ':', '/', ' ']) {
                return Err(Invalid::new(format!(
                    "`{text}` is not a host pattern; write `api.example.com` or `*.example.com`, without a port"
                ))
                .index(index)
                .at(key));
            }
            Ok(match text.strip_prefix('*') {
                Some(suffix) => HostPattern::Below(suffix.to_owned()),
                None => HostPattern::Exact(text),
            })
        };
        let path = |(index, text, key): (usize, String, &'static str)| {
            let base = text.strip_suffix("/*").unwrap_or(&text);
            let normal = base.is_empty()
                || (base.starts_with('/') && !base.contains("//") && !base.split('/').any(|part| matches!(part, "." | "..")));
            let stars = base.split('/').all(|segment| segment == "*" || !segment.contains('*'));
            if text.is_empty() || !normal || !stars || base.contains(['?', '#', '%', ' ']) {
                return Err(Invalid::new(format!(
                    "`{text}` is not a path pattern; write `/v1/models`, `/v1/*` or `/*/mj/*`, in normalised form"
                ))
                .index(index)
                .at(key));
            }
            let below = base.len() < text.len();
            Ok(match (base.contains('*'), below) {
                (true, _) => {
                    let segments = base.split('/').skip(1).map(|segment| (segment != "*").then(|| segment.to_owned())).collect();
                    PathPattern::Segments { segments, below }
                }
                (false, true) => PathPattern::Below(base.to_owned()),
                (false, false) => PathPattern::Exact(text),
            })
        };
        if let Some(index) = config.except_paths.iter().position(|path| path == "/*") {
            return Err(Invalid::new("excludes every path: the route would match nothing").index(index).at("except_paths"));
        }
        let method = |(index, text, key): (usize, String, &'static str)| {
            let upper = text.bytes().all(|b| b.is_ascii_uppercase());
            let parsed = text.parse::<Method>().ok().filter(|_| upper);
            parsed.ok_or_else(|| {
                Invalid::new(format!("`{text}` is not a method; write it in upper case, such as `POST`")).index(index).at(key)
            })
        };
        Ok(Self {
            hosts: each(&config.hosts, "hosts").into_iter().map(host).collect::<Result<_, _>>()?,
            paths: each(&config.paths, "paths").into_iter().map(path).collect::<Result<_, _>>()?,
            except_paths: each(&config.except_paths, "except_paths").into_iter().map(path).collect::<Result<_, _>>()?,
            methods: each(&config.methods, "methods").into_iter().map(method).collect::<Result<_, _>>()?,
        })
    }

    fn matches(&self, method: &Method, host: &str, path: &str) -> bool {
        (self.methods.is_empty() || self.methods.contains(method))
            && (self.paths.is_empty() || self.paths.iter().any(|pattern| pattern.matches(path)))
            && !self.except_paths.iter().any(|pattern| pattern.matches(path))
            && (self.hosts.is_empty() || self.hosts.iter().any(|pattern| pattern.matches(host)))
    }
}

impl HostPattern {
    fn matches(&self, host: &str) -> bool {
        let name = host_name(host);
        match self {
            HostPattern::Exact(exact) => name.eq_ignore_ascii_case(exact),
            HostPattern::Below(suffix) => {
                name.len() > suffix.len() && name.get(name.len() - suffix.len()..).is_some_and(|end| end.eq_ignore_ascii_case(suffix))
            }
        }
    }
}

impl PathPattern {
    fn matches(&self, path: &str) -> bool {
        match self {
            PathPattern::Exact(exact) => path == exact,
            PathPattern::Below(base) => path.strip_prefix(base.as_str()).is_some_and(|rest| rest.is_empty() || rest.starts_with('/')),
            PathPattern::Segments { segments, below } => {
                let mut rest = path.split('/').skip(1);
                let fits = segments
                    .iter()
                    .all(|segment| rest.next().is_some_and(|part| segment.as_ref().map_or(!part.is_empty(), |segment| segment == part)));
                fits && (*below || rest.next().is_none())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matcher(hosts: &[&str], paths: &[&str], methods: &[&str]) -> Result<Matcher, Invalid> {
        let owned = |list: &[&str]| list.iter().map(|s| (*s).to_owned()).collect();
        Matcher::compile(&Match { hosts: owned(hosts), paths: owned(paths), except_paths: Vec::new(), methods: owned(methods) })
    }

    #[test]
    fn paths_match_at_segments() {
        let routes = matcher(&[], &["/v1/*", "/health"], &[]).unwrap();
        for (path, fits) in
            [("/v1", true), ("/v1/", true), ("/v1/a/b", true), ("/v12", false), ("/health", true), ("/health/", false), ("/", false)]
        {
            assert_eq!(routes.matches(&Method::GET, "h", path), fits, "{path}");
        }
        assert!(matcher(&[], &["/*"], &[]).unwrap().matches(&Method::GET, "h", "/anything"));
    }

    #[test]
    fn a_star_stands_for_one_segment() {
        let routes = matcher(&[], &["/*/mj/*", "/models/*/card"], &[]).unwrap();
        for (path, fits) in [
            ("/fast/mj/submit/imagine", true),
            ("/fast/mj", true),
            ("/fast/mj/", true),
            ("/mj/submit", false),
            ("//mj/submit", false),
            ("/a/b/mj/submit", false),
            ("/fast/mjx", false),
            ("/models/x/card", true),
            ("/models/x/card/", false),
            ("/models//card", false),
            ("/models/card", false),
        ] {
            assert_eq!(routes.matches(&Method::GET, "h", path), fits, "{path}");
        }
    }

    #[test]
    fn excepted_paths_do_not_match() {
        let list = |paths: &[&str]| paths.iter().map(|path| (*path).to_owned()).collect();
        let config = Match { paths: list(&["/mj/*", "/*/mj/*"]), except_paths: list(&["/mj/image/*", "/api/mj/*"]), ..Match::default() };
        let route = Matcher::compile(&config).unwrap();
        for (path, fits) in
            [("/mj/submit", true), ("/fast/mj/submit", true), ("/mj/image/1", false), ("/api/mj/self", false), ("/mj/images", true)]
        {
            assert_eq!(route.matches(&Method::GET, "h", path), fits, "{path}");
        }
        let invalid = Matcher::compile(&Match { except_paths: list(&["x"]), ..Match::default() }).unwrap_err();
        assert_eq!(invalid.path.first().map(ToString::to_string).as_deref(), Some("except_paths"));
    }

    #[test]
    fn hosts_and_methods() {
        let routes = matcher(&["api.example.com", "*.tenant.example.com"], &[], &["POST"]).unwrap();
        for (host, fits) in [
            ("API.example.com:8080", true),
            ("a.tenant.example.com", true),
            ("tenant.example.com", false),
            ("evil-tenant.example.com", false),
            ("[::1]:80", false),
        ] {
            assert_eq!(routes.matches(&Method::POST, host, "/"), fits, "{host}");
        }
        assert!(!routes.matches(&Method::GET, "api.example.com", "/"));
    }

    #[test]
    fn malformed_patterns_are_refused() {
        for (hosts, paths, methods) in [
            (&["a b"][..], &[][..], &[][..]),
            (&["h:80"], &[], &[]),
            (&["*"], &[], &[]),
            (&[], &["v1"], &[]),
            (&[], &["/v*"], &[]),
            (&[], &["/*v/x"], &[]),
            (&[], &["/**/x"], &[]),
            (&[], &["/a//b"], &[]),
            (&[], &["/../a"], &[]),
            (&[], &[], &["get"]),
        ] {
            assert!(matcher(hosts, paths, methods).is_err());
        }
    }
}
