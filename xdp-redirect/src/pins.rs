//! The folder on a BPF file system (bpffs) that keeps XDP links beyond the process.
//!
//! One folder per daemon. A link of device `eth0.7`, index 12, is pinned as `link_12_eth0%2e7`: bpffs
//! refuses dots. The folder is locked (`flock`) while in use, because whoever opens it takes over what
//! it finds there.
#![forbid(unsafe_code)]

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, Mode, OFlags, flock, open, statfs};
use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use rustix::process::getppid;

use crate::error::XdpError;

/// Where bpffs is by convention.
const BPFFS: &str = "/sys/fs/bpf";
/// `statfs.f_type` of a bpffs.
const BPF_FS_MAGIC: u64 = 0xcafe_4a11;
/// Source of the mounts made here, by which a later run knows them as ours.
const MOUNT_SOURCE: &str = "fastpath";

/// The folder of pins, locked.
#[derive(Debug)]
pub(crate) struct PinDir {
    path: PathBuf,
    /// A mount of ours directly on `path`.
    own_mount: bool,
    /// Whether the pins vanish with this process' mount namespace.
    private: bool,
    _lock: OwnedFd,
}

/// A pin that a previous run left.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct StalePin {
    pub(crate) path: PathBuf,
    pub(crate) ifindex: u32,
    pub(crate) name: String,
}

impl PinDir {
    /// Opens the folder when it is there and on a bpffs, without changing anything.
    pub(crate) fn open_existing(path: &Path) -> Result<Option<Self>, XdpError> {
        match file_system(path) {
            Ok(BPF_FS_MAGIC) => Self::lock(path).map(Some),
            Ok(_) => Ok(None),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(XdpError::file("look at", path)(error)),
        }
    }

    /// Opens the folder, made where it is missing. Without a bpffs there, one is mounted: at
    /// `/sys/fs/bpf` for a folder below it, else at the folder itself.
    pub(crate) fn create(path: &Path) -> Result<Self, XdpError> {
        let existing = path.ancestors().find(|dir| dir.exists()).unwrap_or(Path::new("/"));
        if file_system(existing).map_err(XdpError::file("look at", existing))? != BPF_FS_MAGIC {
            mount_bpffs(if path.starts_with(BPFFS) { Path::new(BPFFS) } else { path })?;
        }
        fs::create_dir_all(path).map_err(XdpError::file("create the folder of pins", path))?;
        Self::lock(path)
    }

    fn lock(path: &Path) -> Result<Self, XdpError> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let lock = open(path, flags, Mode::empty())
            .map_err(|error| XdpError::file("open the folder of pins", path)(error.into()))?;
        match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(Errno::WOULDBLOCK) => return Err(XdpError::PinDirInUse(path.to_owned())),
            Err(error) => return Err(XdpError::file("lock the folder of pins", path)(error.into())),
        }
        let mounts = fs::read_to_string("/proc/self/mountinfo")
            .map_err(XdpError::file("read", "/proc/self/mountinfo"))?;
        let real = fs::canonicalize(path).map_err(XdpError::file("look at", path))?;
        let own = own_mount(&mounts, &real);
        Ok(Self {
            own_mount: own.as_deref() == Some(&*real),
            // A mount of ours in a mount namespace that the parent does not share (`ip netns exec`, a
            // container without the host's bpffs) goes when this process does.
            private: own.is_some() && !shares_mounts_with_parent(),
            path: path.to_owned(),
            _lock: lock,
        })
    }

    /// Whether the pins outlive this process.
    pub(crate) fn outlives_process(&self) -> bool {
        !self.private
    }

    /// Where the link of a device is pinned.
    pub(crate) fn path_of(&self, ifindex: u32, name: &str) -> PathBuf {
        self.path.join(file_name(ifindex, name))
    }

    /// The pins in the folder; files of other names are left alone.
    pub(crate) fn scan(&self) -> Result<Vec<StalePin>, XdpError> {
        let mut pins = Vec::new();
        for entry in fs::read_dir(&self.path).map_err(XdpError::file("list", &self.path))? {
            let entry = entry.map_err(XdpError::file("list", &self.path))?;
            if let Some((ifindex, name)) = entry.file_name().to_str().and_then(parse_file_name) {
                pins.push(StalePin { path: entry.path(), ifindex, name });
            }
        }
        pins.sort_by_key(|pin| pin.ifindex);
        Ok(pins)
    }

    /// Removes the folder, the parents that are empty then, and the mount when it was made for it.
    pub(crate) fn remove(self) -> Result<(), XdpError> {
        let Self { path, own_mount, private: _, _lock: lock } = self;
        if own_mount {
            // The lock is an open file, which would keep the mount busy.
            drop(lock);
            unmount(&path, UnmountFlags::empty())
                .map_err(|error| XdpError::file("unmount", &path)(error.into()))?;
            return fs::remove_dir(&path).map_err(XdpError::file("remove the folder", &path));
        }
        fs::remove_dir(&path).map_err(XdpError::file("remove the folder of pins", &path))?;
        // Parents on the bpffs too, while they are empty; its root is busy and ends this.
        let mut parent = path.parent();
        while let Some(dir) = parent {
            if file_system(dir).ok() != Some(BPF_FS_MAGIC) || fs::remove_dir(dir).is_err() {
                break;
            }
            parent = dir.parent();
        }
        Ok(())
    }
}

