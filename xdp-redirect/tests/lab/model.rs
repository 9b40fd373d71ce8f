//! The pinhole in plain Rust, written from its description: what the eBPF program is compared with.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use fastpath_xdp::Pinhole;
use fastpath_xdp::pinhole::Protocol;

const NOT_OURS: &str = "passed_not_ours";
const MALFORMED: &str = "malformed";
const VLAN: &str = "passed_vlan";

/// The hole that a frame goes through, or why it is left to the kernel; both by counter name.
pub(crate) fn classify(pinhole: &Pinhole, frame: &[u8]) -> Result<&'static str, &'static str> {
    let Some((ethernet, packet)) = frame.split_at_checked(14) else { return Err(MALFORMED) };
    let ethertype = be16(ethernet, 12);
    if matches!(ethertype, 0x8100 | 0x88a8) {
        return Err(VLAN);
    }
    if ethernet[0] & 1 == 1 || !matches!(ethertype, 0x0800 | 0x86dd) {
        return Err(NOT_OURS);
    }
    let ip = if ethertype == 0x0800 { parse_v4(packet, false)? } else { parse_v6(packet, false)? };

    let is_pod = pinhole.local.iter().any(|prefix| prefix.contains(ip.dst));
    let ports = match &ip.carried {
        Carried::Upper(proto, bytes) => match (proto, least(*proto)) {
            (6 | 17 | 132, least) if bytes.len() >= least => Some((*proto, be16(bytes, 0), be16(bytes, 2))),
            _ => None,
        },
        _ => None,
    };
    if let Some((proto, _, dport)) = ports
        && let Some(hole) = exact(pinhole, ip.dst, proto, dport)
    {
        return Ok(hole);
    }
    if is_pod {
        return Ok("pinhole_pod");
    }
    if let Some((_, _, dport)) = ports {
        return if in_snat(pinhole, ip.dst, dport) { Ok("pinhole_snat") } else { Err(NOT_OURS) };
    }
    let (proto, bytes) = match ip.carried {
        Carried::Upper(proto, bytes) => (proto, bytes),
        Carried::Unseen => return Err(NOT_OURS),
        Carried::Cut => return Err(MALFORMED),
    };
    let own_icmp = if ip.dst.is_ipv4() { 1 } else { 58 };
    if proto != own_icmp {
        return Err(if matches!(proto, 6 | 17 | 132) { MALFORMED } else { NOT_OURS });
    }
    if bytes.len() < 8 {
        return Err(MALFORMED);
    }
    match (proto, bytes[0]) {
        (1, 0) | (58, 129) if in_snat(pinhole, ip.dst, be16(bytes, 4)) => Ok("pinhole_snat"),
        (1, 3 | 11 | 12) => quoted(pinhole, ip.dst, parse_v4(&bytes[8..], true)?),
        (58, 1..=4) => quoted(pinhole, ip.dst, parse_v6(&bytes[8..], true)?),
        _ => Err(NOT_OURS),
    }
}

fn quoted(pinhole: &Pinhole, error_to: IpAddr, ip: Ip<'_>) -> Result<&'static str, &'static str> {
    if ip.src != error_to {
        return Err(NOT_OURS);
    }
    let (proto, bytes) = match ip.carried {
        Carried::Upper(proto, bytes) => (proto, bytes),
        Carried::Unseen => return Err(NOT_OURS),
        Carried::Cut => return Err(MALFORMED),
    };
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
}

enum Carried<'a> {
    Upper(u8, &'a [u8]),
    Unseen,
    Cut,
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
    let first = be16(bytes, 6) & 0x1fff == 0;
    let carried = if first { Carried::Upper(bytes[9], &bytes[header..total]) } else { Carried::Unseen };
    Ok(Ip { src: address(12), dst: address(16), carried })
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
    let carried = upper(bytes[6], &bytes[40..total]);
    Ok(Ip { src: src.into(), dst: dst.into(), carried })
}

fn upper(mut next: u8, mut bytes: &[u8]) -> Carried<'_> {
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
        if next == 44 && be16(bytes, 2) >> 3 != 0 {
            return Carried::Unseen;
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
