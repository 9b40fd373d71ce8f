//! `attach`: devices become ports. Opens the sockets of a device, has its queues taken by workers, attaches
//! the XDP program; and takes all of it back when the device or its pod goes.
#![forbid(unsafe_code)]

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;

use fastpath::engine::{Engine, EngineError};
use fastpath::io::frame::HEADROOM;
use fastpath::io::xsk::{self, OpenConfig, Umem, XskError, XskPort};
use fastpath::packet::{Mac, PortId};
use fastpath::snapshot::PortRole;
use fastpath_xdp::outbox::Sender;
use fastpath_xdp::{Mode, ModeRequest, Redirect, Role, XdpError};

use crate::compile::Port;
use crate::model::ObjectName;
use crate::netdev::features::RedirectTargets;
use crate::netdev::{self, Link, LinkKind, NetView, Offload, Plan, Prepared, Preparer};

/// A device that should be a port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// Its role.
    pub role: PortRole,
    /// The pod behind it, for role `Pod`.
    pub pod: Option<ObjectName>,
    /// MAC address of the pod's side, where the manifest names it.
    pub peer_mac: Option<Mac>,
    /// The pod's network namespace, where the manifest names it.
    pub netns: Option<std::path::PathBuf>,
}

impl Wanted {
    /// Whether a port that was attached for `old` can go on for this: to attach it again costs packets, and leaves the
    /// device without its program for a moment.
    fn keeps(&self, old: &Self) -> bool {
        (self.role, &self.netns) == (old.role, &old.netns)
    }
}

