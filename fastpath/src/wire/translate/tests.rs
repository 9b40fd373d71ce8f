//! The fast arm against the steps one by one, on every kind of frame.

use super::*;
use crate::packet::{NO_INDEX, PortId};
use crate::tables::policy::Rules;
use crate::wire::parse::{Parsed, parse};
use crate::wire::testgen::{self, Spec, Upper};
use crate::wire::{checksum::pseudo_header, partial};
use proptest::prelude::*;

fn parsed(frame: &[u8]) -> Option<(Meta, FlowKey)> {
    let (mut meta, mut key) = (Meta::default(), FlowKey::EMPTY);
    (parse(frame, 0, &mut meta, &mut key) == Parsed::Ip).then_some((meta, key))
}

/// A transform to another key of the family, with right deltas or any others.
fn transform() -> impl Strategy<Value = (Option<FlowKey>, Option<FlowKey>, (u16, u16), (u16, u16), bool)> {
    let ends = |v6| (testgen::unicast(v6), testgen::unicast(v6));
    (ends(false), ends(true), any::<(u16, u16)>(), any::<(u16, u16)>(), any::<bool>(), 0u8..4).prop_map(
        |(v4, v6, ports, deltas, honest, change)| {
            let key = |(src, dst)| FlowKey { src, dst, sport: ports.0, dport: ports.1, proto: 0 };
            let some = change > 0;
            (some.then(|| key(v4)), some.then(|| key(v6)), ports, deltas, honest)
        },
    )
}

/// What `rewrite` does step by step; `None` when it would do something else than forward.
fn steps(frame: &mut [u8], meta: &Meta, key: &FlowKey, t: &Transform) -> Option<()> {
    decrement_ttl(frame, meta).then_some(())?;
    if partial::finish(frame, meta, key) {
        return None;
    }
    if t.bits & (Transform::REWRITE_SRC | Transform::REWRITE_DST) != 0 && !meta.has(flags::ICMP_ERROR) {
        apply(frame, meta, t);
    }
    Some(())
}

/// Leaves the transport checksum to the device, as Linux does.
fn unfinish(frame: &mut [u8], meta: &Meta, key: &FlowKey) {
    let (l4, end) = (usize::from(meta.l4), usize::from(meta.l3) + usize::from(meta.l3_len));
    let len =
        if meta.proto == proto::UDP { get16(frame, l4 + 4).into() } else { u32::try_from(end - l4).unwrap() };
    let pseudo = pseudo_header(key.src, key.dst, key.proto, len).fold();
    match meta.proto {
        proto::TCP => put(frame, l4 + 16, &pseudo.to_be_bytes()),
        proto::UDP => put(frame, l4 + 6, &pseudo.to_be_bytes()),
        _ => {}
    }
}

proptest! {
    #![proptest_config(ProptestConfig { max_global_rejects: 1 << 20, ..ProptestConfig::with_cases(4096) })]

    #[test]
    fn forward_is_its_steps(
        frame in prop_oneof![testgen::spec().prop_map(|s| s.build()), testgen::mutated()],
        (v4, v6, _, deltas, honest) in transform(),
        unfinished in 0u8..4,
        tunnel: u16,
    ) {
        let Some((meta, key)) = parsed(&frame) else { return Ok(()) };
        let to = if meta.has(flags::V6) { v6 } else { v4 };
        let mut t = Transform { tunnel, mtu: 9000, rules: Rules::NONE, ..Transform::identity(&key) };
        if let Some(to) = to.filter(|_| key.src.is_v4() != meta.has(flags::V6)) {
            let to = FlowKey { proto: key.proto, ..to };
            let (l3_delta, l4_delta) = if honest { checksum::rewrite_deltas(&key, &to) } else { deltas };
            let (src, dst, sport, dport) = (to.src, to.dst, to.sport, to.dport);
            t = Transform { src, dst, sport, dport, l3_delta, l4_delta, bits: Transform::REWRITE_DST, ..t };
        }
        let mut frame = frame;
        if unfinished == 0 && meta.frag == 0 && !meta.has(flags::ICMP_ERROR) {
            unfinish(&mut frame, &meta, &key);
        }
        let (mut fast, mut slow) = (frame.clone(), frame.clone());
        if forward(&mut fast, &meta, &t) {
            prop_assert_eq!(steps(&mut slow, &meta, &key, &t), Some(()));
            prop_assert_eq!(fast, slow);
        } else {
            prop_assert_eq!(fast, frame, "nothing changed");
        }
    }

    #[test]
    fn common_packets_take_the_fast_arm(spec in testgen::spec()) {
        let frame = spec.build();
        let Some((meta, key)) = parsed(&frame) else { return Ok(()) };
        let common = matches!(spec.upper, Upper::Tcp { .. } | Upper::Udp { .. })
            && (meta.l4 - meta.l3 == if meta.has(flags::V6) { 40 } else { 20 })
            && meta.frag == 0
            && meta.ttl > 1;
        let complete = !partial::finish(&mut frame.clone(), &meta, &key);
        prop_assert!(!common || forward(&mut frame.clone(), &meta, &Transform::identity(&key)) == complete);
    }

    #[test]
    fn nothing_panics(
        mut frame in prop::collection::vec(any::<u8>(), 0..120),
        (l3, l4, l3_len, proto, bits, ttl) in (0u16..130, 0u16..130, any::<u16>(), any::<u8>(), any::<u8>(), any::<u8>()),
    ) {
        let meta = Meta { l3, l4, l3_len, proto, flags: bits, ttl, ..Meta::default() };
        let _ = forward(&mut frame, &meta, &Transform::identity(&FlowKey::EMPTY));
    }
}

#[test]
fn a_service_is_translated_in_one_step() {
    let ip = |text: &str| Ip::from(text.parse::<std::net::IpAddr>().unwrap());
    let before = Spec::udp(ip("10.0.0.1"), ip("10.96.0.1"), 1000, 80).with_payload(*b"question");
    let mut after = Spec::udp(ip("10.0.0.1"), ip("10.0.1.7"), 1000, 8080).with_payload(*b"question");
    after.ttl = before.ttl - 1;
    let mut frame = before.build();
    let (meta, key) = parsed(&frame).unwrap();
    let to = after.key();
    let (l3_delta, l4_delta) = checksum::rewrite_deltas(&key, &to);
    let bits = Transform::REWRITE_DST;
    let way = Transform { egress: PortId(1), tunnel: NO_INDEX, ..Transform::identity(&to) };
    assert!(forward(&mut frame, &meta, &Transform { l3_delta, l4_delta, bits, ..way }));
    assert_eq!(frame, after.build());
}
