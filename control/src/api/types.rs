//! What the API's answers hold. Counters count since the daemon started unless named otherwise.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::explain::Outcome;
use crate::source::Severity;

mod cni;
mod enforced;

pub use cni::{CniAttached, CniChecked, CniDetached, CniNode};
pub use enforced::{BackendRow, DropDetail, PolicyRow, ServiceRow};

/// Answer to `version`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Version {
    /// Version of the program.
    pub version: String,
    /// Version of the API's protocol.
    pub protocol: u32,
}

impl Version {
    /// This program's.
    #[must_use]
    pub fn own() -> Self {
        Self { version: env!("CARGO_PKG_VERSION").to_owned(), protocol: super::PROTOCOL }
    }
}

/// Answer to `status`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// Version of the daemon.
    pub version: String,
    /// Name of this node.
    pub node: String,
    /// Process id of the daemon.
    pub pid: u32,
    /// Seconds since the daemon started.
    pub uptime_s: u64,
    /// Generation of the newest snapshot.
    pub generation: u32,
    /// Newest generation that every worker has acknowledged.
    pub acked_generation: u32,
    /// The node is known and has an uplink attached, and every worker has acknowledged the newest snapshot. What is
    /// wrong with single pods or objects is in `degraded`.
    pub ready: bool,
    /// When the source's state that is published was read in full; `None` before the first time.
    pub last_sync: Option<Sync>,
    /// How long changes of the source took to be in force.
    #[serde(default)]
    pub applied: Applied,
    /// How the source is.
    #[serde(default)]
    pub source: Option<SourceStatus>,
    /// What is wrong in the source.
    pub problems: Vec<Problem>,
    /// Ports.
    pub ports: Vec<PortStatus>,
    /// Workers.
    pub workers: Vec<WorkerStatus>,
    /// What does not work as it should, one sentence each; empty when all is well. Errors of the source count, by one
    /// sentence; `problems` has each.
    pub degraded: Vec<String>,
}

impl Status {
    /// Whether the daemon does all it should.
    #[must_use]
    pub fn healthy(&self) -> bool {
        self.ready && self.degraded.is_empty()
    }
}

/// From the source's new model to the last worker's acknowledgement, of the last 1024 changes; microseconds.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Applied {
    /// Changes since the daemon started that made a difference.
    pub count: u64,
    /// The last one.
    pub last_us: u64,
    /// Half of them took no longer.
    pub p50_us: u64,
    /// 99 of 100 took no longer.
    pub p99_us: u64,
    /// The longest.
    pub max_us: u64,
}

/// How the source is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceStatus {
    /// `directory` or `kubernetes`.
    pub kind: String,
    /// Whether changes are seen as they happen.
    pub connected: bool,
    /// Since when `connected` is what it is.
    pub since: Option<Sync>,
    /// When something was last heard from the API; `None` for a directory.
    pub last_contact: Option<Sync>,
    /// When the state in force was saved, if it is a saved one.
    pub saved_at: Option<Sync>,
    /// Complete lists that were not the first of their kind.
    pub relists: u64,
    /// Lists and watches that failed.
    pub errors: u64,
    /// Times that changes were handed on.
    pub updates: u64,
    /// Kubernetes Events written on objects.
    pub reported: u64,
    /// Why it is not connected.
    pub error: Option<String>,
    /// Newest `resourceVersion` in force, by kind (`pods`).
    pub versions: BTreeMap<String, String>,
}

impl From<&crate::source::SourceState> for SourceStatus {
    fn from(s: &crate::source::SourceState) -> Self {
        Self {
            kind: s.kind.name().to_owned(),
            connected: s.connected,
            since: Some(Sync::from(s.since)),
            last_contact: s.last_contact.map(Sync::from),
            saved_at: s.saved_at.map(Sync::from),
            relists: s.relists,
            errors: s.errors,
            updates: s.updates,
            reported: s.reported,
            error: s.error.clone(),
            versions: s.versions.iter().map(|(k, v)| ((*k).to_owned(), v.clone())).collect(),
        }
    }
}

/// A moment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sync {
    /// RFC 3339, UTC, to the millisecond.
    pub at: String,
    /// Seconds ago.
    pub age_s: u64,
}

impl From<std::time::SystemTime> for Sync {
    fn from(at: std::time::SystemTime) -> Self {
        let age_s = at.elapsed().map_or(0, |age| age.as_secs());
        let at = jiff::Timestamp::try_from(at).unwrap_or_default();
        Self { at: format!("{at:.3}"), age_s }
    }
}

/// Something wrong in the source.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    /// How bad.
    pub severity: Severity,
    /// `FILE:LINE`, or the object.
    pub origin: String,
    /// What is wrong.
    pub reason: String,
}

impl From<&crate::source::Problem> for Problem {
    fn from(p: &crate::source::Problem) -> Self {
        Self { severity: p.severity, origin: p.origin.to_string(), reason: p.reason.clone() }
    }
}

