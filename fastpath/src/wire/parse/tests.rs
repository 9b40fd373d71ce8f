//! `parse` against etherparse, then the special cases by hand.

use etherparse::checksum::Sum16BitWords;
use etherparse::{
    Icmpv4Slice, Icmpv6Slice, IpAuthHeaderSlice, IpNumber, Ipv4HeaderSlice, Ipv6FragmentHeaderSlice,
    Ipv6HeaderSlice, Ipv6RawExtHeaderSlice, SlicedPacket, TcpSlice, TransportSlice, UdpHeaderSlice, UdpSlice,
    ip_number,
};
use proptest::prelude::*;
use std::net::{Ipv4Addr, Ipv6Addr};

use super::*;
use crate::packet::{NO_INDEX, PortId};
use crate::wire::checksum;
use crate::wire::testgen::{self, Spec, Upper};

/// Runs `parse`, and checks that nothing outside its remit changed.
fn run(frame: &[u8], offset: u16) -> (Parsed, Meta, FlowKey) {
    let mut meta = dirty();
    let mut key = FlowKey { sport: 7, dport: 7, proto: 7, ..FlowKey::EMPTY };
    let parsed = parse(frame, offset, &mut meta, &mut key);
    assert_eq!((meta.hash, meta.ingress, meta.egress), (1, PortId(2), PortId(3)));
    assert_eq!((meta.tunnel, meta.next_hop, meta.mtu), (4, 5, 6));
    assert!(meta.has(flags::DECAPPED));
    meta.flags &= !flags::DECAPPED;
    (parsed, meta, key)
}

/// Metadata of an earlier packet.
fn dirty() -> Meta {
    Meta {
        hash: 1,
        ingress: PortId(2),
        egress: PortId(3),
        tunnel: 4,
        next_hop: 5,
        mtu: 6,
        l3: 99,
        l4: 99,
        l3_len: 99,
        proto: 99,
        flags: !flags::LOCAL_ORIGIN,
        tcp_flags: 99,
        icmp_type: 99,
        icmp_code: 99,
        ttl: 99,
        tos: 99,
        frag: 99,
    }
}

/// What a test compares: everything `parse` fills.
fn fields(meta: &Meta) -> [u16; 12] {
    let small = [meta.proto, meta.flags, meta.tcp_flags, meta.icmp_type, meta.icmp_code, meta.ttl, meta.tos];
    let [a, b, c, d, e, f, g] = small.map(u16::from);
    [meta.l3, meta.l4, meta.l3_len, meta.frag, a, b, c, d, e, f, g, 0]
}

// The oracle: the same rules written over etherparse's slices, straight from the RFCs.

type Verdict = Result<(Meta, FlowKey), Parsed>;

fn drop<T>(reason: DropReason) -> Result<T, Parsed> {
    Err(Parsed::Drop(reason))
}

