//! The pinhole in plain Rust, written from its description: what the eBPF program is compared with.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use fastpath_xdp::Pinhole;
use fastpath_xdp::pinhole::Protocol;

const NOT_OURS: &str = "passed_not_ours";
const MALFORMED: &str = "malformed";
const VLAN: &str = "passed_vlan";
const VLAN0: &str = "dropped_vlan0";

/// What identifies a datagram: its ends, identification, and protocol (IPv6: 0).
type Datagram = (IpAddr, IpAddr, u32, u8);

/// A pinhole, and the fragments seen since.
pub(crate) struct Model<'a> {
    pinhole: &'a Pinhole,
    datagrams: BTreeMap<Datagram, &'static str>,
    /// How many later fragments followed their first one through a hole.
    pub(crate) followed: BTreeMap<&'static str, u32>,
    /// How many datagrams were forgotten because their identification came round.
    pub(crate) forgotten: u32,
}

impl<'a> Model<'a> {
    pub(crate) fn new(pinhole: &'a Pinhole) -> Self {
        Self { pinhole, datagrams: BTreeMap::new(), followed: BTreeMap::new(), forgotten: 0 }
    }

    /// The hole that a frame goes through, or why it does not; both by counter name.
    pub(crate) fn classify(&mut self, frame: &[u8]) -> Result<&'static str, &'static str> {
        let Some((ethernet, mut rest)) = frame.split_at_checked(14) else { return Err(MALFORMED) };
        let mut ethertype = be16(ethernet, 12);
        let mut tags = 0;
        while matches!(ethertype, 0x8100 | 0x88a8) {
            let Some((tag, inner)) = rest.split_at_checked(4) else {
                return Err(if tags == 0 { MALFORMED } else { VLAN });
            };
            if be16(tag, 0) & 0xfff != 0 {
                return Err(VLAN);
            }
            tags += 1;
            (ethertype, rest) = (be16(tag, 2), inner);
            if tags == 2 {
                return Err(VLAN0);
            }
        }
        let ip = match ethertype {
            _ if ethernet[0] & 1 == 1 => Err(NOT_OURS),
            0x0800 => parse_v4(rest, false),
            0x86dd => parse_v6(rest, false),
            _ => Err(NOT_OURS),
        };
        if tags > 0 {
            return Err(match ip.and_then(|ip| self.packet(&ip)) {
                Ok(_) => VLAN0,
                Err(_) => VLAN,
            });
        }
        let ip = ip?;
        let answer = self.packet(&ip);
        if let (Some(datagram), Carried::Upper(..)) = (ip.datagram, &ip.carried) {
            match answer {
                Ok("pinhole_pod") => {}
                Ok(hole) => drop(self.datagrams.insert(datagram, hole)),
                Err(_) => self.forgotten += u32::from(self.datagrams.remove(&datagram).is_some()),
            }
        }
        if let (Ok(hole), Carried::Later, false) = (answer, &ip.carried, self.is_pod(ip.dst)) {
            *self.followed.entry(hole).or_default() += 1;
        }
        answer
    }

    fn is_pod(&self, addr: IpAddr) -> bool {
        let pinhole = self.pinhole;
        !pinhole.node.contains(&addr) && pinhole.local.iter().any(|prefix| prefix.contains(addr))
    }

