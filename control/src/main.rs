//! The `fastpath` binary: daemon, command line, and CNI plugin.
#![forbid(unsafe_code)]

use std::process::ExitCode;

fn main() -> ExitCode {
    // Before anything else: a runtime waits for each start of the plugin.
    if fastpath_control::cni::is_called(std::env::args_os()) {
        return fastpath_control::cni::main();
    }
    fastpath_control::cli::main()
}
