//! One node with its pods, and the far end of its uplink.
//!
//! ```text
//! pod a: eth0 ── fp-a │        │ up0 ── wire: eth0   counted
//! pod c: eth0 ── fp-c │  node  │
//! pod d: eth0 ── fp-d │        │ fp0 … fpN ── pods: e0 … eN   counted
//! ```
//!
//! Pod a sends frames, pods c and d have sockets, the others (in one namespace) count and drop what they receive.
#![forbid(unsafe_code)]

use std::fmt::Write as _;
use std::io::Write as _;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, ensure};
use fastpath_xdp::attach::ModeRequest;
use fastpath_xdp::generator::Sink;

use super::manifests;
use super::netns::NetNs;

/// MAC address that pods send to, whoever forwards.
pub(crate) const GATEWAY_MAC: [u8; 6] = [0xee; 6];
const GATEWAY_TEXT: &str = "ee:ee:ee:ee:ee:ee";
const GATEWAY: &str = "169.254.1.1";
pub(super) const VTEP_LOCAL: &str = "66:77:00:04:00:01";
pub(super) const VTEP_REMOTE: &str = "66:77:00:04:00:02";
/// MTU of pods, which is what VXLAN over IPv4 leaves of 1500.
pub(crate) const POD_MTU: usize = 1450;
/// Sends frames.
pub(crate) const SENDER: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 10);
/// Ask and answer.
pub(crate) const CLIENT: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 11);
pub(crate) const SERVER: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 12);
/// A pod of the other node.
pub(crate) const REMOTE: Ipv4Addr = Ipv4Addr::new(10, 77, 4, 11);
/// Address of the service whose backend is the first pod that counts.
pub(crate) const SERVICE: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 1);
/// Most pods that count.
pub(crate) const MOST_PODS: u16 = 250;

/// Address of the n-th pod that counts, from 0.
pub(crate) fn pod_address(n: u16) -> Ipv4Addr {
    let [high, low] = (n + 1).to_be_bytes();
    Ipv4Addr::new(10, 77, 1 + high, low)
}

/// The namespaces; everything goes on drop.
#[derive(Debug)]
pub(crate) struct Topology {
    /// Counts what the pods receive.
    pub(crate) pod_sink: Sink,
    /// Counts what leaves by the uplink.
    pub(crate) wire_sink: Sink,
    /// Sends.
    pub(crate) sender: NetNs,
    /// Asks.
    pub(crate) client: NetNs,
    /// Answers.
    pub(crate) server: NetNs,
    /// Forwards.
    pub(crate) node: NetNs,
    /// Pods that count.
    pub(crate) pods: u16,
    /// Configuration, manifests and logs of who forwards.
    pub(crate) dir: PathBuf,
    sinks: NetNs,
    _wire: NetNs,
    _folder: Folder,
}

#[derive(Debug)]
struct Folder(PathBuf);

impl Drop for Folder {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_dir_all(&self.0) {
            eprintln!("{}: {error}", self.0.display());
        }
    }
}

impl Topology {
    /// Makes namespaces, devices, addresses, neighbours and sinks, with so many pods that count.
    pub(crate) fn create(pods: u16) -> Result<Self> {
        let dir = std::env::temp_dir().join(format!("{}{}", super::netns::PREFIX, std::process::id()));
        std::fs::create_dir_all(dir.join("manifests"))?;
        let folder = Folder(dir.clone());
        let (node, wire) = (NetNs::create("node")?, NetNs::create("wire")?);
        let (sender, client, server) = (NetNs::create("a")?, NetNs::create("c")?, NetNs::create("d")?);
        let sinks = NetNs::create("pods")?;
        node.sysctl("ipv4/ip_forward", "1")?;
        node.ip(&format!("link add up0 mtu 1500 type veth peer name eth0 mtu 1500 netns {}", wire.name()))?;
        node.ip("addr add 192.168.77.1/24 dev up0")?;
        node.ip("link set up0 up")?;
        wire.ip("link set eth0 up")?;
        // A wire does not carry unfinished checksums.
        node.exec("ethtool -K up0 tx off")?;
        node.ip(&format!("neigh add 192.168.77.2 lladdr {} dev up0 nud permanent", wire.mac("eth0")?))?;
        let (mut lines, mut inside) = (String::new(), String::new());
        let pod = |lines: &mut String, host: &str, name: &str, ns: &NetNs, mac: &str, address| {
            let _ = writeln!(
                lines,
                "link add {host} mtu {POD_MTU} address {GATEWAY_TEXT} type veth peer name {name} mtu {POD_MTU} \
                 address {mac} netns {}\nlink set {host} up\nroute add {address} dev {host}\nneigh add {address} \
                 lladdr {mac} dev {host} nud permanent",
                ns.name()
            );
        };
        for (name, ns, address) in
            [("fp-a", &sender, SENDER), ("fp-c", &client, CLIENT), ("fp-d", &server, SERVER)]
        {
            pod(&mut lines, name, "eth0", ns, &mac_of(address), address);
        }
        for n in 0..pods {
            let address = pod_address(n);
            pod(&mut lines, &format!("fp{n}"), &format!("e{n}"), &sinks, &mac_of(address), address);
            let _ = writeln!(inside, "link set e{n} up");
        }
        batch(&node, &lines)?;
        batch(&sinks, &inside)?;
        for (ns, address) in [(&sender, SENDER), (&client, CLIENT), (&server, SERVER)] {
            ns.ip("link set eth0 up")?;
            ns.ip(&format!("addr add {address}/32 dev eth0"))?;
            ns.exec("ethtool -K eth0 tx off")?;
            ns.ip(&format!("neigh add {GATEWAY} lladdr {GATEWAY_TEXT} dev eth0 nud permanent"))?;
            ns.ip(&format!("route add {GATEWAY} dev eth0 scope link"))?;
            ns.ip(&format!("route add default via {GATEWAY} dev eth0"))?;
        }
        let pod_sink = sinks.run(|| {
            let mut sink = Sink::attach("e0", ModeRequest::Native)?;
            for n in 1..pods {
                sink.also(&format!("e{n}"), ModeRequest::Native)?;
            }
            Ok(sink)
        })?;
        let wire_sink = wire.run(|| Ok(Sink::attach("eth0", ModeRequest::Native)?))?;
        let topology = Self {
            pod_sink,
            wire_sink,
            sender,
            client,
            server,
            node,
            pods,
            dir,
            sinks,
            _wire: wire,
            _folder: folder,
        };
        manifests::write(&topology)?;
        Ok(topology)
    }

    /// Where the pods that count are.
    pub(crate) fn sinks(&self) -> &NetNs {
        &self.sinks
    }
}

/// Ethernet address of the pod with this address.
pub(crate) fn mac_of(address: Ipv4Addr) -> String {
    let [_, _, c, d] = address.octets();
    format!("02:00:00:00:{c:02x}:{d:02x}")
}

/// Runs lines for `ip` in a namespace, in one process.
fn batch(ns: &NetNs, lines: &str) -> Result<()> {
    let mut child = Command::new("ip")
        .args(["-n", ns.name(), "-batch", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .context("ip does not start")?;
    child.stdin.take().context("no standard input")?.write_all(lines.as_bytes())?;
    let out = child.wait_with_output()?;
    ensure!(out.status.success(), "ip -batch: {}", String::from_utf8_lossy(&out.stderr).trim());
    Ok(())
}
