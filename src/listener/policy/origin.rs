//! The origin secret: a header field that the CDN in front adds to each request. A request without
//! it has bypassed the CDN. It does not identify clients.

use http::HeaderName;
use keylatch_filters::contract::{Invalid, Vouched, field_name};
use pingora::http::RequestHeader;
use subtle::{Choice, ConstantTimeEq};

use crate::config::Files;
use crate::config::model::{OriginSecret, Vouches};

/// The minimum length of a secret, in bytes.
const SECRET_BYTES_MIN: usize = 16;

/// The required secret.
pub struct OriginSecretCheck {
    header: HeaderName,
    secrets: Vec<Vec<u8>>,
    vouches: Vouched,
}

impl OriginSecretCheck {
    /// Reads the secrets.
    pub fn compile(config: &OriginSecret, files: &Files) -> Result<Self, Invalid> {
        let header = field_name(&config.header).map_err(|e| e.at("header"))?;
        // The field is removed from the request, so it must not be one that others need.
        const TAKEN: [&str; 22] = [
            "host",
            "authorization",
            "cookie",
            "content-length",
            "transfer-encoding",
            "connection",
            "upgrade",
            "te",
            "trailer",
            "expect",
            "content-type",
            "accept",
            "x-api-key",
            "api-key",
            "x-goog-api-key",
            "x-forwarded-proto",
            "x-forwarded-host",
            "true-client-ip",
            "forwarded",
            "x-forwarded-for",
            "x-real-ip",
            "cf-connecting-ip",
        ];
        if TAKEN.contains(&header.as_str()) || header.as_str().contains('_') {
            return Err(Invalid::new("must be a field without another use and without underscores, such as `x-origin-secret`").at("header"));
        }
        if config.values.is_empty() {
            return Err(Invalid::new("the list is empty; at least one is needed").at("values"));
        }
        let read = |(index, value)| {
            let secret = files.secret(value).map_err(|e: Invalid| e.index(index).at("values"))?;
            let printable = secret.bytes().all(|byte| byte.is_ascii_graphic());
            if secret.len() < SECRET_BYTES_MIN || !printable {
                let says = format!("must be at least {SECRET_BYTES_MIN} visible ASCII characters; create one with `openssl rand -hex 32`");
                return Err(Invalid::new(says).index(index).at("values"));
            }
            Ok(secret.into_bytes())
        };
        let secrets = config.values.iter().enumerate().map(read).collect::<Result<_, _>>()?;
        let vouches = match config.vouches_for {
            Vouches::Nothing => Vouched::Nothing,
            Vouches::Forwarded => Vouched::Forwarded,
            Vouches::Cloudflare => Vouched::Cloudflare,
        };
        Ok(Self { header, secrets, vouches })
    }

    /// Removes the secret from a request. `None`: it is missing or wrong.
    pub fn take(&self, request: &mut RequestHeader) -> Option<Vouched> {
        let mut values = request.headers.get_all(&self.header).iter();
        let (first, second) = (values.next(), values.next());
        // All secrets are compared in constant time, so that the duration reveals nothing.
        let same = |value: &[u8]| self.secrets.iter().fold(Choice::from(0), |found, secret| found | secret.as_slice().ct_eq(value));
        let good = second.is_none() && first.is_some_and(|value| bool::from(same(value.as_bytes())));
        request.remove_header(&self.header);
        good.then_some(self.vouches)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use keylatch_filters::contract::SecretRef;

    fn origin(header: &str, values: &[&str]) -> Result<OriginSecretCheck, Invalid> {
        let values = values.iter().map(|value| SecretRef::new(*value)).collect();
        let config = OriginSecret { header: header.into(), values, vouches_for: Vouches::Cloudflare };
        OriginSecretCheck::compile(&config, &Files::beside(std::path::Path::new("k.yaml")))
    }

    #[test]
    fn exactly_one_complete_secret_is_required() {
        let origin = origin("X-Origin-Secret", &["0123456789abcdef", "fedcba9876543210"]).unwrap();
        let take = |values: &[&'static str]| {
            let mut request = RequestHeader::build("GET", b"/", None).unwrap();
            for value in values {
                request.append_header("x-origin-secret", *value).unwrap();
            }
            let taken = origin.take(&mut request);
            assert!(!request.headers.contains_key("x-origin-secret"), "it is removed");
            taken
        };
        assert_eq!(take(&["0123456789abcdef"]), Some(Vouched::Cloudflare));
        assert_eq!(take(&["fedcba9876543210"]), Some(Vouched::Cloudflare));
        for wrong in [&[][..], &[""], &["0123456789abcde"], &["0123456789abcdef0"], &["0123456789abcdef", "0123456789abcdef"]] {
            assert_eq!(take(wrong), None, "{wrong:?}");
        }
    }

    #[test]
    fn invalid_secrets() {
        for (header, values) in [
            ("authorization", &["0123456789abcdef"][..]),
            ("x_secret", &["0123456789abcdef"]),
            ("no header", &["0123456789abcdef"]),
            ("x-s", &[]),
            ("x-s", &["short"]),
            ("x-s", &["0123456789abcdef "]),
        ] {
            assert!(origin(header, values).is_err(), "{header} {values:?}");
        }
    }
}
