//! The same rules written over etherparse's slices, straight from the RFCs; it shares no code with `parse` but the
//! types of the answer.

use etherparse::checksum::Sum16BitWords;
use etherparse::{
    Icmpv4Slice, Icmpv6Slice, IpAuthHeaderSlice, IpNumber, Ipv4HeaderSlice, Ipv6FragmentHeaderSlice,
    Ipv6HeaderSlice, Ipv6RawExtHeaderSlice, TcpSlice, UdpHeaderSlice, UdpSlice, ip_number,
};
use std::net::{Ipv4Addr, Ipv6Addr};

use crate::graph::DropReason;
use crate::packet::{FlowKey, Ip, Meta, flags};
use crate::wire::parse::{Parsed, Punt};

/// Metadata and key of a packet to forward, or the other outcome.
type Verdict = Result<(Meta, FlowKey), Parsed>;

fn drop<T>(reason: DropReason) -> Result<T, Parsed> {
    Err(Parsed::Drop(reason))
}

pub(super) fn oracle(frame: &[u8]) -> Verdict {
    let Ok(eth) = etherparse::Ethernet2Slice::from_slice_without_fcs(frame) else {
        return drop(DropReason::MalformedEthernet);
    };
    let payload = eth.payload().payload;
    match eth.ether_type() {
        etherparse::EtherType::IPV4 => oracle_v4(payload),
        etherparse::EtherType::IPV6 => oracle_v6(payload),
        etherparse::EtherType::ARP => Err(Parsed::Punt(Punt::Arp)),
        etherparse::EtherType::VLAN_TAGGED_FRAME
        | etherparse::EtherType::PROVIDER_BRIDGING
        | etherparse::EtherType::VLAN_DOUBLE_TAGGED_FRAME => Err(Parsed::Punt(Punt::Vlan)),
        other => Err(Parsed::Punt(Punt::EtherType(other.0))),
    }
}

fn oracle_v4(bytes: &[u8]) -> Verdict {
    let malformed = Parsed::Drop(DropReason::MalformedIpv4);
    let h = Ipv4HeaderSlice::from_slice(bytes).map_err(|_| malformed)?;
    let header = h.slice().len();
    let total = usize::from(h.total_len());
    if total < header || total > bytes.len() {
        return Err(malformed);
    }
    // Over the bytes as they are: `to_header` would lose the reserved flag.
    if Sum16BitWords::new().add_slice(h.slice()).ones_complement() != 0 {
        return Err(malformed);
    }
    let at = usize::from(h.fragments_offset().value()) * 8;
    let more = h.more_fragments();
    let len = total - header;
    if (at > 0 || more) && (more && len % 8 != 0 || header + at + len > 65_535) {
        return Err(malformed);
    }
    if h.protocol() == IpNumber::IGMP {
        return Err(Parsed::Punt(Punt::Igmp));
    }
    let (src, dst) = (h.source_addr(), h.destination_addr());
    let many = |a: Ipv4Addr| a.is_multicast() || a.is_broadcast();
    let never = |a: Ipv4Addr| a.octets()[0] == 0 || a.is_loopback();
    oracle_addresses(many(src), never(src), many(dst), never(dst))?;
    let meta = Meta {
        l3: 14,
        l4: u16::try_from(14 + header).unwrap(),
        l3_len: h.total_len(),
        proto: h.protocol().0,
        flags: if h.dont_fragment() { flags::DF } else { 0 },
        ttl: h.ttl(),
        tos: h.dcp().value() << 2 | h.ecn().value(),
        frag: h.fragments_offset().value() | u16::from(more) << 15,
        ..Meta::default()
    };
    oracle_transport(&bytes[header..total], at, meta, src.into(), dst.into())
}

fn oracle_addresses(src_many: bool, src_never: bool, dst_many: bool, dst_never: bool) -> Result<(), Parsed> {
    if src_many || dst_never {
        drop(DropReason::MartianAddress)
    } else if dst_many {
        drop(DropReason::Multicast)
    } else if src_never {
        drop(DropReason::MartianAddress)
    } else {
        Ok(())
    }
}

struct OracleChain {
    proto: u8,
    len: usize,
    fragment: Option<(u16, bool)>,
}

