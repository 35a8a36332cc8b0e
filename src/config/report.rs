//! All that is wrong with a configuration, with file, line and column.

use std::fmt;
use std::path::{Path, PathBuf};

use super::yaml::Position;

/// A list of findings, in the order of the file once shown.
#[derive(Debug)]
pub struct Report {
    path: PathBuf,
    findings: Vec<Finding>,
}

#[derive(Debug)]
struct Finding {
    position: Position,
    /// Keys and indexes from the root.
    path: Vec<String>,
    message: String,
}

impl Report {
    /// Nothing found so far.
    pub fn new(path: &Path) -> Self {
        Self { path: path.to_owned(), findings: Vec::new() }
    }

    /// The file as a whole.
    pub fn whole(path: &Path, message: String) -> Self {
        let mut report = Self::new(path);
        report.add(Position::default(), Vec::new(), message);
        report
    }

    /// One more finding.
    pub fn add(&mut self, position: Position, path: Vec<String>, message: impl Into<String>) {
        self.findings.push(Finding { position, path, message: message.into() });
    }

    /// Whether all is well.
    pub fn is_empty(&self) -> bool {
        self.findings.is_empty()
    }

    /// How many findings there are.
    pub fn len(&self) -> usize {
        self.findings.len()
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut sorted: Vec<&Finding> = self.findings.iter().collect();
        sorted.sort_by_key(|finding| finding.position);
        for (index, finding) in sorted.into_iter().enumerate() {
            if index > 0 {
                writeln!(f)?;
            }
            write!(f, "{}", self.path.display())?;
            if finding.position.line > 0 {
                write!(f, ":{}:{}", finding.position.line, finding.position.column)?;
            }
            write!(f, ": ")?;
            if !finding.path.is_empty() {
                write!(f, "{}: ", dotted(&finding.path))?;
            }
            write!(f, "{}", finding.message)?;
        }
        Ok(())
    }
}

impl std::error::Error for Report {}

/// `routes`, `[2]`, `filters` as `routes[2].filters`.
pub fn dotted(path: &[String]) -> String {
    let mut out = String::new();
    for segment in path {
        if !out.is_empty() && !segment.starts_with('[') {
            out.push('.');
        }
        out.push_str(segment);
    }
    out
}

/// The known word most like `word`, if one is near enough to be what was meant.
pub fn nearest<'w>(word: &str, known: impl IntoIterator<Item = &'w str>) -> Option<&'w str> {
    let likeness = |candidate: &str| strsim::jaro_winkler(word, candidate);
    let best = known.into_iter().max_by(|a, b| likeness(a).total_cmp(&likeness(b)))?;
    (likeness(best) > 0.8).then_some(best)
}
