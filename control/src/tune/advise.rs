//! Facts to settings.
#![forbid(unsafe_code)]

use std::collections::BTreeSet;

use super::{Core, Machine, Profile, Setting};
use crate::attach::max_mtu;
use crate::config::{Config, Memory, Polling};

/// Bytes of a huge page.
const HUGE_PAGE: u64 = 2 << 20;
/// Bytes of kernel memory for a buffer of a UMEM, for each queue of each pod.
const TABLE_ENTRY: u64 = 128;
/// Fewest buffers of a worker that are advised.
const FEWEST_FRAMES: u32 = 4096;
/// Bytes of an entry of the flow tables.
const ENTRY: [u64; 2] = [64, 128];

/// The configuration for a machine, from a profile or the defaults on: every key that depends on it, with the reason.
#[must_use]
pub fn advise(machine: &Machine, profile: Option<Profile>) -> Vec<Setting> {
    let base = profile.and_then(|p| p.config().ok()).unwrap_or_default();
    let mut advice = Advice { settings: profile.map(Profile::settings).unwrap_or_default() };
    let workers = advice.workers(machine, profile, &base);
    advice.xdp(machine);
    advice.memory(machine, profile, &base, workers);
    advice.flow(machine, profile, &base);
    advice.settings.sort_by_key(|s| SECTIONS.iter().position(|section| *section == s.section));
    advice.settings
}

/// Sections in the order they are printed.
const SECTIONS: [&str; 5] = ["xdp", "workers", "memory", "flow", "icmp"];

struct Advice {
    settings: Vec<Setting>,
}

impl Advice {
    /// Sets a key, over what the profile has.
    fn set(&mut self, section: &str, key: &str, value: impl ToString, reason: String) {
        let (value, same) = (value.to_string(), |s: &Setting| s.section == section && s.key == key);
        match self.settings.iter_mut().find(|s| same(s)) {
            Some(setting) if setting.value == value => {
                // The profile's reason, and what the machine says to it.
                setting.reason = format!("{} {reason}", setting.reason).trim().to_owned();
            }
            Some(setting) => (setting.value, setting.reason) = (value, reason),
            None => {
                let (section, key) = (section.to_owned(), key.to_owned());
                self.settings.push(Setting { section, key, value, reason });
            }
        }
    }

    /// The workers' cores and polling; returns how many workers.
    fn workers(&mut self, machine: &Machine, profile: Option<Profile>, base: &Config) -> u32 {
        let chosen = Chosen::of(machine, profile);
        let cores: Vec<String> = chosen.cores.iter().map(ToString::to_string).collect();
        self.set("workers", "cores", format!("[{}]", cores.join(", ")), chosen.reason);
        let alone = machine.cores.len() < 2;
        let (polling, reason) = if alone {
            let reason = "There is no other core: a worker that polled without end would leave nothing to anybody else.";
            (Polling::Adaptive, reason)
        } else if chosen.isolated {
            (Polling::Busy, "The cores are isolated: nobody else would use what a sleeping worker leaves.")
        } else {
            match base.workers.polling {
                Polling::Busy => (Polling::Busy, ""),
                Polling::Adaptive => (
                    Polling::Adaptive,
                    "The cores are not isolated: others may use what an idle worker leaves.",
                ),
            }
        };
        self.set("workers", "polling", format!("\"{polling}\""), reason.to_owned());
        u32::try_from(chosen.cores.len().max(1)).unwrap_or(1)
    }

    fn xdp(&mut self, machine: &Machine) {
        let mut reasons: Vec<String> = Vec::new();
        for nic in &machine.uplinks {
            let (name, driver) = (&nic.name, nic.driver.as_deref().unwrap_or("unknown"));
            reasons.push(match nic.native {
                Some(true) => format!("{name} (driver {driver}) runs XDP programs: native is to be expected."),
                Some(false) => format!("{name} (driver {driver}) runs no XDP programs: generic is to be expected, and slower."),
                None => format!("Whether the driver of {name} ({driver}) runs XDP programs the kernel does not tell: tried at start."),
            });
        }
        if reasons.is_empty() {
            reasons.push("No uplink was seen: tried at start.".to_owned());
        }
        self.set("xdp", "mode", "\"auto\"", reasons.join(" "));
        let zero_copy = |wanted| machine.uplinks.iter().filter(move |n| n.zero_copy == Some(wanted));
        let names = |nics: Vec<&str>| nics.join(", ");
        let can = names(zero_copy(true).map(|n| n.name.as_str()).collect());
        let cannot = names(zero_copy(false).map(|n| n.name.as_str()).collect());
        let reason = match (can.as_str(), cannot.as_str()) {
            ("", "") => "Whether a driver shares its memory is tried at start.".to_owned(),
            ("", cannot) => format!("{cannot} copies: its driver does not share its memory."),
            (can, "") => format!("{can} shares its memory."),
            (can, cannot) => format!("{can} shares its memory, {cannot} copies."),
        };
        self.set("xdp", "zero_copy", "\"auto\"", reason);
    }

