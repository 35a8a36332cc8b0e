//! Compiled expressions and their evaluation. Every step uses fuel and text is bounded, so each evaluation terminates.

use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use regex::Regex;

use super::arithmetic::{ArithmeticOp, negate, sum};
use super::fuel::{EvalError, Fuel};
use super::functions::{ARGS_MAX, Function};
use super::scope::Scope;
use super::types::Kind;
use super::value::{Entries, Value};
use super::variables::Var;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Search {
    Contains,
    StartsWith,
    EndsWith,
}

/// The result of a macro over a list or a map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Each {
    Exists,
    ExistsOne,
    All,
    Filter,
    Map,
    /// A map with the same keys and new values.
    MapValues,
}

/// A macro that evaluates an expression for each item of a list or entry of a map.
#[derive(Debug)]
pub struct Loop {
    pub each: Each,
    pub over: Node,
    /// Whether the macro binds two names: key and value, or index and item.
    pub pairs: bool,
    /// A condition that selects the items.
    pub only: Option<Node>,
    pub body: Node,
}

type Child = Box<Node>;

/// A regular expression and its cost per byte of text, which grows with the size of the pattern.
#[derive(Debug)]
pub struct Pattern {
    pub regex: Regex,
    pub weight: usize,
}

/// A typed expression.
#[derive(Debug)]
pub enum Node {
    Constant(Value<'static>),
    Var(Var),
    /// A name bound by a macro, by its index from the outermost.
    Local(usize),
    List(Vec<Node>),
    Map(Vec<(Node, Node)>),
    Not(Child),
    And(Child, Child),
    Or(Child, Child),
    Either(Child, Child, Child),
    Negate(Child),
    Arithmetic(ArithmeticOp, Child, Child),
    Order(Order, Child, Child),
    Equal(Child, Child),
    In(Child, Child),
    Member(Child, Child),
    Has(Child, String),
    Search(Search, Child, Child),
    Matches(Child, Pattern),
    InNetwork(Child, Vec<IpNet>),
    Call(Function, Vec<Node>),
    Each(Box<Loop>),
    /// `cel.bind`: binds the value of the first node for the second.
    Bind(Child, Child),
}

/// One evaluation: the request, the bound names and the remaining fuel.
pub struct Run<'v> {
    pub scope: &'v Scope<'v>,
    pub locals: Vec<Value<'v>>,
    pub fuel: Fuel,
}

pub type EvalResult<'v> = Result<Value<'v>, EvalError>;

impl<'v> Run<'v> {
    pub fn new(scope: &'v Scope<'v>) -> Self {
        Self { scope, locals: Vec::new(), fuel: Fuel::default() }
    }

