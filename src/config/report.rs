//! The errors of a configuration, each with file, line and column. Produces no errors itself.

use std::fmt;
use std::path::{Path, PathBuf};

use super::yaml::Position;

/// A list of errors, displayed in the order of the file.
#[derive(Clone, Debug)]
pub struct Report {
    path: PathBuf,
    findings: Vec<Finding>,
}

/// One error, for display.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mistake {
    /// The line, from 1; 0: the file as a whole.
    pub line: usize,
    /// The column, from 1.
    pub column: usize,
    /// Keys and indexes from the root: `routes[2].filters`.
    pub place: String,
    /// The error and its remedy.
    pub message: String,
}

#[derive(Clone, Debug)]
struct Finding {
    position: Position,
    /// Keys and indexes from the root.
    path: Vec<String>,
    message: String,
}

impl Report {
    /// An empty report.
    pub fn new(path: &Path) -> Self {
        Self { path: path.to_owned(), findings: Vec::new() }
    }

    /// A report of one error of the file as a whole.
    pub fn whole(path: &Path, message: String) -> Self {
        let mut report = Self::new(path);
        report.add(Position::default(), Vec::new(), message);
        report
    }

    /// Adds an error.
    pub fn add(&mut self, position: Position, path: Vec<String>, message: impl Into<String>) {
        self.findings.push(Finding { position, path, message: message.into() });
    }

    /// Whether there are no errors.
    pub fn is_empty(&self) -> bool {
        self.findings.is_empty()
    }

    /// All errors, in the order of the file.
    pub fn mistakes(&self) -> Vec<Mistake> {
        let mut sorted: Vec<&Finding> = self.findings.iter().collect();
        sorted.sort_by_key(|finding| finding.position);
        let mistake = |finding: &Finding| Mistake {
            line: finding.position.line,
            column: finding.position.column,
            place: dotted(&finding.path),
            message: finding.message.clone(),
        };
        sorted.into_iter().map(mistake).collect()
    }

    /// Masks these texts in all messages.
    #[must_use]
    pub fn without(mut self, secrets: &[String]) -> Self {
        for finding in &mut self.findings {
            for secret in secrets.iter().filter(|secret| !secret.is_empty()) {
                finding.message = finding.message.replace(secret, "••••");
            }
        }
        self
    }

    /// The number of errors.
    pub fn len(&self) -> usize {
        self.findings.len()
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, Mistake { line, column, place, message }) in self.mistakes().into_iter().enumerate() {
            if index > 0 {
                writeln!(f)?;
            }
            write!(f, "{}", self.path.display())?;
            if line > 0 {
                write!(f, ":{line}:{column}")?;
            }
            write!(f, ": ")?;
            if !place.is_empty() {
                write!(f, "{place}: ")?;
            }
            write!(f, "{message}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Report {}

/// Joins a path: `routes`, `[2]`, `filters` as `routes[2].filters`.
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

/// The known word most similar to `word`, if it is similar enough.
pub fn nearest<'w>(word: &str, known: impl IntoIterator<Item = &'w str>) -> Option<&'w str> {
    let likeness = |candidate: &str| strsim::jaro_winkler(word, candidate);
    let best = known.into_iter().max_by(|a, b| likeness(a).total_cmp(&likeness(b)))?;
    (likeness(best) > 0.8).then_some(best)
}