fn oracle(frame: &[u8]) -> Verdict {
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

/// `parse` and the oracle on one frame; what `parse` said.
fn compare(frame: &[u8]) -> Result<Parsed, TestCaseError> {
    let (parsed, meta, key) = run(frame, 0);
    match oracle(frame) {
        Ok((want_meta, want_key)) => {
            prop_assert_eq!(parsed, Parsed::Ip);
            prop_assert_eq!(fields(&meta), fields(&want_meta));
            prop_assert_eq!(key, want_key);
        }
        Err(want) => prop_assert_eq!(parsed, want),
    }
    if let Parsed::Punt(_) = parsed {
        prop_assert_eq!(meta.l3, 14);
    }
    // The general arm alone says the same.
    let (mut meta2, mut key2) = (dirty(), FlowKey::EMPTY);
    prop_assert_eq!(general(frame, 0, &mut meta2, &mut key2), parsed);
    if parsed == Parsed::Ip {
        meta2.flags &= !flags::DECAPPED;
        prop_assert_eq!(fields(&meta), fields(&meta2));
        prop_assert_eq!(key, key2);
    }
    Ok(parsed)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4096))]

    #[test]
    fn agrees_with_etherparse_on_well_formed(spec in testgen::spec()) {
        compare(&spec.build())?;
    }

    #[test]
    fn agrees_with_etherparse_on_mutated(frame in testgen::mutated()) {
        compare(&frame)?;
    }

    #[test]
    fn agrees_with_etherparse_on_noise(mut frame in prop::collection::vec(any::<u8>(), 0..200), kind in 0u8..4) {
        if let Some(t) = frame.get_mut(12..15) {
            match kind {
                0 => t.copy_from_slice(&[0x08, 0x00, 0x45]),
                1 => t.copy_from_slice(&[0x86, 0xdd, 0x60]),
                _ => {}
            }
        }
        compare(&frame)?;
        testgen::refresh_ipv4_checksum(&mut frame);
        compare(&frame)?;
    }

    /// What `SlicedPacket` makes of a whole frame, in its own walk.
    #[test]
    fn agrees_with_sliced_packet(frame in testgen::mutated()) {
        let (parsed, meta, key) = run(&frame, 0);
        // Of other protocols it knows other rules than forwarding needs.
        if parsed == Parsed::Ip && matches!(meta.proto, 6 | 17) && !meta.has(flags::LATER_FRAGMENT) {
            let sliced = SlicedPacket::from_ethernet(&frame).map_err(|e| TestCaseError::fail(e.to_string()))?;
            match sliced.transport {
                Some(TransportSlice::Tcp(t)) => {
                    prop_assert_eq!((6, t.source_port(), t.destination_port()), (meta.proto, key.sport, key.dport));
                }
                Some(TransportSlice::Udp(u)) => {
                    prop_assert_eq!((17, u.source_port(), u.destination_port()), (meta.proto, key.sport, key.dport));
                }
                _ => prop_assert!(meta.frag != 0),
            }
        }
    }

    /// The generator's own word for the key.
    #[test]
    fn finds_the_key_that_was_built(spec in testgen::spec()) {
        prop_assume!(says_what_it_is(&spec));
        let (parsed, meta, key) = run(&spec.build(), 0);
        if parsed == Parsed::Ip && !meta.has(flags::ICMP_ERROR) {
            prop_assert_eq!(key, spec.key());
            prop_assert_eq!((meta.ttl, meta.tos), (spec.ttl, spec.tos));
            prop_assert_eq!(meta.has(flags::LATER_FRAGMENT), spec.is_later_fragment());
        }
    }

    /// An ICMP error looks up the flow it is about, from the other end.
    #[test]
    fn errors_have_the_reversed_key(v6: bool, pair in (testgen::error_spec(false), testgen::error_spec(true))) {
        let (error, about) = if v6 { pair.1 } else { pair.0 };
        prop_assume!(says_what_it_is(&about));
        let (parsed, meta, key) = run(&error.build(), 0);
        if parsed == Parsed::Ip {
            prop_assert!(meta.has(flags::ICMP_ERROR));
            prop_assert_eq!(key, about.key().reversed());
            prop_assert_eq!(meta.proto, error.proto());
            prop_assert_eq!(about.src, error.dst);
        }
    }

    /// The same frame at an offset: the offsets move, nothing else does.
    #[test]
    fn offset_shifts_offsets(frame in testgen::mutated(), before in 0usize..120) {
        let at = u16::try_from(before).unwrap();
        let (parsed, meta, key) = run(&frame, 0);
        let (parsed2, mut meta2, key2) = run(&[vec![0x5a; before], frame].concat(), at);
        prop_assert_eq!(parsed, parsed2);
        if parsed == Parsed::Ip {
            meta2.l3 -= at;
            meta2.l4 -= at;
            prop_assert_eq!(fields(&meta), fields(&meta2));
            prop_assert_eq!(key, key2);
        }
    }

    #[test]
    fn nothing_panics(frame in prop::collection::vec(any::<u8>(), 0..150), offset: u16, ipv6: bool) {
        let (mut meta, mut key) = (Meta::default(), FlowKey::EMPTY);
        let _ = parse(&frame, offset, &mut meta, &mut key);
        let _ = quoted(&frame, ipv6);
    }
}

/// Whether payload cannot be read as a header: no `Upper::Other` with a number that has one.
fn says_what_it_is(spec: &Spec) -> bool {
    !matches!(spec.upper, Upper::Other(0 | 1 | 6 | 17 | 43 | 44 | 51 | 58 | 60 | 132))
}

