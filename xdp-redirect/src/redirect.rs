//! [`Redirect`]: what the daemon holds of the XDP side.
#![forbid(unsafe_code)]

use std::os::fd::BorrowedFd;
use std::path::PathBuf;
use std::time::Duration;

use aya::maps::{Array, HashMap, MapData};
use rustix::time::{ClockId, clock_gettime};

use crate::abi::{
    Config, Fragment, FragmentKey, ON_FAILURE_DROP, ON_FAILURE_PASS, Outcome, PROGRAM_ENDPOINT,
    PROGRAM_UPLINK, SocketKey,
};
use crate::attach::{Links, Mode, ModeRequest, Role};
use crate::error::XdpError;
use crate::object::{RedirectObject, Sizes};
use crate::pinhole::{Entries, Pinhole};
use crate::pins::PinDir;
use crate::sockets::Slots;

/// What happens to frames of ours when nobody serves them (`xdp.on_failure`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnFailure {
    /// They are dropped, so that no packet escapes its policies; links outlive the process, pinned.
    #[default]
    Drop,
    /// They pass to the kernel; links end with the process, nothing is pinned.
    Pass,
}

/// How the programs are loaded.
#[derive(Clone, Debug)]
pub struct LoadConfig {
    /// Folder for pinned links, this daemon's alone, best below `/sys/fs/bpf`.
    ///
    /// Elsewhere a BPF file system is mounted on the folder itself, and unmounted at shutdown.
    pub pin_dir: PathBuf,
    /// What becomes of frames of ours when the heartbeat is stale or a queue has no socket.
    pub on_failure: OnFailure,
    /// Age of the last [`Heartbeat::beat`] past which the daemon counts as gone. Beat at least four
    /// times as often.
    pub stale_after: Duration,
    /// Sockets at a time: one for each (device, queue).
    pub max_sockets: u32,
    /// Local prefixes of each family.
    pub max_local_prefixes: u32,
    /// Service frontends, NodePorts (times node addresses) and tunnels together.
    pub max_frontends: u32,
}

impl Default for LoadConfig {
    fn default() -> Self {
        Self {
            pin_dir: PathBuf::from("/sys/fs/bpf/fastpath"),
            on_failure: OnFailure::Drop,
            stale_after: Duration::from_secs(2),
            max_sockets: 4096,
            max_local_prefixes: 4096,
            max_frontends: 65536,
        }
    }
}

/// One counter: frames since the programs were loaded, summed over CPUs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Counter {
    /// `endpoint` or `uplink`.
    pub program: &'static str,
    /// Its name, in snake case. Those that begin with `pinhole_` say which hole a frame matched, the
    /// others what became of it: each frame counts in exactly one of the others.
    pub name: &'static str,
    /// One line for `--help`, metrics and documentation.
    pub help: &'static str,
    /// Whether these frames were dropped.
    pub dropped: bool,
    /// Frames.
    pub value: u64,
}

/// Loaded programs, their maps and links.
///
/// Dropped without [`Redirect::shutdown`], it leaves what a killed process leaves: under
/// [`OnFailure::Drop`] the pinned programs stay and, the heartbeat being stale soon, drop; under
/// [`OnFailure::Pass`] nothing.
#[derive(Debug)]
pub struct Redirect {
    object: RedirectObject,
    links: Links,
    slots: Slots,
    pinhole: Entries,
    sizes: Sizes,
}

/// Says to the programs that the daemon lives; without it they do what [`OnFailure`] says.
pub struct Heartbeat(Array<MapData, u64>);

impl std::fmt::Debug for Heartbeat {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Heartbeat")
    }
}

impl Heartbeat {
    /// Says that the daemon lives. The programs compare with `CLOCK_MONOTONIC`; before the first beat
    /// they treat the daemon as gone.
    ///
    /// # Errors
    /// When the map cannot be written.
    pub fn beat(&mut self) -> Result<(), XdpError> {
        let now = clock_gettime(ClockId::Monotonic);
        let seconds = u64::try_from(now.tv_sec).unwrap_or(0);
        let nanos = u64::try_from(now.tv_nsec).unwrap_or(0);
        self.write(seconds.saturating_mul(1_000_000_000).saturating_add(nanos).max(1))
    }

