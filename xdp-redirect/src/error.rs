//! What can go wrong, and what to do then.
#![forbid(unsafe_code)]

use std::io;
use std::path::PathBuf;

use aya::maps::MapError;
use aya::programs::ProgramError;

/// Why the XDP side could not do what was asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum XdpError {
    /// The kernel refused the object: a map, its type information or the object itself.
    #[error("cannot load the XDP object: {0} (needs Linux 5.11 or later, CAP_BPF and CAP_NET_ADMIN)")]
    Load(#[source] Box<aya::EbpfError>),
    /// The kernel refused a program.
    #[error(
        "cannot load XDP program `{program}`: {source} (needs Linux 5.11 or later, CAP_BPF and CAP_NET_ADMIN)"
    )]
    Program {
        /// Its name in the object.
        program: &'static str,
        /// The kernel's answer, with the verifier's log.
        #[source]
        source: Box<ProgramError>,
    },
    /// The object lacks a map or program that this crate was built for.
    #[error("the XDP object has no {kind} `{name}`: rebuild it with scripts/build-xdp.sh")]
    Missing {
        /// `map` or `program`.
        kind: &'static str,
        /// Its name.
        name: &'static str,
    },
    /// A map operation failed.
    #[error("cannot {what}: {source}")]
    Map {
        /// What was being done to which map.
        what: &'static str,
        /// The kernel's answer.
        #[source]
        source: MapError,
    },
    /// More entries than the map was loaded for.
    #[error(
        "{wanted} {what} do not fit into the {max} the XDP maps were loaded for: raise the limit and restart"
    )]
    TooMany {
        /// Entries of what.
        what: &'static str,
        /// How many were asked for.
        wanted: usize,
        /// How many fit.
        max: u32,
    },
    /// Every slot of the socket map is taken.
    #[error("no free slot for the socket of queue {queue} of device {ifindex}: all {max} are taken")]
    NoFreeSlot {
        /// The socket's device.
        ifindex: u32,
        /// The socket's queue.
        queue: u32,
        /// Slots in all.
        max: u32,
    },
    /// A limit of the configuration is zero or too large for the kernel.
    #[error("`{key}` must be between 1 and {max}")]
    Limit {
        /// The field of `LoadConfig`.
        key: &'static str,
        /// The largest allowed value.
        max: u32,
    },
    /// A prefix or range that means nothing.
    #[error("{0}")]
    Invalid(String),
    /// No such device in this network namespace.
    #[error("no device `{name}` (index {ifindex}) in this network namespace")]
    NoDevice {
        /// Its name.
        name: String,
        /// Its index.
        ifindex: u32,
    },
    /// Another XDP program sits on the device.
    #[error(
        "`{name}` already has an XDP program that is not ours{}: detach it (`ip link set dev {name} xdp off`, or stop its owner)",
        .program.map_or(String::new(), |id| format!(" (program id {id})"))
    )]
    Busy {
        /// The device.
        name: String,
        /// The foreign program's id, when the kernel tells.
        program: Option<u32>,
    },
    /// Native mode was asked for and the driver refused it.
    #[error(
        "`{name}` (MTU {mtu}) does not take XDP in native mode: {reason} ({source}); mode `auto` falls back to generic"
    )]
    Native {
        /// The device.
        name: String,
        /// Its MTU in bytes.
        mtu: u32,
        /// What the errno means here.
        reason: &'static str,
        /// The kernel's answer.
        #[source]
        source: Box<ProgramError>,
    },
    /// Attaching failed otherwise.
    #[error("cannot attach XDP program to `{name}` in {mode} mode: {source}")]
    Attach {
        /// The device.
        name: String,
        /// `native` or `generic`.
        mode: &'static str,
        /// The kernel's answer.
        #[source]
        source: Box<ProgramError>,
    },
    /// The kernel attached without a link object, so nothing could be pinned or replaced.
    #[error("`{name}`: the kernel gave no XDP link (needs Linux 5.11 or later)")]
    NoLink {
        /// The device.
        name: String,
    },
    /// A program of ours was still attached a while after its link was closed.
    #[error("`{name}`: XDP program {program} is still attached after its link was closed")]
    StillAttached {
        /// The device.
        name: String,
        /// The program's id.
        program: u32,
    },
    /// Another process holds the folder of pins.
    #[error("another process uses the pin folder `{0}`: give each daemon its own `xdp.pin_dir`")]
    PinDirInUse(PathBuf),
    /// A file or folder operation failed.
    #[error("cannot {what} `{path}`: {source}")]
    File {
        /// What was being done.
        what: &'static str,
        /// To what.
        path: PathBuf,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
    /// The kernel's routing socket failed.
    #[error("cannot ask the kernel about device {ifindex}: {source}")]
    Netlink {
        /// The device.
        ifindex: u32,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
    /// A frame that the generator cannot send.
    #[error("cannot generate frames on `{name}`: {reason}")]
    Generate {
        /// The device.
        name: String,
        /// Why.
        reason: String,
    },
}

impl XdpError {
    /// Wraps a map operation's error.
    pub(crate) fn map(what: &'static str) -> impl FnOnce(MapError) -> Self {
        move |source| Self::Map { what, source }
    }

    /// Wraps a file operation's error.
    pub(crate) fn file(what: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::File { what, path, source }
    }
}