/// That the strategies reach what they are meant to: without this the properties could hold over drops alone.
#[test]
fn generators_reach_every_outcome() {
    use proptest::strategy::ValueTree;
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    let mut seen = std::collections::BTreeMap::new();
    let (mut fast_arm, mut errors, mut later, mut extended) = (0, 0, 0, 0);
    for _ in 0..4000 {
        let frame = testgen::mutated().new_tree(&mut runner).unwrap().current();
        let (parsed, meta, _) = run(&frame, 0);
        *seen.entry(format!("{parsed:?}")).or_insert(0) += 1;
        if parsed == Parsed::Ip {
            fast_arm += u32::from(fast(&frame, 0, &mut Meta::default(), &mut FlowKey::EMPTY.clone()));
            errors += u32::from(meta.has(flags::ICMP_ERROR));
            later += u32::from(meta.has(flags::LATER_FRAGMENT));
            extended += u32::from(meta.has(flags::V6) && meta.l4 > 54);
        }
    }
    assert!(seen["Ip"] > 1000, "{seen:?}");
    for want in [
        "Punt(Arp)",
        "Drop(MalformedEthernet)",
        "Drop(MalformedIpv4)",
        "Drop(MalformedIpv6)",
        "Drop(MalformedTransport)",
        "Drop(MartianAddress)",
        "Drop(Multicast)",
        "Drop(IcmpUnrelated)",
        "Punt(Ndp)",
        "Punt(Mld)",
        "Punt(Igmp)",
    ] {
        // ARP only by a lucky change of the type.
        assert!(want == "Punt(Arp)" || seen.contains_key(want), "{want} not in {seen:?}");
    }
    assert!(
        fast_arm > 300 && errors > 50 && later > 100 && extended > 50,
        "{fast_arm} {errors} {later} {extended}"
    );
}

fn ip(text: &str) -> Ip {
    text.parse::<std::net::IpAddr>().unwrap().into()
}

fn v4_ends() -> (Ip, Ip) {
    (ip("10.0.0.1"), ip("10.0.1.2"))
}

fn v6_ends() -> (Ip, Ip) {
    (ip("fd00::1"), ip("fd00:1::2"))
}

fn verdict(spec: &Spec) -> Parsed {
    run(&spec.build(), 0).0
}

#[test]
fn literal_ipv4_tcp_syn() {
    #[rustfmt::skip]
    const SYN: [u8; 60] = [
        0xee, 0xee, 0xee, 0xee, 0xee, 0xee, 0x02, 0, 0, 0, 0, 5, 0x08, 0x00,
        0x45, 0xb8, 0x00, 0x2c, 0x12, 0x34, 0x40, 0x00, 0x40, 0x06, 0x12, 0xd6, 10, 0, 0, 5, 10, 0, 1, 6,
        0x9c, 0x40, 0x01, 0xbb, 0, 0, 0, 1, 0, 0, 0, 0, 0x60, 0x02, 0xff, 0xff, 0, 0, 0, 0, 2, 4, 5, 0xb4,
        0, 0, // Ethernet padding
    ];
    let (parsed, meta, key) = run(&SYN, 0);
    assert_eq!(parsed, Parsed::Ip);
    assert_eq!((meta.l3, meta.l4, meta.l3_len), (14, 34, 44));
    assert_eq!((meta.proto, meta.flags, meta.tcp_flags), (6, flags::DF, 0x02));
    assert_eq!((meta.ttl, meta.tos, meta.frag), (64, 0xb8, 0));
    assert_eq!(key.to_string(), "6 10.0.0.5:40000 -> 10.0.1.6:443");
    assert_eq!((meta.icmp_type, meta.icmp_code), (0, 0));
    assert!(fast(&SYN, 0, &mut Meta::default(), &mut FlowKey::EMPTY.clone()), "the fast arm takes it");
}

