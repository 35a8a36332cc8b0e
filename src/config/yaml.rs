//! Parses YAML into a tree in which each node has its line and column. Knows no key of the
//! configuration.

use std::collections::HashMap;

use saphyr_parser::{Event, Marker, Parser, ScalarStyle, Span};
use serde_json::Value as Json;

use super::Report;

/// The maximum number of nodes: aliases could otherwise expand without end.
const NODES_MAX: usize = 100_000;
const DEPTH_MAX: usize = 64;

/// A position in the file; both numbers count from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Position {
    /// The line.
    pub line: usize,
    /// The column, in characters.
    pub column: usize,
}

impl From<&Marker> for Position {
    fn from(marker: &Marker) -> Self {
        Self { line: marker.line(), column: marker.col() + 1 }
    }
}

/// A value with its position.
#[derive(Clone, Debug, PartialEq)]
pub struct Node {
    pub position: Position,
    pub value: Value,
}

/// The value of a node.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// Text. `plain`: it was written without quotes, so that `5` is a number.
    Scalar {
        text: String,
        plain: bool,
    },
    List(Vec<Node>),
    Map(Vec<(Key, Node)>),
}

/// A key of a map with its position.
#[derive(Clone, Debug, PartialEq)]
pub struct Key {
    pub position: Position,
    pub name: String,
}

impl Node {
    /// The entries of a map; empty for other values.
    pub fn entries(&self) -> &[(Key, Node)] {
        match &self.value {
            Value::Map(entries) => entries,
            _ => &[],
        }
    }

    /// The value of a key.
    pub fn get(&self, name: &str) -> Option<&Node> {
        self.entries().iter().find(|(key, _)| key.name == name).map(|(_, node)| node)
    }

    /// Whether the value is empty.
    pub fn is_null(&self) -> bool {
        matches!(&self.value, Value::Scalar { text, plain: true } if matches!(text.as_str(), "" | "~" | "null"))
    }

    /// The position of `path` below this node: of the key if the path ends at one, else of the
    /// deepest existing node on it.
    pub fn locate(&self, path: &[String]) -> Position {
        let mut node = self;
        let mut position = self.position;
        for segment in path {
            let next = match &node.value {
                Value::Map(entries) => entries.iter().find(|(key, _)| key.name == *segment).map(|(key, node)| (key.position, node)),
                Value::List(items) => {
                    let index = segment.trim_matches(['[', ']']).parse::<usize>().ok();
                    index.and_then(|index| items.get(index)).map(|node| (node.position, node))
                }
                Value::Scalar { .. } => None,
            };
            let Some((at, below)) = next else { break };
            (position, node) = (at, below);
        }
        position
    }

    /// The value as JSON by YAML's core schema: plain text may be a number, a boolean or null.
    pub fn to_json(&self) -> Json {
        match &self.value {
            Value::Scalar { text, plain: false } => Json::String(text.clone()),
            Value::Scalar { text, plain: true } => plain(text),
            Value::List(items) => Json::Array(items.iter().map(Node::to_json).collect()),
            Value::Map(entries) => entries.iter().map(|(key, node)| (key.name.clone(), node.to_json())).collect(),
        }
    }
}

fn plain(text: &str) -> Json {
    match text {
        "" | "~" | "null" => return Json::Null,
        "true" => return Json::Bool(true),
        "false" => return Json::Bool(false),
        _ => {}
    }
    // `010`, `1_000` and `0x10` stay text: parsers read them differently.
    let digits = text.strip_prefix('-').unwrap_or(text);
    let number = digits.bytes().all(|b| b.is_ascii_digit() || b == b'.')
        && (digits.len() == 1 || !digits.starts_with('0') || digits.starts_with("0."));
    // A number that would not be printed as it is written stays text, such as a token of 23 digits
    // or `1.50`.
    if number
        && let Ok(json) = serde_json::from_str::<serde_json::Number>(text)
        && json.to_string() == text
    {
        return Json::Number(json);
    }
    Json::String(text.to_owned())
}

/// Parses one document. `None`: the report has the error.
pub fn parse(text: &str, report: &mut Report) -> Option<Node> {
    let mut builder = Builder { parser: Parser::new_from_str(text), anchors: HashMap::new(), count: 0 };
    match builder.document() {
        Ok(node) => Some(node),
        Err((position, message)) => {
            report.add(position, Vec::new(), message);
            None
        }
    }
}

