//! Evaluation of the macros that run an expression for each item of a list or entry of a map.

use std::sync::Arc;

use super::evaluate::{Each, EvalResult, Loop, Run};
use super::fuel::EvalError;
use super::types::Kind;
use super::value::{Entries, Value};

/// The values of the bound names in one iteration: the first, and the second if the macro binds two.
type Round<'v> = (Value<'v>, Option<Value<'v>>);

/// The intermediate result of a loop.
#[derive(Default)]
struct Found<'v> {
    kept: Vec<Value<'v>>,
    entries: Entries<'v>,
    true_count: usize,
    /// The last error. An item that decides the result overrides it.
    error: Option<EvalError>,
}

/// The iterations of a loop. A list yields its items, with two names also their indexes. A map yields its keys, with two
/// names also their values.
enum Rounds<'v> {
    Items(Arc<Vec<Value<'v>>>, bool),
    Entries(Entries<'v>, bool),
}

impl<'v> Rounds<'v> {
    fn new(over: &Value<'v>, pairs: bool, run: &mut Run<'v>) -> Result<Self, EvalError> {
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

    fn round(&self, index: usize) -> Result<Round<'v>, EvalError> {
        match self {
            Rounds::Items(items, pairs) => {
                let item = items.get(index).ok_or(EvalError::Range)?.clone();
                let position = Value::Int(i64::try_from(index).map_err(|_| EvalError::Range)?);
                Ok(if *pairs { (position, Some(item)) } else { (item, None) })
            }
            Rounds::Entries(entries, pairs) => {
                let (key, value) = entries.get(index).ok_or(EvalError::Range)?.clone();
                Ok((key, pairs.then_some(value)))
            }
        }
    }
}

impl<'v> Run<'v> {
    pub fn each(&mut self, each: &'v Loop) -> EvalResult<'v> {
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
        if let Some(error) = found.error {
            return Err(error);
        }
        Ok(match each.each {
            Each::Exists => Value::Bool(false),
            Each::All => Value::Bool(true),
            Each::ExistsOne => Value::Bool(found.true_count == 1),
            Each::Filter | Each::Map => Value::list(found.kept),
            Each::MapValues => Value::Map(Arc::new(found.entries)),
        })
    }

    /// Runs one iteration. Returns the result of the loop if this iteration decides it.
    fn round(&mut self, each: &'v Loop, round: Round<'v>, found: &mut Found<'v>) -> Result<Option<bool>, EvalError> {
        if let Some(only) = &each.only
            && !self.truth(only)?
        {
            return Ok(None);
        }
        match each.each {
            Each::Exists | Each::All => match self.truth(&each.body) {
                Ok(truth) if truth == (each.each == Each::Exists) => return Ok(Some(truth)),
                Ok(_) => {}
                Err(EvalError::Budget) => return Err(EvalError::Budget),
                Err(other) => found.error = Some(other),
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
