//! Fields by which proxies and platforms name clients, users and targets. Only a trusted proxy may send them.

use std::sync::LazyLock;

use schemars::JsonSchema;
use serde::Deserialize;

use super::{Invalid, field_name, is_framing};

/// Fields that claim the client's address. They are removed for every peer; the upstream gets one set written by Keylatch.
pub const ADDRESS_FIELDS: [&str; 14] = [
    "cf-connecting-ip",
    "cf-connecting-ipv6",
    "cf-pseudo-ipv4",
    "client-ip",
    "fastly-client-ip",
    "forwarded",
    "true-client-ip",
    "x-client-ip",
    "x-cluster-client-ip",
    "x-envoy-external-address",
    "x-forwarded",
    "x-forwarded-for",
    "x-original-forwarded-for",
    "x-real-ip",
];

/// Fields that an upstream believes if a proxy sent them. `*` at the end stands for anything. The manual of `client_ip` lists them.
pub const PROXY_FIELDS: [&str; 69] = [
    // The client's address and country.
    "ali-cdn-real-ip",
    "cdn-real-ip",
    "cdn-src-ip",
    "cf-ipcountry",
    "cloudfront-viewer-*",
    "do-connecting-ip",
    "eo-connecting-ip",
    "fly-client-ip",
    "forwarded-for",
    "forwarded-for-ip",
    "incap-client-ip",
    "proxy-client-ip",
    "wl-proxy-client-ip",
    "x-appengine-*",
    "x-azure-clientip",
    "x-azure-socketip",
    "x-ms-forwarded-client-ip",
    "x-nf-client-connection-ip",
    "x-originating-ip",
    "x-proxyuser-ip",
    "x-real-client-ip",
    "x-remote-addr",
    "x-remote-ip",
    "x-sucuri-clientip",
    "x-true-client-ip",
    "x-vercel-forwarded-for",
    "x-vercel-ip-*",
    "x-vercel-proxied-for",
    // The scheme the client used.
    "cf-visitor",
    "cloudfront-forwarded-proto",
    "front-end-https",
    "x-arr-ssl",
    "x-scheme",
    "x-url-scheme",
    // Another target, host or method than the request's, and switches of frameworks.
    "disguised-host",
    "proxy",
    "x-accel-mapping",
    "x-envoy-*",
    "x-forwarded-*",
    "x-host",
    "x-http-method",
    "x-http-method-override",
    "x-method-override",
    "x-middleware-*",
    "x-original-*",
    "x-override-url",
    "x-rewrite-url",
    "x-sendfile-type",
    "x-waws-unencoded-url",
    // Users and certificates that a proxy has checked.
    "cf-access-*",
    "remote-email",
    "remote-groups",
    "remote-name",
    "remote-user",
    "ssl-client-*",
    "tailscale-user-*",
    "x-amzn-oidc-*",
    "x-auth-request-*",
    "x-authentik-*",
    "x-client-cert",
    "x-consumer-*",
    "x-credential-identifier",
    "x-goog-authenticated-user-*",
    "x-goog-iap-jwt-assertion",
    "x-ms-client-principal*",
    "x-pomerium-*",
    "x-remote-*",
    "x-ssl-client-*",
    "x-webauth-*",
];

/// What a configuration changes about the list.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ProxyFieldsConfig {
    /// Fields to remove as well; `*` at the end stands for anything. Default: none.
    pub add: Vec<String>,
    /// Fields of the list to pass on from anybody. Default: none.
    pub keep: Vec<String>,
}

/// A set of names and beginnings of names. Looked at for each field of each request.
#[derive(Clone, Debug)]
struct Names {
    exact: Vec<String>,
    /// By length, longer ones last: the first letters of the exact names that have it. Rules out nearly every name.
    exact_letters: [u32; LENGTHS],
    beginnings: Vec<String>,
    beginning_letters: u32,
}

/// Names of this length or longer are treated alike.
const LENGTHS: usize = 48;

/// The bit of a name's first letter; all other bytes share one.
fn letter(name: &str) -> u32 {
    match name.as_bytes().first() {
        Some(byte @ b'a'..=b'z') => 1 << (byte - b'a'),
        _ => 1 << 31,
    }
}

impl Default for Names {
    fn default() -> Self {
        Self { exact: Vec::new(), exact_letters: [0; LENGTHS], beginnings: Vec::new(), beginning_letters: 0 }
    }
}

impl Names {
    fn new<'n>(patterns: impl Iterator<Item = &'n str>) -> Self {
        let mut names = Self::default();
        for pattern in patterns {
            match pattern.strip_suffix('*') {
                Some(beginning) => names.beginnings.push(beginning.to_owned()),
                None => names.exact.push(pattern.to_owned()),
            }
        }
        for name in &names.exact {
            if let Some(letters) = names.exact_letters.get_mut(name.len().min(LENGTHS - 1)) {
                *letters |= letter(name);
            }
        }
        names.beginning_letters = names.beginnings.iter().fold(0, |letters, beginning| letters | letter(beginning));
        names.exact.sort();
        names.beginnings.sort();
        // The last beginning that is not greater than a name is then the only one that it can have.
        names.beginnings.dedup_by(|longer, shorter| longer.starts_with(shorter.as_str()));
        names
    }

    fn has(&self, name: &str) -> bool {
        let letter = letter(name);
        let exact = self.exact_letters.get(name.len().min(LENGTHS - 1)).is_some_and(|letters| letters & letter != 0);
        (exact && self.has_exact(name)) || (self.beginning_letters & letter != 0 && self.has_beginning(name))
    }

    fn has_exact(&self, name: &str) -> bool {
        self.exact.binary_search_by(|exact| exact.as_str().cmp(name)).is_ok()
    }

    fn has_beginning(&self, name: &str) -> bool {
        let below = self.beginnings.partition_point(|beginning| beginning.as_str() <= name);
        below.checked_sub(1).and_then(|last| self.beginnings.get(last)).is_some_and(|last| name.starts_with(last.as_str()))
    }
}

