//! Verifies signatures (RFC 7515, appendix; RFC 7518, section 3; RFC 8037). It selects no key and parses no token.
//!
//! `ring` verifies RSA with keys of 2048 to 8192 bits. It rejects a signature if its integer is not below the
//! modulus (RFC 8017, sections 8.1.2 and 8.2.2). `p521` verifies P-521, and `jsonwebtoken` verifies all other algorithms.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::{DecodingKey, DecodingKeyKind};
use p521::ecdsa::signature::Verifier as _;
use p521::pkcs8::DecodePublicKey as _;
use ring::signature::{
    RSA_PKCS1_2048_8192_SHA256, RSA_PKCS1_2048_8192_SHA384, RSA_PKCS1_2048_8192_SHA512, RSA_PSS_2048_8192_SHA256, RSA_PSS_2048_8192_SHA384,
    RSA_PSS_2048_8192_SHA512, RsaParameters, RsaPublicKeyComponents, UnparsedPublicKey,
};

use super::keys::{Alg, Family};

/// The minimum size of an RSA key (RFC 7518, section 3.3).
const RSA_BITS_MIN: usize = 2048;
/// The maximum size of an RSA key that `ring` supports.
const RSA_BITS_MAX: usize = 8192;

/// A key that verifies signatures.
pub enum VerifyingKey {
    /// A key verified by `jsonwebtoken`.
    Library(DecodingKey),
    /// An RSA key as its numbers, big-endian and without leading zeros.
    Rsa {
        /// The modulus.
        n: Vec<u8>,
        /// The public exponent.
        e: Vec<u8>,
    },
    /// An RSA key as an `RSAPublicKey` in DER (RFC 8017, appendix A.1.1).
    RsaDer(Vec<u8>),
    /// A P-521 key.
    P521(Box<p521::ecdsa::VerifyingKey>),
}

impl VerifyingKey {
    /// Makes a key from one of `jsonwebtoken`. Checks the size of RSA keys, which the library does not. The error describes
    /// the problem of the key.
    pub fn new(key: DecodingKey, family: Family) -> Result<Self, String> {
        if family != Family::Rsa {
            return Ok(Self::Library(key));
        }
        let (key, bits) = match key.kind() {
            DecodingKeyKind::RsaModulusExponent { n, e } => {
                let (n, e) = (without_zeros(n), without_zeros(e));
                let bits = bits(&n);
                (Self::Rsa { n, e }, bits)
            }
            DecodingKeyKind::SecretOrDer(der) => (Self::RsaDer(der.clone()), modulus(der).map(bits).ok_or("not an RSA public key")?),
        };
        match bits {
            ..RSA_BITS_MIN => Err(format!("the RSA key has {bits} bits; at least {RSA_BITS_MIN} are required (RFC 7518, section 3.3)")),
            RSA_BITS_MIN..=RSA_BITS_MAX => Ok(key),
            _ => Err(format!("the RSA key has {bits} bits; at most {RSA_BITS_MAX} are supported")),
        }
    }

    /// A P-521 key from its point, uncompressed (SEC 1, section 2.3.3).
    pub fn p521(point: &[u8]) -> Option<Self> {
        p521::ecdsa::VerifyingKey::from_sec1_bytes(point).ok().map(|key| Self::P521(Box::new(key)))
    }

    /// A P-521 key in PEM.
    pub fn p521_pem(pem: &str) -> Option<Self> {
        let key = p521::PublicKey::from_public_key_pem(pem).ok()?;
        p521::ecdsa::VerifyingKey::from_affine(*key.as_affine()).ok().map(|key| Self::P521(Box::new(key)))
    }

    /// Whether `signature`, in base64url, is a valid signature of `signed` by this key.
    pub fn verify(&self, alg: Alg, signed: &str, signature: &str) -> bool {
        let raw = || URL_SAFE_NO_PAD.decode(signature).ok();
        match self {
            Self::Library(key) => {
                alg.algorithm().is_some_and(|alg| jsonwebtoken::crypto::verify(signature, signed.as_bytes(), key, alg).unwrap_or(false))
            }
            Self::Rsa { n, e } => {
                let verifies =
                    |parameters, raw: Vec<u8>| RsaPublicKeyComponents { n, e }.verify(parameters, signed.as_bytes(), &raw).is_ok();
                rsa_parameters(alg).zip(raw()).is_some_and(|(parameters, raw)| verifies(parameters, raw))
            }
            Self::RsaDer(der) => {
                let verifies = |parameters, raw: Vec<u8>| UnparsedPublicKey::new(parameters, der).verify(signed.as_bytes(), &raw).is_ok();
                rsa_parameters(alg).zip(raw()).is_some_and(|(parameters, raw)| verifies(parameters, raw))
            }
            Self::P521(key) => {
                let signature = raw().and_then(|raw| p521::ecdsa::Signature::from_slice(&raw).ok());
                alg == Alg::ES512 && signature.is_some_and(|signature| key.verify(signed.as_bytes(), &signature).is_ok())
            }
        }
    }
}

