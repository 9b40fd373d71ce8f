//! Fragments on the uplink, and node addresses among the pods', through the loaded program
//! (`BPF_PROG_TEST_RUN`). Needs root.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

mod lab;

use std::net::IpAddr;

use fastpath_xdp::abi::{FRAGMENT_LIFE_NS, MAX_FRAGMENTS};
use fastpath_xdp::{OnFailure, Prefix, SnatPorts, Tunnel};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

use lab::families::{Family, LO, NOT_OURS, a, bench, families, pinhole};
use lab::frames::{self, SCTP, TCP, UDP};
use lab::{Bench, DROP, Namespace, PASS, Verdict, dropped_vlan0, passed, redirected};

const ID: u32 = 0x0102_0304;

/// What a first fragment may be to be ours: destination, protocol, payload, hole.
fn holes(f: &Family) -> Vec<(IpAddr, u8, Vec<u8>, &'static str)> {
    let sent = frames::ip(f.node, f.far, UDP, &frames::transport(UDP, LO, 53));
    vec![
        (f.node, UDP, frames::transport(UDP, 1, 4789), "pinhole_vxlan"),
        (f.vip, UDP, frames::transport(UDP, 1, 53), "pinhole_frontend"),
        (f.node, SCTP, frames::transport(SCTP, 1, 30080), "pinhole_node_port"),
        (f.node, TCP, frames::transport(TCP, 443, LO), "pinhole_snat"),
        (f.node, f.icmp, frames::icmp(f.reply, LO, b"pong"), "pinhole_snat"),
        (f.node, f.icmp, frames::icmp(f.errors[0], 0, &sent), "pinhole_icmp_error"),
    ]
}

/// A later fragment of a UDP datagram from `far`.
fn later(f: &Family, dst: IpAddr) -> Vec<u8> {
    frames::piece((f.far, dst), UDP, ID, 3, false, b"the rest")
}

/// A first fragment of a UDP datagram from `far` to a port.
fn first(f: &Family, dst: IpAddr, dport: u16) -> Vec<u8> {
    frames::piece((f.far, dst), UDP, ID, 0, true, &frames::transport(UDP, 1, dport))
}

#[test]
fn later_fragments_go_where_the_first_one_went() {
    let mut bench = bench();
    for f in families() {
        for (dst, proto, payload, hole) in holes(&f) {
            bench.forget_fragments();
            let piece = |offset, more| frames::piece((f.far, dst), proto, ID, offset, more, &payload);
            for (offset, more) in [(1, true), (1, false), (0x1fff, false)] {
                assert_eq!(bench.uplink(&piece(offset, more)), passed(NOT_OURS), "{hole}: none yet");
            }
            assert_eq!(bench.uplink(&piece(0, true)), redirected(hole));
            // As often as they come, in any order, behind the last one too.
            for (offset, more) in [(0x1fff, false), (1, true), (0x1000, true), (1, true), (0x1fff, false)] {
                assert_eq!(bench.uplink(&piece(offset, more)), redirected(hole), "{hole} at {offset}");
            }
        }
    }
}

#[test]
fn fragments_of_another_datagram_do_not() {
    let mut bench = bench();
    for f in families() {
        assert_eq!(bench.uplink(&first(&f, f.node, 4789)), redirected("pinhole_vxlan"));
        assert_eq!(bench.uplink(&later(&f, f.node)), redirected("pinhole_vxlan"));
        for (src, dst) in [(f.other, f.node), (f.far, f.vip), (f.node, f.far)] {
            let frame = frames::piece((src, dst), UDP, ID, 3, false, b"the rest");
            assert_eq!(bench.uplink(&frame), passed(NOT_OURS), "{src} to {dst}");
        }
        // Each byte of the identification counts: two of IPv4, four of IPv6.
        let v4 = f.node.is_ipv4();
        for bit in [0, 8, 16, 24] {
            let frame = frames::piece((f.far, f.node), UDP, ID ^ 1 << bit, 3, false, b"the rest");
            let same = v4 && bit >= 16;
            let expected = if same { redirected("pinhole_vxlan") } else { passed(NOT_OURS) };
            assert_eq!(bench.uplink(&frame), expected, "{} bit {bit}", f.node);
        }
        // The protocol identifies for IPv4 only (RFC 8200 4.5).
        let frame = frames::piece((f.far, f.node), TCP, ID, 3, false, b"the rest");
        let expected = if v4 { passed(NOT_OURS) } else { redirected("pinhole_vxlan") };
        assert_eq!(bench.uplink(&frame), expected, "{}", f.node);
    }
}

