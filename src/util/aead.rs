//! What must be kept, or left with a browser, and be read and written by nobody else: encrypted and authenticated
//! (AES-256-GCM, RFC 5116), under a key that follows from the admin API's secret.

use hmac::{Hmac, KeyInit, Mac};
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use sha2::Sha256;

/// Seals and opens.
pub struct Sealer(LessSafeKey);

impl Sealer {
    /// Under a key that follows from this secret and tells nothing of it.
    pub fn new(secret: &[u8]) -> Result<Self, String> {
        let mac = Hmac::<Sha256>::new_from_slice(secret).map_err(|e| e.to_string())?;
        let key = mac.chain_update(b"keylatch sealed").finalize().into_bytes();
        let key = UnboundKey::new(&AES_256_GCM, &key).map_err(|_| "no key can be made of the admin API's secret".to_owned())?;
        Ok(Self(LessSafeKey::new(key)))
    }

    /// Seals it for one purpose: it opens for no other. Nonces are random, which is safe for billions of them.
    pub fn seal(&self, purpose: &str, plain: &[u8]) -> Result<Vec<u8>, String> {
        let mut nonce = [0; NONCE_LEN];
        getrandom::fill(&mut nonce).map_err(|e| format!("the system has no randomness: {e}"))?;
        let mut sealed = plain.to_vec();
        let aad = Aad::from(purpose.as_bytes());
        let tag = self.0.seal_in_place_separate_tag(Nonce::assume_unique_for_key(nonce), aad, &mut sealed);
        let tag = tag.map_err(|_| "too long to be sealed".to_owned())?;
        Ok([&nonce, sealed.as_slice(), tag.as_ref()].concat())
    }

    /// What was sealed for this purpose; `None`: it was not, or not under this secret, or not as it is now.
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
    fn only_what_was_sealed_opens() {
        let (sealer, other) = (Sealer::new(b"one secret").unwrap(), Sealer::new(b"another").unwrap());
        let sealed = sealer.seal("a", b"hunter2").unwrap();
        assert!(!sealed.windows(7).any(|part| part == b"hunter2") && sealed != sealer.seal("a", b"hunter2").unwrap());
        assert_eq!(sealer.open("a", &sealed).as_deref(), Some(b"hunter2".as_slice()));
        assert!(sealer.open("b", &sealed).is_none() && other.open("a", &sealed).is_none());
        for at in 0..sealed.len() {
            let mut touched = sealed.clone();
            touched[at] ^= 1;
            assert!(sealer.open("a", &touched).is_none() && sealer.open("a", &sealed[..at]).is_none());
        }
    }
}
