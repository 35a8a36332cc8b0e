//! Finds out whether a JSON request body says `"stream": true` at its top level, while the body passes.

/// The most of a body that is looked at: parameters stand beside the messages, which may be long.
const BYTES_MAX: usize = 16 << 20;
const NAME: &[u8] = b"stream";

/// A scanner for the one member. Fed piece by piece; keeps no text but the current key's start.
#[derive(Debug, Default)]
pub struct StreamFlag {
    off: bool,
    answer: Option<bool>,
    seen_bytes: usize,
    depth: u32,
    in_string: bool,
    escaped: bool,
    /// The current string at depth 1 stands where a key may.
    key: Vec<u8>,
    expects_value: bool,
    literal: Vec<u8>,
}

impl StreamFlag {
    /// One that looks at nothing.
    pub fn off() -> Self {
        Self { off: true, ..Self::default() }
    }

    /// Looks at the next piece. `Some` once the answer is known; it does not change any more.
    pub fn feed(&mut self, bytes: &[u8]) -> Option<bool> {
        if self.off || self.answer.is_some() {
            return self.answer;
        }
        for byte in bytes {
            self.byte(*byte);
            if self.answer.is_some() {
                break;
            }
        }
        self.seen_bytes += bytes.len();
        self.off |= self.seen_bytes > BYTES_MAX;
        self.answer
    }

    fn byte(&mut self, byte: u8) {
        if self.in_string {
            match byte {
                _ if self.escaped => self.escaped = false,
                b'\\' => self.escaped = true,
                b'"' => self.in_string = false,
                _ => {}
            }
            let in_key = self.depth == 1 && !self.expects_value;
            if self.in_string && in_key && self.key.len() <= NAME.len() {
                self.key.push(byte);
            }
            return;
        }
        match byte {
            b'"' => {
                self.in_string = true;
                if self.depth == 1 && !self.expects_value {
                    self.key.clear();
                }
            }
            b'{' | b'[' => self.depth += 1,
            b'}' | b']' => {
                self.end_of_member();
                self.depth = self.depth.saturating_sub(1);
            }
            b':' if self.depth == 1 => {
                self.expects_value = true;
                self.literal.clear();
            }
            b',' if self.depth == 1 => self.end_of_member(),
            b' ' | b'\t' | b'\r' | b'\n' => {}
            _ if self.depth == 1 && self.expects_value && self.literal.len() <= NAME.len() => self.literal.push(byte),
            _ => {}
        }
    }

    fn end_of_member(&mut self) {
        if self.depth != 1 {
            return;
        }
        if self.expects_value && self.key == NAME {
            self.answer = Some(self.literal == b"true");
        }
        self.expects_value = false;
        self.key.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn found_where_it_counts_and_nowhere_else() {
        for (body, wanted) in [
            (r#"{"stream":true}"#, Some(true)),
            (r#"{ "model" : "m" , "stream" : true , "n": 1 }"#, Some(true)),
            ("{\n\t\"stream\":\r\ntrue\n}", Some(true)),
            (r#"{"messages":[{"role":"user","content":"\"stream\": true, }{"}],"stream":true}"#, Some(true)),
            (r#"{"stream":false}"#, Some(false)),
            (r#"{"stream":"true"}"#, Some(false)),
            (r#"{"stream":null}"#, Some(false)),
            (r#"{"stream_options":{"stream":true}}"#, None),
            (r#"{"messages":[{"stream":true}]}"#, None),
            (r#"{"user":"stream","x":true}"#, None),
            (r#"{"user":"\\","stream":true}"#, Some(true)),
            (r#"{"streams":true}"#, None),
            (r#"["stream",true]"#, None),
            ("", None),
            ("}}}}", None),
            (r#"{"stream":true"#, None),
        ] {
            assert_eq!(StreamFlag::default().feed(body.as_bytes()), wanted, "{body}");
            let mut flag = StreamFlag::default();
            let piecewise = body.bytes().fold(None, |_, byte| flag.feed(&[byte]));
            assert_eq!(piecewise, wanted, "byte by byte: {body}");
        }
        assert_eq!(StreamFlag::off().feed(br#"{"stream":true}"#), None);
    }
}