#[test]
fn common_frames_take_the_fast_arm() {
    for (src, dst) in [v4_ends(), v6_ends()] {
        for spec in [Spec::udp(src, dst, 1, 2), Spec::tcp(src, dst, 1, 2, 0x10).with_payload([1, 2, 3])] {
            let (mut meta, mut key) = (Meta::default(), FlowKey::EMPTY);
            assert!(fast(&spec.build(), 0, &mut meta, &mut key), "{spec:?}");
            assert_eq!(key, spec.key());
        }
        for spec in [Spec::sctp(src, dst, 1, 2), Spec::echo(src, dst, 1, 2)] {
            assert!(!fast(&spec.build(), 0, &mut Meta::default(), &mut FlowKey::EMPTY.clone()));
            assert_eq!(verdict(&spec), Parsed::Ip);
        }
    }
}

#[test]
fn flags_of_a_previous_packet_are_cleared_but_not_others() {
    let (src, dst) = v4_ends();
    let mut meta = Meta { flags: flags::LOCAL_ORIGIN | flags::ICMP_ERROR | flags::V6, ..Meta::default() };
    let frame = Spec { df: false, ..Spec::udp(src, dst, 1, 2) }.build();
    assert_eq!(parse(&frame, 0, &mut meta, &mut FlowKey::EMPTY.clone()), Parsed::Ip);
    assert_eq!(meta.flags, flags::LOCAL_ORIGIN);
    assert_eq!((meta.tunnel, meta.egress), (NO_INDEX, PortId::NONE));
}

#[test]
fn every_cut_of_a_frame_is_malformed() {
    for (src, dst, layer) in [
        (v4_ends().0, v4_ends().1, DropReason::MalformedIpv4),
        (v6_ends().0, v6_ends().1, DropReason::MalformedIpv6),
    ] {
        let frame = Spec::tcp(src, dst, 1, 2, 2).with_payload([9; 10]).build();
        for len in 0..frame.len() {
            let want = if len < 14 { DropReason::MalformedEthernet } else { layer };
            assert_eq!(run(&frame[..len], 0).0, Parsed::Drop(want), "{len} of {}", frame.len());
        }
        assert_eq!(run(&frame, 0).0, Parsed::Ip);
        assert_eq!(run(&frame, u16::MAX).0, Parsed::Drop(DropReason::MalformedEthernet));
    }
}

#[test]
fn longest_frames() {
    let (src, dst) = v4_ends();
    let mut frame = Spec::udp(src, dst, 1, 2).with_payload(vec![0; 65_535 - 14 - 28]).build();
    assert_eq!(frame.len(), 65_535);
    assert_eq!(run(&frame, 0).0, Parsed::Ip);
    frame.push(0);
    assert_eq!(run(&frame, 0).0, Parsed::Drop(DropReason::MalformedEthernet), "offsets would not fit");
}

#[test]
fn other_ethertypes() {
    let mut frame = vec![0u8; 60];
    for (value, want) in [
        (0x0806u16, Punt::Arp),
        (0x8100, Punt::Vlan),
        (0x88a8, Punt::Vlan),
        (0x9100, Punt::Vlan),
        (0x88cc, Punt::EtherType(0x88cc)),
        (0x0026, Punt::EtherType(0x0026)),
    ] {
        frame[12..14].copy_from_slice(&value.to_be_bytes());
        assert_eq!(run(&frame, 0).0, Parsed::Punt(want));
    }
}

#[test]
fn neighbour_discovery_and_listeners() {
    let from = [ip("fe80::1"), ip("::"), ip("fd00::1")];
    for src in from {
        for kind in 130..=143u8 {
            let upper = Upper::Icmp(icmp::Repr { kind, code: 0, rest: 0 });
            let spec = Spec { ttl: 255, ..Spec::new(src, ip("ff02::1:ff00:1"), upper) }.with_payload([0; 16]);
            let want = match kind {
                130..=132 | 143 => Parsed::Punt(Punt::Mld),
                133..=137 => Parsed::Punt(Punt::Ndp),
                _ => Parsed::Drop(DropReason::Multicast),
            };
            let (parsed, meta, _) = run(&spec.build(), 0);
            assert_eq!(parsed, want, "{src} {kind}");
            if want == Parsed::Punt(Punt::Ndp) {
                assert_eq!((meta.l3, meta.l4, meta.l3_len, meta.ttl), (14, 54, 64, 255));
            }
        }
    }
    // With a router alert, as listeners send it; and in a fragment, as RFC 6980 forbids.
    let upper = Upper::Icmp(icmp::Repr { kind: 143, code: 0, rest: 0 });
    let mut spec = Spec { extensions: vec![0], ..Spec::new(ip("::"), ip("ff02::16"), upper) };
    assert_eq!(verdict(&spec), Parsed::Punt(Punt::Mld));
    spec.fragment = Some((0, true));
    assert_eq!(verdict(&spec), Parsed::Drop(DropReason::MalformedTransport));
    spec.fragment = Some((0, false));
    assert_eq!(verdict(&spec), Parsed::Punt(Punt::Mld), "an atomic fragment is a whole packet (RFC 6946)");
}

