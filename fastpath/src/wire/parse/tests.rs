//! `parse` against etherparse: the properties. `cases` has the special ones, `oracle` the rules once more.

use etherparse::{SlicedPacket, TransportSlice};
use proptest::prelude::*;

use super::*;
use crate::packet::PortId;
use crate::wire::testgen::{self, Spec, Upper};

mod cases;
mod oracle;

use oracle::oracle;

/// Runs `parse`, and checks that nothing outside its remit changed.
fn run(frame: &[u8], offset: u16) -> (Parsed, Meta, FlowKey) {
    let mut meta = dirty();
    let mut key = FlowKey { sport: 7, dport: 7, proto: 7, ..FlowKey::EMPTY };
    let parsed = parse(frame, offset, &mut meta, &mut key);
    assert_eq!((meta.hash, meta.ingress, meta.egress), (1, PortId(2), PortId(3)));
    assert_eq!((meta.tunnel, meta.next_hop), (4, 5));
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
        l3: 99,
        l4: 99,
        l3_len: 99,
        proto: 99,
        flags: u8::MAX,
        tcp_flags: 99,
        icmp_type: 99,
        icmp_code: 99,
        ttl: 99,
        tos: 99,
        frag: 99,
    }
}

/// Whether the fast arm takes a frame.
fn takes(frame: &[u8]) -> bool {
    common(frame, 0, &mut Meta::default(), &mut FlowKey::EMPTY.clone())
}

/// What a test compares: everything `parse` fills.
fn fields(meta: &Meta) -> [u16; 12] {
    let small = [meta.proto, meta.flags, meta.tcp_flags, meta.icmp_type, meta.icmp_code, meta.ttl, meta.tos];
    let [a, b, c, d, e, f, g] = small.map(u16::from);
    [meta.l3, meta.l4, meta.l3_len, meta.frag, a, b, c, d, e, f, g, 0]
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
#[cfg_attr(miri, ignore = "too many steps for an interpreter")]
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
            fast_arm += u32::from(takes(&frame));
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
