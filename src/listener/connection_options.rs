//! The options of the field `Connection` (RFC 9110, section 7.6.1), over all its lines. It changes
//! nothing.

use http::{HeaderMap, header};

/// Whether `Connection` has this option. Pingora reads only the first line.
pub fn has_option(headers: &HeaderMap, option: &str) -> bool {
    let lines = headers.get_all(header::CONNECTION).iter();
    let mut options = lines.flat_map(|line| line.as_bytes().split(|byte| *byte == b','));
    options.any(|one| one.trim_ascii().eq_ignore_ascii_case(option.as_bytes()))
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    #[test]
    fn options_on_all_lines() {
        for (lines, closes) in [
            (vec![], false),
            (vec!["close"], true),
            (vec!["keep-alive", "Close"], true),
            (vec!["keep-alive, x-a ,CLOSE"], true),
            (vec!["x-close", "closed", "close x"], false),
        ] {
            let mut headers = HeaderMap::new();
            for line in &lines {
                headers.append(header::CONNECTION, HeaderValue::from_static(line));
            }
            assert_eq!(has_option(&headers, "close"), closes, "{lines:?}");
        }
    }
}