#[test]
fn only_fragments_that_need_it_are_remembered() {
    let mut bench = bench();
    for f in families() {
        for dport in [22, 4789] {
            // Whole: as such, or in a fragment header of its own (RFC 6946).
            bench.uplink(&frames::packet(f.far, f.node, UDP, 1, dport));
            let udp = frames::transport(UDP, 1, dport);
            bench.uplink(&frames::piece((f.far, f.node), UDP, ID, 0, false, &udp));
            bench.uplink(&later(&f, f.node));
        }
        // The kernel's.
        assert_eq!(bench.uplink(&first(&f, f.node, 22)), passed(NOT_OURS));
        // A pod's, ports or not.
        assert_eq!(bench.uplink(&first(&f, f.pod, 4789)), redirected("pinhole_pod"));
        assert_eq!(bench.uplink(&later(&f, f.pod)), redirected("pinhole_pod"));
        // Tagged: dropped, so its others find nothing.
        let tagged = frames::tagged(&first(&f, f.node, 4789), 0x8100, 0);
        assert_eq!(bench.uplink(&tagged), dropped_vlan0());
        assert_eq!(bench.forget_fragments(), 0);

        assert_eq!(bench.uplink(&first(&f, f.node, 4789)), redirected("pinhole_vxlan"));
        let tagged = frames::tagged(&later(&f, f.node), 0x8100, 0);
        assert_eq!(bench.uplink(&tagged), dropped_vlan0(), "it would be ours");
        assert_eq!(bench.forget_fragments(), 1);
        assert_eq!(bench.uplink(&tagged), passed("passed_vlan"), "and now the kernel's");
    }
}

#[test]
fn an_identification_that_comes_round_is_the_new_datagrams() {
    let mut bench = bench();
    for f in families() {
        assert_eq!(bench.uplink(&first(&f, f.node, 4789)), redirected("pinhole_vxlan"));
        assert_eq!(bench.uplink(&first(&f, f.node, LO)), redirected("pinhole_snat"));
        assert_eq!(bench.uplink(&later(&f, f.node)), redirected("pinhole_snat"));
        assert_eq!(bench.uplink(&first(&f, f.node, 53)), passed(NOT_OURS));
        assert_eq!(bench.uplink(&later(&f, f.node)), passed(NOT_OURS), "the kernel has its first one");
        assert_eq!(bench.forget_fragments(), 0);
    }
}

#[test]
fn a_datagram_is_remembered_for_so_long() {
    let mut bench = bench();
    for f in families() {
        bench.forget_fragments();
        assert_eq!(bench.uplink(&first(&f, f.node, 4789)), redirected("pinhole_vxlan"));
        let age = |bench: &mut Bench, nanos| {
            let fragments = bench.redirect.fragments();
            let key = fragments.keys().next().unwrap().unwrap();
            let mut fragment = fragments.get(&key, 0).unwrap();
            fragment.seen_ns = fragment.seen_ns.checked_sub(nanos).expect("the machine has just booted");
            fragments.insert(key, fragment, 0).unwrap();
        };
        // Three of them are more than its life.
        let third = FRAGMENT_LIFE_NS / 3 + 1;
        for _ in 0..2 {
            age(&mut bench, third);
            assert_eq!(bench.uplink(&later(&f, f.node)), redirected("pinhole_vxlan"));
        }
        age(&mut bench, third);
        assert_eq!(bench.uplink(&later(&f, f.node)), passed(NOT_OURS));
        assert_eq!(bench.uplink(&first(&f, f.node, 4789)), redirected("pinhole_vxlan"));
        assert_eq!(bench.uplink(&later(&f, f.node)), redirected("pinhole_vxlan"));
    }
}

/// What user space could put there by mistake (a newer program's classes) is nobody's hole.
#[test]
fn an_unknown_hole_is_none() {
    let mut bench = bench();
    let [f, _] = families();
    bench.uplink(&first(&f, f.node, 4789));
    let key = bench.redirect.fragments().keys().next().unwrap().unwrap();
    let good = bench.redirect.fragments().get(&key, 0).unwrap();
    for hole in (0..9).chain([10, 15, 16, 255, u32::MAX]) {
        let bad = fastpath_xdp::abi::Fragment { hole, ..good };
        bench.redirect.fragments().insert(key, bad, 0).unwrap();
        assert_eq!(bench.uplink(&later(&f, f.node)), passed(NOT_OURS), "{hole}");
    }
    bench.redirect.fragments().insert(key, good, 0).unwrap();
    assert_eq!(bench.uplink(&later(&f, f.node)), redirected("pinhole_vxlan"));
}