/// Extension headers by etherparse's slices of each; `None` when malformed.
fn oracle_chain(first: IpNumber, bytes: &[u8]) -> Option<OracleChain> {
    let (mut next, mut len, mut fragment, mut count) = (first, 0, None, 0);
    loop {
        let rest = &bytes[len..];
        match next {
            ip_number::IPV6_HOP_BY_HOP if count > 0 => return None,
            ip_number::IPV6_HOP_BY_HOP | ip_number::IPV6_DEST_OPTIONS | ip_number::IPV6_ROUTE => {
                let s = Ipv6RawExtHeaderSlice::from_slice(rest).ok()?;
                (next, len) = (s.next_header(), len + s.slice().len());
            }
            ip_number::AUTH => {
                let s = IpAuthHeaderSlice::from_slice(rest).ok()?;
                (next, len) = (s.next_header(), len + s.slice().len());
            }
            ip_number::IPV6_FRAG => {
                let s = Ipv6FragmentHeaderSlice::from_slice(rest).ok()?;
                if fragment.is_some() {
                    return None;
                }
                fragment = Some((s.fragment_offset().value(), s.more_fragments()));
                (next, len) = (s.next_header(), len + 8);
                if s.fragment_offset().value() > 0 {
                    return Some(OracleChain { proto: next.0, len, fragment });
                }
            }
            _ => return Some(OracleChain { proto: next.0, len, fragment }),
        }
        count += 1;
        if count > 8 {
            return None;
        }
    }
}

fn oracle_v6(bytes: &[u8]) -> Verdict {
    let malformed = Parsed::Drop(DropReason::MalformedIpv6);
    let h = Ipv6HeaderSlice::from_slice(bytes).map_err(|_| malformed)?;
    let len = usize::from(h.payload_length());
    let payload = bytes[40..].get(..len).ok_or(malformed)?;
    let chain = oracle_chain(h.next_header(), payload).ok_or(malformed)?;
    let upper = &payload[chain.len..];
    let (offset, more) = chain.fragment.unwrap_or_default();
    let at = usize::from(offset) * 8;
    if (at > 0 || more) && (more && len % 8 != 0 || at + len - 8 > 65_535) {
        return Err(malformed);
    }
    if chain.proto == 58
        && at == 0
        && let Ok(icmp) = Icmpv6Slice::from_slice(upper)
    {
        let punt = match icmp.type_u8() {
            133..=137 => Some(Punt::Ndp),
            130..=132 | 143 => Some(Punt::Mld),
            _ => None,
        };
        match punt {
            Some(_) if more => return drop(DropReason::MalformedTransport),
            Some(punt) => return Err(Parsed::Punt(punt)),
            None => {}
        }
    }
    let (src, dst) = (h.source_addr(), h.destination_addr());
    let never = |a: Ipv6Addr| {
        a.is_unspecified() || a.is_loopback() || a.is_unicast_link_local() || a.to_ipv4_mapped().is_some()
    };
    oracle_addresses(src.is_multicast(), never(src), dst.is_multicast(), never(dst))?;
    let meta = Meta {
        l3: 14,
        l4: u16::try_from(54 + chain.len).unwrap(),
        l3_len: u16::try_from(40 + len).unwrap(),
        proto: chain.proto,
        flags: flags::V6,
        ttl: h.hop_limit(),
        tos: h.traffic_class(),
        frag: offset | u16::from(more) << 15,
        ..Meta::default()
    };
    oracle_transport(upper, at, meta, src.into(), dst.into())
}

