//! What is looked at, and where it is read.
#![forbid(unsafe_code)]

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use serde::Serialize;

use crate::netdev::features::xdp_features;
use crate::netdev::{NetView, Watcher};

/// A processor, as the kernel numbers them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Core {
    /// Its number.
    pub id: usize,
    /// Kept from the scheduler (`isolcpus`).
    pub isolated: bool,
    /// The processors of the same physical core, itself among them.
    pub siblings: BTreeSet<usize>,
    /// Its NUMA node.
    pub node: Option<usize>,
}

/// A device of a default route.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Nic {
    /// Its name.
    pub name: String,
    /// Name of its driver; `None` when the kernel does not tell.
    pub driver: Option<String>,
    /// Receive queues in use.
    pub queues: usize,
    /// Mbit/s; `None` when unknown, as for virtual devices.
    pub speed: Option<u64>,
    /// Its NUMA node.
    pub node: Option<usize>,
    /// Bytes.
    pub mtu: u32,
    /// Whether the driver runs XDP programs; `None` when the kernel does not tell (before Linux 6.3).
    pub native: Option<bool>,
    /// Whether the driver shares its memory with AF_XDP sockets.
    pub zero_copy: Option<bool>,
}

/// What is known of this machine.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Machine {
    /// Release of the kernel.
    pub kernel: String,
    /// Processors that are online and that this process may use.
    pub cores: Vec<Core>,
    /// Bytes of memory.
    pub memory: Option<u64>,
    /// Bytes that the control groups of this process may take, where that is less.
    pub limit: Option<u64>,
    /// Free pages of 2 MB.
    pub huge_pages: Option<u64>,
    /// Devices of the default routes.
    pub uplinks: Vec<Nic>,
    /// What could not be read, one sentence each.
    pub unread: Vec<String>,
}

/// What one thing should take.
#[derive(Debug)]
pub(super) struct Share {
    /// Bytes at the most.
    pub(super) most: u64,
    /// Bytes of what it is a part of.
    pub(super) all: u64,
    /// The same in words.
    pub(super) whole: String,
}

impl Machine {
    /// Reads all of it. Needs a tokio runtime, and no rights.
    #[must_use]
    pub fn read() -> Self {
        let allowed = crate::doctor::facts::cores();
        let mut machine = Self::of(Path::new("/"), &allowed);
        match Watcher::start().map(|w| w.view()) {
            Ok(view) => {
                for index in view.default_route_devices() {
                    let nic = nic(Path::new("/"), &view, index);
                    machine.uplinks.extend(nic);
                }
                if machine.uplinks.is_empty() {
                    machine.unread.push(
                        "the uplink: there is no default route. Name it in uplink.interfaces".to_owned(),
                    );
                }
            }
            Err(e) => machine.unread.push(format!("devices and routes: {e}")),
        }
        machine
    }

    /// What the file systems below `root` tell; `allowed` are the processors that this process may use.
    pub(super) fn of(root: &Path, allowed: &BTreeSet<usize>) -> Self {
        let mut unread = Vec::new();
        let mut text = |path: &str, what: &str| match fs::read_to_string(root.join(path)) {
            Ok(text) => Some(text.trim().to_owned()),
            Err(e) => {
                unread.push(format!("{what}: /{path}: {e}"));
                None
            }
        };
        let kernel = text("proc/sys/kernel/osrelease", "the kernel's release").unwrap_or_default();
        let total =
            text("proc/meminfo", "memory").and_then(|t| kilobytes(&t, "MemTotal:")).map(|kb| kb << 10);
        let pages = "sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages";
        let huge_pages = text(pages, "pages of 2 MB").and_then(|t| t.parse().ok());
        let cpus = "sys/devices/system/cpu";
        let online = text(&format!("{cpus}/online"), "which processors are online").map(|t| numbers(&t));
        let isolated =
            text(&format!("{cpus}/isolated"), "which processors are isolated").map(|t| numbers(&t));
        let nodes = nodes(&root.join("sys/devices/system/node"));
        if nodes.is_empty() {
            unread.push("NUMA nodes: /sys/devices/system/node has none".to_owned());
        }
        let isolated = isolated.unwrap_or_default();
        let online = online.unwrap_or_else(|| allowed.clone());
        let core = |id: usize| {
            let path = root.join(format!("{cpus}/cpu{id}/topology/thread_siblings_list"));
            let mut siblings = fs::read_to_string(path).map(|t| numbers(&t)).unwrap_or_default();
            siblings.insert(id);
            let node = nodes.iter().find(|(_, cpus)| cpus.contains(&id)).map(|(node, _)| *node);
            Core { id, isolated: isolated.contains(&id), siblings, node }
        };
        let limit = limit(root).filter(|limit| total.is_none_or(|total| *limit < total));
        let cores = online.intersection(allowed).map(|id| core(*id)).collect();
        Self { kernel, cores, memory: total, limit, huge_pages, uplinks: Vec::new(), unread }
    }

    /// What one thing should take at the most: a part of the machine's memory, which is for others too, or of the limit of the
    /// control group, which is ours.
    pub(super) fn share(&self, of_machine: u64, of_limit: u64) -> Option<Share> {
        let machine = self.memory.map(|all| (all / of_machine, all, "memory"));
        let limit = self.limit.map(|all| (all / of_limit, all, "memory that the control group may take"));
        let (most, all, what) = [machine, limit].into_iter().flatten().min()?;
        Some(Share { most, all, whole: format!("the {} MiB of {what}", all >> 20) })
    }

