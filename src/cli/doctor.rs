//! `keylatch doctor`: prints the findings of the production checks. The checks themselves are in [`crate::doctor`].

use clap::Args;

use super::terminal::outln;
use super::{ConfigFile, on_runtime};
use crate::doctor::{Level, run_checks};

#[derive(Args)]
pub struct Doctor {
    #[command(flatten)]
    file: ConfigFile,
    /// Print one JSON object per line
    #[arg(long)]
    json: bool,
    /// Accept the findings at this place and report them as notes; may be repeated
    #[arg(long, value_name = "PLACE")]
    accept: Vec<String>,
}

pub fn doctor(args: &Doctor) -> Result<(), String> {
    let found = on_runtime(async { Ok(run_checks(&args.file.config, &args.accept).await) })?;
    for finding in &found {
        if args.json {
            outln!("{}", serde_json::to_string(finding).map_err(|e| e.to_string())?)?;
        } else {
            let level = format!("{:?}", finding.level).to_lowercase();
            outln!("{level:<5} {}: {}\n      {}", finding.place, finding.what, finding.remedy)?;
        }
    }
    let count = |level| found.iter().filter(|finding| finding.level == level).count();
    match (count(Level::Bad), count(Level::Warn)) {
        (0, 0) => {
            if !args.json {
                outln!("No problems found.")?;
            }
            Ok(())
        }
        (bad, warn) => Err(format!("{bad} bad, {warn} warnings")),
    }
}
