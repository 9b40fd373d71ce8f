//! Facts to settings.
#![forbid(unsafe_code)]

use super::cores::Chosen;
use super::{Machine, Profile, Setting};
use crate::attach::max_mtu;
use crate::config::{Config, Memory, Polling, Transmit, Workers};
use crate::doctor::checks::version;

/// Bytes of a huge page.
const HUGE_PAGE: u64 = 2 << 20;
/// Bytes of kernel memory for a buffer of a UMEM, for each queue of each pod.
const TABLE_ENTRY: u64 = 128;
/// Fewest buffers of a worker that are advised.
const FEWEST_FRAMES: u32 = 4096;
/// Bytes of an entry of the flow tables, with what finds it and with the third that is kept free.
const ENTRY: [u64; 2] = [100, 196];
/// The kernel since which it tells which devices take redirected frames.
const TELLS_TARGETS: (u32, u32) = (6, 3);

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
        let alone = machine.cores.len() == 1;
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
        self.waiting(machine, base, polling, alone);
        self.transmit(machine, base);
        u32::try_from(chosen.cores.len().max(1)).unwrap_or(1)
    }

    /// What a worker does that has nothing to do.
    fn waiting(&mut self, machine: &Machine, base: &Config, polling: Polling, alone: bool) {
        let Workers { idle_spin, idle_spin_longest, idle_sleep, halt_poll, busy_poll, .. } = &base.workers;
        let (spin, reason) = match polling {
            Polling::Busy => (idle_spin.as_micros(), "Of no effect while polling is busy.".to_owned()),
            Polling::Adaptive if alone => (
                0,
                "The only core: who would send the next packet cannot run while the worker polls.".to_owned(),
            ),
            Polling::Adaptive if idle_spin.is_zero() => {
                (0, "Sleeps at once: the cores are for others too.".to_owned())
            }
            Polling::Adaptive => {
                let us = idle_spin.as_micros();
                (
                    us,
                    format!(
                        "Packets that follow within {us} us find the worker awake, which takes its core for that long."
                    ),
                )
            }
        };
        self.set("workers", "idle_spin_us", spin, reason);
        let (longest, reason) = match polling {
            Polling::Busy => {
                (idle_spin_longest.as_micros(), "Of no effect while polling is busy.".to_owned())
            }
            Polling::Adaptive if alone => (0, "The only core, as for idle_spin_us.".to_owned()),
            Polling::Adaptive if idle_spin.is_zero() => {
                (idle_spin_longest.as_micros(), "Of no effect without idle_spin_us.".to_owned())
            }
            Polling::Adaptive => {
                let us = idle_spin_longest.as_micros();
                (
                    us,
                    format!(
                        "Packets that come in pauses below {us} us are taken up without a wake-up, for the core's time."
                    ),
                )
            }
        };
        self.set("workers", "idle_spin_longest_us", longest, reason);
        let reason = match halt_poll.is_zero() {
            true => "The node's idle cores are left as they are; profile latency keeps them awake, in a virtual machine.".to_owned(),
            false => "For all cores of the node, in a virtual machine; elsewhere it does nothing.".to_owned(),
        };
        self.set("workers", "halt_poll_us", halt_poll.as_micros(), reason);
        let ms = idle_sleep.as_millis();
        let wakes = 1000 / ms.max(1);
        let reason = match polling {
            Polling::Busy => "Of no effect while polling is busy.".to_owned(),
            Polling::Adaptive => {
                format!("Packets wake a worker: without any it looks {wakes} times a second, for timers.")
            }
        };
        self.set("workers", "idle_sleep_ms", ms, reason);
        let nics: Vec<&str> = machine
            .uplinks
            .iter()
            .filter(|n| n.driver.as_deref().is_some_and(|d| d != "veth") && n.native != Some(false))
            .map(|n| n.name.as_str())
            .collect();
        let reason = match (busy_poll.is_zero(), nics.as_slice()) {
            (true, []) => "No uplink is a NIC with native XDP, and polling a veth only moves work from the pod's core to the worker's.".to_owned(),
            (true, nics) => format!(
                "The kernel receives, on the cores of the interrupts. To have the worker receive from {} itself, try 20, with \
                 napi_defer_hard_irqs=2 and gro_flush_timeout=200000 in its folder of /sys/class/net.",
                nics.join(", ")
            ),
            (false, _) => "The worker's own calls receive.".to_owned(),
        };
        self.set("workers", "busy_poll_us", busy_poll.as_micros(), reason);
    }

    fn transmit(&mut self, machine: &Machine, base: &Config) {
        let tells = version(&machine.kernel).is_none_or(|v| v >= TELLS_TARGETS);
        let (transmit, reason) = match base.workers.transmit {
            Transmit::Together if tells => (
                Transmit::Together,
                format!("Linux {} tells which devices take such frames.", machine.kernel),
            ),
            Transmit::Together => {
                let (major, minor) = TELLS_TARGETS;
                let reason = format!(
                    "Linux {} does not tell which devices take frames that are sent together ({major}.{minor} does).",
                    machine.kernel
                );
                (Transmit::Sockets, reason)
            }
            Transmit::Sockets => {
                let reason = "Nothing is kept in the kernel's name for pods that do not read. Where pods are trusted, \"together\" \
                              (profile throughput) forwards four times as many.";
                (Transmit::Sockets, reason.to_owned())
            }
        };
        self.set("workers", "transmit", format!("\"{transmit}\""), reason);
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
        let share = machine.share(8, 4);
        let mut cut = false;
        while share.as_ref().is_some_and(|s| bytes(frames) > s.most) && frames > FEWEST_FRAMES {
            frames /= 2;
            cut = true;
        }
        let mut reason = format!(
            "{} MiB of packet buffers for {workers} worker(s); a container's memory limit must hold them and the flow table.",
            bytes(frames) >> 20
        );
        match &share {
            Some(share) if cut => {
                reason.push_str(&format!(" No more than {} MiB of {}.", share.most >> 20, share.whole));
            }
            _ if raised => reason.push_str(&format!(
                " Raised for {queues} uplink queue(s) of {rx_ring} a worker, and as much on its way."
            )),
            _ => {}
        }
        self.set("memory", "frames_per_worker", frames, reason);

        let rx_ring = rx_ring.min(prev_power_of_two(frames / 4));
        self.set("memory", "rx_ring", rx_ring, ring_reason);
        if wanted.tx_ring > rx_ring {
            self.set("memory", "tx_ring", rx_ring, "No longer than what is received fills.".to_owned());
        }

        let umem = wanted.umem_frames.min(prev_power_of_two(frames));
        let (umems, each) =
            Memory { umem_frames: umem, rx_ring, frames_per_worker: frames, ..wanted.clone() }
                .umem(workers)
                .division();
        let table = u64::from(each) * TABLE_ENTRY * u64::from(workers);
        let mut reason = format!("Each pod takes {} KiB of kernel memory for it", table >> 10);
        reason.push_str(&match umems {
            1 => "; no packet is copied between two ports of a worker.".to_owned(),
            _ => format!(", instead of {} with one UMEM a worker; packets between pods of two of the {umems} are copied.", (table * u64::from(umems)) >> 10),
        });
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
        let mut why = String::new();
        if profile.is_none() && machine.limit.is_none() && machine.memory.is_some_and(|m| m >= 32 << 30) {
            entries = [1 << 20, 1 << 18];
            why = " There is memory for many.".to_owned();
        }
        let share = machine.share(32, 4);
        if let Some(share) = &share {
            while bytes(entries) > share.most && entries.iter().all(|n| *n > 4096) {
                entries = entries.map(|n| n / 2);
                why = format!(" Both tables: no more than {} MiB.", share.most >> 20);
            }
        }
        for ((key, n), size) in ["entries_v4", "entries_v6"].into_iter().zip(entries).zip(ENTRY) {
            let bytes = u64::from(n) * size;
            let part = match &share {
                Some(share) if share.all > 0 => {
                    format!(", {:.1} % of {}", bytes as f64 / share.all as f64 * 100.0, share.whole)
                }
                _ => String::new(),
            };
            self.set(
                "flow",
                key,
                n,
                format!("{} connections at once, {} KiB{part}.{why}", n / 2, bytes >> 10),
            );
        }
    }
}

/// Descriptors of an rx ring: more for fast devices, whose bursts are larger.
fn rx_ring(machine: &Machine, profile: Option<Profile>, wanted: &Memory) -> (u32, String) {
    let fastest = machine.uplinks.iter().filter_map(|n| n.speed).max();
    let least = match fastest {
        // It has few buffers.
        _ if profile == Some(Profile::Small) => 0,
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