/// Mounts a bpffs at `target`, unless another process has just done so: a second mount would hide the
/// pins of the first, so the folder below is locked meanwhile.
fn mount_bpffs(target: &Path) -> Result<(), XdpError> {
    fs::create_dir_all(target).map_err(XdpError::file("create the folder", target))?;
    let error = |error: Errno| XdpError::file("mount a BPF file system at", target)(error.into());
    let below =
        open(target, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).map_err(error)?;
    flock(&below, FlockOperation::LockExclusive).map_err(error)?;
    if file_system(target).map_err(XdpError::file("look at", target))? == BPF_FS_MAGIC {
        return Ok(());
    }
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    mount(MOUNT_SOURCE, target, "bpf", flags, Some(c"mode=0700")).map_err(error)
}

/// Removes a pin; one that is gone already is fine.
pub(crate) fn unlink(path: &Path) -> Result<(), XdpError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(XdpError::file("remove the pin", path)(error))
        }
        _ => Ok(()),
    }
}

fn file_system(path: &Path) -> io::Result<u64> {
    // Signed and of 32 or 64 bits, by machine; the magic has 32.
    Ok(statfs(path)?.f_type as u64 & 0xffff_ffff)
}

/// The mount point of the bpffs that holds `path`, when it is one of ours.
fn own_mount(mountinfo: &str, path: &Path) -> Option<PathBuf> {
    // "36 35 0:31 / /mount/point options optional… - type source super-options"
    let mounts = mountinfo.lines().filter_map(|line| {
        let (left, right) = line.split_once(" - ")?;
        let mut right = right.split(' ');
        let (kind, source) = (right.next()?, right.next()?);
        Some((PathBuf::from(left.split(' ').nth(4)?), kind == "bpf" && source == MOUNT_SOURCE))
    });
    // The longest mount point that holds the path is the one; of equal ones the last covers the others.
    let (point, ours) = mounts
        .filter(|(point, _)| path.starts_with(point))
        .max_by_key(|(point, _)| point.as_os_str().len())?;
    ours.then_some(point)
}

fn shares_mounts_with_parent() -> bool {
    let Some(parent) = getppid() else { return false };
    let of_parent = format!("/proc/{}/ns/mnt", parent.as_raw_pid());
    match (fs::read_link("/proc/self/ns/mnt"), fs::read_link(of_parent)) {
        (Ok(own), Ok(parents)) => own == parents,
        // Without the right to look (CAP_SYS_PTRACE) there is none to mount either: others made the mount, and keep it.
        (Ok(_), Err(e)) => e.kind() == std::io::ErrorKind::PermissionDenied,
        (Err(_), _) => false,
    }
}

fn file_name(ifindex: u32, name: &str) -> String {
    use std::fmt::Write;
    let mut out = format!("link_{ifindex}_");
    for byte in name.bytes() {
        if byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_' {
            out.push(char::from(byte));
        } else {
            // Writing to a string does not fail.
            let _ = write!(out, "%{byte:02x}");
        }
    }
    out
}

fn parse_file_name(file: &str) -> Option<(u32, String)> {
    let (ifindex, escaped) = file.strip_prefix("link_")?.split_once('_')?;
    let mut name = Vec::new();
    let mut bytes = escaped.bytes();
    while let Some(byte) = bytes.next() {
        if byte == b'%' {
            let digits = [bytes.next()?, bytes.next()?];
            name.push(u8::from_str_radix(std::str::from_utf8(&digits).ok()?, 16).ok()?);
        } else {
            name.push(byte);
        }
    }
    Some((ifindex.parse().ok()?, String::from_utf8(name).ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn file_names_round_trip_without_dots(ifindex: u32, name in "[^/\0]{1,15}") {
            let file = file_name(ifindex, &name);
            prop_assert!(!file.contains('.') && !file.contains('/'));
            prop_assert_eq!(parse_file_name(&file), Some((ifindex, name)));
        }

        #[test]
        fn any_file_name_is_read_without_panic(file in ".{0,40}") {
            let _ = parse_file_name(&file);
            let _ = parse_file_name(&format!("link_{file}"));
        }
    }

    #[test]
    fn foreign_files_are_not_pins() {
        for file in ["maps", "link_", "link_x_eth0", "link_3", "link_3_eth%", "link_3_eth%zz", "link_-1_a"] {
            assert_eq!(parse_file_name(file), None, "{file}");
        }
    }

    #[test]
    fn own_mounts_are_told_from_others() {
        let mounts = "20 1 0:1 / / rw - ext4 /dev/vda rw\n\
                      30 20 0:2 / /sys/fs/bpf rw,nosuid shared:9 - bpf bpf rw\n\
                      31 20 0:3 / /run/fp/bpf rw - bpf fastpath rw\n";
        assert_eq!(own_mount(mounts, Path::new("/sys/fs/bpf/fp")), None);
        assert_eq!(own_mount(mounts, Path::new("/run/fp/bpf")), Some("/run/fp/bpf".into()));
        assert_eq!(own_mount(mounts, Path::new("/run/fp/bpf/a")), Some("/run/fp/bpf".into()));
        assert_eq!(own_mount(mounts, Path::new("/run/fp")), None);
        let over = format!("{mounts}32 30 0:4 / /sys/fs/bpf rw - bpf fastpath rw\n");
        assert_eq!(own_mount(&over, Path::new("/sys/fs/bpf/fp")), Some("/sys/fs/bpf".into()));
    }
}
