//! The CNI plugin: `fastpath cni`, or this program by the name `fastpath-cni` (CNI spec 1.1.0, 1.0.0, 0.4.0, 0.3).
//!
//! A runtime starts it once for each call, so it has no runtime of its own, no log and no command line. It makes the
//! veth and keeps the books; the daemon attaches.
//!
//! | Module | Holds |
//! |---|---|
//! | [`verbs`] | ADD, DEL, CHECK, STATUS, GC, VERSION |
//! | [`types`] | configuration, result, errors |
//! | [`mod@env`] | the parameters in the environment |
//! | [`record`] | endpoint records, which the daemon reads too |
//! | [`ipam`] | our own addresses |
//! | [`delegate`] | another's IPAM plugin |
#![forbid(unsafe_code)]

pub mod delegate;
pub mod env;
pub mod ipam;
pub mod record;
pub mod types;
pub mod verbs;

use std::ffi::OsString;
use std::io::{Read, Write};
use std::path::Path;
use std::process::ExitCode;

use env::Env;

/// Name by which this program is the plugin.
const PLUGIN_NAME: &str = "fastpath-cni";
/// Largest configuration read, in bytes.
const MAX_CONF: u64 = 16 << 20;

/// Whether a process with these arguments is to be the plugin.
#[must_use]
pub fn is_called(mut args: impl Iterator<Item = OsString>) -> bool {
    let by_name = args.next().is_some_and(|program| {
        Path::new(&program).file_name().is_some_and(|n| n.to_string_lossy().ends_with(PLUGIN_NAME))
    });
    by_name || (args.next().is_some_and(|a| a == "cni") && args.next().is_none())
}

/// [`serve`], as a process.
#[must_use]
pub fn main() -> ExitCode {
    if serve() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Serves the call of this process's environment and standard input; says whether it succeeded.
#[must_use]
pub fn serve() -> bool {
    let mut conf = Vec::new();
    let read = std::io::stdin().lock().take(MAX_CONF).read_to_end(&mut conf);
    let (answer, ok) = match read {
        Ok(_) => verbs::run(&Env::of_process(), &conf),
        Err(e) => {
            let error = types::Error::new(types::Code::Io, format!("standard input: {e}"));
            (Some(error.to_json(types::NEWEST)), false)
        }
    };
    let mut out = std::io::stdout().lock();
    // In one piece: piece by piece, each line is a system call. A runtime that has gone reads nothing, and calls DEL.
    let written = answer.is_none_or(|answer| {
        out.write_all(format!("{answer:#}\n").as_bytes()).and_then(|()| out.flush()).is_ok()
    });
    ok && written
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_called() {
        for (args, plugin) in [
            (&["fastpath", "cni"][..], true),
            (&["/opt/cni/bin/fastpath-cni"], true),
            (&["/opt/cni/bin/my-fastpath-cni"], true),
            (&["/opt/cni/bin/fastpath-cni", "status"], true),
            (&["fastpath", "status"], false),
            (&["fastpath", "cni", "--help"], false),
            (&["fastpath"], false),
            (&["/fastpath-cni/fastpath"], false),
            (&[], false),
        ] {
            assert_eq!(is_called(args.iter().map(OsString::from)), plugin, "{args:?}");
        }
    }
}