    pub fn evaluate(&mut self, node: &'v Node) -> EvalResult<'v> {
        self.fuel.burn(1)?;
        match node {
            // Borrowed, not copied.
            Node::Constant(Value::Text(text)) => Ok(Value::text(text)),
            Node::Constant(value) => Ok(value.clone()),
            Node::Var(var) => self.variable(*var),
            Node::Local(index) => self.locals.get(*index).cloned().ok_or(EvalError::Type),
            Node::List(items) => Ok(Value::list(items.iter().map(|item| self.evaluate(item)).collect::<Result<_, _>>()?)),
            Node::Not(_) | Node::And(..) | Node::Or(..) => self.logic(node).map(Value::Bool),
            Node::Either(which, a, b) => {
                if self.truth(which)? {
                    self.evaluate(a)
                } else {
                    self.evaluate(b)
                }
            }
            Node::Map(entries) => self.map(entries),
            Node::Negate(one) => negate(self.evaluate(one)?),
            Node::Arithmetic(kind, a, b) => {
                let (a, b) = (self.evaluate(a)?, self.evaluate(b)?);
                sum(*kind, a, b, &mut self.fuel)
            }
            Node::Order(..) | Node::Equal(..) | Node::In(..) => self.comparison(node).map(Value::Bool),
            Node::Member(one, key) => {
                let (one, key) = (self.evaluate(one)?, self.evaluate(key)?);
                one.indexed(&key, &mut self.fuel)
            }
            Node::Has(one, name) => {
                let one = self.evaluate(one)?;
                one.has(name, &mut self.fuel).map(Value::Bool)
            }
            Node::Search(..) | Node::Matches(..) | Node::InNetwork(..) => self.text(node).map(Value::Bool),
            Node::Call(function, args) => self.call(*function, args),
            Node::Each(each) => self.each(each),
            Node::Bind(value, body) => {
                let value = self.evaluate(value)?;
                self.locals.push(value);
                let result = self.evaluate(body);
                self.locals.pop();
                result
            }
        }
    }

    fn call(&mut self, function: Function, args: &'v [Node]) -> EvalResult<'v> {
        let mut values: [Value<'v>; ARGS_MAX] = [const { Value::Null }; ARGS_MAX];
        for (value, node) in values.iter_mut().zip(args) {
            *value = self.evaluate(node)?;
        }
        function.call(values.get(..args.len()).ok_or(EvalError::Type)?, &mut self.fuel)
    }

    fn map(&mut self, entries: &'v [(Node, Node)]) -> EvalResult<'v> {
        let mut made: Entries<'v> = Vec::with_capacity(entries.len());
        for (key, value) in entries {
            let (key, value) = (self.evaluate(key)?, self.evaluate(value)?);
            if !matches!(key.kind(), Kind::Bool | Kind::Int | Kind::Uint | Kind::Text) {
                return Err(EvalError::Type);
            }
            for (known, _) in &made {
                self.fuel.burn(1)?;
                if known.equals(&key, &mut self.fuel)? {
                    return Err(EvalError::Repeated);
                }
            }
            made.push((key, value));
        }
        Ok(Value::Map(Arc::new(made)))
    }

    pub fn truth(&mut self, node: &'v Node) -> Result<bool, EvalError> {
        self.evaluate(node)?.as_bool()
    }

    fn variable(&mut self, var: Var) -> EvalResult<'v> {
        let value = self.scope.get(var, &mut self.fuel)?;
        if let Value::List(items) = &value {
            self.fuel.burn(items.len())?;
        }
        Ok(value)
    }

    /// An operand that decides the result decides it even if the other one fails (CEL, "Logical operators").
    fn logic(&mut self, node: &'v Node) -> Result<bool, EvalError> {
        let (a, b, decides) = match node {
            Node::Not(one) => return Ok(!self.truth(one)?),
            Node::And(a, b) => (a, b, false),
            Node::Or(a, b) => (a, b, true),
            _ => return Err(EvalError::Type),
        };
        match self.truth(a) {
            Ok(truth) if truth == decides => Ok(decides),
            Ok(_) => self.truth(b),
            Err(EvalError::Budget) => Err(EvalError::Budget),
            Err(error) if self.truth(b)? != decides => Err(error),
            Err(_) => Ok(decides),
        }
    }

    fn comparison(&mut self, node: &'v Node) -> Result<bool, EvalError> {
        match node {
            Node::Order(order, a, b) => {
                // Comparisons with NaN are false.
                let found = self.evaluate(a)?.order(&self.evaluate(b)?)?;
                Ok(found.is_some_and(|found| match order {
                    Order::Less => found.is_lt(),
                    Order::LessOrEqual => found.is_le(),
                    Order::Greater => found.is_gt(),
                    Order::GreaterOrEqual => found.is_ge(),
                }))
            }
            Node::Equal(a, b) => {
                let (a, b) = (self.evaluate(a)?, self.evaluate(b)?);
                a.equals(&b, &mut self.fuel)
            }
            Node::In(one, all) => {
                let one = self.evaluate(one)?;
                if let Node::List(items) = &**all {
                    return self.listed(&one, items);
                }
                let all = self.evaluate(all)?;
                match (&one, all.kind()) {
                    (Value::Text(name), Kind::Map) => all.has(name, &mut self.fuel),
                    (key, Kind::Map) => Ok(all.find(key, &mut self.fuel)?.is_some()),
                    (_, Kind::Null) => Ok(false),
                    (_, Kind::List) => {
                        for index in 0..all.length().unwrap_or_default() {
                            self.fuel.burn(1)?;
                            let item = all.item(index).ok_or(EvalError::Range)?;
                            if item.equals(&one, &mut self.fuel)? {
                                return Ok(true);
                            }
                        }
                        Ok(false)
                    }
                    _ => Err(EvalError::Type),
                }
            }
            _ => Err(EvalError::Type),
        }
    }

    /// `in` with a list literal: compares the items without building the list.
    fn listed(&mut self, one: &Value<'v>, items: &'v [Node]) -> Result<bool, EvalError> {
        for item in items {
            let item = self.evaluate(item)?;
            if item.equals(one, &mut self.fuel)? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn text(&mut self, node: &'v Node) -> Result<bool, EvalError> {
        match node {
            Node::Search(search, text, part) => {
                let (text, part) = (self.evaluate(text)?, self.evaluate(part)?);
                let (text, part) = (text.as_text()?, part.as_text()?);
                self.fuel.read(text)?;
                Ok(match search {
                    Search::Contains => text.contains(part),
                    Search::StartsWith => text.starts_with(part),
                    Search::EndsWith => text.ends_with(part),
                })
            }
            Node::Matches(text, pattern) => {
                let text = self.evaluate(text)?;
                let text = text.as_text()?;
                self.fuel.burn((text.len() / 16).saturating_mul(pattern.weight))?;
                Ok(pattern.regex.is_match(text))
            }
            Node::InNetwork(address, networks) => {
                self.fuel.burn(networks.len())?;
                let parsed = match &**address {
                    // Use the address directly, without formatting and parsing it.
                    Node::Var(Var::Client) => Ok(self.scope.address()),
                    other => self.evaluate(other)?.as_text()?.parse::<IpAddr>(),
                };
                Ok(parsed.is_ok_and(|address| networks.iter().any(|network| network.contains(&address))))
            }
            _ => Err(EvalError::Type),
        }
    }
}
