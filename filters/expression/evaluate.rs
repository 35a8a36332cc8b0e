//! Compiled expressions, and what they come to. Every step costs fuel, and text is bounded: an expression ends, and
//! soon.

use std::net::IpAddr;

use ipnet::IpNet;
use regex::Regex;
use serde_json::Value as Json;

use super::scope::Scope;
use super::value::{Fuel, Trouble, Value};
use super::variables::Var;

/// The longest text that an expression may put together.
const TEXT_BYTES_MAX: usize = 64 * 1024;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sum {
    Add,
    Subtract,
    Multiply,
    Divide,
    Modulo,
}

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

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Convert {
    Lower,
    Upper,
    Size,
    Int,
    Double,
    Text,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Each {
    Exists,
    All,
    Filter,
    Map,
}

type Child = Box<Node>;

/// A regular expression, and how much it costs: larger ones take longer for each byte.
#[derive(Debug)]
pub struct Pattern {
    pub regex: Regex,
    pub weight: usize,
}

/// An expression whose types fit.
#[derive(Debug)]
pub enum Node {
    Constant(Value<'static>),
    Var(Var),
    /// What a list is gone through with: the how manyeth from outside.
    Local(usize),
    List(Vec<Node>),
    Not(Child),
    And(Child, Child),
    Or(Child, Child),
    Either(Child, Child, Child),
    Negate(Child),
    Sum(Sum, Child, Child),
    Order(Order, Child, Child),
    Equal(Child, Child),
    In(Child, Child),
    Member(Child, Child),
    Has(Child, String),
    Search(Search, Child, Child),
    Matches(Child, Pattern),
    InNetwork(Child, Vec<IpNet>),
    Convert(Convert, Child),
    Each(Each, Child, Child),
}

/// One evaluation: the request, what lists are gone through with, and what is left of the steps.
pub struct Run<'v> {
    pub scope: &'v Scope<'v>,
    pub locals: Vec<Value<'v>>,
    pub fuel: Fuel,
}

type Outcome<'v> = Result<Value<'v>, Trouble>;

impl<'v> Run<'v> {
    pub fn of(scope: &'v Scope<'v>) -> Self {
        Self { scope, locals: Vec::new(), fuel: Fuel::default() }
    }

    pub fn evaluate(&mut self, node: &'v Node) -> Outcome<'v> {
        self.fuel.burn(1)?;
        match node {
            // A look at it: nothing is copied.
            Node::Constant(Value::Text(text)) => Ok(Value::text(text)),
            Node::Constant(value) => Ok(value.clone()),
            Node::Var(var) => self.variable(*var),
            Node::Local(index) => self.locals.get(*index).cloned().ok_or(Trouble::Type),
            Node::List(items) => Ok(Value::list(items.iter().map(|item| self.evaluate(item)).collect::<Result<_, _>>()?)),
            Node::Not(_) | Node::And(..) | Node::Or(..) => self.logic(node).map(Value::Bool),
            Node::Either(which, a, b) => {
                if self.truth(which)? {
                    self.evaluate(a)
                } else {
                    self.evaluate(b)
                }
            }
            Node::Negate(one) => match self.evaluate(one)? {
                Value::Int(number) => number.checked_neg().map(Value::Int).ok_or(Trouble::Range),
                Value::Double(number) => Ok(Value::Double(-number)),
                _ => Err(Trouble::Type),
            },
            Node::Sum(sum, a, b) => {
                let (a, b) = (self.evaluate(a)?, self.evaluate(b)?);
                add_up(*sum, a, b, &mut self.fuel)
            }
            Node::Order(..) | Node::Equal(..) | Node::In(..) => self.comparison(node).map(Value::Bool),
            Node::Member(one, key) => {
                let (one, key) = (self.evaluate(one)?, self.evaluate(key)?);
                member(&one, &key, &mut self.fuel)
            }
            Node::Has(one, name) => {
                let one = self.evaluate(one)?;
                one.has(name, &mut self.fuel).map(Value::Bool)
            }
            Node::Search(..) | Node::Matches(..) | Node::InNetwork(..) => self.text(node).map(Value::Bool),
            Node::Convert(convert, one) => {
                let one = self.evaluate(one)?;
                converted(*convert, one, &mut self.fuel)
            }
            Node::Each(each, list, body) => {
                let list = self.evaluate(list)?;
                let items = list.items(&mut self.fuel)?;
                self.each(*each, &items, body)
            }
        }
    }

    fn truth(&mut self, node: &'v Node) -> Result<bool, Trouble> {
        self.evaluate(node)?.truth()
    }

    fn variable(&mut self, var: Var) -> Outcome<'v> {
        let value = self.scope.get(var, &mut self.fuel)?;
        if let Value::List(items) = &value {
            self.fuel.burn(items.len())?;
        }
        Ok(value)
    }

    /// What decides alone decides, also where the other half came to nothing (CEL, "Logical operators").
    fn logic(&mut self, node: &'v Node) -> Result<bool, Trouble> {
        let (a, b, decides) = match node {
            Node::Not(one) => return Ok(!self.truth(one)?),
            Node::And(a, b) => (a, b, false),
            Node::Or(a, b) => (a, b, true),
            _ => return Err(Trouble::Type),
        };
        match self.truth(a) {
            Ok(truth) if truth == decides => Ok(decides),
            Ok(_) => self.truth(b),
            Err(Trouble::Budget) => Err(Trouble::Budget),
            Err(trouble) if self.truth(b)? != decides => Err(trouble),
            Err(_) => Ok(decides),
        }
    }

    fn comparison(&mut self, node: &'v Node) -> Result<bool, Trouble> {
        match node {
            Node::Order(order, a, b) => {
                let found = self.evaluate(a)?.compare(&self.evaluate(b)?)?;
                Ok(match order {
                    Order::Less => found.is_lt(),
                    Order::LessOrEqual => found.is_le(),
                    Order::Greater => found.is_gt(),
                    Order::GreaterOrEqual => found.is_ge(),
                })
            }
            Node::Equal(a, b) => Ok(self.evaluate(a)?.equals(&self.evaluate(b)?)),
            Node::In(one, all) => {
                let one = self.evaluate(one)?;
                if let Node::List(items) = &**all {
                    return self.listed(&one, items);
                }
                match (one, self.evaluate(all)?) {
                    (Value::Text(name), map @ (Value::Headers(_) | Value::Params(_) | Value::Claims(_) | Value::Json(Json::Object(_)))) => {
                        map.has(&name, &mut self.fuel)
                    }
                    (_, Value::Null) => Ok(false),
                    (one, list) => {
                        let items = list.items(&mut self.fuel)?;
                        self.fuel.burn(items.len())?;
                        Ok(items.iter().any(|item| item.equals(&one)))
                    }
                }
            }
            _ => Err(Trouble::Type),
        }
    }

    /// A list that is written out is not put together first.
    fn listed(&mut self, one: &Value<'v>, items: &'v [Node]) -> Result<bool, Trouble> {
        for item in items {
            if self.evaluate(item)?.equals(one) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn text(&mut self, node: &'v Node) -> Result<bool, Trouble> {
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
                    // An address already: no text is made of it and read again.
                    Node::Var(Var::Client) => Ok(self.scope.address()),
                    other => self.evaluate(other)?.as_text()?.parse::<IpAddr>(),
                };
                Ok(parsed.is_ok_and(|address| networks.iter().any(|network| network.contains(&address))))
            }
            _ => Err(Trouble::Type),
        }
    }

    /// A bound name goes through a list.
    fn each(&mut self, each: Each, items: &[Value<'v>], body: &'v Node) -> Outcome<'v> {
        let (mut kept, mut trouble) = (Vec::new(), None);
        for item in items {
            self.locals.push(item.clone());
            let came_to = self.evaluate(body);
            let item = self.locals.pop().ok_or(Trouble::Type)?;
            match (each, came_to) {
                (Each::Map, came_to) => kept.push(came_to?),
                (Each::Filter, came_to) => {
                    if came_to?.truth()? {
                        kept.push(item);
                    }
                }
                (Each::Exists | Each::All, came_to) => match came_to.and_then(|value| value.truth()) {
                    Ok(truth) if truth == (each == Each::Exists) => return Ok(Value::Bool(truth)),
                    Ok(_) => {}
                    Err(Trouble::Budget) => return Err(Trouble::Budget),
                    // One item that decides makes up for others that came to nothing.
                    Err(other) => trouble = Some(other),
                },
            }
        }
        match (each, trouble) {
            (_, Some(trouble)) => Err(trouble),
            (Each::Exists, None) => Ok(Value::Bool(false)),
            (Each::All, None) => Ok(Value::Bool(true)),
            (Each::Filter | Each::Map, None) => Ok(Value::list(kept)),
        }
    }
}