    /// Withdraws the last beat: from now on the daemon counts as gone, as before the first one. For a
    /// daemon that knows it no longer serves (a worker has died).
    ///
    /// # Errors
    /// When the map cannot be written.
    pub fn stop(&mut self) -> Result<(), XdpError> {
        self.write(0)
    }

    fn write(&mut self, value: u64) -> Result<(), XdpError> {
        self.0.set(0, value, 0).map_err(XdpError::map("write the heartbeat"))
    }
}

/// SNAT addresses: node addresses, of which no node has many.
const MAX_SNAT: u32 = 1024;
/// A bound that keeps a typing error from asking for gigabytes of kernel memory.
const MAX_ENTRIES: u32 = 1 << 22;

impl Redirect {
    /// Loads the programs and opens the folder of pins. Nothing is attached yet, and links that a
    /// previous run left there stay as they are until [`Redirect::attach`] or [`Redirect::reap_stale`].
    ///
    /// # Errors
    /// When the kernel is too old or refuses, the folder cannot be made or mounted, another process
    /// holds it, or a limit is out of range.
    pub fn load(config: &LoadConfig) -> Result<Self, XdpError> {
        for (key, value) in [
            ("max_sockets", config.max_sockets),
            ("max_local_prefixes", config.max_local_prefixes),
            ("max_frontends", config.max_frontends),
        ] {
            if value == 0 || value > MAX_ENTRIES {
                return Err(XdpError::Limit { key, max: MAX_ENTRIES });
            }
        }
        let sizes = Sizes {
            sockets: config.max_sockets,
            local_prefixes: config.max_local_prefixes,
            exact: config.max_frontends,
            snat: MAX_SNAT,
        };
        let mut object = RedirectObject::load(sizes)?;
        let pin = config.on_failure == OnFailure::Drop;
        let on_failure = if pin { ON_FAILURE_DROP } else { ON_FAILURE_PASS };
        let stale_after_ns = u64::try_from(config.stale_after.as_nanos()).unwrap_or(u64::MAX);
        object
            .config
            .set(0, Config { stale_after_ns, on_failure, zero: 0 }, 0)
            .map_err(XdpError::map("write the configuration of the XDP programs"))?;
        // Last, because it is the only step that leaves something behind.
        let pins = if pin {
            Some(PinDir::create(&config.pin_dir)?)
        } else {
            PinDir::open_existing(&config.pin_dir)?
        };
        let links = Links::new(pins, pin)?;
        Ok(Self { object, links, slots: Slots::new(config.max_sockets), pinhole: Entries::default(), sizes })
    }

    /// Puts the role's program on a device of the calling thread's network namespace, and returns the
    /// mode obtained. Register the device's sockets first, else its frames meet `on_failure` meanwhile.
    ///
    /// A link of a previous run is taken over: its program is replaced at one stroke. A device that is
    /// attached already keeps its link.
    ///
    /// # Errors
    /// [`XdpError::NoDevice`], [`XdpError::Busy`] for a foreign program, [`XdpError::Native`] when native
    /// mode was demanded and refused, or what else the kernel says.
    pub fn attach(
        &mut self,
        ifindex: u32,
        name: &str,
        role: Role,
        request: ModeRequest,
    ) -> Result<Mode, XdpError> {
        self.links.attach(&mut self.object.ebpf, ifindex, name, role, request)
    }

    /// Takes the program off a device and forgets its sockets. A device that is gone or was never
    /// attached is fine.
    ///
    /// # Errors
    /// When a map or the folder of pins cannot be written.
    pub fn detach(&mut self, ifindex: u32) -> Result<(), XdpError> {
        let mut result = self.links.detach(ifindex);
        for queue in self.slots.queues(ifindex) {
            result = result.and(self.unregister_socket(ifindex, queue));
        }
        result
    }

