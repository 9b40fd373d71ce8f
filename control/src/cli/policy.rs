//! `fastpath policy lint`.
#![forbid(unsafe_code)]

use std::io::Write;
use std::path::PathBuf;

use super::args::Output;
use super::explain::manifests;
use super::table::clean;
use super::{FAILED, Failure, json};
use crate::lint::lint as find;

/// What `fastpath policy lint --help` ends with.
pub(super) const HELP: &str = "\
Finds, with file and line:
  ignored-rules     rules of a direction that policyTypes does not name
  selects-nothing   a selector that no pod or namespace in the manifests meets
  never-matches     a rule none of whose peers or ports can ever match
  unknown-port      a named port that no pod has whom it could be resolved on
  no-dns            pods whose egress is restricted and that no policy lets ask DNS

Exit codes: 0 nothing found, 1 something found or the manifests cannot be read, 2 wrong command line.";

/// Options of `fastpath policy lint`.
#[derive(Debug, clap::Args)]
pub(super) struct LintArgs {
    /// Folder of manifests.
    #[arg(long, value_name = "DIR")]
    manifests: PathBuf,
}

/// Runs the command.
pub(super) fn lint(args: &LintArgs, output: Output, out: &mut impl Write) -> Result<(), Failure> {
    let model = manifests(&args.manifests)?;
    let findings = find(&model);
    match output {
        Output::Json => json(out, &findings)?,
        Output::Table => {
            for f in &findings {
                writeln!(out, "{}: {}: {} [{}]", clean(&f.at), f.policy, clean(&f.message), f.kind.name())?;
            }
        }
    }
    if findings.is_empty() { Ok(()) } else { Err(Failure::Said(FAILED)) }
}
