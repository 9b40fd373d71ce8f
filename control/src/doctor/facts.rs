//! What the checks look at, and where it is read.
#![forbid(unsafe_code)]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use fastpath_xdp::{LoadConfig, OnFailure, Redirect};
use rustix::fs::statfs;
use rustix::net::{AddressFamily, SocketType, socket};
use rustix::process::{Resource, getrlimit};

use crate::config::{Config, SourceKind};
use crate::install::configurations;
use crate::netdev::features::{XdpFeatures, xdp_features};
use crate::netdev::nft::{self, Chain};
use crate::netdev::reserved::SYSCTL;
use crate::netdev::{NetView, Watcher, sysctl};

/// Magic number of a BPF file system (`linux/magic.h`).
const BPF_FS_MAGIC: u64 = 0xcafe_4a11;

/// What is known of this node.
#[derive(Clone, Debug)]
pub struct Facts {
    /// Release of the kernel, as `6.1.0-18-amd64`.
    pub kernel: String,
    /// Whether the XDP programs load, and why not.
    pub xdp: Result<(), String>,
    /// Whether an AF_XDP socket can be opened, and why not.
    pub xsk: Result<(), String>,
    /// Whether the kernel has type information of its own (BTF).
    pub btf: bool,
    /// Whether the folder of pins would be on a BPF file system.
    pub bpffs: bool,
    /// Effective capabilities, as bits.
    pub capabilities: u64,
    /// Bytes this process may lock; `None` without limit.
    pub memlock: Option<u64>,
    /// Free pages of 2 MB.
    pub huge_pages: u64,
    /// Cores this process may run on.
    pub cores: BTreeSet<usize>,
    /// Links, addresses and routes; or why they cannot be read.
    pub net: Result<Arc<NetView>, String>,
    /// Drivers of the links, by index.
    pub drivers: BTreeMap<u32, Driver>,
    /// `rp_filter` by device, with `all`.
    pub rp_filter: BTreeMap<String, u8>,
    /// Whether systemd-networkd removes others' routing rules; `None` when it does not run.
    pub networkd: Option<bool>,
    /// Whether a tap device can be made (`/dev/net/tun`).
    pub tap: bool,
    /// Whether `ip_local_reserved_ports` can be written.
    pub sysctl_writable: bool,
    /// Files of `/etc/cni/net.d` that a runtime reads, in its order; or why they cannot be seen.
    pub conflists: Result<Vec<String>, String>,
    /// Chains of the packet filter; `None` when they cannot be read.
    pub chains: Option<Vec<Chain>>,
    /// Tables of `iptables-legacy` in use.
    pub legacy_tables: Vec<String>,
    /// Virtual services of IPVS.
    pub ipvs_services: usize,
    /// Manifests in the folder, for the source `directory`; or why it cannot be read.
    pub manifests: Option<Result<usize, String>>,
    /// The API server, for a source that asks it.
    pub api: Option<ApiFacts>,
}

/// A device's driver.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Driver {
    /// Its name; empty when the kernel does not tell.
    pub name: String,
    /// What it can do for XDP; `None` when the kernel does not tell.
    pub xdp: Option<XdpFeatures>,
}

/// What is known of the API server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ApiFacts {
    /// Its address.
    pub server: String,
    /// Its version, or why it cannot be reached.
    pub version: Result<String, String>,
    /// What this account is not allowed, as `watch pods`; or why it cannot be asked.
    pub denied: Result<Vec<String>, String>,
    /// Whether a Node of this node's name exists; `None` when it could not be asked.
    pub node_exists: Option<bool>,
}

impl Facts {
    /// Reads all of it. Needs a tokio runtime, and what cannot be read for want of rights is as if it were not there.
    pub async fn gather(config: &Config) -> Self {
        let net = Watcher::start().map(|w| w.view()).map_err(|e| e.to_string());
        let drivers = net.as_ref().map(|n| drivers(n)).unwrap_or_default();
        Self {
            kernel: fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default().trim().to_owned(),
            xdp: load_programs(),
            xsk: socket(AddressFamily::XDP, SocketType::RAW, None).map(drop).map_err(|e| e.to_string()),
            btf: Path::new("/sys/kernel/btf/vmlinux").exists(),
            bpffs: on_bpffs(&config.xdp.pin_dir),
            capabilities: capabilities(&fs::read_to_string("/proc/self/status").unwrap_or_default()),
            memlock: getrlimit(Resource::Memlock).current,
            huge_pages: number("/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages"),
            cores: cores(),
            drivers,
            rp_filter: rp_filter(Path::new("/proc/sys/net/ipv4/conf")),
            networkd: super::networkd::ask(),
            tap: fs::File::options().read(true).write(true).open("/dev/net/tun").is_ok(),
            sysctl_writable: fs::File::options().append(true).open(sysctl::path(SYSCTL)).is_ok(),
            conflists: configurations(Path::new("/etc/cni/net.d")).map_err(|e| e.to_string()),
            chains: nft::chains().ok(),
            legacy_tables: legacy_tables(),
            // The first three lines are headings.
            ipvs_services: fs::read_to_string("/proc/net/ip_vs").map_or(0, |t| virtual_services(&t)),
            manifests: (config.source.kind == SourceKind::Directory).then(|| manifests(&config.source.path)),
            api: super::api::ask(config).await,
            net,
        }
    }
}