    /// Drops the links of a previous run that no [`Redirect::attach`] took over; to be called once all that
    /// is wanted is attached: whatever they protected is open then. Returns how many there were.
    ///
    /// # Errors
    /// When a pin cannot be removed.
    pub fn reap_stale(&mut self) -> Result<usize, XdpError> {
        self.links.reap_stale()
    }

    /// Devices attached: index, name, role and mode.
    pub fn attached(&self) -> impl Iterator<Item = (u32, &str, Role, Mode)> {
        self.links.iter()
    }

    /// Whether the links stay, and drop, when this process is killed.
    ///
    /// False under [`OnFailure::Pass`], and where the BPF file system was mounted here in a mount
    /// namespace of its own (`ip netns exec`, a container without the host's `/sys/fs/bpf`): that mount
    /// ends with the process. Worth a warning.
    #[must_use]
    pub fn links_outlive_process(&self) -> bool {
        self.links.outlive_process()
    }

    /// Sends the frames of a queue to an AF_XDP socket, which is to be bound to that very queue: the
    /// kernel drops frames of any other. A queue that has a socket gets the new one.
    ///
    /// # Errors
    /// [`XdpError::NoFreeSlot`], or when `fd` is no AF_XDP socket.
    pub fn register_socket(&mut self, ifindex: u32, queue: u32, fd: BorrowedFd<'_>) -> Result<(), XdpError> {
        let key = SocketKey { ifindex, queue };
        let known = self.slots.get(key).is_some();
        let slot =
            self.slots.take(key).ok_or(XdpError::NoFreeSlot { ifindex, queue, max: self.sizes.sockets })?;
        let result = self
            .object
            .sockets
            .set(slot, fd, 0)
            .and_then(|()| self.object.slots.insert(key, slot, 0))
            .map_err(XdpError::map("register an AF_XDP socket"));
        if result.is_err() && !known {
            self.slots.release(key);
        }
        result
    }

    /// Stops sending the frames of a queue to its socket. A queue without one is fine.
    ///
    /// # Errors
    /// When a map cannot be written.
    pub fn unregister_socket(&mut self, ifindex: u32, queue: u32) -> Result<(), XdpError> {
        let key = SocketKey { ifindex, queue };
        let Some(slot) = self.slots.get(key) else { return Ok(()) };
        gone_is_fine(self.object.slots.remove(&key))?;
        // A socket that was closed has left the map by itself.
        gone_is_fine(self.object.sockets.unset(slot))?;
        self.slots.release(key);
        Ok(())
    }

    /// Hands out the heartbeat, once: to beat from a thread that nothing holds up.
    pub fn take_heartbeat(&mut self) -> Option<Heartbeat> {
        self.object.heartbeat.take().map(Heartbeat)
    }

    /// Makes the uplink's pinhole what `pinhole` says. Entries that stay are not touched, and new ones
    /// work before old ones end.
    ///
    /// # Errors
    /// [`XdpError::TooMany`] and [`XdpError::Invalid`] before anything is changed; a map error in the
    /// middle, after which the next call goes on from what the maps hold.
    pub fn set_pinhole(&mut self, pinhole: &Pinhole) -> Result<(), XdpError> {
        let desired = Entries::compile(pinhole, self.sizes)?;
        self.pinhole.apply(&desired, &mut self.object, self.sizes)
    }

    /// All counters of both programs.
    ///
    /// # Errors
    /// When the map cannot be read.
    pub fn counters(&self) -> Result<Vec<Counter>, XdpError> {
        let mut counters = Vec::new();
        for (index, program) in [(PROGRAM_ENDPOINT, "endpoint"), (PROGRAM_UPLINK, "uplink")] {
            let cpus = self.object.counters.get(&index, 0).map_err(XdpError::map("read the XDP counters"))?;
            for (outcome, programs, name, help) in OUTCOMES {
                if programs.contains(&index) {
                    let value = cpus.iter().filter_map(|cpu| cpu.get(outcome as usize)).sum();
                    let dropped = is_drop(outcome, index);
                    counters.push(Counter { program, name, help, dropped, value });
                }
            }
        }
        Ok(counters)
    }

