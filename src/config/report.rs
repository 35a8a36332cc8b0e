//! All that is wrong with a configuration, with file, line and column.

use std::fmt;
use std::path::{Path, PathBuf};

use super::yaml::Position;

/// A list of findings, in the order of the file once shown.
#[derive(Clone, Debug)]
pub struct Report {
    path: PathBuf,
    findings: Vec<Finding>,
}

/// One finding, for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mistake {
    /// The line, from 1 on; 0: it is the file as a whole.
    pub line: usize,
    /// The column, from 1 on.
    pub column: usize,
    /// Keys and indexes from the root: `routes[2].filters`.
    pub place: String,
    /// What is wrong, and what to do.
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

    /// All findings, in the order of the file.
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

    /// Without these texts, wherever they stand in it.
    #[must_use]
    pub fn without(mut self, secrets: &[String]) -> Self {
        for finding in &mut self.findings {
            for secret in secrets.iter().filter(|secret| !secret.is_empty()) {
                finding.message = finding.message.replace(secret, "••••");
            }
        }
        self
    }

    /// How many findings there are.
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
