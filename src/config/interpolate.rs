//! Replaces `${NAME}` and `${NAME:-default}` in values; `$$` is a dollar sign. Never changes keys,
//! and never reads a value from the environment as YAML: it cannot add structure.

use super::Report;
use super::yaml::{Node, Value};

/// Replaces in the whole tree. A variable that is not set and has no default is reported.
pub fn apply(tree: &mut Node, env: &dyn Fn(&str) -> Option<String>, report: &mut Report) {
    match &mut tree.value {
        Value::Scalar { text, .. } if text.contains('$') => match expand(text, env) {
            Ok(expanded) => *text = expanded,
            Err(message) => report.add(tree.position, Vec::new(), message),
        },
        Value::Scalar { .. } => {}
        Value::List(items) => items.iter_mut().for_each(|item| apply(item, env, report)),
        Value::Map(entries) => entries.iter_mut().for_each(|(_, node)| apply(node, env, report)),
    }
}

fn expand(text: &str, env: &dyn Fn(&str) -> Option<String>) -> Result<String, String> {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        out.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        if let Some(after) = rest.strip_prefix('$') {
            out.push('$');
            rest = after;
        } else if let Some(inside) = rest.strip_prefix('{') {
            let (reference, after) = inside.split_once('}').ok_or("`${` without `}`; write `$$` for a dollar sign")?;
            let (name, default) = match reference.split_once(":-") {
                Some((name, default)) => (name, Some(default)),
                None => (reference, None),
            };
            let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
            if name.is_empty() || !name.bytes().all(word) || name.as_bytes()[0].is_ascii_digit() {
                return Err(format!("`{name}` is not the name of an environment variable"));
            }
            // As in the shell, `:-` also applies to an empty variable.
            match (env(name).filter(|value| !value.is_empty() || default.is_none()), default) {
                // An empty secret is no secret, and an empty list is no filter, so this must be
                // explicit.
                (Some(value), None) if value.is_empty() => {
                    return Err(format!("the environment variable `{name}` is empty; write `${{{name}:-}}` to allow that"));
                }
                (Some(value), _) => out.push_str(&value),
                (None, Some(default)) => out.push_str(default),
                (None, None) => {
                    return Err(format!("the environment variable `{name}` is not set; set it, or write `${{{name}:-default}}`"));
                }
            }
            rest = after;
        } else {
            return Err("unescaped `$`; write `$$` for a dollar sign, or `${NAME}` for an environment variable".into());
        }
    }
    out.push_str(rest);
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::expand;

    #[test]
    fn references() {
        let env = |name: &str| match name {
            "A" => Some("alpha".to_owned()),
            "EMPTY" => Some(String::new()),
            _ => None,
        };
        let expand = |text| expand(text, &env);
        for (text, expanded) in [
            ("plain", "plain"),
            ("${A}", "alpha"),
            ("x${A}y${A}", "xalphayalpha"),
            ("${B:-beta}", "beta"),
            ("${B:-}", ""),
            ("${EMPTY:-beta}", "beta"),
            ("$$5 and $${A}", "$5 and ${A}"),
            ("${B:-a:-b}", "a:-b"),
        ] {
            assert_eq!(expand(text).as_deref(), Ok(expanded), "{text}");
        }
        for wrong in ["${B}", "${EMPTY}", "${", "${}", "${1A}", "${a b}", "$A", "cost: 5$"] {
            assert!(expand(wrong).is_err(), "{wrong}");
        }
    }
}