    /// What was seen, for people.
    #[must_use]
    pub fn summary(&self) -> Vec<String> {
        let physical: BTreeSet<_> = self.cores.iter().map(|c| &c.siblings).collect();
        let nodes: BTreeSet<_> = self.cores.iter().filter_map(|c| c.node).collect();
        let isolated: Vec<_> = self.cores.iter().filter(|c| c.isolated).map(|c| c.id.to_string()).collect();
        let mut cores = format!("Cores: {} of {} physical ones", self.cores.len(), physical.len());
        if nodes.len() > 1 {
            cores.push_str(&format!(", {} NUMA nodes", nodes.len()));
        }
        if !isolated.is_empty() {
            cores.push_str(&format!(", isolated: {}", isolated.join(" ")));
        }
        let mut lines = vec![format!("Linux {}", self.kernel), cores];
        if let Some(bytes) = self.memory {
            let pages = self.huge_pages.map(|n| format!(", {n} free pages of 2 MB")).unwrap_or_default();
            lines.push(format!("Memory: {} MiB{pages}", bytes >> 20));
        }
        if let Some(bytes) = self.limit {
            lines.push(format!("Memory limit of the control group: {} MiB", bytes >> 20));
        }
        for nic in &self.uplinks {
            let Nic { name, queues, mtu, .. } = nic;
            let driver = nic.driver.as_deref().unwrap_or("unknown");
            let speed = nic.speed.map(|s| format!(", {s} Mbit/s")).unwrap_or_default();
            let node = nic.node.map(|n| format!(", NUMA node {n}")).unwrap_or_default();
            lines.push(format!("Uplink {name}: driver {driver}, {queues} queues, MTU {mtu}{speed}{node}"));
        }
        lines
    }
}

/// The least memory limit of this process's control groups, from its own up to the root; in a container the root is its own.
fn limit(root: &Path) -> Option<u64> {
    let groups = fs::read_to_string(root.join("proc/self/cgroup")).unwrap_or_default();
    let mut limits = Vec::new();
    for line in groups.lines() {
        let mut parts = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (parts.next(), parts.next()) else { continue };
        let (base, file) = match controllers {
            "" => ("sys/fs/cgroup", "memory.max"),
            list if list.split(',').any(|c| c == "memory") => {
                ("sys/fs/cgroup/memory", "memory.limit_in_bytes")
            }
            _ => continue,
        };
        for group in Path::new(path.trim_start_matches('/')).ancestors() {
            let text = fs::read_to_string(root.join(base).join(group).join(file));
            limits.extend(text.ok().and_then(|t| t.trim().parse::<u64>().ok()));
        }
    }
    limits.into_iter().min()
}

/// A device, from the kernel's view and below `root`.
fn nic(root: &Path, view: &NetView, index: u32) -> Option<Nic> {
    let link = view.links.get(&index)?;
    let dir = root.join("sys/class/net").join(&link.name);
    let number = |file: &str| fs::read_to_string(dir.join(file)).ok()?.trim().parse::<i64>().ok();
    let driver = fs::read_link(dir.join("device/driver")).ok();
    let driver = driver.as_deref().and_then(Path::file_name).map(|n| n.to_string_lossy().into_owned());
    let queues = fs::read_dir(dir.join("queues")).map_or(0, |all| {
        all.flatten().filter(|e| e.file_name().to_string_lossy().starts_with("rx-")).count()
    });
    let xdp = xdp_features(index).ok();
    Some(Nic {
        name: link.name.clone(),
        // A veth has none there.
        driver: driver.or_else(|| (link.kind == crate::netdev::LinkKind::Veth).then(|| "veth".to_owned())),
        queues: queues.max(1),
        // -1: unknown.
        speed: number("speed").and_then(|n| u64::try_from(n).ok()).filter(|n| *n > 0),
        node: number("device/numa_node").and_then(|n| usize::try_from(n).ok()),
        mtu: link.mtu,
        native: xdp.map(|f| f.native),
        zero_copy: xdp.map(|f| f.zero_copy),
    })
}

/// Processors of each NUMA node.
fn nodes(dir: &Path) -> Vec<(usize, BTreeSet<usize>)> {
    let Ok(entries) = fs::read_dir(dir) else { return Vec::new() };
    let node = |entry: fs::DirEntry| {
        let number = entry.file_name().to_str()?.strip_prefix("node")?.parse().ok()?;
        let cpus = fs::read_to_string(entry.path().join("cpulist")).ok()?;
        Some((number, numbers(&cpus)))
    };
    let mut all: Vec<_> = entries.flatten().filter_map(node).collect();
    all.sort_unstable();
    all
}

/// A list as the kernel writes it: `0-3,8`.
pub(super) fn numbers(text: &str) -> BTreeSet<usize> {
    let range = |part: &str| {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        Some(first.trim().parse::<usize>().ok()?..=last.trim().parse().ok()?)
    };
    text.trim().split(',').filter_map(range).flatten().collect()
}

/// A line of `/proc/meminfo`, in kB.
fn kilobytes(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|l| l.strip_prefix(name))?;
    line.split_whitespace().next()?.parse().ok()
}
