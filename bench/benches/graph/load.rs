//! What is sent: flows by number, frames by flow and size, and the order they come in.
#![forbid(unsafe_code)]

use fastpath::packet::{Ip, Mac, PortId};
use fastpath::snapshot::{GATEWAY_MAC, GATEWAY_V4};
use fastpath::testbed::{PODS, UPLINK, Underlay, from_pod, mac, pod, pod_port};
use fastpath::wire::testgen::Spec;
use fastpath::wire::{arp, checksum, eth};

use crate::rig::{Features, Rig};

pub(super) const VXLAN: Underlay = Underlay { encap: true, outer_v6: false };
pub(super) const VXLAN6: Underlay = Underlay { encap: true, outer_v6: true };

/// Source ports of a pod towards one address.
const PORTS: u32 = 60_000;
/// Services, and backends of each; all on the other node.
pub(super) const SERVICES: u32 = 64;
pub(super) const BACKENDS: u16 = 10;
/// Port of every service.
pub(super) const SERVICE_PORT: u16 = 80;

/// Address of a service.
pub(super) fn vip(v6: bool, n: u32) -> Ip {
    let n = u8::try_from(n).unwrap();
    if v6 { Ip::v6([0xfd, 0, 0, 0x96, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, n]) } else { Ip::v4([10, 96, 0, n]) }
}

/// Where packets go.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum To {
    /// Pods of a node.
    Node(u8),
    /// Services, whose backends are pods of the other node.
    Service,
    /// The gateway, by questions for its address.
    Gateway,
    /// To this node, out of the tunnel.
    Decap,
}

/// Frame sizes, in bytes on the wire with the four of the frame check sequence.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Size {
    Of(u16),
    /// 7 of 64, 4 of 594, 1 of 1518.
    Imix,
}

/// In what order flows have their turn.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Order {
    /// All the same.
    Uniform,
    /// By Zipf's law with exponent 1.0.
    Zipf,
}

/// The packets of a case.
#[derive(Clone, Copy, Debug)]
pub(super) struct Load {
    pub v6: bool,
    pub(super) to: To,
    pub(super) underlay: Underlay,
    pub(super) features: Features,
    pub(super) ttl: u8,
    pub(super) size: Size,
    /// Flows that are in the table already.
    pub(super) flows: u32,
    pub(super) order: Order,
    /// Packets that open a flow, of a thousand.
    pub(super) new: u32,
}

impl Load {
    /// Shortest frames of IPv4 flows in the table to pods of a node, without policies.
    pub(super) const fn to(to: To, flows: u32) -> Self {
        Self {
            v6: false,
            to,
            underlay: VXLAN,
            features: Features { policy: false },
            ttl: 64,
            size: Size::Of(64),
            flows,
            order: Order::Uniform,
            new: 0,
        }
    }

    /// The case of goals 1 and 2: service NAT, policy and VXLAN.
    pub(super) const fn goal(flows: u32) -> Self {
        Self { features: Features { policy: true }, ..Self::to(To::Service, flows) }
    }

    /// Ports that send.
    pub(super) fn ports(&self) -> u32 {
        if self.to == To::Decap { 1 } else { u32::from(PODS) }
    }

    pub(super) fn frames(&self) -> Frames {
        Frames::new(*self)
    }
}

/// Makes the frames of a load, by patching one that is there already.
pub(super) struct Frames {
    load: Load,
    /// By pod and size.
    bases: Vec<Vec<Vec<u8>>>,
    /// What comes out of the tunnel, by flow.
    encapsulated: Vec<Vec<u8>>,
    random: u64,
}

impl Frames {
    fn new(load: Load) -> Self {
        let sizes = match load.size {
            Size::Of(size) => vec![size],
            Size::Imix => vec![64, 64, 64, 64, 64, 64, 64, 594, 594, 594, 594, 1518],
        };
        let bases = (1..=PODS).map(|from| sizes.iter().map(|size| base(&load, from, *size)).collect());
        let mut frames =
            Self { load, bases: bases.collect(), encapsulated: vec![], random: 0x5bd1_e995_0f0e_1d2c };
        if load.to == To::Decap {
            frames.encapsulated = encapsulated(load.flows);
        }
        frames
    }