/// Why a device did not become a port.
#[derive(Debug, thiserror::Error)]
pub enum AttachError {
    /// There is no such device (yet).
    #[error("no such network device")]
    NoDevice,
    /// The device is down.
    #[error("the device is down: set it up")]
    Down,
    /// The device has no Ethernet address.
    #[error("the device has no Ethernet address: only Ethernet devices can be ports")]
    NotEthernet,
    /// Packets of the device's MTU do not fit a frame.
    #[error("MTU {mtu} does not fit frames of {frame_size} bytes: lower the MTU or raise memory.frame_size")]
    MtuTooLarge {
        /// The device's MTU.
        mtu: u32,
        /// Configured frame size in bytes.
        frame_size: u32,
    },
    /// All port numbers are taken.
    #[error("no port number left")]
    NoPortId,
    /// The kernel's network configuration could not be read or changed.
    #[error(transparent)]
    Netdev(#[from] netdev::Error),
    /// The AF_XDP socket could not be opened.
    #[error(transparent)]
    Socket(#[from] XskError),
    /// The XDP program could not be attached.
    #[error(transparent)]
    Xdp(#[from] XdpError),
    /// A worker did not take or give a port.
    #[error(transparent)]
    Engine(#[from] EngineError),
}

/// An attached device.
#[derive(Debug)]
pub struct Attached {
    /// As `compile` sees it.
    pub port: Port,
    /// What it was attached for.
    pub wanted: Wanted,
    /// XDP mode obtained.
    pub mode: Mode,
    /// Whether its sockets share the driver's memory.
    pub zero_copy: bool,
    /// What the device could not be given; the dataplane works without.
    pub notes: Vec<String>,
    prepared: Vec<Prepared>,
    /// Whether it is a veth, and takes redirected frames.
    veth: bool,
    target: bool,
    /// Whether it was said that it does not take them.
    told: bool,
    /// Whether it can carry packets, as far as is known.
    running: bool,
}

impl Attached {
    /// A pod's veth that takes no redirected frames has a note for as long as it is so, and is logged once.
    fn say_of_redirects(&mut self, target: bool) {
        if target || !self.veth || self.wanted.role != PortRole::Pod {
            self.notes.retain(|note| note != NO_TARGET);
        } else if !self.notes.iter().any(|note| note == NO_TARGET) {
            self.notes.push(NO_TARGET.to_owned());
            if !std::mem::replace(&mut self.told, true) {
                tracing::warn!(device = &*self.port.name, "{NO_TARGET}");
            }
        }
    }

    /// Whether it is one end of a veth.
    #[must_use]
    pub fn is_veth(&self) -> bool {
        self.veth
    }

    /// Goes on for another pod, or for one of which something else is known now.
    fn take_on(&mut self, wanted: &Wanted) {
        if self.wanted != *wanted {
            self.port.pod.clone_from(&wanted.pod);
            self.port.peer_mac = wanted.peer_mac;
            self.wanted = wanted.clone();
        }
    }
}

/// How devices are attached.
#[derive(Clone, Debug)]
pub struct AttachConfig {
    /// XDP mode asked for.
    pub mode: ModeRequest,
    /// Sockets' rings and copy mode; device and queue are filled in.
    pub socket: OpenConfig,
    /// Configured frame size in bytes.
    pub frame_size: u32,
    /// Frames of all workers.
    pub frames: usize,
}

/// Attaches and detaches devices. Owns the engine, the sockets' memory and the XDP programs.
#[derive(Debug)]
pub struct Attacher {
    /// The workers.
    pub engine: Engine,
    /// The XDP programs.
    pub redirect: Redirect,
    umem: Umem,
    preparer: Preparer,
    /// What the workers' outboxes send by.
    #[expect(dead_code, reason = "kept for its drop")]
    senders: Vec<Sender>,
    targets: Option<RedirectTargets>,
    config: AttachConfig,
    attached: BTreeMap<Arc<str>, Attached>,
    /// Devices whose sockets could not be opened at the last attempt.
    refused: BTreeSet<String>,
    /// Numbers given back, oldest first, with the generation from which no worker knows them any more.
    freed: VecDeque<(PortId, u32)>,
    next_id: u16,
}

impl Attacher {
    /// Takes over engine, memory and programs; nothing is attached yet.
    #[must_use]
    pub fn new(
        engine: Engine,
        umem: Umem,
        redirect: Redirect,
        preparer: Preparer,
        senders: Vec<Sender>,
        config: AttachConfig,
    ) -> Self {
        Self {
            engine,
            redirect,
            umem,
            preparer,
            // A kernel that does not tell sends by sockets.
            targets: if senders.is_empty() { None } else { RedirectTargets::open().ok() },
            senders,
            config,
            attached: BTreeMap::new(),
            refused: BTreeSet::new(),
            freed: VecDeque::new(),
            next_id: 0,
        }
    }

    /// What is attached, by device name.
    pub fn attached(&self) -> impl Iterator<Item = &Attached> {
        self.attached.values()
    }

    /// The ports, as `compile` takes them.
    #[must_use]
    pub fn ports(&self) -> BTreeMap<PortId, Port> {
        self.attached.values().map(|a| (a.port.id, a.port.clone())).collect()
    }

    /// Makes what is attached be what is wanted; `generation` is the last one published.
    /// Returns what could not be done, by device.
    pub fn reconcile(
        &mut self,
        wanted: &BTreeMap<String, Wanted>,
        view: &NetView,
        generation: u32,
    ) -> Vec<(String, AttachError)> {
        let mut problems = Vec::new();
        let gone: Vec<Arc<str>> = self
            .attached
            .values()
            .filter(|a| {
                let link = view.links.get(&a.port.ifindex).filter(|l| *l.name == *a.port.name);
                link.is_none() || !wanted.get(&*a.port.name).is_some_and(|w| w.keeps(&a.wanted))
            })
            .map(|a| Arc::clone(&a.port.name))
            .collect();
        for name in gone {
            if let Err(e) = self.detach(&name, generation) {
                problems.push((name.to_string(), e));
            }
        }
        self.refused.retain(|name| wanted.contains_key(name));
        let before = self.attached.len();
        for (name, wanted) in wanted {
            match self.attached.get_mut(name.as_str()) {
                Some(attached) => {
                    attached.take_on(wanted);
                    follow(attached, view);
                }
                None => match self.attach(name, wanted, view) {
                    Ok(()) => drop(self.refused.remove(name)),
                    Err(e) => {
                        if matches!(e, AttachError::Socket(_)) {
                            self.refused.insert(name.clone());
                        }
                        problems.push((name.clone(), e));
                    }
                },
            }
        }
        if self.attached.len() > before {
            self.look_at_redirects();
        }
        problems
    }

    fn attach(&mut self, name: &str, wanted: &Wanted, view: &NetView) -> Result<(), AttachError> {
        let link = view.link_by_name(name).ok_or(AttachError::NoDevice)?;
        if wanted.role == PortRole::Pod && link.kind != LinkKind::Veth {
            // All IP of a port of this role goes to the socket: by a wrong annotation that would be a NIC's.
            return Err(
                netdev::Error::NotVeth { device: name.to_owned(), kind: link.kind.to_string() }.into()
            );
        }
        if !link.up {
            return Err(AttachError::Down);
        }
        let mac = link.mac.ok_or(AttachError::NotEthernet)?;
        self.fits(link)?;
        let id = self.take_id().ok_or(AttachError::NoPortId)?;
        let mut parts = Parts::default();
        let (mode, queues) = match self.open(link, wanted, id, &mut parts) {
            Ok(done) => done,
            Err(e) => {
                self.undo(link.index, id, parts);
                return Err(e);
            }
        };
        let notes: Vec<String> = parts.prepared.iter().flat_map(|p| p.notes.iter().cloned()).collect();
        let mut attached = Attached {
            port: Port {
                id,
                ifindex: link.index,
                name: Arc::from(name),
                role: wanted.role,
                pod: wanted.pod.clone(),
                mac,
                peer_mac: wanted.peer_mac,
                mtu: 0,
                queues,
                redirect: false,
            },
            wanted: wanted.clone(),
            mode,
            zero_copy: parts.zero_copy,
            notes,
            prepared: parts.prepared,
            veth: link.kind == LinkKind::Veth,
            target: false,
            told: false,
            running: false,
        };
        follow(&mut attached, view);
        tracing::info!(
            device = name,
            port = id.0,
            mode = mode.as_str(),
            queues = attached.port.queues.len(),
            "attached"
        );
        for note in &attached.notes {
            tracing::debug!(device = name, "{note}");
        }
        self.attached.insert(Arc::clone(&attached.port.name), attached);
        Ok(())
    }

    /// Prepares the device, opens a socket for each queue, gives the queues to workers, attaches the program.
    fn open(
        &mut self,
        link: &Link,
        wanted: &Wanted,
        id: PortId,
        parts: &mut Parts,
    ) -> Result<(Mode, Vec<u16>), AttachError> {
        let role = if wanted.role == PortRole::Uplink { Role::Uplink } else { Role::Endpoint };
        let queues = self.prepare(link, wanted, self.config.mode == ModeRequest::Generic, parts)?;
        parts.zero_copy = true;
        let mut sockets = Vec::new();
        for queue in 0..queues {
            let mut config = OpenConfig { ifname: link.name.clone(), queue, ..self.config.socket.clone() };
            if wanted.role != PortRole::Uplink {
                // A veth only copies: no attempt at zero copy on memory of its own.
                config.mode = xsk::Mode::Copy;
            }
            config.fill_start = match wanted.role {
                PortRole::Pod => self.pod_fill_start(),
                // It carries the traffic of all pods: the first burst is not to be lost to the growing.
                PortRole::Uplink | PortRole::Host => config.rx_ring,
            };
            config.group = u32::try_from(self.worker_of(id, queue)).unwrap_or(0);
            if self.refused.contains(&link.name) {
                config.wait = WAIT_AGAIN;
            }
            let port = self.umem.open(&config)?;
            parts.zero_copy &= port.zero_copy();
            let socket = port.fd().try_clone_to_owned();
            parts.ports.push_back(port);
            let failed =
                |source| XskError::Open { ifname: config.ifname.clone(), queue, mode: config.mode, source };
            sockets.push(socket.map_err(failed)?);
        }
        while let Some(port) = parts.ports.pop_front() {
            let queue = u16::try_from(parts.queues.len()).unwrap_or(u16::MAX);
            let worker = self.worker_of(id, queue.into());
            // First, so that the port is taken back also when the worker takes it late.
            parts.queues.push(u16::try_from(worker).unwrap_or(0));
            self.engine.add_port(worker, id, queue, Box::new(port))?;
        }
        // Only now, when the workers have stocked them: a packet for a socket without frames is lost.
        for (queue, socket) in (0..).zip(&sockets) {
            self.redirect.register_socket(link.index, queue, socket.as_fd())?;
        }
        let mode = self.redirect.attach(link.index, &link.name, role, self.config.mode)?;
        if mode == Mode::Generic && self.config.mode != ModeRequest::Generic {
            self.prepare(link, wanted, true, parts)?;
        }
        Ok((mode, parts.queues.clone()))
    }

    /// Queue 0 receives most: it goes to another worker for each port, and where there are as many queues
    /// as workers, each worker has one of its own to send by.
    fn worker_of(&self, id: PortId, queue: u32) -> usize {
        (usize::from(id.0) + usize::try_from(queue).unwrap_or(0)) % self.engine.workers().max(1)
    }

    /// Frames a pod's queue gets to begin with: so many that a first burst finds room on a node of few pods, and so
    /// few, the more there are, that 250 quiet pods hold two thirds of all.
    fn pod_fill_start(&self) -> u32 {
        let worker = self.config.frames / self.engine.workers().max(1);
        let spared = worker / 8 / self.attached.len().max(1);
        u32::try_from(spared.min(self.umem.arena_frames() / 32)).unwrap_or(0)
    }

    /// Brings both ends of the device into the state the mode needs; returns its queues.
    fn prepare(
        &mut self,
        link: &Link,
        wanted: &Wanted,
        generic: bool,
        parts: &mut Parts,
    ) -> Result<u32, AttachError> {
        let workers = u32::try_from(self.engine.workers()).unwrap_or(1);
        let mut plan = match wanted.role {
            PortRole::Uplink => Plan::uplink(&link.kind, generic, workers),
            PortRole::Pod | PortRole::Host => Plan::pod(generic, workers),
        };
        if self.targets.is_some() && link.kind == LinkKind::Veth && !plan.off.contains(&Offload::Segmentation)
        {
            // With it, what a socket sends overtakes what is redirected: they wait in different queues of the kernel.
            plan.off.push(Offload::Segmentation);
        }
        let prepared = self.preparer.prepare(link.index, &plan)?;
        let queues = prepared.queues.rx.max(1);
        parts.prepared.push(prepared);
        if let Some(netns) = &wanted.netns {
            let end = self.preparer.prepare_peer(link.index, netns, &Plan::pod_end(generic))?;
            parts.prepared.push(end);
        }
        Ok(queues)
    }

    fn detach(&mut self, name: &str, generation: u32) -> Result<(), AttachError> {
        let Some(attached) = self.attached.remove(name) else { return Ok(()) };
        let port = attached.port;
        tracing::info!(device = name, port = port.id.0, "detached");
        self.freed.push_back((port.id, generation.wrapping_add(1)));
        let detached = self.redirect.detach(port.ifindex);
        let mut result = detached.map_err(AttachError::from);
        for (queue, worker) in (0u16..).zip(&port.queues) {
            let removed = self.engine.remove_port(usize::from(*worker), port.id, queue);
            if let Ok(Some(lost @ 1..)) = removed {
                tracing::warn!(
                    device = name,
                    queue,
                    lost,
                    "the device keeps frames: their memory is not used again"
                );
            }
            result = result.and(removed.map(drop).map_err(AttachError::from));
        }
        // Only now: a driver takes settings back that it refuses under a program or a socket.
        for prepared in &attached.prepared {
            result = result.and(self.preparer.restore(prepared).map_err(AttachError::from));
        }
        result
    }

    /// After a failed attachment: no program, no sockets in the map, device as before, number free.
    fn undo(&mut self, ifindex: u32, id: PortId, parts: Parts) {
        // Each step may find that there is nothing to undo, or that the device is gone.
        let _ = self.redirect.detach(ifindex);
        for (queue, worker) in (0u16..).zip(&parts.queues) {
            let _ = self.engine.remove_port(usize::from(*worker), id, queue);
        }
        for port in parts.ports {
            self.engine.close_port(Box::new(port));
        }
        for prepared in &parts.prepared {
            let _ = self.preparer.restore(prepared);
        }
        // No snapshot ever named it.
        self.freed.push_front((id, 0));
    }

    fn fits(&self, link: &Link) -> Result<(), AttachError> {
        if link.mtu > max_mtu(self.config.frame_size) {
            return Err(AttachError::MtuTooLarge { mtu: link.mtu, frame_size: self.config.frame_size });
        }
        Ok(())
    }

    /// Learns to which devices frames may be redirected; whether that has changed for one of ours.
    ///
    /// Only veths: other drivers send redirected frames by queues that they may not have for every core, and their
    /// sockets' cost is not the one that the outbox saves. A pod that switches its GRO off loses its packets until
    /// the next look.
    pub fn look_at_redirects(&mut self) -> bool {
        let Some(targets) = &mut self.targets else { return false };
        // Not knowing, nothing changes.
        let Ok(targets) = targets.read() else { return false };
        let mut changed = false;
        for attached in self.attached.values_mut() {
            let target = attached.veth && targets.contains(&attached.port.ifindex);
            attached.say_of_redirects(target);
            if core::mem::replace(&mut attached.target, target) != target {
                attached.port.redirect = target && attached.running;
                changed = true;
            }
        }
        changed
    }

    /// A number no worker knows: one given back before the generation all workers have, else a new one.
    fn take_id(&mut self) -> Option<PortId> {
        let acked = self.engine.acked();
        if let Some((id, _)) = self.freed.pop_front_if(|(_, from)| acked >= *from) {
            return Some(id);
        }
        let id = PortId(self.next_id);
        self.next_id = self.next_id.checked_add(1).filter(|n| *n < PortId::NONE.0)?;
        Some(id)
    }

    /// Detaches everything, restores devices, stops the workers; nothing of the daemon stays in the kernel.
    /// Returns what went wrong on the way.
    #[must_use]
    pub fn shutdown(mut self) -> Vec<String> {
        let names: Vec<Arc<str>> = self.attached.keys().cloned().collect();
        let mut problems: Vec<String> = names
            .iter()
            .filter_map(|n| self.detach(n, 0).err().filter(|e| !e.is_gone()).map(|e| format!("{n}: {e}")))
            .collect();
        problems.extend(self.preparer.restore_all().iter().filter(|e| !e.is_gone()).map(ToString::to_string));
        if let Err(e) = self.redirect.shutdown() {
            problems.push(e.to_string());
        }
        self.engine.stop();
        problems
    }
}

/// Largest MTU whose packets fit frames of `frame_size` bytes.
#[must_use]
pub fn max_mtu(frame_size: u32) -> u32 {
    frame_size.saturating_sub(u32::from(HEADROOM) + ETHERNET)
}

/// What a device was given before it is a port.
#[derive(Debug, Default)]
struct Parts {
    prepared: Vec<Prepared>,
    /// Sockets that no worker has yet.
    ports: VecDeque<XskPort>,
    /// Workers that have a queue, by queue.
    queues: Vec<u16>,
    zero_copy: bool,
}

/// What is said of a veth that the outbox cannot send to.
const NO_TARGET: &str = "full vectors leave by the socket in spite of workers.transmit = \"together\": at the other end GRO is off and \
                         could not be switched on, or there are more queues than here";

/// How long another attempt waits for a queue that somebody else has: it has been waited for, and the control thread has
/// others to serve.
const WAIT_AGAIN: Duration = Duration::from_millis(10);
/// Bytes of an Ethernet header.
const ETHERNET: u32 = 14;

impl AttachError {
    /// Whether the device is simply not there.
    #[must_use]
    pub fn is_gone(&self) -> bool {
        match self {
            Self::NoDevice => true,
            Self::Netdev(e) => e.is_gone(),
            _ => false,
        }
    }
}

/// Takes over what the kernel says of an attached device now: addresses and MTU can change while it is a port.
fn follow(attached: &mut Attached, view: &NetView) {
    let port = &mut attached.port;
    let Some(link) = view.links.get(&port.ifindex) else { return };
    let mtu = u16::try_from(link.mtu).unwrap_or(u16::MAX);
    port.mtu = mtu;
    attached.running = link.running;
    // What is redirected to a device that is down is lost without a word; a socket says so.
    port.redirect = attached.target && link.running;
    if let Some(mac) = link.mac {
        port.mac = mac;
    }
    if let Some(peer) = view.peers.get(&port.ifindex) {
        // What the smaller side takes: a veth drops what exceeds its receiver's MTU.
        port.mtu = mtu.min(u16::try_from(peer.mtu).unwrap_or(u16::MAX));
        if attached.wanted.peer_mac.is_none() && port.role != PortRole::Uplink {
            port.peer_mac = Some(peer.mac);
        }
    }
}
