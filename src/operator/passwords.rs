//! Password hashing with Argon2id (RFC 9106; OWASP's parameters: 19 MiB, 2 passes), with bounded concurrency.

use std::sync::Arc;

use argon2::Argon2;
use argon2::password_hash::phc::PasswordHash;
use argon2::password_hash::{PasswordHasher, PasswordVerifier};
use tokio::sync::Semaphore;

use super::Fault;

/// Minimum length in characters, as NIST SP 800-63B requires without composition rules.
pub const CHARACTERS_MIN: usize = 12;
/// Maximum length in bytes.
pub const BYTES_MAX: usize = 1024;
/// Concurrent hash computations: each takes 19 MiB and about 20 ms of a core.
const AT_ONCE: usize = 2;

/// Hashes and verifies passwords.
pub struct Passwords {
    permits: Arc<Semaphore>,
    /// Verified against where no hash exists, so that both cases take the same time.
    dummy_hash: String,
}

/// Whether a password is acceptable for an account.
pub fn check(password: &str, account: &str) -> Result<(), Fault> {
    let invalid = |why: String| Err(Fault::invalid("password", why));
    if password.chars().count() < CHARACTERS_MIN {
        return invalid(format!("a password must have at least {CHARACTERS_MIN} characters"));
    }
    if password.len() > BYTES_MAX {
        return invalid(format!("a password must have at most {BYTES_MAX} bytes"));
    }
    let first = password.chars().next();
    if password.to_lowercase().contains(account) || password.chars().all(|c| Some(c) == first) {
        return invalid("a password must not contain the account's name, nor consist of one repeated character".into());
    }
    Ok(())
}

impl Passwords {
    /// Computes the dummy hash.
    pub fn new() -> Result<Self, String> {
        let dummy_hash = hash(&crate::bindings::fresh_secret()?)?;
        Ok(Self { permits: Arc::new(Semaphore::new(AT_ONCE)), dummy_hash })
    }

    /// Hashes a password into a PHC string.
    pub async fn hash(&self, password: &str) -> Result<String, Fault> {
        let password = password.to_owned();
        self.compute(move || hash(&password)).await
    }

    /// Whether the password matches the hash. `None` (no such account) takes the same time and is false.
    pub async fn verify(&self, password: &str, stored: Option<&str>) -> Result<bool, Fault> {
        let (password, real) = (password.to_owned(), stored.is_some());
        let stored = stored.unwrap_or(&self.dummy_hash).to_owned();
        let same = self.compute(move || {
            let stored = PasswordHash::new(&stored).map_err(|_| "a password hash in the database is not a valid Argon2 hash".to_owned())?;
            Ok(Argon2::default().verify_password(password.as_bytes(), &stored).is_ok())
        });
        Ok(same.await? && real)
    }

    async fn compute<T: Send + 'static>(&self, work: impl FnOnce() -> Result<T, String> + Send + 'static) -> Result<T, Fault> {
        let permit = Arc::clone(&self.permits).acquire_owned().await.map_err(|e| Fault::Unavailable(e.to_string()))?;
        // The permit is kept until the work ends, even if the caller is cancelled.
        let work = move || {
            let _permit = permit;
            work()
        };
        tokio::task::spawn_blocking(work).await.map_err(|e| Fault::Unavailable(e.to_string()))?.map_err(Fault::Unavailable)
    }
}

fn hash(password: &str) -> Result<String, String> {
    let hash = Argon2::default().hash_password(password.as_bytes());
    Ok(hash.map_err(|e| format!("cannot hash the password: {e}"))?.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn verifies_right_wrong_and_missing_hashes() {
        let passwords = Passwords::new().unwrap();
        let stored = passwords.hash("correct horse battery").await.unwrap();
        assert!(stored.starts_with("$argon2id$v=19$m=19456,t=2,p=1$"), "{stored}");
        assert!(passwords.verify("correct horse battery", Some(&stored)).await.unwrap());
        assert!(!passwords.verify("correct horse batterz", Some(&stored)).await.unwrap());
        assert!(!passwords.verify("correct horse battery", None).await.unwrap());
        assert!(passwords.verify("x", Some("nonsense")).await.is_err());
    }

    #[test]
    fn weak_passwords_are_rejected() {
        for (password, fine) in [
            ("correct horse", true),
            ("short", false),
            ("Ann-is-my-name-1", false),
            ("aaaaaaaaaaaaaaaa", false),
            ("密码密码密码密码密码密码", true),
        ] {
            assert_eq!(check(password, "ann").is_ok(), fine, "{password}");
        }
        assert!(check(&"ab".repeat(513), "ann").is_err());
    }
}
