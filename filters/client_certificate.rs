//! # client_certificate
//!
//! Makes an identity of the certificate that a client has shown to the listener, which has looked at its signature, its
//! time and whether it was revoked (`listeners[].tls.client_certificates`). Limits, rules and the upstream know its
//! bearer by it, as by a token's.
//!
//! ```yaml
//! client_certificate:
//!   name: dns
//!   allow: ["*.agents.example.com"]
//! ```
//!
//! The subject is the first name of the kind `name` that `allow` allows; rules see the rest as `identity.claims.certificate`:
//! `fingerprint`, `serial`, `common_name`, `dns`, `email`, `uri`. Whoever shows none, or none that is allowed, gets 403. The
//! certificate is that of the other end of the connection: behind a proxy, the proxy's.

use std::sync::Arc;

use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::json;

use crate::contract::{
    Arrival, ClientCertificate as Shown, Filter, Flow, Hooks, Identity, Invalid, Problem, Reply, RequestCx, Result, Site,
};

/// What names whoever has shown a certificate.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Name {
    /// A DNS name among its alternative names.
    #[default]
    Dns,
    /// An address of mail among them.
    Email,
    /// A URI among them, such as SPIFFE's.
    Uri,
    /// The common name of its subject.
    CommonName,
    /// SHA-256 of the certificate, in hex.
    Fingerprint,
}

/// `client_certificate`
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// What names whoever has shown it. Default: `dns`.
    pub name: Name,
    /// The names that are let in, whole or with `*` in front for whatever ends like that. Default: every one.
    pub allow: Vec<String>,
    /// Let those pass who have shown none, without an identity. Default: false.
    pub optional: bool,
}

/// The compiled filter.
pub struct ClientCertificate(Config);

impl Filter for ClientCertificate {
    const NAME: &'static str = "client_certificate";
    const HOOKS: Hooks = Hooks::REQUEST;
    const SOURCE: &'static str = include_str!("client_certificate.rs");
    type Config = Config;
    type State = ();

    fn compile(mut config: Config, _site: &mut Site<'_>) -> Result<Self, Invalid> {
        for (index, name) in config.allow.iter_mut().enumerate() {
            let fixed = name.strip_prefix('*').unwrap_or(name);
            if fixed.is_empty() || fixed.contains('*') {
                let says = format!("`{name}` is no name, nor one with `*` in front: `agent-1.example.com`, `*.agents.example.com`");
                return Err(Invalid::new(says).index(index).at("allow"));
            }
            if matches!(config.name, Name::Dns | Name::Fingerprint) {
                name.make_ascii_lowercase();
            }
        }
        Ok(Self(config))
    }

    async fn request(&self, cx: &mut RequestCx<'_>, (): &mut ()) -> Result<Flow> {
        let certificate = cx.facts.get::<Arrival>().and_then(|arrival| arrival.certificate.clone());
        let Some(certificate) = certificate else {
            return Ok(if self.0.optional { Flow::Continue } else { refusal("no_certificate") });
        };
        match self.name(&certificate) {
            Some(name) => {
                let subject = Some(name.to_owned());
                cx.facts.put(Identity { subject, claims: Arc::new(claims(&certificate)) });
                Ok(Flow::Continue)
            }
            None => Ok(refusal("name_not_allowed")),
        }
    }
}

impl ClientCertificate {
    /// The first of its names that is let in.
    fn name<'c>(&self, certificate: &'c Shown) -> Option<&'c str> {
        let names: Vec<&str> = match self.0.name {
            Name::Dns => certificate.dns.iter().map(String::as_str).collect(),
            Name::Email => certificate.email.iter().map(String::as_str).collect(),
            Name::Uri => certificate.uri.iter().map(String::as_str).collect(),
            Name::CommonName => certificate.common_name.as_deref().into_iter().collect(),
            Name::Fingerprint => vec![&certificate.fingerprint],
        };
        let fits = |name: &str, pattern: &String| match pattern.strip_prefix('*') {
            Some(end) => name.len() > end.len() && name.ends_with(end),
            None => name == pattern,
        };
        names.into_iter().find(|name| self.0.allow.is_empty() || self.0.allow.iter().any(|pattern| fits(name, pattern)))
    }
}

fn claims(certificate: &Shown) -> serde_json::Map<String, serde_json::Value> {
    let about = json!({
        "fingerprint": certificate.fingerprint, "serial": certificate.serial, "common_name": certificate.common_name,
        "dns": certificate.dns, "email": certificate.email, "uri": certificate.uri,
    });
    serde_json::Map::from_iter([("certificate".to_owned(), about)])
}

fn refusal(reason: &'static str) -> Flow {
    Reply::new(Problem::Forbidden, "client_certificate_required", reason, "A client certificate that is allowed here is needed.").into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::with_site;

    fn filter(name: Name, allow: &[&str]) -> std::result::Result<ClientCertificate, Invalid> {
        let allow = allow.iter().map(|name| (*name).to_owned()).collect();
        with_site(|site| ClientCertificate::compile(Config { name, allow, optional: false }, site))
    }

    #[test]
    fn the_name_that_is_allowed() {
        let certificate = Shown {
            fingerprint: "ab12".into(),
            common_name: Some("Agent 1".into()),
            dns: vec!["other.example.org".into(), "a.agents.example.com".into()],
            uri: vec!["spiffe://example.com/agent".into()],
            ..Shown::default()
        };
        for (kind, allow, found) in [
            (Name::Dns, &[][..], Some("other.example.org")),
            (Name::Dns, &["*.agents.example.com"], Some("a.agents.example.com")),
            (Name::Dns, &["A.agents.example.com"], Some("a.agents.example.com")),
            (Name::Dns, &["agents.example.com", "*.a.agents.example.com"], None),
            (Name::Email, &[], None),
            (Name::Uri, &["spiffe://example.com/agent"], Some("spiffe://example.com/agent")),
            (Name::CommonName, &["Agent 1"], Some("Agent 1")),
            (Name::CommonName, &["agent 1"], None),
            (Name::Fingerprint, &["AB12"], Some("ab12")),
        ] {
            assert_eq!(filter(kind, allow).unwrap().name(&certificate), found, "{kind:?} {allow:?}");
        }
        for wrong in ["", "*", "a*b", "**.example.com"] {
            assert!(filter(Name::Dns, &[wrong]).is_err(), "{wrong}");
        }
    }
}