#[test]
fn igmp_from_a_host_without_address() {
    let spec = Spec { ip_options: 1, ..Spec::new(ip("0.0.0.0"), ip("224.0.0.22"), Upper::Other(2)) };
    assert_eq!(verdict(&spec), Parsed::Punt(Punt::Igmp));
}

#[test]
fn what_pods_send_is_no_martian() {
    let (src, dst) = v4_ends();
    for to in ["169.254.169.254", "169.254.20.10", "240.1.2.3", "100.64.0.1", "192.0.2.1"] {
        assert_eq!(verdict(&Spec::udp(src, ip(to), 1, 53)), Parsed::Ip, "{to}");
        assert_eq!(verdict(&Spec::udp(ip(to), src, 53, 1)), Parsed::Ip, "{to}");
    }
    for to in ["127.0.0.1", "0.0.0.0"] {
        assert_eq!(verdict(&Spec::udp(src, ip(to), 1, 2)), Parsed::Drop(DropReason::MartianAddress), "{to}");
        assert_eq!(verdict(&Spec::udp(ip(to), dst, 1, 2)), Parsed::Drop(DropReason::MartianAddress), "{to}");
    }
    // DHCP, mDNS.
    assert_eq!(
        verdict(&Spec::udp(ip("0.0.0.0"), ip("255.255.255.255"), 68, 67)),
        Parsed::Drop(DropReason::Multicast)
    );
    assert_eq!(verdict(&Spec::udp(src, ip("224.0.0.251"), 5353, 5353)), Parsed::Drop(DropReason::Multicast));
    let (src, dst) = v6_ends();
    for to in ["::", "::1", "fe80::1"] {
        assert_eq!(verdict(&Spec::udp(src, ip(to), 1, 2)), Parsed::Drop(DropReason::MartianAddress), "{to}");
        assert_eq!(verdict(&Spec::udp(ip(to), dst, 1, 2)), Parsed::Drop(DropReason::MartianAddress), "{to}");
    }
    // IPv4-mapped on the wire would be taken for IPv4's by every table.
    let mut frame = Spec::udp(src, dst, 1, 2).build();
    frame[22..38].copy_from_slice(&ip("10.0.0.1").bytes());
    assert_eq!(run(&frame, 0).0, Parsed::Drop(DropReason::MartianAddress));
}

