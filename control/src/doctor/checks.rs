//! The checks of the machine: kernel, rights, devices.
#![forbid(unsafe_code)]

use super::{Facts, Findings};
use crate::attach::max_mtu;
use crate::config::{Config, Encap, Family, OnFailure, XdpMode, ZeroCopy};
use crate::netdev::{Uplink, select_uplinks};

/// The oldest kernel that tests run on.
const OLDEST: (u32, u32) = (6, 1);
/// The kernel since which the kernel itself tells what drivers can do.
const TELLS_FEATURES: (u32, u32) = (6, 3);
/// The least MTU of IPv6 (RFC 8200, 5).
const LEAST_V6: u32 = 1280;
/// Bytes of a huge page.
const HUGE_PAGE: u64 = 2 << 20;
/// Bytes of kernel memory for a buffer of a UMEM, for each socket on it.
const TABLE_ENTRY: u64 = 128;

/// Drivers with native XDP in [`OLDEST`], for kernels that do not tell.
const NATIVE: &[&str] = &[
    "bnxt_en",
    "ena",
    "fsl_dpaa2_eth",
    "fsl_enetc",
    "gve",
    "hv_netvsc",
    "i40e",
    "ice",
    "igb",
    "igc",
    "ixgbe",
    "ixgbevf",
    "mlx4_en",
    "mlx5_core",
    "mvneta",
    "mvpp2",
    "nfp",
    "octeontx2-nicpf",
    "qede",
    "sfc",
    "stmmaceth",
    "thunder-nicvf",
    "tsnep",
    "virtio_net",
];

/// A capability: bit, name, what for, and whether nothing works without.
const CAPABILITIES: &[(u32, &str, &str, bool)] = &[
    (12, "CAP_NET_ADMIN", "devices, routes, XDP", true),
    (13, "CAP_NET_RAW", "AF_XDP sockets", true),
    (39, "CAP_BPF", "XDP programs", true),
    (38, "CAP_PERFMON", "XDP programs that read the clock and pointers", true),
    (
        11,
        "CAP_NET_BROADCAST",
        "follow MAC address and MTU of the pods' sides; else they are read once",
        false,
    ),
];
const IPC_LOCK: u32 = 14;
/// Stands for CAP_BPF and CAP_PERFMON too.
const SYS_ADMIN: u32 = 21;