/// How a port is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortStatus {
    /// Device name.
    pub name: String,
    /// `pod`, `uplink` or `host`.
    pub role: String,
    /// XDP mode obtained: `native` or `generic`; `None` while not attached.
    pub mode: Option<String>,
    /// Whether the sockets share the driver's memory.
    pub zero_copy: bool,
    /// Number of queues.
    pub queues: u32,
    /// Workers that own the queues.
    pub workers: Vec<u32>,
    /// `up`, or why it is not.
    pub state: String,
    /// What the device could not be given; the dataplane works without.
    #[serde(default)]
    pub notes: Vec<String>,
}

/// How a worker is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkerStatus {
    /// Number, from 0.
    pub id: u32,
    /// Core it is pinned to; `None` if pinning failed.
    pub core: Option<u32>,
    /// `adaptive` or `busy`.
    pub polling: String,
    /// How full vectors leave: `together`, in one call for all veths, or by each port's `sockets`.
    #[serde(default)]
    pub transmit: String,
    /// Number of ports it serves.
    pub ports: u32,
    /// Milliseconds since its loop was last seen to turn.
    pub heartbeat_age_ms: u64,
}

/// A pod on this node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Endpoint {
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub pod: String,
    /// Addresses.
    pub addresses: Vec<IpAddr>,
    /// Host side of its veth, if known.
    pub interface: Option<String>,
    /// Port it is behind, if attached.
    pub port: Option<u16>,
    /// MAC address of its side of the veth, if known.
    pub mac: Option<String>,
    /// `attached`, or why it is not.
    pub state: String,
    /// Worker that serves it, if attached.
    pub worker: Option<u32>,
}

/// How a node is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reach {
    /// It is this node.
    Local,
    /// Through the overlay.
    Tunnel,
    /// Without encapsulation.
    Direct,
    /// Not at all.
    Unreachable,
}

impl std::fmt::Display for Reach {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Reach::Local => "local",
            Reach::Tunnel => "tunnel",
            Reach::Direct => "direct",
            Reach::Unreachable => "unreachable",
        })
    }
}

/// A node of the cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Node {
    /// Name.
    pub name: String,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// Its pod CIDRs.
    pub pod_cidrs: Vec<String>,
    /// How it is reached.
    pub reach: Reach,
    /// Its VTEP's address, if it is reached by the overlay.
    pub vtep: Option<IpAddr>,
    /// Its VTEP's MAC address, if it is reached by the overlay.
    pub vtep_mac: Option<String>,
}

/// One direction of a flow.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tuple {
    /// Source address.
    pub src: IpAddr,
    /// Source port, or the identifier of an ICMP echo; 0 for protocols without.
    pub sport: u16,
    /// Destination address.
    pub dst: IpAddr,
    /// Destination port, or the identifier of an ICMP echo; 0 for protocols without.
    pub dport: u16,
}

impl std::fmt::Display for Tuple {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let end = |ip, port| std::net::SocketAddr::new(ip, port);
        write!(f, "{} -> {}", end(self.src, self.sport), end(self.dst, self.dport))
    }
}

/// A flow.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Flow {
    /// IP protocol: `tcp`, `udp`, `icmp`, `icmpv6`, `sctp`, or its number.
    pub proto: String,
    /// As its first packet came.
    pub original: Tuple,
    /// As the answers come.
    pub reply: Tuple,
    /// As its packets go on, where that is not as they came.
    #[serde(default)]
    pub translated: Option<Tuple>,
    /// The service it is for: `ns/name`, and its port's name where it has one.
    #[serde(default)]
    pub service: Option<String>,
    /// `deny` once a policy has taken its permission away.
    pub verdict: Outcome,
    /// The rules that decide on it at this node: `ns/name egress rule 0`.
    #[serde(default)]
    pub rules: Vec<String>,
    /// Connection state.
    pub state: String,
    /// Milliseconds since its last packet.
    pub idle_ms: u64,
    /// Snapshot generation it was last decided under.
    pub generation: u32,
    /// Where its packets leave: device, and node when through the overlay; `dropped` when a policy denies it.
    pub egress: String,
}

/// Answer to `flows`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Flows {
    /// The flows listed, at most as many as the request allows.
    pub flows: Vec<Flow>,
    /// How many there are.
    pub total: u64,
}

/// A route in force.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RouteRow {
    /// Destination.
    pub prefix: String,
    /// `endpoint`, `tunnel`, `direct`, `host`, `no-endpoint` or `unreachable`.
    pub kind: String,
    /// Next hop or remote VTEP.
    pub via: Option<IpAddr>,
    /// Device.
    pub device: Option<String>,
    /// Node that the destination belongs to.
    pub node: Option<String>,
}