    /// Takes the programs off every device, drops what a previous run left, and removes the folder of
    /// pins: nothing stays behind. (A BPF file system that was mounted at `/sys/fs/bpf` stays, because
    /// others may have begun to use it.)
    ///
    /// # Errors
    /// The first of whatever failed; the rest is done all the same.
    pub fn shutdown(self) -> Result<(), XdpError> {
        self.links.shutdown()
    }

    /// The loaded program of a role, for test runs.
    #[doc(hidden)]
    pub fn program(&mut self, role: Role) -> Result<&mut aya::programs::Xdp, XdpError> {
        crate::object::program(&mut self.object.ebpf, role.program())
    }

    /// What the programs remember of datagrams in fragments, for tests.
    #[doc(hidden)]
    pub fn fragments(&mut self) -> &mut HashMap<MapData, FragmentKey, Fragment> {
        &mut self.object.fragments
    }
}

fn gone_is_fine(result: Result<(), aya::maps::MapError>) -> Result<(), XdpError> {
    match result {
        Ok(()) | Err(aya::maps::MapError::KeyNotFound) => Ok(()),
        Err(aya::maps::MapError::SyscallError(error))
            if error.io_error.kind() == std::io::ErrorKind::NotFound =>
        {
            Ok(())
        }
        Err(source) => Err(XdpError::Map { what: "unregister an AF_XDP socket", source }),
    }
}

/// Whether the program drops the frames it counts so.
fn is_drop(outcome: Outcome, program: u32) -> bool {
    match outcome {
        Outcome::DroppedVlan0 | Outcome::StaleDropped | Outcome::NoSocketDropped => true,
        Outcome::Malformed => program == PROGRAM_ENDPOINT,
        _ => false,
    }
}

const BOTH: &[u32] = &[PROGRAM_ENDPOINT, PROGRAM_UPLINK];
const UPLINK: &[u32] = &[PROGRAM_UPLINK];

const OUTCOMES: [(Outcome, &[u32], &str, &str); 15] = [
    (Outcome::Redirected, BOTH, "redirected", "Frames handed to the AF_XDP socket of their queue"),
    (Outcome::PassedNotOurs, BOTH, "passed_not_ours", "Frames that are not ours, left to the kernel"),
    (Outcome::PassedVlan, BOTH, "passed_vlan", "VLAN-tagged frames, left to the kernel"),
    (
        Outcome::DroppedVlan0,
        BOTH,
        "dropped_vlan0",
        "Frames tagged with VLAN 0 and else ours, dropped: the kernel would take them past the policies",
    ),
    (Outcome::StaleDropped, BOTH, "stale_dropped", "Frames of ours dropped because the heartbeat was stale"),
    (
        Outcome::StalePassed,
        BOTH,
        "stale_passed",
        "Frames of ours left to the kernel because the heartbeat was stale",
    ),
    (
        Outcome::NoSocketDropped,
        BOTH,
        "no_socket_dropped",
        "Frames of ours dropped because their queue had no socket",
    ),
    (
        Outcome::NoSocketPassed,
        BOTH,
        "no_socket_passed",
        "Frames of ours left to the kernel because their queue had no socket",
    ),
    (
        Outcome::Malformed,
        BOTH,
        "malformed",
        "Frames with cut or contradictory headers, left to the kernel (endpoint: dropped)",
    ),
    (Outcome::Vxlan, UPLINK, "pinhole_vxlan", "VXLAN packets to a tunnel address of this node"),
    (Outcome::Pod, UPLINK, "pinhole_pod", "Packets to a local pod prefix"),
    (Outcome::Frontend, UPLINK, "pinhole_frontend", "Packets to a service frontend"),
    (Outcome::NodePort, UPLINK, "pinhole_node_port", "Packets to a NodePort"),
    (Outcome::Snat, UPLINK, "pinhole_snat", "Packets to the SNAT range of a node address"),
    (Outcome::IcmpError, UPLINK, "pinhole_icmp_error", "ICMP errors that quote a packet of ours"),
];
