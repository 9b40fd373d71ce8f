//! [`Preparer`]: makes devices ready for the dataplane, and makes them again what they were.
//!
//! What is needed, and why (`docs` of the kernel's veth and AF_XDP):
//! - A queue of a veth without a socket loses packets, and each worker wants a queue of its own: channels are raised
//!   to the number of workers, never lowered.
//! - With a program in generic mode the device must not merge packets before it (GRO, LRO): a merged packet is longer
//!   than a frame. Nor must a pod send them merged (GSO).
//! - A packet whose checksum the sender left to the device crosses a veth unfinished, and AF_XDP does not tell. Inside
//!   a pod transmit checksums are switched off where its namespace is known; elsewhere the dataplane finishes them. A
//!   veth as uplink (labs) hands unfinished ones, and packets for segmentation, to the other node: off.
//!
//! Sysctls are left alone: what the program redirects never reaches the kernel's IP layer, so `rp_filter` and
//! `forwarding` do not apply, and what it passes is to be treated as the administrator set.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use nix::libc;

use super::decode::{IFF_UP, LINK_HEADER};
use super::ethtool::{Ethtool, Offload, Queues};
use super::view::{Link, LinkKind};
use super::wire::{NLM_F_ACK, RTM_NEWLINK, Request};
use super::{Error, Netlink, netns};

mod record;

use record::{Original, Record};

/// What a device is to be like.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// Administratively up.
    pub up: bool,
    /// At least so many queues each way, as far as the device has them; 0 leaves them.
    pub queues: u32,
    /// Offloads to switch off.
    pub off: Vec<Offload>,
    /// Offloads to switch on.
    pub on: Vec<Offload>,
}

impl Plan {
    /// For the host's end of a pod's veth. `generic` is the program's mode, `queues` the number of workers.
    #[must_use]
    pub fn pod(generic: bool, queues: u32) -> Self {
        Self {
            up: true,
            queues,
            off: if generic { vec![Offload::Merge] } else { Vec::new() },
            on: Vec::new(),
        }
    }

    /// For the pod's end, in the pod's namespace.
    #[must_use]
    pub fn pod_end(generic: bool) -> Self {
        let mut off = vec![Offload::TxChecksum];
        if generic {
            // A native program has the kernel do this by itself.
            off.push(Offload::Segmentation);
        }
        Self { up: false, queues: 0, off, on: vec![Offload::Gro] }
    }

    /// For an uplink; it must be up already.
    #[must_use]
    pub fn uplink(kind: &LinkKind, generic: bool, queues: u32) -> Self {
        let mut off = Vec::new();
        if generic {
            off.push(Offload::Merge);
        }
        if *kind == LinkKind::Veth {
            off.push(Offload::TxChecksum);
            off.push(Offload::Segmentation);
        }
        Self { up: false, queues, off, on: Vec::new() }
    }
}

/// A device made ready.
#[derive(Clone, Debug)]
pub struct Prepared {
    /// The device as it is now.
    pub link: Link,
    /// Network namespace it is in; `None` is the daemon's.
    pub netns: Option<PathBuf>,
    /// Its queues in use.
    pub queues: Queues,
    /// What could not be had, one sentence each; the dataplane works without.
    pub notes: Vec<String>,
}

/// Changes devices, and keeps the record to change them back.
#[derive(Debug)]
pub struct Preparer {
    tools: Tools,
    record: Record,
}

/// Sockets of one network namespace.
#[derive(Debug)]
struct Tools {
    netlink: Netlink,
    ethtool: Ethtool,
}

impl Tools {
    fn open() -> Result<Self, Error> {
        Ok(Self { netlink: Netlink::route()?, ethtool: Ethtool::open()? })
    }
}

impl Preparer {
    /// Opens sockets in the calling thread's network namespace, and reads what an earlier daemon recorded in
    /// `state_dir`, which must exist.
    ///
    /// # Errors
    /// [`Error::Socket`], [`Error::Kernel`], [`Error::Record`].
    pub fn open(state_dir: &Path) -> Result<Self, Error> {
        Ok(Self { tools: Tools::open()?, record: Record::load(state_dir)? })
    }

