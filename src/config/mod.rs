//! YAML in, [`Snapshot`] out. The only user of the YAML crate; no network, no clock.
//!
//! Three steps, each of which goes on after an error so that all of a file's errors are told at once:
//! [`yaml`] reads text into a tree that knows where everything stands, [`sections`] turns the tree into
//! the types of [`model`], and [`compile`] makes a [`Snapshot`] of them.

mod compile;
mod interpolate;
pub mod model;
mod report;
mod routes;
mod schema;
mod sections;
mod yaml;

use std::path::{Path, PathBuf};

use keylatch_filters::contract::{Invalid, Resolve};

pub use compile::{Compiler, Snapshot, check_ports};
pub use model::Settings;
pub use report::Report;
pub use routes::Route;
pub use schema::schema;

/// The largest configuration file, in bytes.
const FILE_BYTES_MAX: u64 = 4 << 20;
/// The largest file a configuration refers to, in bytes.
const REFERRED_BYTES_MAX: u64 = 1 << 20;

/// A file that was read and understood, not compiled yet.
pub struct Parsed {
    /// What it says.
    pub settings: Settings,
    /// Where it says it.
    tree: yaml::Node,
    path: PathBuf,
}

/// Reads a file. All that is wrong with its form is in the report.
pub fn parse_file(path: &Path) -> Result<Parsed, Report> {
    let text = read(path, FILE_BYTES_MAX).map_err(|message| Report::whole(path, message))?;
    parse(path, &text, &|name| std::env::var(name).ok())
}

/// Reads text as if it stood in the file `path`. `env` is asked for `${…}`.
pub fn parse(path: &Path, text: &str, env: &dyn Fn(&str) -> Option<String>) -> Result<Parsed, Report> {
    let mut report = Report::new(path);
    let Some(mut tree) = yaml::parse(text, &mut report) else { return Err(report) };
    interpolate::apply(&mut tree, env, &mut report);
    let settings = sections::decode(&tree, &mut report);
    match settings {
        Some(settings) if report.is_empty() => Ok(Parsed { settings, tree, path: path.to_owned() }),
        _ => Err(report),
    }
}

fn read(path: &Path, bytes_max: u64) -> Result<String, String> {
    let size = std::fs::metadata(path).map_err(|e| format!("cannot be read: {e}"))?.len();
    if size > bytes_max {
        return Err(format!("has {size} bytes; at most {bytes_max} are read"));
    }
    std::fs::read_to_string(path).map_err(|e| format!("cannot be read: {e}"))
}

/// Reads the files a configuration names, relative to its own folder.
pub struct Files {
    base: PathBuf,
}

impl Files {
    /// For the configuration in the file `path`.
    pub fn beside(path: &Path) -> Self {
        Self { base: path.parent().map(Path::to_owned).unwrap_or_default() }
    }
}

impl Resolve for Files {
    fn file(&self, path: &str) -> Result<String, Invalid> {
        let path = self.base.join(path);
        read(&path, REFERRED_BYTES_MAX).map_err(|message| Invalid::new(format!("`{}` {message}", path.display())))
    }
}
