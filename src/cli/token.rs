//! `keylatch token`: creates tokens for `bearer.accept.static`. It stores nothing.

use std::time::{Duration, SystemTime};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use clap::{Args, Subcommand};
use keylatch_filters::contract::hex;
use sha2::{Digest, Sha256};

use crate::cli::terminal::outln;

#[derive(Args)]
pub struct Token {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Create a token, and print it once with its line for `bearer.accept.static.tokens`
    New {
        /// The name of the owner, which becomes the subject of requests with this token
        #[arg(long)]
        name: String,
        /// The time of validity, such as `90days`. Default: no expiry
        #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
        expires: Option<Duration>,
        /// A scope of the token; may be repeated
        #[arg(long = "scope", value_name = "SCOPE")]
        scopes: Vec<String>,
    },
}

/// 256 bits, which cannot be guessed.
const RANDOM_BYTES: usize = 32;
const LIFETIME_MAX: Duration = Duration::from_secs(100 * 366 * 86_400);

pub fn token(args: &Token) -> Result<(), String> {
    let Command::New { name, expires, scopes } = &args.command;
    if name.trim().is_empty() {
        return Err("--name must not be empty".into());
    }
    let mut random = [0; RANDOM_BYTES];
    getrandom::fill(&mut random).map_err(|e| format!("cannot read random bytes from the system: {e}"))?;
    // A fixed prefix lets secret scanners find leaked tokens.
    let token = format!("klt_{}", URL_SAFE_NO_PAD.encode(random));
    let sha256 = hex(&Sha256::digest(token.as_bytes()));
    // A JSON string is valid YAML for every name. `$$` prevents replacement from the environment.
    let text = |text: &str| serde_json::Value::from(text).to_string().replace('$', "$$");
    let mut line = format!("- {{name: {}, sha256: {sha256}", text(name));
    if let Some(lifetime) = expires {
        if *lifetime > LIFETIME_MAX {
            return Err("--expires: the maximum is 100years".into());
        }
        let end = SystemTime::now().checked_add(*lifetime).ok_or("--expires: the maximum is 100years")?;
        line.push_str(&format!(", expires: \"{}\"", humantime::format_rfc3339_seconds(end)));
    }
    if !scopes.is_empty() {
        line.push_str(&format!(", scopes: [{}]", scopes.iter().map(|scope| text(scope)).collect::<Vec<_>>().join(", ")));
    }
    outln!("{line}}}")?;
    // On standard error, so that the line can be redirected to a file without the token.
    eprintln!("The token is shown only once and stored nowhere:");
    eprintln!("{token}");
    Ok(())
}
