//! Which of the uplink's frames are ours. Everything else is the kernel's, so SSH is never at risk; so is what a
//! socket of the node waits for on a port of the SNAT range.

use crate::abi::{CLASS_FRONTEND, CLASS_NODE_PORT, CLASS_VXLAN, FragmentKey, Outcome};
use crate::frame::{Ethernet, Frame, Vlan};
use crate::maps::{self, exact, in_snat_range, is_local};
use crate::parse::{self, ICMP, ICMPV6, Ip, SCTP, Seen, TCP, UDP};
use crate::sockets::{self, End};
use crate::{ETH_8021AD, ETH_8021Q, ETH_IPV4, ETH_IPV6};

/// The hole that the frame matches, or why it matches none.
#[inline(always)]
pub(crate) fn classify(frame: &Frame) -> Result<Outcome, Outcome> {
    let ethernet: &Ethernet = frame.at(0).ok_or(Outcome::Malformed)?;
    let mut ethertype = u16::from_be(ethernet.ethertype);
    let tagged = is_vlan(ethertype);
    let mut offset = 14;
    if tagged {
        let tag: &Vlan = frame.at(14).ok_or(Outcome::Malformed)?;
        if u16::from_be(tag.control) & 0x0fff != 0 {
            return Err(Outcome::PassedVlan);
        }
        // A priority tag: the kernel strips it and takes the frame as untagged (IEEE 802.1Q 6.9).
        ethertype = u16::from_be(tag.ethertype);
        offset = 18;
    }
    // A packet for one of our addresses in a group-addressed frame is not to be forwarded (RFC 1812
    // 3.4): the kernel's to judge.
    let group = ethernet.destination[0] & 1 != 0;
    let ip = match ethertype {
        _ if group => Err(Outcome::PassedNotOurs),
        ETH_IPV4 => parse::ipv4(frame, offset, None),
        ETH_IPV6 => parse::ipv6(frame, offset, None),
        _ => Err(Outcome::PassedNotOurs),
    };
    let found = match ip {
        Ok(ip) => {
            let found = hole(frame, &ip);
            if ip.payload.seen == Seen::First && !tagged {
                match found {
                    // Known by its address.
                    Ok(Outcome::Pod) => {}
                    Ok(hole) => maps::remember_fragment(&fragment_key(frame, &ip), hole),
                    Err(_) => maps::forget_fragment(&fragment_key(frame, &ip)),
                }
            }
            found
        }
        Err(why) => Err(why),
    };
    match found {
        _ if !tagged => found,
        Ok(_) => Err(Outcome::DroppedVlan0),
        // The kernel strips as many priority tags as there are, and nobody in earnest sends two.
        Err(_) if is_priority_tag(frame, ethertype) => Err(Outcome::DroppedVlan0),
        Err(_) => Err(Outcome::PassedVlan),
    }
}

#[inline(always)]
fn is_vlan(ethertype: u16) -> bool {
    matches!(ethertype, ETH_8021Q | ETH_8021AD)
}

/// Whether a second tag is one of VLAN 0.
#[inline(always)]
fn is_priority_tag(frame: &Frame, ethertype: u16) -> bool {
    is_vlan(ethertype) && frame.at::<Vlan>(18).is_some_and(|tag| u16::from_be(tag.control) & 0x0fff == 0)
}

/// The hole that the packet matches, or why it matches none.
#[inline(always)]
fn hole(frame: &Frame, ip: &Ip) -> Result<Outcome, Outcome> {
    if ip.payload.seen == Seen::Later
        && let Some(hole) = maps::fragment(&fragment_key(frame, ip))
    {
        return Ok(hole);
    }
    let transport = transport(frame, ip);
    if let Ok(Transport::Ports(proto, words, _)) = transport {
        match exact(&ip.destination, proto, words[1]) {
            CLASS_VXLAN => return Ok(Outcome::Vxlan),
            CLASS_FRONTEND => return Ok(Outcome::Frontend),
            CLASS_NODE_PORT => return Ok(Outcome::NodePort),
            _ => {}
        }
    }
    // Before the transport header's faults count: what goes to a pod is ours, ports or not.
    if is_local(&ip.destination, ip.v4) {
        return Ok(Outcome::Pod);
    }
    match transport? {
        Transport::Ports(proto, words, offset) if in_snat_range(&ip.destination, words[1]) => {
            let remote = End { addr: ip.source, port: words[0] };
            let local = End { addr: ip.destination, port: words[1] };
            let opens = proto == TCP && opens(frame, offset, ip.end);
            let taken = sockets::taken(frame.ctx, ip.v4, proto, remote, local, opens);
            if taken { Err(Outcome::PassedNotOurs) } else { Ok(Outcome::Snat) }
        }
        Transport::Ports(..) => Err(Outcome::PassedNotOurs),
        Transport::Icmp(words, body) => icmp(frame, ip, words, body),
    }
}