/// A neighbour.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Neighbor {
    /// Address.
    pub address: IpAddr,
    /// Device.
    pub device: String,
    /// MAC address, if resolved.
    pub mac: Option<String>,
    /// `reachable`, `stale`, `incomplete`, …, as the kernel names it.
    pub state: String,
}

/// Drops of one reason: by the graph, or, where the name begins with `xdp_`, by an XDP program.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Drop {
    /// Name of the reason.
    pub reason: String,
    /// Packets dropped for it.
    pub packets: u64,
    /// What it means.
    pub help: String,
    /// What denied them, where policies did.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub details: Vec<DropDetail>,
}

/// Counters of one queue, in frames unless named otherwise.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct QueueStats {
    /// Queue number.
    pub queue: u32,
    /// Worker that owns it.
    pub worker: u32,
    /// Frames received.
    pub rx_packets: u64,
    /// Bytes received, with the Ethernet header.
    pub rx_bytes: u64,
    /// Frames sent.
    pub tx_packets: u64,
    /// Bytes sent, with the Ethernet header.
    pub tx_bytes: u64,
    /// Of the frames sent, those that full vectors sent other than by the socket.
    #[serde(default)]
    pub tx_redirected: u64,
    /// System calls to start transmission.
    pub tx_kicks: u64,
    /// Kicks answered by EAGAIN and repeated.
    pub tx_retries: u64,
    /// Frames the tx ring had no room for.
    pub tx_ring_full: u64,
    /// Frames too short to be sent, or too long for this port's memory.
    pub tx_invalid: u64,
    /// System calls to send that failed, as when the device is down.
    pub tx_errors: u64,
    /// Dropped by the kernel before the socket.
    pub kernel_rx_dropped: u64,
    /// Dropped because the rx ring was full.
    pub kernel_rx_ring_full: u64,
    /// Times the fill ring was empty.
    pub kernel_fill_empty: u64,
    /// Descriptors that the kernel refused to send.
    pub kernel_tx_invalid: u64,
}

impl QueueStats {
    /// The counters of a port's queue.
    #[must_use]
    pub fn of(queue: u32, worker: u32, s: &fastpath::io::PortStats) -> Self {
        Self {
            queue,
            worker,
            rx_packets: s.rx_packets,
            rx_bytes: s.rx_bytes,
            tx_packets: s.tx_packets,
            tx_bytes: s.tx_bytes,
            tx_redirected: s.tx_redirected,
            tx_kicks: s.tx_kicks,
            tx_retries: s.tx_retries,
            tx_ring_full: s.tx_ring_full,
            tx_invalid: s.tx_invalid,
            tx_errors: s.tx_errors,
            kernel_rx_dropped: s.kernel_rx_dropped,
            kernel_rx_ring_full: s.kernel_rx_ring_full,
            kernel_fill_empty: s.kernel_fill_empty,
            kernel_tx_invalid: s.kernel_tx_invalid,
        }
    }
}

/// A counter of an XDP program, over all devices it is on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct XdpCounter {
    /// `endpoint` (on pods' devices) or `uplink`.
    pub program: String,
    /// What the program did with the packet.
    pub outcome: String,
    /// How many packets.
    pub packets: u64,
    /// What it means.
    pub help: String,
}

/// Counters of a port.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortRow {
    /// Port number.
    pub port: u16,
    /// Device name.
    pub name: String,
    /// `pod`, `uplink` or `host`.
    pub role: String,
    /// XDP mode obtained: `native` or `generic`; `None` while not attached.
    pub mode: Option<String>,
    /// Whether the sockets share the driver's memory.
    pub zero_copy: bool,
    /// Frames sent that the other end of the veth did not take, its ring being full; all queues.
    #[serde(default)]
    pub receiver_full: u64,
    /// By queue.
    pub queues: Vec<QueueStats>,
}

/// Answer to `ports`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ports {
    /// Each port.
    pub ports: Vec<PortRow>,
    /// What the XDP programs did. Of those that begin with `pinhole_` a packet counts in another one as well.
    pub xdp: Vec<XdpCounter>,
}

/// Counters of one node of the graph.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct NodeRuntime {
    /// Name of the node.
    pub node: String,
    /// Times it was called.
    pub calls: u64,
    /// Calls that had packets.
    pub vectors: u64,
    /// Packets.
    pub packets: u64,
    /// `packets / vectors`; 0 without vectors.
    pub packets_per_vector: f64,
    /// Processor clocks (TSC) a packet; 0 without packets.
    pub clocks_per_packet: f64,
}

/// Counters of one worker's graph.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct WorkerRuntime {
    /// Worker number.
    pub worker: u32,
    /// In the order of the graph.
    pub nodes: Vec<NodeRuntime>,
}

/// Answer to `runtime`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Runtime {
    /// Each worker.
    pub workers: Vec<WorkerRuntime>,
    /// All workers together.
    pub total: Vec<NodeRuntime>,
}
