//! The `acme` section of [`super::model`]. Makes no certificate; `crate::acme` does.

use keylatch_filters::contract::{HumanDuration, Invalid, SecretRef};
use schemars::JsonSchema;
use serde::Deserialize;

/// Certificates by ACME (RFC 8555). The account and the certificates are stored encrypted under a
/// key derived from `secrets.admin`, and shared by all replicas. One replica at a time requests
/// certificates.
#[derive(Clone, Debug, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Acme {
    /// The URL of the CA's directory. Default: Let's Encrypt.
    #[serde(default = "lets_encrypt")]
    pub directory: String,
    /// Contacts that the CA notifies of problems: `mailto:ops@example.com`.
    #[serde(default)]
    pub contact: Vec<String>,
    /// Agreement to the CA's terms. Required; without it no certificate is requested.
    #[serde(default)]
    pub accept_terms: bool,
    /// The challenge that proves control of the names. Default: `tls_alpn`.
    #[serde(default)]
    pub challenge: Challenge,
    /// An existing account at the CA (external account binding), which some CAs require.
    pub external_account: Option<ExternalAccount>,
    /// How long before its expiry a certificate is renewed. A certificate with a lifetime shorter
    /// than three times this is renewed in its last third. Default: 30days.
    #[serde(default = "a_month")]
    pub renew_before: HumanDuration,
    /// CA certificates (PEM) that the CA's own server is verified with. Default: the system's.
    pub ca_file: Option<String>,
    /// Whether the directory may use HTTP or a private address. Default: false.
    #[serde(default)]
    pub allow_private: bool,
}

/// The challenge that proves control of a name.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Challenge {
    /// TLS-ALPN-01 (RFC 8737): the CA connects to port 443, which must reach the listener.
    #[default]
    TlsAlpn,
    /// HTTP-01: the CA connects to port 80, which must reach a listener without TLS.
    Http,
}

/// An existing account at the CA.
#[derive(Clone, Debug, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ExternalAccount {
    /// The key id from the CA.
    pub key_id: String,
    /// The HMAC key from the CA, in base64url.
    pub key: SecretRef,
}

impl Acme {
    /// Errors that can be found without a network call.
    pub fn mistakes(&self) -> Vec<Invalid> {
        let mut wrong = Vec::new();
        if !self.accept_terms {
            wrong.push(
                Invalid::new("must be `true`: the CA issues certificates only after agreement to its terms").at("accept_terms").at("acme"),
            );
        }
        if !(1..=365 * 86_400).contains(&self.renew_before.0.as_secs()) {
            wrong.push(Invalid::new("must be between 1s and 365days").at("renew_before").at("acme"));
        }
        if let Err(says) = crate::util::outbound_url::target(&self.directory, self.allow_private) {
            wrong.push(Invalid::new(says).at("directory").at("acme"));
        }
        for (index, contact) in self.contact.iter().enumerate() {
            if !contact.starts_with("mailto:") || contact.contains(char::is_whitespace) {
                wrong.push(Invalid::new("must be a mail URL such as `mailto:ops@example.com`").index(index).at("contact").at("acme"));
            }
        }
        wrong
    }
}

/// Checks that ACME can issue a certificate for a name by these challenges.
pub fn name(text: &str) -> Result<(), Invalid> {
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
            && !label.starts_with('-')
    };
    if text.starts_with("*.") {
        return Err(Invalid::new("these challenges cannot prove a wildcard; list each name, or use `certificates`"));
    }
    let fine = text.len() <= 253 && text.contains('.') && text.split('.').all(label) && text.parse::<std::net::IpAddr>().is_err();
    if fine { Ok(()) } else { Err(Invalid::new(format!("`{text}` is not a host name in lower case, such as `api.example.com`"))) }
}

fn lets_encrypt() -> String {
    "https://acme-v02.api.letsencrypt.org/directory".into()
}

fn a_month() -> HumanDuration {
    HumanDuration::secs(30 * 86_400)
}
