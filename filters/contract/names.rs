//! Names that operators give to rules, tags and limits, and that metrics and logs show.

use super::Invalid;

/// The longest such name, in bytes.
const NAME_BYTES_MAX: usize = 64;

/// Checks such a name: 1 to 64 ASCII letters, digits, `-`, `_` and `.`. `what` is the noun in the error, such as `name`.
pub fn check_name(text: &str, what: &str) -> Result<(), Invalid> {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || b"-_.".contains(&b);
    if text.is_empty() || text.len() > NAME_BYTES_MAX || !text.bytes().all(allowed) {
        return Err(Invalid::new(format!("`{text}` is not a {what}; use up to {NAME_BYTES_MAX} letters, digits, `-`, `_` and `.`")));
    }
    Ok(())
}
