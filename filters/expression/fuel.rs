//! The fuel that each step of an evaluation costs, and the reasons for which an evaluation has no result.

/// The steps of one evaluation.
const STEPS_MAX: u32 = 20_000;

/// Why an expression has no result for this request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Trouble {
    /// Too many steps, or too long a text.
    #[error("it takes too long")]
    Budget,
    /// A claim is not of the type that it is used as.
    #[error("a value is not of the type that is needed")]
    Type,
    /// Out of range, or a division by zero.
    #[error("a number is out of range")]
    Range,
    /// A map has no such key.
    #[error("a map has no such key")]
    Missing,
    /// A key of a map is given twice.
    #[error("a map has the same key twice")]
    Repeated,
    /// A parameter occurs more than once, with different values: two readers may choose different ones.
    #[error("a parameter has several values")]
    Several,
    /// Too many layers of encoding.
    #[error("it is encoded too often")]
    Layers,
}

/// The steps that are left.
pub struct Fuel(u32);

impl Default for Fuel {
    fn default() -> Self {
        Self(STEPS_MAX)
    }
}

impl Fuel {
    pub fn burn(&mut self, steps: usize) -> Result<(), Trouble> {
        let steps = u32::try_from(steps).unwrap_or(u32::MAX);
        self.0 = self.0.checked_sub(steps).ok_or(Trouble::Budget)?;
        Ok(())
    }

    /// Reading a text costs by its length.
    pub fn read(&mut self, text: &str) -> Result<(), Trouble> {
        self.burn(text.len() / 64)
    }

    /// Making a text costs more.
    pub fn write(&mut self, bytes: usize) -> Result<(), Trouble> {
        self.burn(bytes / 16)
    }
}