/// Loads the programs and forgets them: the kernel's verifier is the only one that knows.
fn load_programs() -> Result<(), String> {
    let config = LoadConfig {
        // Nothing is pinned there, as nothing is attached, and nothing made.
        pin_dir: PathBuf::from("/sys/fs/bpf/fastpath-doctor"),
        on_failure: OnFailure::Pass,
        ..LoadConfig::default()
    };
    Redirect::load(&config).map(drop).map_err(|e| e.to_string())
}

/// Whether the folder, or where it would be made, is on a BPF file system.
fn on_bpffs(path: &Path) -> bool {
    let nearest = path.ancestors().find(|p| p.exists()).unwrap_or(Path::new("/"));
    statfs(nearest).is_ok_and(|s| u64::try_from(s.f_type).is_ok_and(|t| t & 0xffff_ffff == BPF_FS_MAGIC))
}

/// `CapEff` of `/proc/self/status`.
fn capabilities(status: &str) -> u64 {
    let line = status.lines().find_map(|l| l.strip_prefix("CapEff:"));
    line.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok()).unwrap_or(0)
}

fn number(path: &str) -> u64 {
    fs::read_to_string(path).ok().and_then(|t| t.trim().parse().ok()).unwrap_or(0)
}

pub(crate) fn cores() -> BTreeSet<usize> {
    crate::config::possible_cores().unwrap_or_default()
}

fn drivers(net: &NetView) -> BTreeMap<u32, Driver> {
    let of = |link: &crate::netdev::Link| {
        let path = Path::new("/sys/class/net").join(&link.name).join("device/driver");
        let target = fs::read_link(path).ok();
        let name = target.as_deref().and_then(Path::file_name).map(|n| n.to_string_lossy().into_owned());
        Driver { name: name.unwrap_or_default(), xdp: xdp_features(link.index).ok() }
    };
    net.links.values().map(|link| (link.index, of(link))).collect()
}

fn rp_filter(conf: &Path) -> BTreeMap<String, u8> {
    let Ok(devices) = fs::read_dir(conf) else { return BTreeMap::new() };
    let of = |entry: fs::DirEntry| {
        let text = fs::read_to_string(entry.path().join("rp_filter")).ok()?;
        Some((entry.file_name().into_string().ok()?, text.trim().parse().ok()?))
    };
    devices.flatten().filter_map(of).collect()
}

fn legacy_tables() -> Vec<String> {
    let read = |file: &str| fs::read_to_string(format!("/proc/net/{file}")).unwrap_or_default();
    let text = read("ip_tables_names") + &read("ip6_tables_names");
    let names: BTreeSet<String> = text.lines().map(str::to_owned).collect();
    names.into_iter().collect()
}

fn virtual_services(text: &str) -> usize {
    text.lines().filter(|l| ["TCP ", "UDP ", "SCTP ", "FWM "].iter().any(|p| l.starts_with(p))).count()
}

fn manifests(dir: &Path) -> Result<usize, String> {
    let entries = fs::read_dir(dir).map_err(|e| format!("{}: {e}", dir.display()))?;
    let is_one =
        |p: &PathBuf| p.extension().is_some_and(|e| ["yaml", "yml", "json"].iter().any(|known| e == *known));
    Ok(entries.flatten().map(|e| e.path()).filter(is_one).count())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_of_the_kernel() {
        let status = "Name:\tx\nCapPrm:\t0000000000000000\nCapEff:\t000001ffffffffff\nCapBnd:\t0\n";
        assert_eq!(capabilities(status), 0x1ff_ffff_ffff);
        assert_eq!(capabilities("CapEff:\tnonsense\n"), 0);
        let ipvs = "IP Virtual Server version 1.2.1 (size=4096)\nProt LocalAddress:Port Scheduler Flags\n  -> \
                    RemoteAddress:Port Forward Weight\nTCP  0A600001:0050 rr\n  -> 0A000001:1F90 Masq 1\nUDP  \
                    0A600001:0035 rr\n";
        assert_eq!(virtual_services(ipvs), 2);
    }

    #[test]
    fn files_of_the_source() {
        let dir = std::env::temp_dir().join(format!("fastpath-doctor-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        for name in ["a.yaml", "z.json", "a.yaml.bak", "README"] {
            fs::write(dir.join(name), "").unwrap();
        }
        assert_eq!(manifests(&dir), Ok(2));
        fs::remove_dir_all(&dir).unwrap();
        assert!(manifests(&dir).is_err());
    }
}
