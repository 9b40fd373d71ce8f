//! One daemon per state folder: an exclusive lock, and the socket that only its holder may replace.
#![forbid(unsafe_code)]

use std::fs::{File, OpenOptions, Permissions};
use std::io::{Read, Seek, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use nix::sys::stat::{Mode, fchmod};

use super::SOCKET_NAME;

/// Name of the lock in the state folder.
const LOCK_NAME: &str = "fastpath.lock";

/// Why this daemon may not run in a state folder.
#[derive(Debug, thiserror::Error)]
pub enum InstanceError {
    /// Another daemon has the folder.
    #[error("another fastpath daemon{} runs in {}; give this one its own daemon.state_dir", shown(*.pid), state_dir.display())]
    Taken {
        /// The folder.
        state_dir: PathBuf,
        /// Its process id, if it has written it.
        pid: Option<u32>,
    },
    /// Something in the folder cannot be made or opened.
    #[error("{}: {source}", path.display())]
    Io {
        /// What.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
}

fn shown(pid: Option<u32>) -> String {
    pid.map_or_else(String::new, |pid| format!(" (pid {pid})"))
}

/// The right to run in a state folder; given back (and the socket removed) when dropped.
#[derive(Debug)]
pub struct Instance {
    state_dir: PathBuf,
    lock: Flock<File>,
    /// Device and inode of our socket.
    socket: Option<(u64, u64)>,
}

impl Instance {
    /// Makes the folder if needed (0755) and takes its lock.
    ///
    /// # Errors
    /// [`InstanceError::Taken`] when another daemon runs there.
    pub fn acquire(state_dir: &Path) -> Result<Self, InstanceError> {
        let io = |path: &Path| {
            let path = path.to_path_buf();
            move |source: std::io::Error| InstanceError::Io { path, source }
        };
        std::fs::create_dir_all(state_dir).map_err(io(state_dir))?;
        let path = state_dir.join(LOCK_NAME);
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false).mode(0o644);
        let file = options.open(&path).map_err(io(&path))?;
        let mut lock = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => lock,
            Err((mut file, Errno::EWOULDBLOCK)) => {
                let mut text = String::new();
                let pid = file.read_to_string(&mut text).ok().and_then(|_| text.trim().parse().ok());
                return Err(InstanceError::Taken { state_dir: state_dir.to_path_buf(), pid });
            }
            Err((_, e)) => return Err(io(&path)(e.into())),
        };
        let mut write = || {
            lock.set_len(0)?;
            lock.rewind()?;
            writeln!(lock, "{}", std::process::id())
        };
        write().map_err(io(&path))?;
        Ok(Self { state_dir: state_dir.to_path_buf(), lock, socket: None })
    }

    /// Listens on the folder's socket (0600), replacing what a daemon that died has left.
    ///
    /// The listener is in non-blocking mode.
    ///
    /// # Errors
    /// The socket cannot be made, as when its path is longer than 107 bytes.
    pub fn listen(&mut self) -> Result<UnixListener, InstanceError> {
        let path = self.state_dir.join(SOCKET_NAME);
        let listener = bind(&path).map_err(|source| InstanceError::Io { path: path.clone(), source })?;
        self.socket = inode(&path);
        Ok(listener)
    }
}

impl Drop for Instance {
    fn drop(&mut self) {
        // Only what is still ours: someone may have cleared the folder and started anew.
        let path = self.state_dir.join(SOCKET_NAME);
        if self.socket.is_some() && self.socket == inode(&path) {
            let _ = std::fs::remove_file(path);
        }
        let _ = self.lock.set_len(0);
    }
}

fn inode(path: &Path) -> Option<(u64, u64)> {
    use std::os::unix::fs::MetadataExt;
    std::fs::symlink_metadata(path).ok().map(|m| (m.dev(), m.ino()))
}

fn bind(path: &Path) -> std::io::Result<UnixListener> {
    use nix::sys::socket::{AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind, listen, socket};
    let address = UnixAddr::new(path)?;
    match std::fs::remove_file(path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let fd = socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
    // Linux gives the path the socket's own mode at bind: there is no moment at which others may connect.
    fchmod(fd.as_fd(), Mode::from_bits_truncate(0o600))?;
    bind(std::os::fd::AsRawFd::as_raw_fd(&fd), &address)?;
    std::fs::set_permissions(path, Permissions::from_mode(0o600))?;
    listen(&fd, Backlog::new(128)?)?;
    Ok(UnixListener::from(fd))
}