    fn memory(&mut self, machine: &Machine, profile: Option<Profile>, base: &Config, workers: u32) {
        let wanted = &base.memory;
        let frame_size = self.frame_size(machine);
        let (rx_ring, ring_reason) = rx_ring(machine, profile, wanted);

        // An uplink queue begins with a full ring, and there must be as much again on its way.
        let queues = machine.uplinks.iter().map(|n| n.queues).sum::<usize>();
        let queues = u32::try_from(queues).unwrap_or(u32::MAX).div_ceil(workers).max(1);
        let for_rings = rx_ring.saturating_mul(queues).saturating_mul(2).checked_next_power_of_two();
        let mut frames = wanted.frames_per_worker.max(for_rings.unwrap_or(u32::MAX).min(1 << 20));
        let raised = frames > wanted.frames_per_worker;
        let bytes = |frames: u32| u64::from(frames) * u64::from(frame_size) * u64::from(workers);
        let mut cut = false;
        while machine.memory.is_some_and(|memory| bytes(frames) > memory / 8) && frames > FEWEST_FRAMES {
            frames /= 2;
            cut = true;
        }
        let mut reason = format!(
            "{} MiB of packet buffers for {workers} worker(s); a container's memory limit must hold them and the flow table.",
            bytes(frames) >> 20
        );
        if cut {
            reason.push_str(" No more than an eighth of the memory.");
        } else if raised {
            reason.push_str(&format!(
                " Raised for {queues} uplink queue(s) of {rx_ring} a worker, and as much on its way."
            ));
        }
        self.set("memory", "frames_per_worker", frames, reason);

        let rx_ring = rx_ring.min(prev_power_of_two(frames / 4));
        self.set("memory", "rx_ring", rx_ring, ring_reason);
        if wanted.tx_ring > rx_ring {
            self.set("memory", "tx_ring", rx_ring, "No longer than what is received fills.".to_owned());
        }

        let umem = wanted.umem_frames.min(prev_power_of_two(frames));
        let arena = Memory { umem_frames: umem, rx_ring, ..wanted.clone() }.arena_frames().min(frames);
        let table = u64::from(arena) * TABLE_ENTRY * u64::from(workers);
        let reason = format!("Each pod takes {} KiB of kernel memory for it.", table >> 10);
        self.set("memory", "umem_frames", umem, reason);

        let pages = bytes(frames).div_ceil(HUGE_PAGE);
        let (huge, reason) = match machine.huge_pages {
            Some(free) if free >= pages => {
                (true, format!("{free} pages of 2 MB are free, {pages} are needed."))
            }
            Some(free) => {
                let reason = format!(
                    "{free} pages of 2 MB are free, {pages} are needed: reserve them early after boot (sysctl \
                     vm.nr_hugepages={pages}), then set this."
                );
                (false, reason)
            }
            None => (false, "Whether pages of 2 MB are free could not be read.".to_owned()),
        };
        self.set("memory", "huge_pages", huge, reason);
    }

    /// Sets the frame size by the largest MTU, and returns it.
    fn frame_size(&mut self, machine: &Machine) -> u32 {
        let mtu = machine.uplinks.iter().map(|n| n.mtu).max().unwrap_or(1500);
        let (size, reason) = if mtu <= max_mtu(2048) {
            (2048, format!("A buffer of 2048 bytes holds an MTU of {mtu} with its headroom."))
        } else if mtu <= max_mtu(4096) {
            (4096, format!("An MTU of {mtu} does not fit a buffer of 2048 bytes (up to {}).", max_mtu(2048)))
        } else {
            (4096, format!("An MTU of {mtu} fits no buffer: lower it to {} or less.", max_mtu(4096)))
        };
        self.set("memory", "frame_size", size, reason);
        size
    }

    fn flow(&mut self, machine: &Machine, profile: Option<Profile>, base: &Config) {
        let mut entries = [base.flow.entries_v4, base.flow.entries_v6];
        let bytes =
            |entries: [u32; 2]| entries.iter().zip(ENTRY).map(|(n, size)| u64::from(*n) * size).sum::<u64>();
        let mut why = "";
        if let Some(memory) = machine.memory {
            if profile.is_none() && memory >= 32 << 30 {
                entries = [1 << 20, 1 << 18];
                why = " There is memory for many.";
            }
            while bytes(entries) > memory / 32 && entries.iter().all(|n| *n > 4096) {
                entries = entries.map(|n| n / 2);
                why = " No more than a thirty-second of the memory.";
            }
        }
        for ((key, n), size) in ["entries_v4", "entries_v6"].into_iter().zip(entries).zip(ENTRY) {
            let kib = (u64::from(n) * size) >> 10;
            self.set("flow", key, n, format!("{} connections at once, {kib} KiB.{why}", n / 2));
        }
    }
}