    fn random(&mut self) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random
    }

    /// The flow of the next packet from port `lane`; `fresh` counts those that are new.
    pub(super) fn pick(&mut self, lane: u32, fresh: &mut u32) -> u32 {
        let ports = self.load.ports();
        let random = self.random();
        if random % 1000 < u64::from(self.load.new) {
            let rank = *fresh;
            *fresh += 1;
            return (self.load.flows / ports + rank) * ports + lane;
        }
        let ranks = u64::from(self.load.flows / ports);
        let unit = (random >> 11) as f64 / (1u64 << 53) as f64;
        let rank = match self.load.order {
            Order::Uniform => (unit * ranks as f64) as u64,
            // Zipf's law with exponent 1 has nearly the log-uniform distribution; ranks are spread over the table by hash.
            Order::Zipf => (ranks as f64).powf(unit) as u64 - 1,
        };
        u32::try_from(rank.min(ranks - 1)).unwrap() * ports + lane
    }

    /// Writes a packet of flow `n` into `out`; the port it comes in by.
    pub(super) fn write(&mut self, n: u32, out: &mut Vec<u8>) -> PortId {
        out.clear();
        let lane = usize::try_from(n % self.load.ports()).unwrap();
        let rank = n / self.load.ports();
        if self.load.to == To::Decap {
            out.extend_from_slice(&self.encapsulated[n as usize]);
            return UPLINK;
        }
        let random = usize::try_from(self.random() >> 33).unwrap();
        let bases = &self.bases[lane];
        out.extend_from_slice(&bases[random % bases.len()]);
        let port = pod_port(u8::try_from(lane + 1).unwrap());
        if self.load.to == To::Gateway {
            return port;
        }
        let sport = 1024 + u16::try_from(rank % PORTS).unwrap();
        let high = rank / PORTS;
        patch(out, if self.load.v6 { 54 } else { 34 }, &sport.to_be_bytes(), self.load.v6);
        match self.load.to {
            To::Service => {
                let vip = vip(self.load.v6, 1 + high % SERVICES);
                if self.load.v6 {
                    patch(out, 38, &vip.bytes(), true);
                } else {
                    patch(out, 30, &vip.v4_bytes(), false);
                }
            }
            _ => {
                let dport = u16::try_from(9 + high).unwrap();
                patch(out, if self.load.v6 { 56 } else { 36 }, &dport.to_be_bytes(), self.load.v6);
            }
        }
        port
    }
}

/// Replaces bytes of addresses or ports, with the checksums they are in.
fn patch(frame: &mut [u8], at: usize, new: &[u8], v6: bool) {
    let delta = checksum::delta(&frame[at..at + new.len()], new);
    frame[at..at + new.len()].copy_from_slice(new);
    let mut change = |at: usize| {
        let sum = u16::from_be_bytes([frame[at], frame[at + 1]]);
        frame[at..at + 2].copy_from_slice(&checksum::apply(sum, delta).to_be_bytes());
    };
    if !v6 && at < 34 {
        change(24);
    }
    change(if v6 { 60 } else { 40 });
}

/// A frame from pod `from` of node 1.
fn base(load: &Load, from: u8, size: u16) -> Vec<u8> {
    let to = from % PODS + 1;
    let dst = match load.to {
        To::Node(node) => pod(load.v6, node, to),
        To::Service => vip(load.v6, 1),
        To::Decap => return vec![],
        To::Gateway => return arp_request(from),
    };
    let headers = if load.v6 { 62 } else { 42 };
    let payload = usize::from(size).saturating_sub(4 + headers);
    let spec = Spec::udp(pod(load.v6, 1, from), dst, 1024, SERVICE_PORT).with_payload(vec![0; payload]);
    from_pod(1, from, Spec { ttl: load.ttl, ..spec })
}

/// A pod's question for its gateway.
fn arp_request(from: u8) -> Vec<u8> {
    let request = arp::Repr {
        operation: arp::Operation::Request,
        sender_mac: mac(1, from),
        sender_ip: pod(false, 1, from),
        target_mac: Mac::default(),
        target_ip: GATEWAY_V4,
    };
    let mut frame = vec![0; 60];
    request.emit_frame(&mut frame).unwrap();
    eth::Packet::new_unchecked(&mut frame[..]).set_dst(GATEWAY_MAC);
    frame
}

/// What node 1 receives by its uplink from the pods of node 2.
fn encapsulated(flows: u32) -> Vec<Vec<u8>> {
    let load = Load::to(To::Node(1), flows);
    let mut far = Rig::new(2, &load);
    let mut frames = Vec::new();
    for n in 0..flows {
        let from = 1 + u8::try_from(n % u32::from(PODS)).unwrap();
        let to = from % PODS + 1;
        let rank = n / u32::from(PODS);
        let ports = (1024 + u16::try_from(rank % PORTS).unwrap(), 9 + u16::try_from(rank / PORTS).unwrap());
        let spec =
            Spec::udp(pod(false, 2, from), pod(false, 1, to), ports.0, ports.1).with_payload(vec![0; 18]);
        far.inject(pod_port(from), &from_pod(2, from, spec));
        while far.worker.pass() {}
        far.collect(|port, bytes| {
            assert_eq!(port, usize::from(UPLINK.0));
            frames.push(bytes.to_vec());
        });
    }
    assert_eq!(frames.len(), flows as usize);
    frames
}