/// The fields that only a trusted proxy may send.
#[derive(Clone, Debug)]
pub struct ProxyFields {
    removed: Names,
    kept: Names,
}

impl Default for ProxyFields {
    fn default() -> Self {
        Self { removed: Names::new(PROXY_FIELDS.into_iter()), kept: Names::default() }
    }
}

impl ProxyFields {
    /// The list as it stands.
    pub fn standard() -> &'static Self {
        static STANDARD: LazyLock<ProxyFields> = LazyLock::new(ProxyFields::default);
        &STANDARD
    }

    /// The list with what a configuration changes about it.
    pub fn compile(config: &ProxyFieldsConfig) -> Result<Self, Invalid> {
        let add = config.add.iter().enumerate().map(|(index, text)| pattern(text).map_err(|e| e.index(index).at("add")));
        let add = add.collect::<Result<Vec<_>, _>>()?;
        let removed = Names::new(PROXY_FIELDS.into_iter().chain(add.iter().map(String::as_str)));
        let keep = |(index, text): (usize, &String)| {
            let pattern = pattern(text).map_err(|e| e.index(index).at("keep"))?;
            let name = pattern.trim_end_matches('*');
            let says = if ADDRESS_FIELDS.contains(&name) {
                format!("`{text}` claims the client's address: the upstream gets what client_ip has found instead")
            } else if !removed.has(name) && !PROXY_FIELDS.contains(&pattern.as_str()) {
                format!("`{text}` is not removed; `keylatch filters client_ip` lists what is")
            } else {
                return Ok(pattern);
            };
            Err(Invalid::new(says).index(index).at("keep"))
        };
        let kept = config.keep.iter().enumerate().map(keep).collect::<Result<Vec<_>, _>>()?;
        Ok(Self { removed, kept: Names::new(kept.iter().map(String::as_str)) })
    }

    /// Whether a field, in lower case, is removed unless a trusted proxy sent it.
    pub fn has(&self, name: &str) -> bool {
        self.removed.has(name) && !self.kept.has(name)
    }
}

/// A name in lower case, perhaps with `*` at its end.
fn pattern(text: &str) -> Result<String, Invalid> {
    let (start, star) = text.strip_suffix('*').map_or((text, ""), |start| (start, "*"));
    let name = field_name(start).map_err(|_| Invalid::new(format!("`{text}` is not a header field's name")))?;
    if is_framing(&name) || name == http::header::HOST {
        return Err(Invalid::new(format!("`{text}` belongs to the framing of messages and cannot be removed here")));
    }
    Ok(format!("{name}{star}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn compile(add: &[&str], keep: &[&str]) -> Result<ProxyFields, Invalid> {
        let own = |list: &[&str]| list.iter().map(|text| (*text).to_owned()).collect();
        ProxyFields::compile(&ProxyFieldsConfig { add: own(add), keep: own(keep) })
    }

    #[test]
    fn the_list_is_found_by_name_and_by_beginning() {
        let fields = ProxyFields::default();
        for pattern in PROXY_FIELDS {
            assert!(fields.has(&pattern.replace('*', "anything")), "{pattern}");
            assert!(!fields.has(&format!("a{pattern}")), "{pattern}");
        }
        for name in [
            "accept",
            "authorization",
            "content-type",
            "host",
            "openai-organization",
            "x-amz-date",
            "x-amzn-bedrock-accept",
            "x-api-key",
            "x-forwarded",
            "x-goog-api-key",
            "x-goog-user-project",
            "x-ms-useragent",
            "x-request-id",
            "x-stainless-lang",
            "x-vercel-id",
            "zzz",
        ] {
            assert!(!fields.has(name), "{name}");
        }
    }

    #[test]
    fn it_is_made_longer_and_shorter() {
        let fields = compile(&["X-Tenant-*", "x-team"], &["X-HTTP-Method-Override", "x-forwarded-prefix", "x-envoy-*"]).unwrap();
        for (name, removed) in [
            ("x-tenant-id", true),
            ("x-team", true),
            ("x-teams", false),
            ("x-http-method-override", false),
            ("x-http-method", true),
            ("x-forwarded-prefix", false),
            ("x-forwarded-user", true),
            ("x-envoy-original-path", false),
        ] {
            assert_eq!(fields.has(name), removed, "{name}");
        }
    }

    #[test]
    fn what_is_no_such_field() {
        for (add, keep, says) in [
            (&["a b"][..], &[][..], "not a header field's name"),
            (&["*"], &[], "not a header field's name"),
            (&["content-length"], &[], "framing"),
            (&["host"], &[], "framing"),
            (&[], &["x-real-ip"], "claims the client's address"),
            (&[], &["x-other"], "is not removed"),
        ] {
            assert!(compile(add, keep).unwrap_err().message.contains(says), "{add:?} {keep:?}");
        }
    }
}
