//! The secret under which keys are hashed: configured, or created beside the SQLite file on the
//! first run. Never logs a secret.

use std::io::{ErrorKind, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use hmac::{Hmac, KeyInit, Mac};
use keylatch_filters::contract::{KeyHasher, SecretRef, hex};
use sha2::Sha256;

use crate::config::Files;
use crate::config::model::{Secrets, Settings, Storage};
use crate::util::secure_fs;

const BYTES_MIN: usize = 32;

/// The configured secret, if there is one.
pub fn configured(secrets: &Secrets, files: &Files) -> Result<Option<String>, String> {
    secrets.key_hmac.as_ref().map(|reference| read("secrets.key_hmac", reference, files)).transpose()
}

fn read(place: &str, reference: &SecretRef, files: &Files) -> Result<String, String> {
    let secret = files.secret(reference).map_err(|e| format!("{place}: {e}"))?;
    if secret.len() < BYTES_MIN {
        return Err(format!(
            "{place} has {} bytes; at least {BYTES_MIN} are required. Create one with `openssl rand -hex 32`",
            secret.len()
        ));
    }
    Ok(secret)
}

/// The secret of the admin API: the configured one, or one derived from `key_hmac`.
pub fn admin(key_hmac: &str, secrets: &Secrets, files: &Files) -> Result<Vec<u8>, String> {
    match &secrets.admin {
        Some(reference) => read("secrets.admin", reference, files).map(String::into_bytes),
        None => {
            let mac = Hmac::<Sha256>::new_from_slice(key_hmac.as_bytes()).map(|mac| mac.chain_update(b"keylatch admin sign-ins"));
            Ok(mac.map_err(|e| e.to_string())?.finalize().into_bytes().to_vec())
        }
    }
}

/// 32 random bytes in hex.
pub fn fresh() -> Result<String, String> {
    let mut bytes = [0_u8; 32];
    getrandom::fill(&mut bytes).map_err(|e| format!("the system has no random numbers for a secret: {e}"))?;
    Ok(hex(&bytes))
}

/// The secret beside the database; created if the database is new and there is none.
pub fn beside(database: &Path, database_is_new: bool) -> Result<String, String> {
    let path = PathBuf::from(format!("{}.secret", database.display()));
    match std::fs::read_to_string(&path) {
        Ok(text) => {
            let secret = text.trim_end().to_owned();
            if secret.is_empty() && database_is_new {
                // The process crashed between creating the file and writing it.
                std::fs::remove_file(&path).map_err(|e| format!("{} is empty and cannot be removed: {e}", path.display()))?;
                return make(&path);
            }
            if secret.len() < BYTES_MIN {
                return Err(format!("{} is too short to be the secret; restore it from a backup", path.display()));
            }
            let mode = std::fs::metadata(&path).map_err(|e| format!("{}: {e}", path.display()))?.permissions().mode();
            if mode & 0o077 != 0 {
                return Err(format!("{} can be read by others (mode {:o}); run `chmod 600` on it", path.display(), mode & 0o777));
            }
            Ok(secret)
        }
        Err(e) if e.kind() == ErrorKind::NotFound && database_is_new => make(&path),
        Err(e) if e.kind() == ErrorKind::NotFound => Err(format!(
            "{} is missing, but the database was created with it: without it every key would look new and be bound again. \
             Restore it, set secrets.key_hmac to it, or move {} away to start with a new database",
            path.display(),
            database.display()
        )),
        Err(e) => Err(format!("{} cannot be read: {e}", path.display())),
    }
}

fn make(path: &Path) -> Result<String, String> {
    let secret = fresh()?;
    let wrong = |e: std::io::Error| format!("{} cannot be written: {e}", path.display());
    let mut file = secure_fs::make(path).map_err(wrong)?;
    file.write_all(secret.as_bytes()).and_then(|()| file.sync_all()).map_err(wrong)?;
    tracing::info!(path = %path.display(), "created the secret under which keys are hashed; back it up with the database");
    Ok(secret)
}

/// The hasher of a secret and the configured previous ones.
pub fn hasher(secret: &str, secrets: &Secrets, files: &Files) -> Result<KeyHasher, String> {
    let previous = previous(secrets, files)?;
    Ok(KeyHasher::new(secret.as_bytes()).with_previous(previous.iter().map(String::as_bytes)).of_form(secrets.key_form))
}

/// As [`hasher`], without opening a store. `None`: the secret is created when the process starts.
pub fn known_hasher(settings: &Settings, files: &Files) -> Result<Option<KeyHasher>, String> {
    let secrets = &settings.secrets;
    let secret = match (configured(secrets, files)?, &settings.storage) {
        (Some(secret), _) => secret,
        (None, Storage::Sqlite(config)) if Path::new(&config.path).exists() => beside(Path::new(&config.path), false)?,
        (None, _) => return Ok(None),
    };
    hasher(&secret, secrets, files).map(Some)
}

/// The fingerprints of the previous secrets.
pub fn previous_fingerprints(secrets: &Secrets, files: &Files) -> Result<Vec<String>, String> {
    Ok(previous(secrets, files)?.iter().map(|secret| fingerprint(&KeyHasher::new(secret.as_bytes()).of_form(secrets.key_form))).collect())
}

fn previous(secrets: &Secrets, files: &Files) -> Result<Vec<String>, String> {
    let read = |(index, reference)| files.secret(reference).map_err(|e| format!("secrets.previous[{index}]: {e}"));
    secrets.previous.iter().enumerate().map(read).collect()
}

/// The fingerprint that the database stores. It reveals nothing of the secret.
pub fn fingerprint(hasher: &KeyHasher) -> String {
    hex(&hasher.fingerprint().0[..16])
}