#[test]
fn fragments() {
    for (src, dst) in [v4_ends(), v6_ends()] {
        let malformed = if src.is_v4() { DropReason::MalformedIpv4 } else { DropReason::MalformedIpv6 };
        let whole = Spec { df: false, ..Spec::udp(src, dst, 5, 6).with_payload([7; 64]) };
        let with = |offset, more, len| {
            let spec = Spec { fragment: Some((offset, more)), ..whole.clone() }.with_payload(vec![7; len]);
            run(&spec.build(), 0)
        };
        let (parsed, meta, key) = with(0, true, 64);
        assert_eq!((parsed, meta.frag), (Parsed::Ip, 0x8000));
        assert_eq!((key.sport, key.dport), (5, 6), "the first fragment has the ports");
        assert!(!meta.has(flags::LATER_FRAGMENT));
        for (offset, more, len) in [(9, true, 64), (9, false, 3), (1, false, 8)] {
            let (parsed, meta, key) = with(offset, more, len);
            assert_eq!(parsed, Parsed::Ip);
            assert_eq!(meta.frag, offset | u16::from(more) << 15);
            assert_eq!((key.sport, key.dport, key.proto), (0, 0, 17));
            assert!(meta.has(flags::LATER_FRAGMENT));
        }
        assert_eq!(with(0, true, 63).0, Parsed::Drop(malformed), "a middle fragment is a multiple of 8");
        assert_eq!(with(9, true, 63).0, Parsed::Drop(malformed));
        assert_eq!(with(0x1fff, false, 64).0, Parsed::Drop(malformed), "ping of death");
        assert_eq!(with(0x1ff0, false, 64).0, Parsed::Ip);
        // A first fragment without the whole transport header, and one that would overwrite it.
        let tcp = Spec { df: false, ..Spec::tcp(src, dst, 1, 2, 2) };
        for (offset, want) in [
            (1, Parsed::Drop(DropReason::MalformedTransport)),
            (2, Parsed::Drop(DropReason::MalformedTransport)),
            (3, Parsed::Ip),
        ] {
            let spec = Spec { fragment: Some((offset, false)), ..tcp.clone() }.with_payload([0; 24]);
            assert_eq!(verdict(&spec), want, "offset {offset}");
        }
        let mut tiny = Spec { fragment: Some((0, true)), ..tcp.with_payload([0; 4]) }.build();
        assert_eq!(run(&tiny, 0).0, Parsed::Ip);
        tiny.truncate(tiny.len() - 8);
        if src.is_v4() {
            tiny[17] -= 8;
            testgen::refresh_ipv4_checksum(&mut tiny);
        } else {
            tiny[19] -= 8;
        }
        assert_eq!(run(&tiny, 0).0, Parsed::Drop(DropReason::MalformedTransport), "tiny first fragment");
    }
}

#[test]
fn transport_lengths() {
    for (src, dst) in [v4_ends(), v6_ends()] {
        let l4 = if src.is_v4() { 34 } else { 54 };
        let tcp = Spec::tcp(src, dst, 1, 2, 2).build();
        for (words, want) in [(4u8, false), (5, true), (6, false)] {
            let mut frame = tcp.clone();
            frame[l4 + 12] = words << 4;
            assert_eq!(run(&frame, 0).0 == Parsed::Ip, want, "TCP data offset {words}");
        }
        let udp = Spec::udp(src, dst, 1, 2).with_payload([0; 4]).build();
        for (len, want) in [(0u8, false), (7, false), (8, true), (12, true), (13, false)] {
            let mut frame = udp.clone();
            frame[l4 + 5] = len;
            assert_eq!(run(&frame, 0).0 == Parsed::Ip, want, "UDP length {len}");
        }
        for (proto, len) in [(6u8, 20usize), (17, 8), (132, 12), (if src.is_v4() { 1 } else { 58 }, 8)] {
            let spec = Spec::new(src, dst, Upper::Other(proto)).with_payload(vec![0; len - 1]);
            assert_eq!(verdict(&spec), Parsed::Drop(DropReason::MalformedTransport), "protocol {proto}");
        }
        // The other family's ICMP, and a protocol without ports, have no header to look at.
        for proto in [if src.is_v4() { 58 } else { 1 }, 47, 50, 59] {
            let (parsed, meta, key) = run(&Spec::new(src, dst, Upper::Other(proto)).build(), 0);
            assert_eq!((parsed, key.sport, key.dport), (Parsed::Ip, 0, 0), "protocol {proto}");
            assert_eq!((meta.proto, meta.icmp_type), (proto, 0));
        }
    }
}

#[test]
fn ipv4_header_checks() {
    let (src, dst) = v4_ends();
    let good = Spec::udp(src, dst, 1, 2).build();
    for (at, value) in [(14, 0x55), (14, 0x44), (14, 0x4f), (17, 19), (17, 29), (24, 0xff), (22, 1)] {
        let mut frame = good.clone();
        frame[at] = value;
        assert_eq!(run(&frame, 0).0, Parsed::Drop(DropReason::MalformedIpv4), "byte {at} = {value:#x}");
    }
    // A total length below the header's, with a right checksum: neither arm may take the wrapped difference.
    for len in 0..20 {
        let mut frame = good.clone();
        frame[17] = len;
        testgen::refresh_ipv4_checksum(&mut frame);
        assert_eq!(run(&frame, 0).0, Parsed::Drop(DropReason::MalformedIpv4), "total length {len}");
    }
}

