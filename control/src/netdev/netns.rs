//! Work in another network namespace, on a thread that lives only for it.
//!
//! A thread cannot be trusted to come back from another namespace (it may panic half way), so the one that enters
//! never serves anything else.
#![forbid(unsafe_code)]

use std::fs::File;
use std::io;
use std::path::Path;

use nix::sched::{CloneFlags, setns};

use super::Error;

/// Runs `work` in the network namespace at `path` (`/run/netns/x`, `/proc/123/ns/net`) and returns what it returns.
///
/// # Errors
/// [`Error::Netns`] when the namespace cannot be entered or `work` panics; otherwise what `work` returns.
pub fn enter<T: Send>(path: &Path, work: impl FnOnce() -> Result<T, Error> + Send) -> Result<T, Error> {
    let failed = |source| Error::Netns { path: path.to_owned(), source };
    let file = File::open(path).map_err(failed)?;
    std::thread::scope(|scope| {
        let body = || {
            setns(&file, CloneFlags::CLONE_NEWNET).map_err(|e| failed(e.into()))?;
            work()
        };
        let thread = std::thread::Builder::new()
            .name("fp-netns".to_owned())
            .spawn_scoped(scope, body)
            .map_err(failed)?;
        thread.join().unwrap_or_else(|_| Err(failed(io::Error::other("the work there panicked"))))
    })
}
