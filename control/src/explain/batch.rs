//! Many queries: one JSON query a line in, one JSON answer a line out, in the same order.
#![forbid(unsafe_code)]

use std::io::{self, BufRead, Write};

use super::{Explainer, Query};

/// Answers every line of `input` on a line of `output`; a query that cannot be answered by `{"error":…}`.
///
/// # Errors
/// Reading or writing fails.
pub fn run_batch(
    explainer: &mut Explainer,
    mut input: impl BufRead,
    mut output: impl Write,
) -> io::Result<()> {
    let mut line = Vec::new();
    loop {
        line.clear();
        if input.read_until(b'\n', &mut line)? == 0 {
            return output.flush();
        }
        match Query::from_json(&line).and_then(|q| explainer.answer(&q)) {
            Ok(answer) => serde_json::to_writer(&mut output, &answer)?,
            Err(e) => serde_json::to_writer(&mut output, &serde_json::json!({ "error": e.to_string() }))?,
        }
        output.write_all(b"\n")?;
    }
}