    /// Names of the devices that are recorded as changed, those of an earlier daemon too.
    pub fn changed(&self) -> impl Iterator<Item = &str> {
        self.record.devices().iter().map(|o| o.name.as_str())
    }

    /// Makes the device with this index as `plan` says.
    ///
    /// # Errors
    /// [`Error::NoDevice`], [`Error::Record`] (nothing is changed then), [`Error::Kernel`] when it cannot be read or
    /// brought up. Other refusals are [`Prepared::notes`].
    pub fn prepare(&mut self, link: u32, plan: &Plan) -> Result<Prepared, Error> {
        let link = self.tools.netlink.link(link)?;
        prepare(&mut self.tools, &mut self.record, link, None, plan)
    }

    /// Makes the other end of the veth `host`, in the network namespace at `path`, as `plan` says.
    ///
    /// # Errors
    /// [`Error::Netns`], [`Error::NotInNetns`], those of [`Netlink::peer_of`], and those of [`Preparer::prepare`].
    pub fn prepare_peer(&mut self, host: u32, path: &Path, plan: &Plan) -> Result<Prepared, Error> {
        let here = self.tools.netlink.link(host)?;
        let peer = self.tools.netlink.peer_of_link(&here)?;
        let record = &mut self.record;
        netns::enter(path, move || {
            let elsewhere = || Error::NotInNetns { device: here.name.clone(), netns: path.to_owned() };
            let mut tools = Tools::open()?;
            let link = match tools.netlink.link(peer.at.index) {
                Ok(link) => link,
                Err(e) if e.is_gone() => return Err(elsewhere()),
                Err(e) => return Err(e),
            };
            // The path comes from a manifest: only the pair's own end may be touched.
            let same = link.kind == LinkKind::Veth
                && link.lower.map(|l| l.index) == Some(here.index)
                && link.mac == Some(peer.mac);
            if !same {
                return Err(elsewhere());
            }
            prepare(&mut tools, record, link, Some(path), plan)
        })
    }

    /// Makes a device what it was before it was first prepared. Detach the program first: it may forbid the change.
    ///
    /// # Errors
    /// [`Error::Kernel`], [`Error::Netns`], [`Error::Record`]. A device that is gone is no error.
    pub fn restore(&mut self, prepared: &Prepared) -> Result<(), Error> {
        match self.record.of(&prepared.link, prepared.netns.as_deref()).cloned() {
            Some(original) => self.restore_one(&original),
            None => Ok(()),
        }
    }

    /// Makes every recorded device what it was, those of an earlier daemon too; what fails stays recorded.
    pub fn restore_all(&mut self) -> Vec<Error> {
        let all = self.record.devices().to_vec();
        all.iter().filter_map(|original| self.restore_one(original).err()).collect()
    }

    fn restore_one(&mut self, original: &Original) -> Result<(), Error> {
        let done = match original.netns.as_deref() {
            None => restore(&mut self.tools, original),
            Some(path) => match netns::enter(path, || restore(&mut Tools::open()?, original)) {
                // The pod is gone, and its device with it; of its namespace a plain file may be left (EINVAL).
                Err(Error::Netns { source, .. })
                    if matches!(source.raw_os_error(), Some(libc::ENOENT | libc::EINVAL)) =>
                {
                    Ok(())
                }
                done => done,
            },
        };
        match done {
            Err(e) if !e.is_gone() => Err(e),
            _ => self.record.remove(original),
        }
    }
}

/// Switches off what `plan` names on the device with this index of the calling thread's namespace, for good: a device
/// made for the dataplane was never any other way, so nothing is recorded.
pub(super) fn switch_off(link: u32, plan: &Plan) -> Result<(), Error> {
    let mut ethtool = Ethtool::open()?;
    let features = ethtool.features(link)?;
    let is_off = |name: &String| plan.off.iter().any(|group| group.includes(name));
    let off: BTreeMap<String, bool> =
        features.changeable.into_iter().filter(is_off).map(|name| (name, false)).collect();
    if off.is_empty() { Ok(()) } else { ethtool.set_features(link, &off) }
}