#[inline(always)]
fn fragment_key(frame: &Frame, ip: &Ip) -> FragmentKey {
    FragmentKey {
        source: maps::bytes(&ip.source),
        destination: maps::bytes(&ip.destination),
        id: ip.payload.id.to_ne_bytes(),
        // SAFETY: the context is the kernel's and valid for the whole run.
        ifindex: unsafe { (*frame.ctx).ingress_ifindex },
        proto: if ip.v4 { u32::from(ip.payload.proto) } else { 0 },
    }
}

/// What the pinhole looks at behind the IP header.
enum Transport {
    /// TCP, UDP or SCTP: the protocol, the header's first eight bytes, and where it begins.
    Ports(u8, [u16; 4], usize),
    /// ICMP of the packet's family: the header, and where its body begins.
    Icmp([u16; 4], usize),
}

#[inline(always)]
fn transport(frame: &Frame, ip: &Ip) -> Result<Transport, Outcome> {
    let (proto, offset) = ip.payload.transport()?;
    let need = match proto {
        TCP => 20,
        SCTP => 12,
        UDP => 8,
        ICMP if ip.v4 => 8,
        ICMPV6 if !ip.v4 => 8,
        _ => return Err(Outcome::PassedNotOurs),
    };
    let words = parse::transport(frame, offset, need, ip.end).ok_or(Outcome::Malformed)?.words;
    Ok(match proto {
        TCP | UDP | SCTP => Transport::Ports(proto, words, offset),
        _ => Transport::Icmp(words, offset + 8),
    })
}

/// Whether a TCP header has SYN without ACK (RFC 9293 3.1: the fourteenth byte).
#[inline(always)]
fn opens(frame: &Frame, offset: usize, end: usize) -> bool {
    const SYN: u8 = 0x02;
    const ACK: u8 = 0x10;
    let flags = |words: [u16; 4]| words[0].to_ne_bytes()[1];
    parse::transport(frame, offset + 12, 8, end).is_some_and(|t| flags(t.words) & (SYN | ACK) == SYN)
}

#[inline(always)]
fn icmp(frame: &Frame, ip: &Ip, words: [u16; 4], body: usize) -> Result<Outcome, Outcome> {
    match (ip.v4, words[0].to_ne_bytes()[0]) {
        // Echo replies (RFC 792, RFC 4443 4.2): the identifier stands for the port.
        (true, 0) | (false, 129) if in_snat_range(&ip.destination, words[2]) => Ok(Outcome::Snat),
        // Unreachable (or too big), time exceeded, parameter problem.
        (true, 3 | 11 | 12) => quoted(parse::ipv4(frame, body, Some(ip.end))?, ip, frame),
        (false, 1..=4) => quoted(parse::ipv6(frame, body, Some(ip.end))?, ip, frame),
        _ => Err(Outcome::PassedNotOurs),
    }
}

/// Whether the packet that an ICMP error quotes was sent by us: its source is our hole.
#[inline(always)]
fn quoted(inner: Ip, outer: &Ip, frame: &Frame) -> Result<Outcome, Outcome> {
    // An error goes to the source of what it quotes; any other is no answer to us (RFC 5927 4).
    if inner.source != outer.destination {
        return Err(Outcome::PassedNotOurs);
    }
    let (proto, offset) = inner.payload.transport()?;
    let echo_request = match (proto, inner.v4) {
        (TCP | UDP | SCTP, _) => None,
        (ICMP, true) => Some(8),
        (ICMPV6, false) => Some(128),
        _ => return Err(Outcome::PassedNotOurs),
    };
    let header = parse::transport(frame, offset, 8, inner.end).ok_or(Outcome::Malformed)?;
    let words = header.words;
    let ours = match echo_request {
        Some(kind) => words[0].to_ne_bytes()[0] == kind && in_snat_range(&inner.source, words[2]),
        None => {
            // A tunnel's source port is a flow's hash, its destination port is the tunnel's.
            (proto == UDP && exact(&inner.source, UDP, words[1]) == CLASS_VXLAN)
                || matches!(exact(&inner.source, proto, words[0]), CLASS_FRONTEND | CLASS_NODE_PORT)
                || in_snat_range(&inner.source, words[0]) && {
                    let remote = End { addr: inner.destination, port: words[1] };
                    let local = End { addr: inner.source, port: words[0] };
                    !sockets::taken(frame.ctx, inner.v4, proto, remote, local, false)
                }
        }
    };
    if ours { Ok(Outcome::IcmpError) } else { Err(Outcome::PassedNotOurs) }
}