fn member<'v>(one: &Value<'v>, key: &Value<'v>, fuel: &mut Fuel) -> Result<Value<'v>, Trouble> {
    match key {
        Value::Text(name) => one.member(name, fuel),
        Value::Int(index) => {
            let index = usize::try_from(*index).map_err(|_| Trouble::Range)?;
            let found = match one {
                Value::List(items) => items.get(index).cloned(),
                Value::Json(Json::Array(items)) => items.get(index).map(Value::json),
                _ => return Err(Trouble::Type),
            };
            found.ok_or(Trouble::Range)
        }
        _ => Err(Trouble::Type),
    }
}

#[expect(clippy::cast_precision_loss, reason = "a number and a whole number add up as numbers")]
fn add_up<'v>(sum: Sum, a: Value<'v>, b: Value<'v>, fuel: &mut Fuel) -> Result<Value<'v>, Trouble> {
    let doubles = |a: f64, b: f64| {
        let result = match sum {
            Sum::Add => a + b,
            Sum::Subtract => a - b,
            Sum::Multiply => a * b,
            Sum::Divide => a / b,
            Sum::Modulo => a % b,
        };
        if result.is_finite() { Ok(Value::Double(result)) } else { Err(Trouble::Range) }
    };
    match (a, b) {
        (Value::Int(a), Value::Int(b)) => {
            let result = match sum {
                Sum::Add => a.checked_add(b),
                Sum::Subtract => a.checked_sub(b),
                Sum::Multiply => a.checked_mul(b),
                Sum::Divide => a.checked_div(b),
                Sum::Modulo => a.checked_rem(b),
            };
            result.map(Value::Int).ok_or(Trouble::Range)
        }
        (Value::Int(a), Value::Double(b)) => doubles(a as f64, b),
        (Value::Double(a), Value::Int(b)) => doubles(a, b as f64),
        (Value::Double(a), Value::Double(b)) => doubles(a, b),
        (Value::Text(a), Value::Text(b)) if sum == Sum::Add => {
            if a.len() + b.len() > TEXT_BYTES_MAX {
                return Err(Trouble::Budget);
            }
            fuel.write(a.len() + b.len())?;
            Ok(Value::owned([&*a, &*b].concat()))
        }
        _ => Err(Trouble::Type),
    }
}