fn rsa_parameters(alg: Alg) -> Option<&'static RsaParameters> {
    Some(match alg {
        Alg::RS256 => &RSA_PKCS1_2048_8192_SHA256,
        Alg::RS384 => &RSA_PKCS1_2048_8192_SHA384,
        Alg::RS512 => &RSA_PKCS1_2048_8192_SHA512,
        Alg::PS256 => &RSA_PSS_2048_8192_SHA256,
        Alg::PS384 => &RSA_PSS_2048_8192_SHA384,
        Alg::PS512 => &RSA_PSS_2048_8192_SHA512,
        _ => return None,
    })
}

fn without_zeros(number: &[u8]) -> Vec<u8> {
    number.iter().copied().skip_while(|byte| *byte == 0).collect()
}

/// The bit length of a big-endian number.
fn bits(number: &[u8]) -> usize {
    let zeros = number.iter().take_while(|byte| **byte == 0).count();
    number.get(zeros).map_or(0, |first| (number.len() - zeros) * 8 - first.leading_zeros() as usize)
}

/// The first number of a sequence in DER: the modulus of an `RSAPublicKey`.
fn modulus(der: &[u8]) -> Option<&[u8]> {
    let sequence = content(der, 0x30)?;
    content(sequence, 0x02)
}

/// The content of the first value in a DER encoding, if it has this tag (X.690, sections 8.1 and 10.1).
fn content(der: &[u8], tag: u8) -> Option<&[u8]> {
    let (&first, rest) = der.split_first()?;
    let (&length, rest) = rest.split_first()?;
    if first != tag {
        return None;
    }
    if length < 0x80 {
        return rest.get(..usize::from(length));
    }
    let (digits, rest) = rest.split_at_checked(usize::from(length & 0x7f))?;
    if digits.len() > 4 {
        return None;
    }
    let length = digits.iter().fold(0_usize, |length, digit| length << 8 | usize::from(*digit));
    rest.get(..length)
}

#[cfg(test)]
mod tests {
    use jsonwebtoken::DecodingKey;

    use super::*;
    use crate::testing::{RSA_PRIVATE_PEM, RSA_PUBLIC_PEM};

    fn signed(alg: jsonwebtoken::Algorithm) -> String {
        let key = jsonwebtoken::EncodingKey::from_rsa_pem(RSA_PRIVATE_PEM.as_bytes()).unwrap();
        jsonwebtoken::crypto::sign(b"text", &key, alg).unwrap()
    }

    #[test]
    fn a_signature_above_the_modulus_is_rejected() {
        let key = DecodingKey::from_rsa_pem(RSA_PUBLIC_PEM.as_bytes()).unwrap();
        let DecodingKeyKind::SecretOrDer(der) = key.kind() else { panic!("a PEM key is stored as DER") };
        let n = modulus(der).unwrap().to_vec();
        let by_numbers = VerifyingKey::Rsa { n: without_zeros(&n), e: vec![1, 0, 1] };
        let by_der = VerifyingKey::new(key, Family::Rsa).unwrap();
        for (alg, library) in [(Alg::PS256, jsonwebtoken::Algorithm::PS256), (Alg::RS256, jsonwebtoken::Algorithm::RS256)] {
            let good = signed(library);
            // The signature plus n: the same number modulo n, but not below n.
            let raw = URL_SAFE_NO_PAD.decode(&good).unwrap();
            let mut carry = 0;
            let mut larger: Vec<u8> = raw
                .iter()
                .rev()
                .zip(without_zeros(&n).iter().rev())
                .map(|(a, b)| {
                    let sum = u16::from(*a) + u16::from(*b) + carry;
                    carry = sum >> 8;
                    sum.to_le_bytes()[0]
                })
                .collect();
            if carry > 0 {
                larger.push(1);
            }
            larger.reverse();
            let larger = URL_SAFE_NO_PAD.encode(larger);
            for key in [&by_numbers, &by_der] {
                assert!(key.verify(alg, "text", &good), "{alg:?}");
                assert!(!key.verify(alg, "text", &larger), "{alg:?}");
                assert!(!key.verify(alg, "other", &good) && !key.verify(Alg::ES512, "text", &good), "{alg:?}");
            }
        }
    }

    #[test]
    fn key_sizes() {
        for (bytes, good) in [(128, false), (255, false), (256, true), (1024, true), (1025, false)] {
            let key = DecodingKey::from_rsa_raw_components(&vec![0xff; bytes], &[1, 0, 1]);
            assert_eq!(VerifyingKey::new(key, Family::Rsa).is_ok(), good, "{bytes}");
        }
        let padded = [vec![0], vec![0x7f; 256]].concat();
        assert_eq!((bits(&padded), bits(&[]), bits(&[0, 0])), (2047, 0, 0));
        for broken in [&b"\x30"[..], b"\x30\x03\x02\x05a", b"\x31\x00", b"\x30\x85\0\0\0\0\x01\0", b"\x30\x82\x01"] {
            assert_eq!(modulus(broken), None);
        }
    }
}
