//! The `fastpath` binary: daemon and command line.
#![forbid(unsafe_code)]

use std::process::ExitCode;

fn main() -> ExitCode {
    fastpath_control::cli::main()
}
