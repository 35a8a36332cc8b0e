//! Cloudflare's address ranges: the list in force, and its refresh from Cloudflare or a mirror.
//! A fetched list that fails a check never replaces the previous one.

use std::fs::Permissions;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::{Duration, SystemTime};

use ipnet::IpNet;
use keylatch_filters::contract::{CLOUDFLARE, CloudflareRefresh, TrustConfig, fetched_ranges, ranges};

use crate::config::Files;
use crate::outbound::{self, ClientOptions};
use crate::util::{outbound_url, secure_fs};

/// Timeout for one source.
const FETCH_TIME_MAX: Duration = Duration::from_secs(20);
/// Largest list, in bytes.
const BYTES_MAX: u64 = 64 << 10;

/// The ranges that the configuration uses, and the description in the first line of their file.
pub fn in_force(config: &TrustConfig, files: &Files) -> Result<(Vec<IpNet>, String), String> {
    let text = match config.cloudflare_file.as_ref().map(|file| files.path(file)).filter(|path| path.exists()) {
        Some(path) => std::fs::read_to_string(&path).map_err(|e| format!("{}: {e}", path.display()))?,
        None => CLOUDFLARE.to_owned(),
    };
    let about = text.lines().next().and_then(|line| line.strip_prefix("# ")).unwrap_or("unknown date").to_owned();
    // A range inside another one is redundant, and firewalls reject it.
    Ok((IpNet::aggregate(&ranges(&text).map_err(|invalid| invalid.message)?), about))
}

/// Fetches the ranges and writes the configured file. `force`: also if most of the previous ranges are missing.
pub async fn refresh(config: &TrustConfig, files: &Files, from: &CloudflareRefresh, force: bool) -> Result<String, String> {
    let Some(file) = &config.cloudflare_file else {
        return Err("trusted_proxies.cloudflare_file is not set: it names the file to write".into());
    };
    let known = if force { Vec::new() } else { in_force(config, files)?.0 };
    let mut text = String::new();
    for source in &from.from {
        let part = read(source, files, from.allow_private).await.map_err(|e| format!("{source}: {e}"))?;
        // Each source is checked by itself: an error page must not hide behind a valid list.
        ranges(&part).map_err(|invalid| format!("{source}: {}", invalid.message))?;
        text.push_str(&part);
        text.push('\n');
    }
    let fresh = fetched_ranges(&text, &known).map_err(|invalid| format!("{}; the previous ranges stay in force", invalid.message))?;
    let path = files.path(file);
    write(&path, &fresh, &from.from).map_err(|e| format!("{}: {e}", path.display()))?;
    Ok(format!("wrote {} ranges to {}", fresh.len(), path.display()))
}

async fn read(source: &str, files: &Files, private: bool) -> Result<String, String> {
    if !source.contains("://") {
        let path = files.path(source);
        let size = std::fs::metadata(&path).map_err(|e| e.to_string())?.len();
        return if size <= BYTES_MAX {
            std::fs::read_to_string(&path).map_err(|e| e.to_string())
        } else {
            Err(format!("is larger than {BYTES_MAX} bytes"))
        };
    }
    let url = outbound_url::target(source, private)?;
    let client = outbound::client(&ClientOptions { private, ca: None, timeout: FETCH_TIME_MAX })?;
    outbound::get(&client, url).await
}

/// Replaces the file atomically. The list is public, so the new file keeps the old one's permissions.
fn write(path: &Path, ranges: &[IpNet], sources: &[String]) -> std::io::Result<()> {
    let today = humantime::format_rfc3339_seconds(SystemTime::now()).to_string();
    // The process that hands over may write at the same time.
    let fresh = secure_fs::beside(path, &format!(".{}.new", std::process::id()));
    let _ = std::fs::remove_file(&fresh);
    let mut file = secure_fs::make(&fresh)?;
    match path.symlink_metadata() {
        Ok(before) if before.is_file() => secure_fs::as_before(&file, &before)?,
        _ => file.set_permissions(Permissions::from_mode(0o644))?,
    }
    writeln!(file, "# Cloudflare's address ranges, as of {}.", today.get(..10).unwrap_or(&today))?;
    writeln!(file, "# Read from {}. One CIDR a line.", sources.join(", "))?;
    ranges.iter().try_for_each(|network| writeln!(file, "{network}"))?;
    file.sync_all()?;
    std::fs::rename(fresh, path)
}

/// Whether a refresh is due: the file is older than `every`, or missing.
pub fn is_due(config: &TrustConfig, files: &Files) -> bool {
    let (Some(file), Some(refresh)) = (&config.cloudflare_file, &config.cloudflare_refresh) else { return false };
    let written = std::fs::metadata(files.path(file)).and_then(|about| about.modified());
    written.ok().and_then(|at| at.elapsed().ok()).is_none_or(|age| age >= refresh.every.0)
}