#[test]
fn a_flood_of_first_fragments_is_bounded() {
    let mut bench = bench();
    let [_, f] = families();
    for id in 0..MAX_FRAGMENTS * 2 {
        let udp = frames::transport(UDP, 1, 4789);
        bench.uplink(&frames::piece((f.far, f.node), UDP, id, 0, true, &udp));
        if id % 512 == 511 {
            // What comes at once is found, however full it is.
            let rest = frames::piece((f.far, f.node), UDP, id, 3, false, b"the rest");
            assert_eq!(bench.uplink(&rest), redirected("pinhole_vxlan"), "{id}");
        }
    }
    let held = bench.forget_fragments();
    let max = usize::try_from(MAX_FRAGMENTS).unwrap();
    assert!((max / 2..=max).contains(&held), "{held} datagrams");
}

#[test]
fn fragments_may_come_on_any_cpu() {
    let mut bench = bench();
    let all = sched_getaffinity(None).unwrap();
    let cpus: Vec<usize> = (0..CpuSet::MAX_CPU).filter(|cpu| all.is_set(*cpu)).collect();
    let on = |cpu: usize| {
        let mut one = CpuSet::new();
        one.set(cpu);
        sched_setaffinity(None, &one).unwrap();
    };
    for f in families() {
        for (here, there) in [(cpus[0], cpus[cpus.len() - 1]), (cpus[cpus.len() - 1], cpus[0])] {
            bench.forget_fragments();
            on(here);
            assert_eq!(bench.uplink(&first(&f, f.node, 4789)), redirected("pinhole_vxlan"));
            on(there);
            assert_eq!(bench.uplink(&later(&f, f.node)), redirected("pinhole_vxlan"));
            assert_eq!(bench.uplink(&first(&f, f.node, 22)), passed(NOT_OURS));
            on(here);
            assert_eq!(bench.uplink(&later(&f, f.node)), passed(NOT_OURS));
        }
    }
}

#[test]
fn fragments_from_another_device_join_no_datagram() {
    let mut bench = bench();
    let namespace = Namespace::enter_new();
    let (left, right) = namespace.veth("left", "right");
    let socket = lab::xsk();
    for ifindex in [left, right] {
        bench.redirect.register_socket(ifindex, 0, std::os::fd::AsFd::as_fd(&socket)).unwrap();
    }
    for f in families() {
        assert_eq!(bench.uplink_from(left, &first(&f, f.node, 4789)), redirected("pinhole_vxlan"));
        assert_eq!(bench.uplink_from(left, &later(&f, f.node)), redirected("pinhole_vxlan"));
        assert_eq!(bench.uplink_from(right, &later(&f, f.node)), passed(NOT_OURS));
        // Nor does a first one there end one here.
        assert_eq!(bench.uplink_from(right, &first(&f, f.node, 22)), passed(NOT_OURS));
        assert_eq!(bench.uplink_from(left, &later(&f, f.node)), redirected("pinhole_vxlan"));
    }
}

#[test]
fn extension_headers_around_the_fragment_header() {
    let mut bench = bench();
    let [_, f] = families();
    let udp = frames::transport(UDP, 1, 4789);
    let mut run =
        |next, payload: &[u8]| bench.uplink(&frames::ip_frame(&frames::ipv6(f.far, f.node, next, payload)));
    let rest = |more| frames::fragment(60, 2, more, b"whatever it is");
    let hole = redirected("pinhole_vxlan");

    assert_eq!(run(0, &frames::extension(0, 44, 1, &rest(true))), passed(NOT_OURS));
    let inside = frames::fragment(60, 0, true, &frames::extension(60, UDP, 0, &udp));
    assert_eq!(run(0, &frames::extension(0, 44, 1, &inside)), hole);
    assert_eq!(run(0, &frames::extension(0, 44, 1, &rest(true))), hole);
    assert_eq!(run(44, &rest(false)), hole, "the headers before need not agree");

    // A fragment in a fragment is the outer one's; a later one in a first one says nothing of either.
    let other = |offset, more| {
        let mut inner = frames::fragment(UDP, offset, more, &udp);
        inner[7] = 0x55;
        inner
    };
    assert_eq!(run(44, &other(1, true)), passed(NOT_OURS));
    assert_eq!(run(44, &frames::fragment(44, 0, true, &other(0, true))), hole);
    assert_eq!(run(44, &other(1, true)), passed(NOT_OURS), "the inner one is not looked at");
    assert_eq!(run(44, &rest(false)), hole);
    assert_eq!(run(44, &frames::fragment(44, 0, true, &other(1, true))), passed(NOT_OURS));
    // In a whole one it is itself the fragment.
    assert_eq!(run(44, &frames::fragment(44, 0, false, &other(0, true))), hole);
    assert_eq!(run(44, &other(1, true)), hole);
}