type Failed = (Position, String);

struct Builder<'t> {
    parser: Parser<'t, saphyr_parser::StrInput<'t>>,
    anchors: HashMap<usize, Node>,
    count: usize,
}

impl<'t> Builder<'t> {
    fn next(&mut self) -> Result<(Event<'t>, Span), Failed> {
        match self.parser.next() {
            Some(Ok(event)) => Ok(event),
            Some(Err(error)) => Err((error.marker().into(), format!("not YAML: {}", error.info()))),
            None => Err((Position::default(), "the file ends unexpectedly".into())),
        }
    }

    fn document(&mut self) -> Result<Node, Failed> {
        loop {
            let (event, span) = self.next()?;
            match event {
                Event::StreamStart | Event::DocumentStart(_) | Event::Nothing => {}
                Event::StreamEnd => return Err((Position { line: 1, column: 1 }, "the file is empty".into())),
                event => {
                    let root = self.node(event, span, 0)?;
                    self.end()?;
                    return Ok(root);
                }
            }
        }
    }

    fn end(&mut self) -> Result<(), Failed> {
        loop {
            match self.next()? {
                (Event::StreamEnd, _) => return Ok(()),
                (Event::DocumentEnd | Event::Nothing, _) => {}
                (_, span) => return Err(((&span.start).into(), "the file has a second document; only one is allowed".into())),
            }
        }
    }

    fn node(&mut self, event: Event<'t>, span: Span, depth: usize) -> Result<Node, Failed> {
        let position = Position::from(&span.start);
        self.count += 1;
        if self.count > NODES_MAX || depth > DEPTH_MAX {
            return Err((position, "the file has too many or too deeply nested nodes".into()));
        }
        let (anchor, value) = match event {
            Event::Alias(id) => {
                let node = self.anchors.get(&id).cloned().ok_or((position, "the alias refers to a node that contains it".to_owned()))?;
                self.count += size(&node);
                return Ok(Node { position, ..node });
            }
            Event::Scalar(text, style, anchor, tag) => {
                if tag.is_some() {
                    return Err((position, "tags (`!…`) are not supported".into()));
                }
                (anchor, Value::Scalar { text: text.into_owned(), plain: style == ScalarStyle::Plain })
            }
            Event::SequenceStart(anchor, _) => (anchor, Value::List(self.list(depth)?)),
            Event::MappingStart(anchor, _) => (anchor, Value::Map(self.map(depth)?)),
            _ => return Err((position, "not YAML: a value was expected here".into())),
        };
        let node = Node { position, value };
        if anchor > 0 {
            self.anchors.insert(anchor, node.clone());
        }
        Ok(node)
    }

    fn list(&mut self, depth: usize) -> Result<Vec<Node>, Failed> {
        let mut items = Vec::new();
        loop {
            match self.next()? {
                (Event::SequenceEnd, _) => return Ok(items),
                (event, span) => items.push(self.node(event, span, depth + 1)?),
            }
        }
    }

    fn map(&mut self, depth: usize) -> Result<Vec<(Key, Node)>, Failed> {
        let mut entries: Vec<(Key, Node)> = Vec::new();
        loop {
            let (event, span) = self.next()?;
            if matches!(event, Event::MappingEnd) {
                return Ok(entries);
            }
            let key = self.node(event, span, depth + 1)?;
            let Value::Scalar { text: name, .. } = key.value else {
                return Err((key.position, "a key must be a scalar".into()));
            };
            if let Some((first, _)) = entries.iter().find(|(known, _)| known.name == name) {
                let line = first.position.line;
                return Err((key.position, format!("duplicate key `{name}`; first used on line {line}")));
            }
            let (event, span) = self.next()?;
            let value = self.node(event, span, depth + 1)?;
            entries.push((Key { position: key.position, name }, value));
        }
    }
}

fn size(node: &Node) -> usize {
    1 + match &node.value {
        // Long text counts by its length: aliases of it must not expand without end either.
        Value::Scalar { text, .. } => text.len() / 64,
        Value::List(items) => items.iter().map(size).sum(),
        Value::Map(entries) => entries.iter().map(|(_, node)| size(node)).sum(),
    }
}
