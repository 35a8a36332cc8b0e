//! The macros that evaluate an expression for each item of a list or each entry of a map.

use std::sync::Arc;

use super::evaluate::{Each, Loop, Outcome, Run};
use super::fuel::Trouble;
use super::types::Kind;
use super::value::{Entries, Value};

/// The bound names of one round: the first, and the second where there are two.
type Round<'v> = (Value<'v>, Option<Value<'v>>);

/// What the rounds so far have found.
#[derive(Default)]
struct Found<'v> {
    kept: Vec<Value<'v>>,
    entries: Entries<'v>,
    true_count: usize,
    /// An item that decides makes up for others that have no result.
    trouble: Option<Trouble>,
}

/// What a loop goes through. A list gives its items, with two names also their indexes; a map its keys, with two names
/// also their values.
enum Rounds<'v> {
    Items(Arc<Vec<Value<'v>>>, bool),
    Entries(Entries<'v>, bool),
}

impl<'v> Rounds<'v> {
    fn new(over: &Value<'v>, pairs: bool, run: &mut Run<'v>) -> Result<Self, Trouble> {
        Ok(match over.kind() {
            Kind::Map => Rounds::Entries(over.entries(&mut run.fuel)?, pairs),
            _ => Rounds::Items(over.items(&mut run.fuel)?, pairs),
        })
    }

    fn length(&self) -> usize {
        match self {
            Rounds::Items(items, _) => items.len(),
            Rounds::Entries(entries, _) => entries.len(),
        }
    }

    fn round(&self, index: usize) -> Result<Round<'v>, Trouble> {
        match self {
            Rounds::Items(items, pairs) => {
                let item = items.get(index).ok_or(Trouble::Range)?.clone();
                let position = Value::Int(i64::try_from(index).map_err(|_| Trouble::Range)?);
                Ok(if *pairs { (position, Some(item)) } else { (item, None) })
            }
            Rounds::Entries(entries, pairs) => {
                let (key, value) = entries.get(index).ok_or(Trouble::Range)?.clone();
                Ok((key, pairs.then_some(value)))
            }
        }
    }
}

impl<'v> Run<'v> {
    pub fn each(&mut self, each: &'v Loop) -> Outcome<'v> {
        let over = self.evaluate(&each.over)?;
        let mut found = Found::default();
        let rounds = Rounds::new(&over, each.pairs, self)?;
        for index in 0..rounds.length() {
            self.fuel.burn(1)?;
            let round = rounds.round(index)?;
            let depth = self.locals.len();
            self.locals.push(round.0.clone());
            self.locals.extend(round.1.clone());
            let decided = self.round(each, round, &mut found);
            self.locals.truncate(depth);
            if let Some(decided) = decided? {
                return Ok(Value::Bool(decided));
            }
        }
        if let Some(trouble) = found.trouble {
            return Err(trouble);
        }
        Ok(match each.each {
            Each::Exists => Value::Bool(false),
            Each::All => Value::Bool(true),
            Each::ExistsOne => Value::Bool(found.true_count == 1),
            Each::Filter | Each::Map => Value::list(found.kept),
            Each::MapValues => Value::Map(Arc::new(found.entries)),
        })
    }

    /// The result of the loop, where one round decides it.
    fn round(&mut self, each: &'v Loop, round: Round<'v>, found: &mut Found<'v>) -> Result<Option<bool>, Trouble> {
        if let Some(only) = &each.only
            && !self.truth(only)?
        {
            return Ok(None);
        }
        match each.each {
            Each::Exists | Each::All => match self.truth(&each.body) {
                Ok(truth) if truth == (each.each == Each::Exists) => return Ok(Some(truth)),
                Ok(_) => {}
                Err(Trouble::Budget) => return Err(Trouble::Budget),
                Err(other) => found.trouble = Some(other),
            },
            Each::ExistsOne => found.true_count += usize::from(self.truth(&each.body)?),
            Each::Filter => {
                if self.truth(&each.body)? {
                    found.kept.push(round.0);
                }
            }
            Each::Map => {
                let made = self.evaluate(&each.body)?;
                found.kept.push(made);
            }
            Each::MapValues => {
                let made = self.evaluate(&each.body)?;
                found.entries.push((round.0, made));
            }
        }
        Ok(None)
    }
}