    fn packet(&self, ip: &Ip<'_>) -> Result<&'static str, &'static str> {
        let pinhole = self.pinhole;
        if let (Carried::Later, Some(datagram)) = (&ip.carried, ip.datagram)
            && let Some(hole) = self.datagrams.get(&datagram)
        {
            return Ok(hole);
        }
        let ports = match &ip.carried {
            Carried::Upper(proto, bytes) => match (proto, least(*proto)) {
                (6 | 17 | 132, least) if bytes.len() >= least => {
                    Some((*proto, be16(bytes, 0), be16(bytes, 2)))
                }
                _ => None,
            },
            _ => None,
        };
        if let Some((proto, _, dport)) = ports
            && let Some(hole) = exact(pinhole, ip.dst, proto, dport)
        {
            return Ok(hole);
        }
        if self.is_pod(ip.dst) {
            return Ok("pinhole_pod");
        }
        if let Some((_, _, dport)) = ports {
            return if in_snat(pinhole, ip.dst, dport) { Ok("pinhole_snat") } else { Err(NOT_OURS) };
        }
        let (proto, bytes) = ip.carried.upper()?;
        let own_icmp = if ip.dst.is_ipv4() { 1 } else { 58 };
        if proto != own_icmp {
            return Err(if matches!(proto, 6 | 17 | 132) { MALFORMED } else { NOT_OURS });
        }
        if bytes.len() < 8 {
            return Err(MALFORMED);
        }
        match (proto, bytes[0]) {
            (1, 0) | (58, 129) if in_snat(pinhole, ip.dst, be16(bytes, 4)) => Ok("pinhole_snat"),
            (1, 3 | 11 | 12) => quoted(pinhole, ip.dst, &parse_v4(&bytes[8..], true)?),
            (58, 1..=4) => quoted(pinhole, ip.dst, &parse_v6(&bytes[8..], true)?),
            _ => Err(NOT_OURS),
        }
    }
}

fn quoted(pinhole: &Pinhole, error_to: IpAddr, ip: &Ip<'_>) -> Result<&'static str, &'static str> {
    if ip.src != error_to {
        return Err(NOT_OURS);
    }
    let (proto, bytes) = ip.carried.upper()?;
    let own_icmp = if ip.src.is_ipv4() { 1 } else { 58 };
    if !matches!(proto, 6 | 17 | 132) && proto != own_icmp {
        return Err(NOT_OURS);
    }
    if bytes.len() < 8 {
        return Err(MALFORMED);
    }
    let ours = if proto == own_icmp {
        bytes[0] == if proto == 1 { 8 } else { 128 } && in_snat(pinhole, ip.src, be16(bytes, 4))
    } else {
        let by_tunnel = proto == 17 && exact(pinhole, ip.src, 17, be16(bytes, 2)) == Some("pinhole_vxlan");
        let by_source = matches!(
            exact(pinhole, ip.src, proto, be16(bytes, 0)),
            Some("pinhole_frontend" | "pinhole_node_port")
        );
        by_tunnel || by_source || in_snat(pinhole, ip.src, be16(bytes, 0))
    };
    if ours { Ok("pinhole_icmp_error") } else { Err(NOT_OURS) }
}

fn least(proto: u8) -> usize {
    match proto {
        6 => 20,
        132 => 12,
        _ => 8,
    }
}

fn exact(pinhole: &Pinhole, addr: IpAddr, proto: u8, port: u16) -> Option<&'static str> {
    let named = |p: Protocol| p.number() == proto;
    if proto == 17 && pinhole.tunnels.iter().any(|t| t.addr == addr && t.port == port) {
        Some("pinhole_vxlan")
    } else if pinhole.frontends.iter().any(|e| e.addr == addr && e.port == port && named(e.proto)) {
        Some("pinhole_frontend")
    } else if pinhole.node_ports.iter().any(|e| e.addr == addr && e.port == port && named(e.proto)) {
        Some("pinhole_node_port")
    } else {
        None
    }
}

fn in_snat(pinhole: &Pinhole, addr: IpAddr, port: u16) -> bool {
    pinhole.snat.get(&addr).is_some_and(|range| (range.lo..=range.hi).contains(&port))
}

struct Ip<'a> {
    src: IpAddr,
    dst: IpAddr,
    carried: Carried<'a>,
    /// When it is one of several fragments.
    datagram: Option<Datagram>,
}

enum Carried<'a> {
    Upper(u8, &'a [u8]),
    /// A later fragment.
    Later,
    Unseen,
    Cut,
}