#[test]
fn jumbograms_are_refused() {
    let (src, dst) = v6_ends();
    let mut frame = Spec { extensions: vec![0], ..Spec::udp(src, dst, 1, 2) }.build();
    frame[18..20].fill(0);
    assert_eq!(run(&frame, 0).0, Parsed::Drop(DropReason::MalformedIpv6));
    let mut frame = Spec::udp(src, dst, 1, 2).build();
    frame[18..20].fill(0);
    assert_eq!(run(&frame, 0).0, Parsed::Drop(DropReason::MalformedTransport));
}

#[test]
fn icmp_errors() {
    for ((src, dst), router) in [(v4_ends(), ip("192.0.2.1")), (v6_ends(), ip("2001:db8::1"))] {
        let v6 = !src.is_v4();
        let about = Spec::tcp(src, dst, 40_000, 443, 2).with_payload([0; 100]);
        let error = |kind, quote: &[u8]| {
            let upper = Upper::Icmp(icmp::Repr { kind, code: 1, rest: 0 });
            run(&Spec::new(router, src, upper).with_payload(quote).build(), 0)
        };
        let quote = about.build_packet();
        let header = if v6 { 40 } else { 20 };
        let kind = if v6 { 1 } else { 3 };
        let (parsed, meta, key) = error(kind, &quote[..header + 8]);
        assert_eq!(parsed, Parsed::Ip);
        assert_eq!((key.src, key.dst, key.sport, key.dport, key.proto), (dst, src, 443, 40_000, 6));
        assert_eq!((meta.icmp_type, meta.icmp_code), (kind, 1));
        assert_eq!(meta.proto, if v6 { 58 } else { 1 });
        assert!(meta.has(flags::ICMP_ERROR));
        assert_eq!(error(kind, &quote[..header + 7]).0, Parsed::Drop(DropReason::MalformedTransport));
        assert_eq!(error(kind, &[]).0, Parsed::Drop(DropReason::MalformedTransport));
        // About a later fragment: no ports to know.
        let later = Spec { fragment: Some((8, false)), ..about.clone() }.build_packet();
        let (parsed, _, key) = error(kind, &later);
        assert_eq!((parsed, key.sport, key.dport, key.proto), (Parsed::Ip, 0, 0, 6));
        // About an echo: its identifier; about an error, or not to the sender: nobody's.
        let (parsed, _, key) = error(kind, &Spec::echo(src, dst, 77, 1).build_packet());
        assert_eq!((parsed, key.sport, key.dport), (Parsed::Ip, 77, 77));
        let nested =
            Spec::new(src, dst, Upper::Icmp(icmp::Repr { kind, code: 0, rest: 0 })).with_payload([0; 60]);
        assert_eq!(error(kind, &nested.build_packet()).0, Parsed::Drop(DropReason::IcmpUnrelated));
        let foreign = Spec::udp(router, dst, 1, 2).build_packet();
        assert_eq!(error(kind, &foreign).0, Parsed::Drop(DropReason::IcmpUnrelated));
    }
    let (src, dst) = v4_ends();
    let redirect = Upper::Icmp(icmp::Repr { kind: 5, code: 1, rest: 0x0a00_0001 });
    let spec = Spec::new(dst, src, redirect).with_payload(Spec::udp(src, dst, 1, 2).build_packet());
    assert_eq!(verdict(&spec), Parsed::Drop(DropReason::IcmpUnrelated));
}

#[test]
fn checksum_with_both_zeros() {
    // A header whose sum is 0xffff without its checksum: 0x0000 and 0xffff both verify.
    let (src, dst) = v4_ends();
    let mut frame = Spec { df: false, ..Spec::udp(src, dst, 1, 2) }.build();
    let mut p = ipv4::Packet::new_unchecked(&mut frame[14..34]);
    p.set_ident(0);
    p.set_checksum(0);
    let rest = checksum::checksum(p.header());
    p.set_ident(rest);
    for check in [0x0000, 0xffff] {
        let mut p = ipv4::Packet::new_unchecked(&mut frame[14..34]);
        p.set_checksum(check);
        assert_eq!(run(&frame, 0).0, Parsed::Ip, "{check:#06x}");
    }
}