/// Descriptors of an rx ring: more for fast devices, whose bursts are larger.
fn rx_ring(machine: &Machine, profile: Option<Profile>, wanted: &Memory) -> (u32, String) {
    let fastest = machine.uplinks.iter().filter_map(|n| n.speed).max();
    let least = match fastest {
        // A profile that wants short rings knows why.
        _ if matches!(profile, Some(Profile::Latency | Profile::Small | Profile::Dense)) => 0,
        Some(25_000..) => 4096,
        Some(10_000..) => 2048,
        _ => 0,
    };
    let ring = wanted.rx_ring.max(least);
    let reason = match fastest {
        Some(speed) if ring > wanted.rx_ring => format!("Raised for bursts at {speed} Mbit/s."),
        Some(speed) => format!("The uplink has {speed} Mbit/s."),
        None => "The uplink's speed is not known.".to_owned(),
    };
    (ring, reason)
}

fn prev_power_of_two(n: u32) -> u32 {
    n.checked_ilog2().map_or(1, |log| 1 << log)
}

/// The cores for workers.
struct Chosen {
    cores: Vec<usize>,
    isolated: bool,
    reason: String,
}

impl Chosen {
    /// One thread of each physical core, near the uplink, the first core left to the system.
    fn of(machine: &Machine, profile: Option<Profile>) -> Self {
        let nothing = |reason: &str| Self { cores: Vec::new(), isolated: false, reason: reason.to_owned() };
        let Some(first) = machine.cores.first() else {
            return nothing("Which cores there are could not be read: one worker on the last one.");
        };
        if machine.cores.len() == 1 {
            return nothing("There is one core, which the worker shares with everything else.");
        }
        let mut reason = Vec::new();
        let nodes: BTreeSet<usize> = machine.cores.iter().filter_map(|c| c.node).collect();
        let near =
            machine.uplinks.iter().find_map(|n| n.node).filter(|n| nodes.contains(n) && nodes.len() > 1);
        let near_enough = |c: &&Core| near.is_none() || c.node == near;
        let isolated = machine.cores.iter().any(|c| c.isolated && near_enough(&c));
        let eligible = machine.cores.iter().filter(near_enough).filter(|c| c.isolated || !isolated);
        // One of each physical core; the one with the system's first processor is the system's.
        let mut taken: BTreeSet<usize> = if isolated { BTreeSet::new() } else { first.siblings.clone() };
        let mut physical = Vec::new();
        for core in eligible {
            if !core.siblings.iter().any(|id| taken.contains(id)) {
                taken.extend(&core.siblings);
                physical.push(core);
            }
        }
        if physical.is_empty() {
            // The only physical core has two threads: better the second than the first.
            physical.extend(machine.cores.last());
        }
        // With the one left out.
        let all = physical.len() + usize::from(!isolated);
        let wanted = match profile {
            _ if isolated => physical.len(),
            None | Some(Profile::Dense) => (all / 4).clamp(1, 4),
            Some(Profile::Throughput) => (all / 2).clamp(1, 8),
            Some(Profile::Latency) => (all / 4).clamp(1, 2),
            Some(Profile::Small) => 1,
        };
        let queues = machine.uplinks.iter().map(|n| n.queues).max();
        // A second one has pods to serve also where the uplink has one queue.
        let most = queues.map_or(usize::MAX, |q| q.max(2));
        let count = wanted.min(most).min(physical.len()).max(1);
        let chosen = physical.split_at(physical.len() - count).1;
        reason.push(format!("{count} of {} cores.", machine.cores.len()));
        if isolated {
            reason.push("They are isolated from the scheduler.".to_owned());
        } else {
            reason.push(
                "The first is left to the system; isolate these (isolcpus=, or a cpuset) for steady latency."
                    .to_owned(),
            );
        }
        if let Some(node) = near {
            reason.push(format!("On NUMA node {node}, where the uplink is."));
        }
        if wanted > most {
            reason.push(format!("No more than the uplink has queues ({most})."));
        }
        let siblings: Vec<String> = chosen
            .iter()
            .flat_map(|c| c.siblings.iter().filter(|s| **s != c.id))
            .map(ToString::to_string)
            .collect();
        if !siblings.is_empty() {
            reason.push(format!(
                "Their siblings {} share the same physical cores: keep others off them.",
                siblings.join(" ")
            ));
        }
        if let Some(q) = queues.filter(|q| *q > count) {
            reason.push(format!(
                "The uplink has {q} queues, so a worker has several: `ethtool -L` can lower them to {count}."
            ));
        }
        Self { cores: chosen.iter().map(|c| c.id).collect(), isolated, reason: reason.join(" ") }
    }
}
