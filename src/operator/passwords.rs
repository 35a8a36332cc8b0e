//! Passwords: Argon2id (RFC 9106, with the parameters OWASP recommends: 19 MiB, 2 passes), a few at a time.

use std::sync::Arc;

use argon2::Argon2;
use argon2::password_hash::phc::PasswordHash;
use argon2::password_hash::{PasswordHasher, PasswordVerifier};
use tokio::sync::Semaphore;

use super::Fault;

/// Characters of a password at least, as NIST SP 800-63B asks for where nothing else is asked of it.
pub const CHARACTERS_MIN: usize = 12;
/// Bytes at most.
pub const BYTES_MAX: usize = 1024;
/// Hashes that are computed at once: each takes 19 MiB and some 20 ms of a core.
const AT_ONCE: usize = 2;

/// Computes them.
pub struct Passwords {
    places: Arc<Semaphore>,
    /// What is compared with where there is nothing to compare with: it takes as long.
    nobodys: String,
}

/// Whether somebody may choose it.
pub fn check(password: &str, account: &str) -> Result<(), Fault> {
    let invalid = |why: String| Err(Fault::invalid("password", why));
    if password.chars().count() < CHARACTERS_MIN {
        return invalid(format!("a password needs at least {CHARACTERS_MIN} characters"));
    }
    if password.len() > BYTES_MAX {
        return invalid(format!("a password has at most {BYTES_MAX} bytes"));
    }
    let first = password.chars().next();
    if password.to_lowercase().contains(account) || password.chars().all(|c| Some(c) == first) {
        return invalid("a password must not hold the account's name, nor be one character repeated".into());
    }
    Ok(())
}

impl Passwords {
    /// Begins with a hash of its own.
    pub fn new() -> Result<Self, String> {
        let nobodys = hash(&crate::bindings::fresh_secret()?)?;
        Ok(Self { places: Arc::new(Semaphore::new(AT_ONCE)), nobodys })
    }

    /// The PHC string of a password.
    pub async fn hash(&self, password: &str) -> Result<String, Fault> {
        let password = password.to_owned();
        self.compute(move || hash(&password)).await
    }

    /// Whether it is the one. `None`, for whom there is none, takes as long.
    pub async fn is(&self, password: &str, stored: Option<&str>) -> Result<bool, Fault> {
        let (password, real) = (password.to_owned(), stored.is_some());
        let stored = stored.unwrap_or(&self.nobodys).to_owned();
        let same = self.compute(move || {
            let stored = PasswordHash::new(&stored).map_err(|_| "a password in the database is no Argon2 hash".to_owned())?;
            Ok(Argon2::default().verify_password(password.as_bytes(), &stored).is_ok())
        });
        Ok(same.await? && real)
    }

    async fn compute<T: Send + 'static>(&self, work: impl FnOnce() -> Result<T, String> + Send + 'static) -> Result<T, Fault> {
        let place = Arc::clone(&self.places).acquire_owned().await.map_err(|e| Fault::Away(e.to_string()))?;
        // The place is held until the work is done, whether or not anybody still waits for it.
        let work = move || {
            let _place = place;
            work()
        };
        tokio::task::spawn_blocking(work).await.map_err(|e| Fault::Away(e.to_string()))?.map_err(Fault::Away)
    }
}

fn hash(password: &str) -> Result<String, String> {
    let hash = Argon2::default().hash_password(password.as_bytes());
    Ok(hash.map_err(|e| format!("a password cannot be hashed: {e}"))?.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn right_wrong_and_nobody() {
        let passwords = Passwords::new().unwrap();
        let stored = passwords.hash("correct horse battery").await.unwrap();
        assert!(stored.starts_with("$argon2id$v=19$m=19456,t=2,p=1$"), "{stored}");
        assert!(passwords.is("correct horse battery", Some(&stored)).await.unwrap());
        assert!(!passwords.is("correct horse batterz", Some(&stored)).await.unwrap());
        assert!(!passwords.is("correct horse battery", None).await.unwrap());
        assert!(passwords.is("x", Some("nonsense")).await.is_err());
    }

    #[test]
    fn what_may_be_chosen() {
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