/// Major and minor of a kernel's release.
pub(crate) fn version(release: &str) -> Option<(u32, u32)> {
    let mut parts = release.split(|c: char| !c.is_ascii_digit());
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

pub(super) fn kernel(facts: &Facts, _: &Config, out: &mut Findings) {
    let release = &facts.kernel;
    match version(release) {
        Some(v) if v >= OLDEST => out.ok(format!("Linux {release}")),
        Some(_) => {
            out.error(format!("Linux {release}"), format!("needs Linux {}.{} or newer", OLDEST.0, OLDEST.1))
        }
        None => out.warning(format!("Linux {release}"), "the version cannot be told from that"),
    }
}

pub(super) fn xdp(facts: &Facts, _: &Config, out: &mut Findings) {
    match &facts.xdp {
        Ok(()) => out.ok("the programs load"),
        Err(e) => out.error(
            format!("the programs do not load: {e}"),
            "run as root or with CAP_BPF, CAP_PERFMON and CAP_NET_ADMIN; the kernel needs CONFIG_BPF_SYSCALL",
        ),
    }
}

pub(super) fn xsk(facts: &Facts, _: &Config, out: &mut Findings) {
    match &facts.xsk {
        Ok(()) => out.ok("sockets can be opened"),
        Err(e) => out.error(
            format!("no socket: {e}"),
            "run as root or with CAP_NET_RAW; the kernel needs CONFIG_XDP_SOCKETS",
        ),
    }
}

pub(super) fn btf(facts: &Facts, _: &Config, out: &mut Findings) {
    match facts.btf {
        true => out.ok("/sys/kernel/btf/vmlinux"),
        false => out.warning("the kernel has no type information", "a kernel with CONFIG_DEBUG_INFO_BTF; not needed to forward, but by tools that look into the programs"),
    }
}

pub(super) fn bpffs(facts: &Facts, config: &Config, out: &mut Findings) {
    let dir = config.xdp.pin_dir.display();
    if facts.bpffs {
        return out.ok(format!("{dir} lies on a BPF file system"));
    }
    let found = format!("{dir} lies on no BPF file system");
    let remedy =
        "mount -t bpf bpf /sys/fs/bpf (on the host); with CAP_SYS_ADMIN the daemon mounts one itself";
    match config.xdp.on_failure {
        OnFailure::Drop if facts.capabilities >> SYS_ADMIN & 1 == 0 => out.error(found, remedy),
        OnFailure::Drop => out.warning(found, remedy),
        OnFailure::Pass => out.ok(format!("{found}, and xdp.on_failure = \"pass\" needs none")),
    }
}

pub(super) fn capabilities(facts: &Facts, config: &Config, out: &mut Findings) {
    let has = |bit: u32| facts.capabilities >> bit & 1 == 1;
    let missing =
        CAPABILITIES.iter().filter(|(bit, ..)| !(has(*bit) || matches!(bit, 38 | 39) && has(SYS_ADMIN)));
    let (needed, useful): (Vec<_>, Vec<_>) = missing.partition(|(.., needed)| *needed);
    for (_, name, why, _) in &needed {
        out.error(
            format!("{name} is missing: {why}"),
            "run as root, or give it to the process (securityContext.capabilities.add, AmbientCapabilities)",
        );
    }
    for (_, name, why, _) in &useful {
        out.warning(format!("{name} is missing: {why}"), "give it to the process too");
    }
    // Turning off offloads that generic XDP cannot go with is done in the pods' namespaces.
    let enters = config.xdp.mode == XdpMode::Generic && !has(SYS_ADMIN);
    if enters {
        out.error(
            "CAP_SYS_ADMIN is missing: xdp.mode = \"generic\" needs it to enter the pods' namespaces",
            "give it to the process too (securityContext.capabilities.add, AmbientCapabilities and CapabilityBoundingSet), or \
             xdp.mode = \"auto\"",
        );
    }
    if needed.is_empty() && useful.is_empty() && !enters {
        out.ok("all that are needed");
    }
}

fn workers(config: &Config) -> u64 {
    u64::try_from(config.workers.cores.len().max(1)).unwrap_or(u64::MAX)
}

fn buffers(config: &Config) -> u64 {
    let frames = u64::from(config.memory.frames_per_worker).saturating_mul(workers(config));
    frames.saturating_mul(config.memory.frame_size.into())
}

pub(super) fn memlock(facts: &Facts, config: &Config, out: &mut Findings) {
    let needed = buffers(config);
    let mib = |n: u64| n >> 20;
    match facts.memlock {
        None => out.ok("no limit"),
        Some(limit) if limit >= needed => {
            out.ok(format!("{} MiB allowed, {} MiB needed", mib(limit), mib(needed)))
        }
        Some(_) if facts.capabilities >> IPC_LOCK & 1 == 1 => out.ok("CAP_IPC_LOCK lifts the limit"),
        Some(limit) => out.error(
            format!("{} MiB allowed, {} MiB needed by [memory]", mib(limit), mib(needed)),
            "CAP_IPC_LOCK, or LimitMEMLOCK=infinity (ulimit -l unlimited)",
        ),
    }
}

pub(super) fn packet_buffers(facts: &Facts, config: &Config, out: &mut Findings) {
    let workers = u32::try_from(workers(config)).unwrap_or(u32::MAX);
    let wanted = config.memory.umem(workers);
    let (umems, frames) = wanted.division();
    // A table of all buffers of its UMEM for each queue of each pod, and a queue for each worker.
    let table = |frames: u32| (u64::from(frames) * TABLE_ENTRY).div_ceil(1 << 10) * u64::from(workers);
    let of_each = if workers > 1 { format!(" for each of {workers} workers") } else { String::new() };
    if umems.saturating_mul(workers) == 1 {
        out.ok(format!("one UMEM of {frames} buffers: {} KiB of kernel memory a pod", table(frames)));
    } else if facts.tap {
        let s = if umems == 1 { "" } else { "s" };
        out.ok(format!(
            "{umems} UMEM{s} of {frames} buffers{of_each}: {} KiB of kernel memory a pod",
            table(frames)
        ));
    } else {
        out.warning(
            format!(
                "no tap device can be made: one UMEM, {} KiB of kernel memory a pod instead of {}",
                table(wanted.frames),
                table(frames)
            ),
            "give the daemon /dev/net/tun (modprobe tun; in a container a mount of /dev/net)",
        );
    }
}

pub(super) fn huge_pages(facts: &Facts, config: &Config, out: &mut Findings) {
    let needed = buffers(config).div_ceil(HUGE_PAGE);
    match (config.memory.huge_pages, facts.huge_pages >= needed) {
        (false, _) => out.ok("not asked for (memory.huge_pages)"),
        (true, true) => out.ok(format!("{} free, {needed} needed", facts.huge_pages)),
        (true, false) => out.warning(
            format!("{} free, {needed} needed: buffers will lie in normal pages", facts.huge_pages),
            format!("sysctl vm.nr_hugepages={needed}, early after boot"),
        ),
    }
}

pub(super) fn cores(facts: &Facts, config: &Config, out: &mut Findings) {
    let missing: Vec<_> = config.workers.cores.iter().filter(|c| !facts.cores.contains(c)).collect();
    if !missing.is_empty() {
        return out.error(
            format!("workers.cores: this process may not run on {missing:?}"),
            "correct workers.cores, or the process's cpuset",
        );
    }
    match facts.cores.len() {
        0 => out.warning("the affinity mask cannot be read", "run it as the daemon will run"),
        1 => out.warning(
            "only one: the worker shares it with everything else",
            "a machine, or a cpuset, of two cores or more",
        ),
        n => out.ok(format!("{n}, {} for workers", workers(config))),
    }
}

/// The uplinks, or nothing when they cannot be told.
fn chosen(facts: &Facts, config: &Config) -> Vec<Uplink> {
    let Ok(net) = &facts.net else { return Vec::new() };
    let max = max_mtu(config.memory.frame_size);
    select_uplinks(net, &config.uplink.interfaces, &config.uplink.cidrs, max).0
}

pub(super) fn uplinks(facts: &Facts, config: &Config, out: &mut Findings) {
    let net = match &facts.net {
        Ok(net) => net,
        Err(e) => return out.error(format!("the network configuration cannot be read: {e}"), "run as root"),
    };
    let max = max_mtu(config.memory.frame_size);
    let (uplinks, errors) = select_uplinks(net, &config.uplink.interfaces, &config.uplink.cidrs, max);
    for e in errors {
        out.error(e.to_string(), "set [uplink] to Ethernet devices that lead to the other nodes");
    }
    let tells = version(&facts.kernel).is_some_and(|v| v >= TELLS_FEATURES);
    for Uplink { link, .. } in uplinks {
        let driver = facts.drivers.get(&link.index);
        let name = driver.map(|d| d.name.as_str()).filter(|n| !n.is_empty());
        let what =
            format!("{} (driver {})", link.name, name.map_or_else(|| link.kind.to_string(), str::to_owned));
        let told = driver.and_then(|d| d.xdp);
        let native = match told {
            Some(xdp) => xdp.native,
            None => link.kind == crate::netdev::LinkKind::Veth || name.is_some_and(|n| NATIVE.contains(&n)),
        };
        let source = if told.is_some() || tells { "" } else { ", by the driver's name" };
        match (native, config.xdp.mode) {
            (_, XdpMode::Generic) => out.ok(format!("{what}: generic XDP, as asked for")),
            (true, _) => {
                let zero_copy = told.is_some_and(|x| x.zero_copy) && config.xdp.zero_copy == ZeroCopy::Auto;
                let copy = if zero_copy { "zero copy" } else { "copies" };
                out.ok(format!("{what}: native XDP{source}, {copy}"));
            }
            (false, XdpMode::Auto) => out.warning(
                format!("{what}: no native XDP{source}; generic XDP is slower"),
                "a device whose driver has native XDP",
            ),
            (false, XdpMode::Native) => out.error(
                format!("{what}: no native XDP{source}, and xdp.mode asks for it"),
                "xdp.mode = \"auto\", or a device whose driver has native XDP",
            ),
        }
    }
}

pub(super) fn mtu(facts: &Facts, config: &Config, out: &mut Findings) {
    let overhead = match (config.overlay.encap, config.overlay.family) {
        (Encap::None, _) => 0,
        (_, Family::Ipv4) => 50,
        (_, Family::Ipv6) => 70,
    };
    let uplinks = chosen(facts, config);
    let Some(least) = uplinks.iter().map(|u| u.link.mtu).min() else {
        return out.warning("no uplink to take it from", "see uplink");
    };
    let pods = least.saturating_sub(overhead);
    if uplinks.iter().any(|u| u.link.mtu != least) {
        out.warning("the uplinks differ", "give them one MTU: pods get what fits the smallest");
    }
    if pods < LEAST_V6 {
        out.error(
            format!("uplink {least}, pods {pods}: IPv6 needs {LEAST_V6}"),
            format!("an MTU of {} or more on the uplink", LEAST_V6 + overhead),
        );
    } else {
        out.ok(format!("uplink {least}, pods {pods}"));
    }
}

pub(super) fn rp_filter(facts: &Facts, config: &Config, out: &mut Findings) {
    // The kernel takes the stricter of "all" and the device: 1 is strict, 2 is loose and counts more.
    let all = facts.rp_filter.get("all").copied().unwrap_or(0);
    let uplinks = chosen(facts, config);
    let strict = |u: &&Uplink| facts.rp_filter.get(&u.link.name).copied().unwrap_or(0).max(all) == 1;
    let names: Vec<&str> = uplinks.iter().filter(strict).map(|u| u.link.name.as_str()).collect();
    match names.as_slice() {
        [] => out.ok("not strict on the uplinks"),
        // Answers to the node come from pods that the kernel routes elsewhere.
        names if config.host.enabled && config.overlay.encap != Encap::Vxlan => {
            let encap = if config.overlay.encap == Encap::None { "none" } else { "cross-subnet" };
            let names = names.join(", ");
            out.error(
                format!(
                    "strict on {names}: with overlay.encap = \"{encap}\" this node's own processes and pods of other nodes \
                     do not reach each other"
                ),
                format!("sysctl net.ipv4.conf.all.rp_filter=2 (or of {names})"),
            );
        }
        // What is ours never meets it; it is the node's own traffic that may come by another uplink.
        [_] if uplinks.len() == 1 => out.ok("strict, which does no harm with one uplink"),
        _ => out.warning(
            format!(
                "strict on {}: with several uplinks the node loses answers that come by another one",
                names.join(", ")
            ),
            format!("sysctl net.ipv4.conf.all.rp_filter=2 (or of {})", names.join(", ")),
        ),
    }
}

pub(super) fn reserved_ports(facts: &Facts, config: &Config, out: &mut Findings) {
    let range = config.snat.port_range;
    if facts.sysctl_writable {
        return out.ok(format!("{range} can be kept from the kernel"));
    }
    out.warning(
        format!("net.ipv4.ip_local_reserved_ports cannot be written: the node's connections may take a port of {range}"),
        format!("sysctl net.ipv4.ip_local_reserved_ports={range} on the host, or give the daemon a writable /proc/sys/net"),
    );
}

pub(super) fn source(facts: &Facts, config: &Config, out: &mut Findings) {
    match &facts.manifests {
        None => {}
        Some(Ok(0)) => out.warning(
            format!("{} holds no manifests", config.source.path.display()),
            "put the Node of this node there, and its pods",
        ),
        Some(Ok(n)) => out.ok(format!("{n} files in {}", config.source.path.display())),
        Some(Err(e)) => out.error(e.clone(), "make the folder, or correct source.path"),
    }
}