#[test]
fn later_fragments_share_the_first_ones_fate_when_nobody_serves() {
    for (on_failure, action, stale, no_socket) in [
        (OnFailure::Drop, DROP, "stale_dropped", "no_socket_dropped"),
        (OnFailure::Pass, PASS, "stale_passed", "no_socket_passed"),
    ] {
        let mut bench = Bench::new(on_failure);
        bench.redirect.set_pinhole(&pinhole()).unwrap();
        for f in families() {
            bench.heart.stop().unwrap();
            let both = |bench: &mut Bench, expected: &[&'static str]| {
                for frame in [first(&f, f.vip, 53), later(&f, f.vip)] {
                    let expected = Verdict { action, counted: expected.to_vec() };
                    assert_eq!(bench.uplink(&frame), expected);
                }
            };
            both(&mut bench, &["pinhole_frontend", stale]);
            bench.heart.beat().unwrap();
            bench.redirect.unregister_socket(1, 0).unwrap();
            both(&mut bench, &[no_socket, "pinhole_frontend"]);
            bench.register();
            assert_eq!(bench.uplink(&later(&f, f.vip)), redirected("pinhole_frontend"));
        }
        bench.finish();
    }
}

#[test]
fn a_node_address_among_the_pods_is_the_kernels() {
    let mut bench = bench();
    let mut pods = pinhole();
    pods.local.insert(Prefix::new(a("fd00:1::"), 64).unwrap());
    let mut with_node = pods.clone();
    for f in families() {
        // Among the pods, with a hole of each kind by port; and even named as a pod's.
        let node = if f.pod.is_ipv4() { a("10.1.0.1") } else { a("fd00:1::1") };
        let named = if f.pod.is_ipv4() { a("10.1.0.2") } else { a("fd00:1::2") };
        with_node.node.extend([node, named, f.node]);
        with_node.local.insert(Prefix::host(named));
        with_node.tunnels.insert(Tunnel { addr: node, port: 4789 });
        with_node.snat.insert(node, SnatPorts { lo: LO, hi: LO });

        bench.redirect.set_pinhole(&with_node).unwrap();
        let mut to = |dst, proto, dport| bench.uplink(&frames::packet(f.far, dst, proto, 1, dport));
        for dst in [node, named] {
            for (proto, dport) in [(TCP, 22), (TCP, 10250), (UDP, 53), (47, 0)] {
                assert_eq!(to(dst, proto, dport), passed(NOT_OURS), "{dst} {proto} {dport}");
            }
        }
        assert_eq!(to(node, UDP, 4789), redirected("pinhole_vxlan"));
        assert_eq!(to(node, TCP, LO), redirected("pinhole_snat"));
        assert_eq!(to(f.pod, TCP, 22), redirected("pinhole_pod"));
        // With a priority tag, too.
        let ssh = frames::packet(f.far, node, TCP, 1, 22);
        assert_eq!(bench.uplink(&frames::tagged(&ssh, 0x8100, 0)), passed("passed_vlan"));
        // Its fragments as anywhere: by the first one.
        assert_eq!(bench.uplink(&later(&f, node)), passed(NOT_OURS));
        assert_eq!(bench.uplink(&first(&f, node, 4789)), redirected("pinhole_vxlan"));
        assert_eq!(bench.uplink(&later(&f, node)), redirected("pinhole_vxlan"));
    }
    let reported: Vec<String> = with_node
        .node_addresses_of_pods()
        .into_iter()
        .map(|(addr, prefix)| format!("{addr} in {prefix}"))
        .collect();
    assert_eq!(
        reported,
        [
            "10.1.0.1 in 10.1.0.0/24",
            "10.1.0.2 in 10.1.0.2/32",
            "fd00:1::1 in fd00:1::/64",
            "fd00:1::2 in fd00:1::2/128"
        ]
    );

    // No longer the node's: a pod's again.
    bench.redirect.set_pinhole(&pods).unwrap();
    for (far, dst) in [("198.51.100.5", "10.1.0.1"), ("2001:db8::5", "fd00:1::1")] {
        let frame = frames::packet(a(far), a(dst), TCP, 1, 22);
        assert_eq!(bench.uplink(&frame), redirected("pinhole_pod"));
    }
}
