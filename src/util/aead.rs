//! Authenticated encryption (AES-256-GCM, RFC 5116) of values that are stored or left with a
//! browser, under a key derived from the admin API's secret. Knows no purpose of a value; callers
//! name it.

use hmac::{Hmac, KeyInit, Mac};
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use sha2::Sha256;

/// Encrypts and decrypts under one key.
pub struct Sealer(LessSafeKey);

impl Sealer {
    /// Derives the key from this secret. The key reveals nothing of the secret.
    pub fn new(secret: &[u8]) -> Result<Self, String> {
        let mac = Hmac::<Sha256>::new_from_slice(secret).map_err(|e| e.to_string())?;
        let key = mac.chain_update(b"keylatch sealed").finalize().into_bytes();
        let key =
            UnboundKey::new(&AES_256_GCM, &key).map_err(|_| "no encryption key can be derived from the admin API's secret".to_owned())?;
        Ok(Self(LessSafeKey::new(key)))
    }

    /// Encrypts for one purpose; the result opens for no other. Nonces are random, which is safe
    /// for billions of values.
    pub fn seal(&self, purpose: &str, plain: &[u8]) -> Result<Vec<u8>, String> {
        let mut nonce = [0; NONCE_LEN];
        getrandom::fill(&mut nonce).map_err(|e| format!("the system has no random numbers: {e}"))?;
        let mut sealed = plain.to_vec();
        let aad = Aad::from(purpose.as_bytes());
        let tag = self.0.seal_in_place_separate_tag(Nonce::assume_unique_for_key(nonce), aad, &mut sealed);
        let tag = tag.map_err(|_| "the value is too long to be encrypted".to_owned())?;
        Ok([&nonce, sealed.as_slice(), tag.as_ref()].concat())
    }

    /// Decrypts; `None`: encrypted for another purpose, under another secret, or modified.
    pub fn open(&self, purpose: &str, sealed: &[u8]) -> Option<Vec<u8>> {
        let (nonce, sealed) = sealed.split_first_chunk::<NONCE_LEN>()?;
        let mut sealed = sealed.to_vec();
        let plain = self.0.open_in_place(Nonce::assume_unique_for_key(*nonce), Aad::from(purpose.as_bytes()), &mut sealed).ok()?;
        Some(plain.to_vec())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_unmodified_values_open_for_their_purpose() {
        let (sealer, other) = (Sealer::new(b"one secret").unwrap(), Sealer::new(b"another").unwrap());
        let sealed = sealer.seal("a", b"hunter2").unwrap();
        assert!(!sealed.windows(7).any(|part| part == b"hunter2") && sealed != sealer.seal("a", b"hunter2").unwrap());
        assert_eq!(sealer.open("a", &sealed).as_deref(), Some(b"hunter2".as_slice()));
        assert!(sealer.open("b", &sealed).is_none() && other.open("a", &sealed).is_none());
        for at in 0..sealed.len() {
            let mut modified = sealed.clone();
            modified[at] ^= 1;
            assert!(sealer.open("a", &modified).is_none() && sealer.open("a", &sealed[..at]).is_none());
        }
    }
}
