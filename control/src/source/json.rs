//! JSON text (RFC 8259) to values with the line of every part; several values may follow one another.
//!
//! JSON is not quite YAML (tabs, surrogate pairs in escapes), so it has its own reader. Strings and numbers
//! are left to serde_json; duplicate keys are refused.
#![forbid(unsafe_code)]

use serde_json::{Map, Value};

use super::yaml::{Located, MAX_DEPTH, SyntaxError};
use crate::lines::Lines;

/// All values of `text`; null ones are left out. Reading stops at the first error.
pub(super) fn documents(text: &str) -> Vec<Result<Located, SyntaxError>> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut reader = Reader { text, at: 0, line: 1 };
    let mut out = Vec::new();
    loop {
        reader.space();
        if reader.at == text.len() {
            return out;
        }
        match reader.value(0) {
            Ok((Value::Null, _)) => {}
            Ok((value, lines)) => out.push(Ok(Located { value, lines })),
            Err(e) => {
                out.push(Err(e));
                return out;
            }
        }
    }
}

struct Reader<'t> {
    text: &'t str,
    at: usize,
    line: u32,
}

impl Reader<'_> {
    fn error<T>(&self, reason: impl std::fmt::Display) -> Result<T, SyntaxError> {
        Err(SyntaxError { line: self.line, reason: format!("JSON: {reason}") })
    }

    fn peek(&self) -> Option<u8> {
        self.text.as_bytes().get(self.at).copied()
    }

    fn rest(&self) -> &str {
        self.text.get(self.at..).unwrap_or_default()
    }

    fn space(&mut self) {
        while let Some(b @ (b' ' | b'\t' | b'\r' | b'\n')) = self.peek() {
            self.at += 1;
            self.line = self.line.saturating_add(u32::from(b == b'\n'));
        }
    }

    fn value(&mut self, depth: usize) -> Result<(Value, Lines), SyntaxError> {
        if depth >= MAX_DEPTH {
            return self.error("nested too deeply");
        }
        let line = self.line;
        match self.peek() {
            Some(b'{') => self.object(depth, line),
            Some(b'[') => self.array(depth, line),
            Some(b'"') => self.string().map(|s| (Value::String(s), Lines::leaf(line))),
            Some(_) => self.word().map(|v| (v, Lines::leaf(line))),
            None => self.error("ends in the middle of a value"),
        }
    }

    fn object(&mut self, depth: usize, line: u32) -> Result<(Value, Lines), SyntaxError> {
        let (mut entries, mut lines) = (Map::new(), Vec::<(Box<str>, Lines)>::new());
        self.at += 1;
        self.space();
        if self.peek() == Some(b'}') {
            self.at += 1;
            return Ok((Value::Object(entries), Lines::map(line, lines)));
        }
        loop {
            self.space();
            if self.peek() != Some(b'"') {
                return self.error("want a key in double quotes");
            }
            let key_line = self.line;
            let key = self.string()?;
            if entries.contains_key(&key) {
                let first = lines.iter().find(|(k, _)| k.as_ref() == key).map_or(0, |(_, l)| l.line());
                return self.error(format_args!("key {key:?} is there twice, first on line {first}"));
            }
            self.space();
            if self.peek() != Some(b':') {
                return self.error("want ':' after a key");
            }
            self.at += 1;
            self.space();
            let (value, at) = self.value(depth + 1)?;
            lines.push((key.as_str().into(), at.on(key_line)));
            entries.insert(key, value);
            if self.ends(b'}')? {
                return Ok((Value::Object(entries), Lines::map(line, lines)));
            }
        }
    }

    fn array(&mut self, depth: usize, line: u32) -> Result<(Value, Lines), SyntaxError> {
        let (mut items, mut lines) = (Vec::new(), Vec::new());
        self.at += 1;
        self.space();
        if self.peek() == Some(b']') {
            self.at += 1;
            return Ok((Value::Array(items), Lines::seq(line, lines)));
        }
        loop {
            self.space();
            let (value, at) = self.value(depth + 1)?;
            items.push(value);
            lines.push(at);
            if self.ends(b']')? {
                return Ok((Value::Array(items), Lines::seq(line, lines)));
            }
        }
    }

    /// After an entry or item: whether the container ends (`close`) or goes on (`,`).
    fn ends(&mut self, close: u8) -> Result<bool, SyntaxError> {
        self.space();
        match self.peek() {
            Some(b',') => {
                self.at += 1;
                Ok(false)
            }
            Some(b) if b == close => {
                self.at += 1;
                Ok(true)
            }
            _ => self.error(format_args!("want ',' or '{}'", char::from(close))),
        }
    }

    fn string(&mut self) -> Result<String, SyntaxError> {
        let bytes = self.rest().as_bytes();
        let mut len = 1;
        loop {
            match bytes.get(len) {
                Some(b'\\') => len += 2,
                Some(b'"') => break,
                Some(b'\n') | None => return self.error("a string has no end on its line"),
                Some(_) => len += 1,
            }
        }
        let token = self.rest().get(..=len).unwrap_or_default();
        match serde_json::from_str(token) {
            Ok(text) => {
                self.at += len + 1;
                Ok(text)
            }
            Err(e) => self.error(format_args!("bad string: {e}")),
        }
    }

    /// A number, true, false or null.
    fn word(&mut self) -> Result<Value, SyntaxError> {
        let end = |b: &u8| !(b.is_ascii_alphanumeric() || matches!(b, b'+' | b'-' | b'.'));
        let len = self.rest().bytes().position(|b| end(&b)).unwrap_or(self.rest().len());
        let token = self.rest().get(..len).unwrap_or_default();
        match serde_json::from_str(token) {
            Ok(value) => {
                self.at += len;
                Ok(value)
            }
            Err(_) => {
                let shown: String = self.rest().chars().take_while(|c| !c.is_whitespace()).take(20).collect();
                self.error(format_args!("want a value, not {shown:?}"))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn json_value() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any::<u64>().prop_map(Value::from),
            "\\PC*".prop_map(Value::from),
            any::<String>().prop_map(Value::from),
        ];
        leaf.prop_recursive(6, 64, 8, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..8).prop_map(Value::from),
                prop::collection::btree_map(any::<String>(), inner, 0..8)
                    .prop_map(|m| Value::Object(m.into_iter().collect())),
            ]
        })
    }

    proptest! {
        /// What serde_json writes is read back, compact or over several lines.
        #[test]
        fn reads_what_serde_json_writes(values in prop::collection::vec(json_value(), 0..4)) {
            let want: Vec<Value> = values.iter().filter(|v| !v.is_null()).cloned().collect();
            for pretty in [false, true] {
                let text: String = values
                    .iter()
                    .map(|v| if pretty { format!("{v:#}\n") } else { format!("{v} ") })
                    .collect();
                let got: Vec<Value> = documents(&text).into_iter().map(|d| d.expect("valid").value).collect();
                prop_assert_eq!(&got, &want);
            }
        }

        /// Accepts exactly the single documents that serde_json accepts (duplicate keys and depth apart).
        #[test]
        fn agrees_with_serde_json_on_mutations(
            value in json_value(),
            edits in prop::collection::vec((any::<prop::sample::Index>(), prop::sample::select(&b"{}[]\",:\\ 1e-tu\n"[..])), 0..3),
        ) {
            let mut bytes = value.to_string().into_bytes();
            for (at, byte) in edits {
                let i = at.index(bytes.len());
                bytes[i] = byte;
            }
            let text = String::from_utf8_lossy(&bytes);
            let got: Result<Vec<_>, _> = documents(&text).into_iter().collect();
            let want: Result<Vec<Value>, _> = serde_json::Deserializer::from_str(&text).into_iter().collect();
            match (got, want) {
                (Ok(got), Ok(want)) => {
                    let want: Vec<Value> = want.into_iter().filter(|v| !v.is_null()).collect();
                    prop_assert_eq!(got.into_iter().map(|d| d.value).collect::<Vec<_>>(), want);
                }
                (Err(e), Ok(_)) => prop_assert!(e.reason.contains("twice"), "{:?}: {text}", e),
                (Ok(got), Err(e)) => prop_assert!(false, "{e}: {text} read as {got:?}"),
                (Err(_), Err(_)) => {}
            }
        }
    }

    #[test]
    fn lines_and_errors() {
        let text = "{\n\t\"kind\": \"Pod\",\n\t\"list\": [\n\t\t1,\n\t\t{\"a\":\n2}\n]}\n{}";
        let docs: Vec<_> = documents(text).into_iter().map(|d| d.expect("valid")).collect();
        assert_eq!(docs.len(), 2);
        let lines = &docs[0].lines;
        for (path, line) in [("kind", 2), ("list", 3), ("list[0]", 4), ("list[1]", 5), ("list[1].a", 5)] {
            assert_eq!(lines.at(path), line, "{path}");
        }
        assert_eq!(docs[1].lines.line(), 8);
        for (text, line, reason) in [
            ("{\n\"a\": 1,\n\"a\": 2}", 3, "\"a\" is there twice, first on line 2"),
            ("{\"a\" 1}", 1, "want ':'"),
            ("[1 2]", 1, "want ',' or ']'"),
            ("[1,]", 1, "want a value, not \"]\""),
            ("{a: 1}", 1, "want a key"),
            ("\n\n[\"abc", 3, "a string has no end"),
            ("[\"\\x\"]", 1, "bad string"),
            ("[", 1, "ends in the middle"),
            ("nope", 1, "want a value, not \"nope\""),
            (&"[".repeat(1000), 1, "nested too deeply"),
        ] {
            let error = documents(text).pop().expect("one").expect_err(text);
            assert_eq!(error.line, line, "{text}");
            assert!(error.reason.contains(reason), "{text}: {}", error.reason);
        }
    }
}
