//! `keylatch token`: tokens for `bearer.static`.

use std::time::{Duration, SystemTime};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use clap::{Args, Subcommand};
use keylatch_filters::contract::hex;
use sha2::{Digest, Sha256};

use crate::cli::terminal::say;

#[derive(Args)]
pub struct Token {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Make a token, print it once, and the line for `bearer.accept.static.tokens`
    New {
        /// Who will have it; the subject of his requests
        #[arg(long)]
        name: String,
        /// How long it is valid, such as `90days`. Without it, for ever
        #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
        expires: Option<Duration>,
        /// What it may do, as often as you like
        #[arg(long = "scope", value_name = "SCOPE")]
        scopes: Vec<String>,
    },
}

/// 256 bits, which nobody guesses.
const RANDOM_BYTES: usize = 32;
const LIFETIME_MAX: Duration = Duration::from_secs(100 * 366 * 86_400);

pub fn token(asked: &Token) -> Result<(), String> {
    let Command::New { name, expires, scopes } = &asked.command;
    if name.trim().is_empty() {
        return Err("--name must say who will have it".into());
    }
    let mut random = [0; RANDOM_BYTES];
    getrandom::fill(&mut random).map_err(|e| format!("the system has no randomness: {e}"))?;
    // A prefix of its own lets scanners of leaked secrets find it.
    let token = format!("klt_{}", URL_SAFE_NO_PAD.encode(random));
    let sha256 = hex(&Sha256::digest(token.as_bytes()));
    // JSON is YAML, whatever is in a name; and nothing in it is to come from the environment.
    let text = |text: &str| serde_json::Value::from(text).to_string().replace('$', "$$");
    let mut line = format!("- {{name: {}, sha256: {sha256}", text(name));
    if let Some(lifetime) = expires {
        if *lifetime > LIFETIME_MAX {
            return Err("--expires: at most 100years".into());
        }
        let end = SystemTime::now().checked_add(*lifetime).ok_or("--expires: at most 100years")?;
        line.push_str(&format!(", expires: \"{}\"", humantime::format_rfc3339_seconds(end)));
    }
    if !scopes.is_empty() {
        line.push_str(&format!(", scopes: [{}]", scopes.iter().map(|scope| text(scope)).collect::<Vec<_>>().join(", ")));
    }
    say!("{line}}}")?;
    // Apart from the line, so that this can be sent to a file and the token seen once.
    eprintln!("The token, which is shown this once and stored nowhere:");
    eprintln!("{token}");
    Ok(())
}
