//! `fastpath config check`.
#![forbid(unsafe_code)]

use std::io::Write;
use std::path::Path;

use super::args::Output;
use super::{FAILED, Failure, json};
use crate::config::Config;

/// Checks `file`: `FILE: ok` on stdout, or every mistake on stderr, one a line. As JSON all is on stdout.
pub(super) fn check(file: &Path, output: Output, out: &mut impl Write) -> Result<(), Failure> {
    let wrong = Config::load(file).err();
    if output == Output::Json {
        let errors: Vec<_> = wrong
            .iter()
            .flat_map(|e| &e.wrong)
            .map(|w| serde_json::json!({ "file": file, "line": w.line, "message": w.message }))
            .collect();
        json(out, &serde_json::json!({ "ok": wrong.is_none(), "errors": errors }))?;
    } else {
        match &wrong {
            None => writeln!(out, "{}: ok", file.display())?,
            Some(e) => writeln!(std::io::stderr(), "{e}")?,
        }
    }
    if wrong.is_none() { Ok(()) } else { Err(Failure::Said(FAILED)) }
}
