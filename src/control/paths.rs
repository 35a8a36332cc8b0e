//! The paths of the control sockets and the ownership check of their folder.
//!
//! A path depends on the path of the configuration file alone, so a command finds the process even if the file is invalid.
//! The folder is `$KEYLATCH_RUNTIME_DIR`, else `/run/keylatch` for root, else `$XDG_RUNTIME_DIR/keylatch`, else
//! `/tmp/keylatch-UID`. This file creates nothing.

use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use keylatch_filters::contract::hex;
use nix::unistd::geteuid;
use sha2::{Digest, Sha256};

/// The folder of the sockets. Only its owner may enter it.
pub fn folder() -> PathBuf {
    let user = geteuid();
    match (std::env::var_os("KEYLATCH_RUNTIME_DIR"), std::env::var_os("XDG_RUNTIME_DIR")) {
        (Some(folder), _) => folder.into(),
        (None, _) if user.is_root() => "/run/keylatch".into(),
        (None, Some(folder)) => Path::new(&folder).join("keylatch"),
        (None, None) => format!("/tmp/keylatch-{user}").into(),
    }
}

/// The control socket of the process that runs `config`.
pub fn control_socket(config: &Path) -> Result<PathBuf, String> {
    let config = config.canonicalize().map_err(|e| format!("{}: {e}", config.display()))?;
    let hash = Sha256::digest(config.as_os_str().as_bytes());
    Ok(folder().join(format!("{}.sock", hex(&hash[..8]))))
}

/// The socket on which the process that runs `config` serves its admin API to commands.
pub fn api_socket(config: &Path) -> Result<PathBuf, String> {
    control_socket(config).map(|path| path.with_extension("api"))
}

/// The control socket, if its folder is trusted: it belongs to this user or root, and only its owner may write to it. Root
/// accepts any owner. Without this check another user could place a socket there and answer commands.
pub fn trusted_socket(config: &Path) -> Result<PathBuf, String> {
    let (path, own) = (control_socket(config)?, geteuid());
    let folder = folder();
    let is_untrusted = std::fs::symlink_metadata(&folder).is_ok_and(|metadata| {
        let owner = metadata.uid();
        !metadata.is_dir() || (!own.is_root() && owner != own.as_raw() && owner != 0) || metadata.mode() & 0o022 != 0
    });
    match is_untrusted {
        true => Err(format!(
            "{} belongs to another user or is writable by others, so its sockets are not trusted; set KEYLATCH_RUNTIME_DIR to a \
             folder of your own",
            folder.display()
        )),
        false => Ok(path),
    }
}