#[expect(clippy::cast_possible_truncation, clippy::cast_precision_loss, reason = "within the bounds that are looked at first")]
fn converted<'v>(convert: Convert, one: Value<'v>, fuel: &mut Fuel) -> Result<Value<'v>, Trouble> {
    const WHOLE_MAX: f64 = 9.0e18;
    if let Value::Text(text) = &one {
        fuel.write(text.len())?;
    }
    Ok(match (convert, one) {
        (Convert::Lower, Value::Text(text)) => Value::owned(text.to_ascii_lowercase()),
        (Convert::Upper, Value::Text(text)) => Value::owned(text.to_ascii_uppercase()),
        (Convert::Size, one) => Value::Int(one.size()?),
        (Convert::Int, one @ Value::Int(_)) | (Convert::Double, one @ Value::Double(_)) | (Convert::Text, one @ Value::Text(_)) => one,
        (Convert::Int, Value::Double(number)) if number.abs() < WHOLE_MAX => Value::Int(number as i64),
        (Convert::Int, Value::Text(text)) => Value::Int(text.trim().parse().map_err(|_| Trouble::Type)?),
        (Convert::Double, Value::Int(number)) => Value::Double(number as f64),
        (Convert::Double, Value::Text(text)) => {
            let number: f64 = text.trim().parse().map_err(|_| Trouble::Type)?;
            if number.is_finite() { Value::Double(number) } else { return Err(Trouble::Range) }
        }
        (Convert::Text, Value::Int(number)) => Value::owned(number.to_string()),
        (Convert::Text, Value::Double(number)) => Value::owned(number.to_string()),
        (Convert::Text, Value::Bool(truth)) => Value::owned(truth.to_string()),
        (Convert::Int, _) => return Err(Trouble::Type),
        _ => return Err(Trouble::Type),
    })
}