fn prepare(
    tools: &mut Tools,
    record: &mut Record,
    link: Link,
    netns: Option<&Path>,
    plan: &Plan,
) -> Result<Prepared, Error> {
    let mut notes = Vec::new();
    let features = tools.ethtool.features(link.index)?;
    let is_off = |name: &str| plan.off.iter().any(|group| group.includes(name));
    let is_on = |name: &str| plan.on.iter().any(|group| group.includes(name));
    let changes: BTreeMap<String, bool> = features
        .changeable
        .iter()
        .filter_map(|name| match features.wanted.contains(name) {
            true if is_off(name) => Some((name.clone(), false)),
            false if is_on(name) => Some((name.clone(), true)),
            _ => None,
        })
        .collect();
    let channels = tools.ethtool.channels(link.index)?;
    let more = channels.map(|now| now.at_least(plan.queues)).filter(|more| Some(*more) != channels);
    let raise = plan.up && !link.up;

    // What is recorded already is older than what the device is now, and is what it was.
    let mut original = record.of(&link, netns).cloned().unwrap_or_else(|| Original::of(&link, netns));
    for (name, on) in &changes {
        original.features.entry(name.clone()).or_insert(!on);
    }
    if more.is_some() {
        original.channels = original.channels.or(channels);
    }
    original.was_down |= raise;
    record.put(original)?;

    if !changes.is_empty()
        && let Err(e) = tools.ethtool.set_features(link.index, &changes)
    {
        refuse_gone(e, &mut notes)?;
    }
    if let Some(more) = more
        && let Err(e) = tools.ethtool.set_channels(link.index, &more)
    {
        refuse_gone(e, &mut notes)?;
    }
    if raise {
        tools.netlink.set_up(&link, true)?;
    }

    let active = tools.ethtool.features(link.index)?.active;
    let left: Vec<&str> = active.iter().map(String::as_str).filter(|name| is_off(name)).collect();
    if !left.is_empty() {
        notes.push(format!("'{}' keeps these offloads on: {}", link.name, left.join(", ")));
    }
    let link = tools.netlink.link(link.index)?;
    let queues = tools.ethtool.queues(&link)?;
    if queues.rx.min(queues.tx) < plan.queues {
        notes.push(format!(
            "'{}' has {} receive and {} transmit queues for {} workers: some share one, or have none \
             (create veths with numrxqueues and numtxqueues to match)",
            link.name, queues.rx, queues.tx, plan.queues
        ));
    }
    Ok(Prepared { link, netns: netns.map(Path::to_owned), queues, notes })
}

/// An error that says the device is gone is passed on; another becomes a note.
fn refuse_gone(e: Error, notes: &mut Vec<String>) -> Result<(), Error> {
    if e.is_gone() {
        return Err(e);
    }
    notes.push(e.to_string());
    Ok(())
}

fn restore(tools: &mut Tools, original: &Original) -> Result<(), Error> {
    let link = tools.netlink.link(original.index)?;
    if !original.is_of(&link, original.netns.as_deref()) {
        // Another device has its index: ours is gone.
        return Ok(());
    }
    // Every step is tried; the first failure is reported.
    let mut result = Ok(());
    if original.was_down && link.up {
        result = result.and(tools.netlink.set_up(&link, false));
    }
    if let Some(channels) = &original.channels {
        result = result.and(tools.ethtool.set_channels(link.index, channels));
    }
    if !original.features.is_empty() {
        result = result.and(tools.ethtool.set_features(link.index, &original.features));
    }
    result
}

impl Netlink {
    /// Brings a device up or down.
    pub(super) fn set_up(&mut self, link: &Link, up: bool) -> Result<(), Error> {
        let mut header = [0; LINK_HEADER];
        let flags = if up { IFF_UP } else { 0 };
        for (at, value) in [(4, link.index), (8, flags), (12, IFF_UP)] {
            if let Some(place) = header.get_mut(at..at + 4) {
                place.copy_from_slice(&value.to_ne_bytes());
            }
        }
        let what = || format!("bring the device '{}' {}", link.name, if up { "up" } else { "down" });
        self.call(what, Request::new(RTM_NEWLINK, NLM_F_ACK, &header), |_| {})
            .map_err(|e| e.or_no_device(&link.name))
    }
}
