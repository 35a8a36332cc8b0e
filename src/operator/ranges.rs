//! Cloudflare's ranges: which are in force, and having them read anew. What is wrong with fresh ones leaves the old ones.

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

/// How long one source may take.
const FETCH_TIME_MAX: Duration = Duration::from_secs(20);
/// The largest file of ranges, in bytes.
const BYTES_MAX: u64 = 64 << 10;

/// The ranges that a configuration goes by, and what its list says of itself.
pub fn in_force(config: &TrustConfig, files: &Files) -> Result<(Vec<IpNet>, String), String> {
    let text = match config.cloudflare_file.as_ref().map(|file| files.path(file)).filter(|path| path.exists()) {
        Some(path) => std::fs::read_to_string(&path).map_err(|e| format!("{}: {e}", path.display()))?,
        None => CLOUDFLARE.to_owned(),
    };
    let about = text.lines().next().and_then(|line| line.strip_prefix("# ")).unwrap_or("no date is known").to_owned();
    // One in another says nothing more, and firewalls do not take it.
    Ok((IpNet::aggregate(&ranges(&text).map_err(|invalid| invalid.message)?), about))
}

/// Reads them anew, and writes the configured file. `force`: even if most of those that are known are not there any more.
pub async fn refresh(config: &TrustConfig, files: &Files, from: &CloudflareRefresh, force: bool) -> Result<String, String> {
    let Some(file) = &config.cloudflare_file else {
        return Err("trusted_proxies.cloudflare_file is not configured: there is no file to write".into());
    };
    let known = if force { Vec::new() } else { in_force(config, files)?.0 };
    let mut text = String::new();
    for source in &from.from {
        let part = read(source, files, from.allow_private).await.map_err(|e| format!("{source}: {e}"))?;
        // Each by itself: a page of errors is no list, whatever the others are.
        ranges(&part).map_err(|invalid| format!("{source}: {}", invalid.message))?;
        text.push_str(&part);
        text.push('\n');
    }
    let fresh = fetched_ranges(&text, &known).map_err(|invalid| format!("{}; the ranges that are known hold", invalid.message))?;
    let path = files.path(file);
    write(&path, &fresh, &from.from).map_err(|e| format!("{}: {e}", path.display()))?;
    Ok(format!("{} ranges are in {}", fresh.len(), path.display()))
}

async fn read(source: &str, files: &Files, private: bool) -> Result<String, String> {
    if !source.contains("://") {
        let path = files.path(source);
        let size = std::fs::metadata(&path).map_err(|e| e.to_string())?.len();
        return if size <= BYTES_MAX { std::fs::read_to_string(&path).map_err(|e| e.to_string()) } else { Err("is too large".into()) };
    }
    let url = outbound_url::target(source, private)?;
    let client = outbound::client(&ClientOptions { private, ca: None, timeout: FETCH_TIME_MAX })?;
    outbound::get(&client, url).await
}

/// Whole or not at all. It is no secret: whoever reads the one before reads this one.
fn write(path: &Path, ranges: &[IpNet], sources: &[String]) -> std::io::Result<()> {
    let today = humantime::format_rfc3339_seconds(SystemTime::now()).to_string();
    // A process that is about to end may write at the same time.
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

/// Whether it is time: the file was written longer ago than that, or is not there.
pub fn is_due(config: &TrustConfig, files: &Files) -> bool {
    let (Some(file), Some(refresh)) = (&config.cloudflare_file, &config.cloudflare_refresh) else { return false };
    let written = std::fs::metadata(files.path(file)).and_then(|about| about.modified());
    written.ok().and_then(|at| at.elapsed().ok()).is_none_or(|age| age >= refresh.every.0)
}
