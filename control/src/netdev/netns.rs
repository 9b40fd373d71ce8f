//! Work in another network namespace, on a thread that lives only for it.
//!
//! A thread cannot be trusted to come back from another namespace (it may panic half way), so the one that enters
//! never serves anything else.
#![forbid(unsafe_code)]

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use nix::libc::{O_NOCTTY, O_NONBLOCK};
use nix::sched::{CloneFlags, setns};
use rustix::fs::fstatfs;

use super::Error;

/// `statfs.f_type` of the files that stand for namespaces (linux/magic.h).
const NSFS_MAGIC: u64 = 0x6e73_6673;

/// Runs `work` in the network namespace at `path` (`/run/netns/x`, `/proc/123/ns/net`) and returns what it returns.
///
/// # Errors
/// [`Error::Netns`] when the namespace cannot be entered or `work` panics; otherwise what `work` returns.
pub fn enter<T: Send>(path: &Path, work: impl FnOnce() -> Result<T, Error> + Send) -> Result<T, Error> {
    let failed = |source| Error::Netns { path: path.to_owned(), source };
    let file = open(path).map_err(failed)?;
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

/// Opens a file that stands for a namespace. The path is an annotation's: whatever else is there (a FIFO, a device) is
/// neither waited for nor set off.
pub(crate) fn open(path: &Path) -> io::Result<File> {
    let not_one = || io::Error::new(io::ErrorKind::InvalidInput, "it is no network namespace");
    if !std::fs::metadata(path)?.is_file() {
        return Err(not_one());
    }
    // Something else may be there by now; opened so, it does not block either.
    let file = OpenOptions::new().read(true).custom_flags(O_NONBLOCK | O_NOCTTY).open(path)?;
    // Signed and of 32 or 64 bits, by machine; the magic has 32.
    if fstatfs(&file)?.f_type as u64 & 0xffff_ffff != NSFS_MAGIC {
        return Err(not_one());
    }
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_namespaces_are_opened() {
        let dir = std::env::temp_dir().join(format!("fp-netns-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let (fifo, plain, link) = (dir.join("fifo"), dir.join("plain"), dir.join("link"));
        nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
        std::fs::write(&plain, "x").unwrap();
        std::os::unix::fs::symlink("/proc/self/ns/net", &link).unwrap();
        // A FIFO without a writer would be waited for for ever.
        for (path, opens) in [
            (fifo.as_path(), false),
            (&plain, false),
            (&dir, false),
            (Path::new("/dev/tty"), false),
            (Path::new("/dev/null"), false),
            (&dir.join("none"), false),
            (&link, true),
            (Path::new("/proc/self/ns/net"), true),
        ] {
            assert_eq!(open(path).is_ok(), opens, "{}", path.display());
        }
        // Nothing is run where nothing was entered.
        assert!(enter(&fifo, || -> Result<(), Error> { panic!("ran") }).is_err());
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