impl<'a> Carried<'a> {
    fn upper(&self) -> Result<(u8, &'a [u8]), &'static str> {
        match self {
            Carried::Upper(proto, bytes) => Ok((*proto, *bytes)),
            Carried::Later | Carried::Unseen => Err(NOT_OURS),
            Carried::Cut => Err(MALFORMED),
        }
    }
}

/// `cut`: the packet is quoted, and its length says nothing about how much of it is there.
fn parse_v4(bytes: &[u8], cut: bool) -> Result<Ip<'_>, &'static str> {
    if bytes.len() < 20 || bytes[0] >> 4 != 4 {
        return Err(MALFORMED);
    }
    let header = usize::from(bytes[0] & 15) * 4;
    let total = if cut { bytes.len() } else { usize::from(be16(bytes, 2)) };
    if header < 20 || total < header || total > bytes.len() {
        return Err(MALFORMED);
    }
    let address = |at: usize| IpAddr::V4(Ipv4Addr::from(*bytes[at..].first_chunk::<4>().unwrap()));
    let (src, dst) = (address(12), address(16));
    let (more, offset) = (bytes[6] & 0x20 != 0, be16(bytes, 6) & 0x1fff);
    let carried = if offset == 0 { Carried::Upper(bytes[9], &bytes[header..total]) } else { Carried::Later };
    let datagram = (more || offset != 0).then(|| (src, dst, be16(bytes, 4).into(), bytes[9]));
    Ok(Ip { src, dst, carried, datagram })
}

fn parse_v6(bytes: &[u8], cut: bool) -> Result<Ip<'_>, &'static str> {
    if bytes.len() < 40 || bytes[0] >> 4 != 6 {
        return Err(MALFORMED);
    }
    let total = if cut { bytes.len() } else { 40 + usize::from(be16(bytes, 4)) };
    if total > bytes.len() {
        return Err(MALFORMED);
    }
    let address = |at: usize| Ipv6Addr::from(*bytes[at..].first_chunk::<16>().unwrap());
    let (src, dst) = (address(8), address(24));
    if src.to_ipv4_mapped().is_some() || dst.to_ipv4_mapped().is_some() {
        return Err(NOT_OURS);
    }
    let mut id = None;
    let carried = upper(bytes[6], &bytes[40..total], &mut id);
    let (src, dst) = (src.into(), dst.into());
    Ok(Ip { src, dst, carried, datagram: id.map(|id| (src, dst, id, 0)) })
}

/// Sets `id` at the first fragment header that is not of a whole packet.
fn upper<'a>(mut next: u8, mut bytes: &'a [u8], id: &mut Option<u32>) -> Carried<'a> {
    for walked in 0.. {
        let length = match (next, bytes.get(1)) {
            (0 | 43 | 60 | 44 | 51, _) if walked == 8 => return Carried::Unseen,
            (0 | 43 | 60 | 44 | 51, None) => return Carried::Cut,
            (44, _) => 8,
            (51, Some(length)) => (usize::from(*length) + 2) * 4,
            (0 | 43 | 60, Some(length)) => (usize::from(*length) + 1) * 8,
            _ => return Carried::Upper(next, bytes),
        };
        if bytes.len() < 8 {
            return Carried::Cut;
        }
        if next == 44 {
            let this = u32::from_be_bytes(*bytes[4..].first_chunk().unwrap());
            let later = be16(bytes, 2) >> 3 != 0;
            if later && id.is_some() {
                return Carried::Unseen;
            }
            if later || be16(bytes, 2) & 1 == 1 {
                id.get_or_insert(this);
            }
            if later {
                return Carried::Later;
            }
        }
        if bytes.len() < length {
            return Carried::Cut;
        }
        next = bytes[0];
        bytes = &bytes[length..];
    }
    Carried::Unseen
}

fn be16(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}
