//! The budget of an evaluation, and the errors of evaluations.

use crate::contract::UnknownModel;

/// The steps that one evaluation may use.
const STEPS_MAX: u32 = 20_000;

/// Why an expression failed for a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EvalError {
    /// The expression used too many steps or created too long a text.
    #[error("the expression exceeds its step or size limit")]
    Budget,
    /// A value has the wrong type, such as a claim that is text instead of a number.
    #[error("a value has the wrong type")]
    Type,
    /// A number is out of range, or a division by zero.
    #[error("a number is out of range, or a division by zero")]
    Range,
    /// A map does not have the key.
    #[error("a map does not have the key")]
    Missing,
    /// A map literal has a key twice.
    #[error("a map has the same key twice")]
    Repeated,
    /// A query parameter occurs more than once with different values. The upstream may use another one.
    #[error("a query parameter has several values")]
    Several,
    /// The path or query has too many layers of encoding.
    #[error("the path or query has too many layers of encoding")]
    Layers,
    /// The model of the request is unknown.
    #[error("{0}")]
    Model(UnknownModel),
}

/// The remaining steps of an evaluation.
pub struct Fuel(u32);

impl Default for Fuel {
    fn default() -> Self {
        Self(STEPS_MAX)
    }
}

impl Fuel {
    /// Uses `steps`. An error if fewer are left.
    pub fn burn(&mut self, steps: usize) -> Result<(), EvalError> {
        let steps = u32::try_from(steps).unwrap_or(u32::MAX);
        self.0 = self.0.checked_sub(steps).ok_or(EvalError::Budget)?;
        Ok(())
    }

    /// The cost of reading a text.
    pub fn read(&mut self, text: &str) -> Result<(), EvalError> {
        self.burn(text.len() / 64)
    }

    /// The cost of creating a text, which is higher.
    pub fn write(&mut self, bytes: usize) -> Result<(), EvalError> {
        self.burn(bytes / 16)
    }
}
