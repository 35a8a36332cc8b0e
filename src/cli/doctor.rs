//! `keylatch doctor`: what should be seen to before strangers come.

use clap::Args;

use super::terminal::say;
use super::{ConfigFile, on_runtime};
use crate::doctor::{Level, look};

#[derive(Args)]
pub struct Doctor {
    #[command(flatten)]
    file: ConfigFile,
    /// One JSON object a line
    #[arg(long)]
    json: bool,
    /// What is found at this place is meant so, and is worth a note; as often as you like
    #[arg(long, value_name = "PLACE")]
    accept: Vec<String>,
}

pub fn doctor(asked: &Doctor) -> Result<(), String> {
    let found = on_runtime(async { Ok(look(&asked.file.config, &asked.accept).await) })?;
    for finding in &found {
        if asked.json {
            say!("{}", serde_json::to_string(finding).map_err(|e| e.to_string())?)?;
        } else {
            let level = format!("{:?}", finding.level).to_lowercase();
            say!("{level:<5} {}: {}\n      {}", finding.place, finding.what, finding.remedy)?;
        }
    }
    let count = |level| found.iter().filter(|finding| finding.level == level).count();
    match (count(Level::Bad), count(Level::Warn)) {
        (0, 0) => {
            if !asked.json {
                say!("nothing that must be seen to")?;
            }
            Ok(())
        }
        (bad, warn) => Err(format!("{bad} bad, {warn} that will be")),
    }
}