fn oracle_transport(upper: &[u8], at: usize, mut meta: Meta, src: Ip, dst: Ip) -> Verdict {
    let malformed = Parsed::Drop(DropReason::MalformedTransport);
    let v6 = meta.flags & flags::V6 != 0;
    let mut key = FlowKey { src, dst, sport: 0, dport: 0, proto: meta.proto };
    if at > 0 {
        let header = match meta.proto {
            6 => 20,
            17 => 8,
            132 => 12,
            1 if !v6 => 8,
            58 if v6 => 8,
            _ => 0,
        };
        meta.flags |= flags::LATER_FRAGMENT;
        return if at < header { Err(malformed) } else { Ok((meta, key)) };
    }
    match meta.proto {
        6 => {
            let t = TcpSlice::from_slice(upper).map_err(|_| malformed)?;
            (key.sport, key.dport) = (t.source_port(), t.destination_port());
            let bits = [t.fin(), t.syn(), t.rst(), t.psh(), t.ack(), t.urg(), t.ece(), t.cwr()];
            meta.tcp_flags = bits.iter().enumerate().map(|(i, b)| u8::from(*b) << i).sum();
        }
        17 => {
            let u = UdpHeaderSlice::from_slice(upper).map_err(|_| malformed)?;
            // etherparse takes length 0 for a jumbogram.
            if u.length() < 8 || meta.frag == 0 && UdpSlice::from_slice(upper).is_err() {
                return Err(malformed);
            }
            (key.sport, key.dport) = (u.source_port(), u.destination_port());
        }
        132 => {
            let [a, b, c, d] = *upper.first_chunk().filter(|_| upper.len() >= 12).ok_or(malformed)?;
            (key.sport, key.dport) = (u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d]));
        }
        1 if !v6 => {
            // etherparse also checks the length of timestamps, which forwarding does not care for: show it 8 bytes
            // of another type and read the type itself.
            let mut head = upper.get(..8).ok_or(malformed)?.to_vec();
            let kind = std::mem::replace(&mut head[0], 8);
            let icmp = Icmpv4Slice::from_slice(&head).map_err(|_| malformed)?;
            (meta.icmp_type, meta.icmp_code) = (kind, icmp.code_u8());
            match kind {
                3 | 4 | 11 | 12 => oracle_error(&upper[8..], &mut meta, &mut key)?,
                5 => return drop(DropReason::IcmpUnrelated),
                0 | 8 | 13..=18 => {
                    let [a, b, ..] = icmp.bytes5to8();
                    key.sport = u16::from_be_bytes([a, b]);
                    key.dport = key.sport;
                }
                _ => {}
            }
        }
        58 if v6 => {
            let icmp = Icmpv6Slice::from_slice(upper).map_err(|_| malformed)?;
            (meta.icmp_type, meta.icmp_code) = (icmp.type_u8(), icmp.code_u8());
            match icmp.type_u8() {
                1..=4 => oracle_error(&upper[8..], &mut meta, &mut key)?,
                128 | 129 => {
                    let [a, b, ..] = icmp.bytes5to8();
                    key.sport = u16::from_be_bytes([a, b]);
                    key.dport = key.sport;
                }
                _ => {}
            }
        }
        _ => {}
    }
    Ok((meta, key))
}

fn oracle_error(quote: &[u8], meta: &mut Meta, key: &mut FlowKey) -> Result<(), Parsed> {
    let malformed = Parsed::Drop(DropReason::MalformedTransport);
    let unrelated = Parsed::Drop(DropReason::IcmpUnrelated);
    let v6 = meta.flags & flags::V6 != 0;
    let (src, dst, proto, upper, later): (Ip, Ip, u8, &[u8], bool) = if v6 {
        let h = Ipv6HeaderSlice::from_slice(quote).map_err(|_| malformed)?;
        if h.source_addr().to_ipv4_mapped().or(h.destination_addr().to_ipv4_mapped()).is_some() {
            return Err(unrelated);
        }
        let chain = oracle_chain(h.next_header(), &quote[40..]).ok_or(malformed)?;
        let later = chain.fragment.is_some_and(|(offset, _)| offset > 0);
        (h.source_addr().into(), h.destination_addr().into(), chain.proto, &quote[40 + chain.len..], later)
    } else {
        let h = Ipv4HeaderSlice::from_slice(quote).map_err(|_| malformed)?;
        let later = h.fragments_offset().value() > 0;
        (
            h.source_addr().into(),
            h.destination_addr().into(),
            h.protocol().0,
            &quote[h.slice().len()..],
            later,
        )
    };
    let mut about = FlowKey { src, dst, sport: 0, dport: 0, proto };
    let word = |at: usize| u16::from_be_bytes([upper[at], upper[at + 1]]);
    match proto {
        _ if later => {}
        6 | 17 | 132 if upper.len() >= 8 => (about.sport, about.dport) = (word(0), word(2)),
        1 if !v6 && upper.len() >= 8 => {
            if !matches!(upper[0], 0 | 8 | 13..=18) {
                return Err(unrelated);
            }
            (about.sport, about.dport) = (word(4), word(4));
        }
        58 if v6 && upper.len() >= 8 => {
            if !matches!(upper[0], 128 | 129) {
                return Err(unrelated);
            }
            (about.sport, about.dport) = (word(4), word(4));
        }
        6 | 17 | 132 => return Err(malformed),
        1 if !v6 => return Err(malformed),
        58 if v6 => return Err(malformed),
        _ => {}
    }
    if about.src != key.dst {
        return Err(unrelated);
    }
    *key = about.reversed();
    meta.flags |= flags::ICMP_ERROR;
    Ok(())
}
