//! Every class of the pinhole, frame by frame, through the loaded programs (`BPF_PROG_TEST_RUN`).
//! Needs root.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

mod lab;

use std::net::IpAddr;

use fastpath_xdp::pinhole::Protocol;
use fastpath_xdp::{Endpoint, OnFailure, Pinhole, Prefix, Role};

use lab::families::{Family, HI, LO, NOT_OURS, a, bench, families, pinhole};
use lab::frames::{self, ICMP, ICMPV6, SCTP, TCP, UDP};
use lab::{Bench, DROP, PASS, REDIRECT, Verdict, dropped_vlan0, passed, redirected};

#[test]
fn each_hole_and_its_neighbours() {
    let mut bench = bench();
    for f in families() {
        let to = |dst, proto, dport| frames::packet(f.far, dst, proto, 1234, dport);
        for (frame, hole) in [
            (to(f.node, UDP, 4789), "pinhole_vxlan"),
            (to(f.pod, TCP, 1), "pinhole_pod"),
            (to(f.pod, 47, 1), "pinhole_pod"),
            (to(f.vip, TCP, 80), "pinhole_frontend"),
            (to(f.vip, UDP, 53), "pinhole_frontend"),
            (to(f.vip, SCTP, 3868), "pinhole_frontend"),
            (to(f.node, TCP, 30080), "pinhole_node_port"),
            (to(f.node, UDP, 30080), "pinhole_node_port"),
            (to(f.node, SCTP, 30080), "pinhole_node_port"),
            (to(f.node, TCP, LO), "pinhole_snat"),
            (to(f.node, UDP, HI), "pinhole_snat"),
            (to(f.node, SCTP, 40500), "pinhole_snat"),
        ] {
            assert_eq!(bench.uplink(&frame), redirected(hole), "{}", f.node);
        }
        for frame in [
            to(f.node, TCP, 4789),
            to(f.node, UDP, 4790),
            to(f.other, UDP, 4789),
            to(f.vip, TCP, 81),
            to(f.vip, UDP, 80),
            to(f.vip, TCP, 30080),
            to(f.node, TCP, 80),
            to(f.node, TCP, 22),
            to(f.node, TCP, LO - 1),
            to(f.node, TCP, HI + 1),
            to(f.other, TCP, LO),
            to(f.vip, TCP, LO),
            to(f.node, 47, 0),
            to(f.node, 4, 0),
            to(f.far, TCP, 80),
            // From our ports, not to them.
            frames::packet(f.far, f.node, UDP, 4789, 22),
            frames::packet(f.node, f.far, TCP, LO, 443),
        ] {
            assert_eq!(bench.uplink(&frame), passed(NOT_OURS), "{}: {frame:02x?}", f.node);
        }
    }
    // Prefixes: the CIDR's edges, and only the one address of a host prefix.
    let far = a("198.51.100.5");
    assert_eq!(bench.uplink(&frames::packet(far, a("10.1.0.255"), TCP, 1, 1)), redirected("pinhole_pod"));
    assert_eq!(bench.uplink(&frames::packet(far, a("10.1.1.0"), TCP, 1, 1)), passed(NOT_OURS));
    let far = a("2001:db8:ffff::5");
    assert_eq!(bench.uplink(&frames::packet(far, a("fd00:1::8"), TCP, 1, 1)), passed(NOT_OURS));
}

#[test]
fn the_nodes_own_traffic_is_never_taken() {
    let mut bench = bench();
    for f in families() {
        // SSH, the kubelet, DNS answers, pings: what would lock us out.
        for (proto, dport) in [(TCP, 22), (TCP, 10250), (TCP, 6443), (UDP, 53), (UDP, 123), (UDP, 547)] {
            assert_eq!(bench.uplink(&frames::packet(f.far, f.node, proto, 999, dport)), passed(NOT_OURS));
        }
        for id in [1, LO, HI] {
            let ping = frames::ip(f.far, f.node, f.icmp, &frames::icmp(f.echo, id, b"ping"));
            assert_eq!(bench.uplink(&frames::ip_frame(&ping)), passed(NOT_OURS), "echo request {id}");
        }
    }
    assert_eq!(bench.uplink(&frames::ethernet(0x0806, &[0; 46])), passed(NOT_OURS), "ARP");
    assert_eq!(bench.uplink(&frames::ethernet(0x88cc, &[0; 46])), passed(NOT_OURS), "LLDP");
    assert_eq!(bench.uplink(&frames::ethernet(46, &[0; 46])), passed(NOT_OURS), "802.3 length");
}

#[test]
fn vlan_tagged_and_group_addressed_frames_pass() {
    let mut bench = bench();
    for f in families() {
        for ours in [frames::packet(f.far, f.node, UDP, 1, 4789), frames::packet(f.far, f.pod, TCP, 1, 1)] {
            for tpid in [0x8100, 0x88a8] {
                for vlan in [1, 5, 0x0fff, 0xe005] {
                    let frame = frames::tagged(&ours, tpid, vlan);
                    assert_eq!(bench.uplink(&frame), passed("passed_vlan"));
                    assert_eq!(bench.uplink(&frames::tagged(&frame, 0x88a8, 6)), passed("passed_vlan"));
                    // The kernel strips the priority tag, and has its VLAN still to find.
                    assert_eq!(bench.uplink(&frames::tagged(&frame, tpid, 0)), passed("passed_vlan"));
                }
            }
            let mut group = ours.clone();
            group[..6].fill(0xff);
            assert_eq!(bench.uplink(&group), passed(NOT_OURS), "broadcast");
            group[..6].copy_from_slice(&[0x33, 0x33, 0, 0, 0, 1]);
            assert_eq!(bench.uplink(&group), passed(NOT_OURS), "multicast");
        }
    }
}

/// The kernel strips VLAN 0 and takes the rest as untagged: what is ours must not get to it that way.
#[test]
fn priority_tags_do_not_lead_past_the_dataplane() {
    let mut bench = bench();
    for f in families() {
        let error = frames::ip(f.node, f.far, UDP, &frames::transport(UDP, 51234, 4789));
        let ours = [
            frames::packet(f.far, f.node, UDP, 1, 4789),
            frames::packet(f.far, f.pod, TCP, 1, 1),
            frames::packet(f.far, f.pod, 47, 1, 1),
            frames::packet(f.far, f.vip, TCP, 1, 80),
            frames::packet(f.far, f.node, SCTP, 1, 30080),
            frames::packet(f.far, f.node, TCP, 1, LO),
            frames::ip_frame(&frames::ip(f.far, f.node, f.icmp, &frames::icmp(f.errors[0], 0, &error))),
        ];
        let ssh = frames::packet(f.far, f.node, TCP, 1, 22);
        for tpid in [0x8100, 0x88a8] {
            for control in [0, 0xe000, 0x1000] {
                for frame in &ours {
                    let tagged = frames::tagged(frame, tpid, control);
                    assert_eq!(bench.uplink(&tagged), dropped_vlan0(), "{frame:02x?}");
                    let twice = frames::tagged(&tagged, 0x8100, 0);
                    assert_eq!(bench.uplink(&twice), dropped_vlan0(), "{frame:02x?}");
                    let mut group = tagged.clone();
                    group[0] |= 1;
                    assert_eq!(bench.uplink(&group), passed("passed_vlan"), "{frame:02x?}");
                    // Cut inside: as malformed to the kernel as it would be to us.
                    assert_eq!(bench.uplink(&tagged[..30]), passed("passed_vlan"), "{frame:02x?}");
                }
                // The node's own stays the kernel's.
                assert_eq!(bench.uplink(&frames::tagged(&ssh, tpid, control)), passed("passed_vlan"));
                let arp = frames::tagged(&frames::ethernet(0x0806, &[0; 46]), tpid, control);
                assert_eq!(bench.uplink(&arp), passed("passed_vlan"));
            }
            let cut = frames::ethernet(tpid, &[0; 3]);
            assert_eq!(bench.uplink(&cut), passed("malformed"));
        }
    }
}

#[test]
fn echo_replies_by_identifier() {
    let mut bench = bench();
    for f in families() {
        let mut reply = |dst, kind, id| {
            let packet = frames::ip(f.far, dst, f.icmp, &frames::icmp(kind, id, b"pong"));
            bench.uplink(&frames::ip_frame(&packet))
        };
        for id in [LO, HI, 40500] {
            assert_eq!(reply(f.node, f.reply, id), redirected("pinhole_snat"), "id {id}");
        }
        for id in [0, LO - 1, HI + 1, 65535] {
            assert_eq!(reply(f.node, f.reply, id), passed(NOT_OURS), "id {id}");
        }
        assert_eq!(reply(f.other, f.reply, LO), passed(NOT_OURS));
        assert_eq!(reply(f.pod, f.reply, 1), redirected("pinhole_pod"));
        for kind in f.others {
            assert_eq!(reply(f.node, *kind, LO), passed(NOT_OURS), "type {kind}");
        }
    }
    // The other family's ICMP number means nothing.
    let [v4, v6] = families();
    let wrong = frames::ip(v4.far, v4.node, ICMPV6, &frames::icmp(129, LO, b""));
    assert_eq!(bench.uplink(&frames::ip_frame(&wrong)), passed(NOT_OURS));
    let wrong = frames::ip(v6.far, v6.node, ICMP, &frames::icmp(0, LO, b""));
    assert_eq!(bench.uplink(&frames::ip_frame(&wrong)), passed(NOT_OURS));
}

#[test]
fn icmp_errors_by_what_they_quote() {
    let mut bench = bench();
    for f in families() {
        let sent =
            |src, proto, sport, dport| frames::ip(src, f.far, proto, &frames::transport(proto, sport, dport));
        let echo = |src, kind, id| frames::ip(src, f.far, f.icmp, &frames::icmp(kind, id, b"ping"));
        let mut error = |kind, dst, quoted: &[u8]| {
            let packet = frames::ip(a_router(f.far), dst, f.icmp, &frames::icmp(kind, 0, quoted));
            bench.uplink(&frames::ip_frame(&packet))
        };
        let ours = [
            (f.node, sent(f.node, UDP, 51234, 4789)),
            (f.vip, sent(f.vip, TCP, 80, 5000)),
            (f.vip, sent(f.vip, SCTP, 3868, 5000)),
            (f.node, sent(f.node, TCP, 30080, 5000)),
            (f.node, sent(f.node, UDP, LO, 53)),
            (f.node, sent(f.node, TCP, HI, 443)),
            (f.node, echo(f.node, f.echo, LO)),
        ];
        for kind in f.errors {
            for (dst, quoted) in &ours {
                assert_eq!(
                    error(*kind, *dst, quoted),
                    redirected("pinhole_icmp_error"),
                    "type {kind} {quoted:02x?}"
                );
                // To anybody but the quoted packet's sender.
                assert_eq!(error(*kind, f.other, quoted), passed(NOT_OURS));
            }
            assert_eq!(error(*kind, f.pod, &sent(f.pod, TCP, 1, 2)), redirected("pinhole_pod"));
            assert_eq!(error(*kind, f.pod, b"nonsense"), redirected("pinhole_pod"));
        }
        let kernels = [
            // The kernel's own connections, other tunnels, and packets sent to us instead of by us.
            (f.node, sent(f.node, TCP, 22, 5000)),
            (f.node, sent(f.node, UDP, 51234, 8472)),
            (f.node, sent(f.node, UDP, 4789, 53)),
            (f.node, sent(f.node, TCP, 51234, 4789)),
            (f.vip, sent(f.vip, TCP, 5000, 80)),
            (f.node, sent(f.node, TCP, LO - 1, 443)),
            (f.node, sent(f.node, 47, LO, LO)),
            (f.node, echo(f.node, f.echo, LO - 1)),
            (f.node, echo(f.node, f.reply, LO)),
            (f.far, sent(f.far, TCP, LO, 1)),
        ];
        for (dst, quoted) in &kernels {
            assert_eq!(error(f.errors[0], *dst, quoted), passed(NOT_OURS), "{quoted:02x?}");
        }
        for kind in f.others {
            assert_eq!(error(*kind, f.node, &ours[0].1), passed(NOT_OURS), "type {kind}");
        }
    }
}

/// An address near `far`, of its family.
fn a_router(far: IpAddr) -> IpAddr {
    if far.is_ipv4() { a("198.51.100.254") } else { a("2001:db8:ffff::fe") }
}

#[test]
fn quoted_packets_may_have_options_extensions_and_be_cut() {
    let mut bench = bench();
    let [v4, v6] = families();
    let udp = frames::transport(UDP, 51234, 4789);
    let mut error = |f: &Family, quoted: &[u8]| {
        let packet = frames::ip(a_router(f.far), f.node, f.icmp, &frames::icmp(f.errors[0], 0, quoted));
        bench.uplink(&frames::ip_frame(&packet))
    };
    let hole = redirected("pinhole_icmp_error");
    assert_eq!(error(&v4, &frames::ipv4(v4.node, v4.far, UDP, &[1; 24], 0, &udp)), hole);
    assert_eq!(error(&v6, &frames::ipv6(v6.node, v6.far, 60, &frames::extension(60, UDP, 1, &udp))), hole);
    assert_eq!(error(&v6, &frames::ipv6(v6.node, v6.far, 44, &frames::fragment(UDP, 0, true, &udp))), hole);
    // A later fragment has no ports to quote.
    assert_eq!(error(&v4, &frames::ipv4(v4.node, v4.far, UDP, &[], 1, &udp)), passed(NOT_OURS));
    assert_eq!(
        error(&v6, &frames::ipv6(v6.node, v6.far, 44, &frames::fragment(UDP, 1, true, &udp))),
        passed(NOT_OURS)
    );
    // RFC 792 quotes eight bytes, and that is enough; fewer is malformed.
    for (f, header) in [(&v4, 20), (&v6, 40)] {
        let whole = frames::ip(f.node, f.far, UDP, &udp);
        assert_eq!(error(f, &whole[..header + 8]), redirected("pinhole_icmp_error"));
        for cut in 0..header + 8 {
            assert_eq!(error(f, &whole[..cut]), passed("malformed"), "{cut} bytes quoted");
        }
    }
    // The other family inside.
    assert_eq!(error(&v4, &frames::ip(v6.node, v6.far, UDP, &udp)), passed("malformed"));
    assert_eq!(
        error(&v6, &frames::ip(v4.node, v4.far, UDP, &[udp.clone(), vec![0; 20]].concat())),
        passed("malformed")
    );
}

#[test]
fn ipv4_options_and_fragments() {
    let mut bench = bench();
    let [f, _] = families();
    let udp = frames::transport(UDP, 1, 4789);
    let mut run = |dst, options: &[u8], fragment, payload: &[u8]| {
        bench.uplink(&frames::ip_frame(&frames::ipv4(f.far, dst, UDP, options, fragment, payload)))
    };
    for words in 0..=10 {
        // Bytes that look like our port where the header would be without options.
        let options = [0x12, 0xb5, 0x12, 0xb5].repeat(words);
        assert_eq!(run(f.node, &options, 0, &udp), redirected("pinhole_vxlan"), "{words} words");
        let other = frames::transport(UDP, 1, 22);
        assert_eq!(run(f.node, &options, 0, &other), passed(NOT_OURS), "{words} words");
    }
    // Later fragments carry no ports, whatever their bytes look like; a pod's address needs none.
    for offset in [1, 0x1fff, 0x2001] {
        assert_eq!(run(f.node, &[], offset, &udp), passed(NOT_OURS));
        assert_eq!(run(f.vip, &[], offset, &frames::transport(UDP, 1, 53)), passed(NOT_OURS));
        assert_eq!(run(f.pod, &[], offset, &udp), redirected("pinhole_pod"));
    }
    // Don't-fragment and the first fragment do.
    assert_eq!(run(f.node, &[], 0x4000, &udp), redirected("pinhole_vxlan"));
    assert_eq!(run(f.node, &[], 0x2000, &udp), redirected("pinhole_vxlan"));
}

#[test]
fn ipv6_extension_headers_and_fragments() {
    let mut bench = bench();
    let [_, f] = families();
    let udp = frames::transport(UDP, 1, 4789);
    let mut run =
        |dst, next, payload: &[u8]| bench.uplink(&frames::ip_frame(&frames::ipv6(f.far, dst, next, payload)));
    for kind in [0, 43, 51, 60] {
        for extra in [1, 2, 9] {
            // Odd counts of words are fine for the authentication header only.
            let packet = frames::extension(kind, UDP, extra, &udp);
            assert_eq!(run(f.node, kind, &packet), redirected("pinhole_vxlan"), "{kind} {extra}");
        }
        // It says more than is there.
        let mut long = frames::extension(kind, UDP, 1, &udp);
        long[1] = 200;
        assert_eq!(run(f.node, kind, &long), passed("malformed"), "{kind}");
        assert_eq!(run(f.pod, kind, &long), redirected("pinhole_pod"), "{kind}");
    }
    // All the kinds in a row, and the bound of the walk: eight are walked, nine are not.
    for count in 1..=12 {
        let kinds = [0, 60, 43, 51, 60, 60, 0, 43, 60, 60, 51, 60];
        let mut payload = udp.clone();
        let mut next = UDP;
        for kind in kinds[..count].iter().rev() {
            payload = frames::extension(*kind, next, 1, &payload);
            next = *kind;
        }
        let expected = if count <= 8 { redirected("pinhole_vxlan") } else { passed(NOT_OURS) };
        assert_eq!(run(f.node, next, &payload), expected, "{count} headers");
        assert_eq!(run(f.pod, next, &payload), redirected("pinhole_pod"), "{count} headers");
    }
    // Fragments: the atomic and the first one carry ports.
    for more in [false, true] {
        for offset in [1, 0x1fff] {
            let later = frames::fragment(UDP, offset, more, &udp);
            assert_eq!(run(f.node, 44, &later), passed(NOT_OURS));
            assert_eq!(run(f.pod, 44, &later), redirected("pinhole_pod"));
        }
    }
    for more in [false, true] {
        assert_eq!(run(f.node, 44, &frames::fragment(UDP, 0, more, &udp)), redirected("pinhole_vxlan"));
    }
    // ESP and "no next header" hide or have no ports.
    for next in [50, 59, 135] {
        assert_eq!(run(f.node, next, &udp), passed(NOT_OURS));
    }
    // An IPv4 address in IPv6 form is nobody's, though the tables hold IPv4 in that very form.
    for mapped in ["::ffff:192.0.2.1", "::ffff:10.1.0.7"] {
        assert_eq!(run(a(mapped), UDP, &udp), passed(NOT_OURS), "{mapped}");
    }
}

#[test]
fn cut_at_every_length_never_goes_elsewhere() {
    let mut bench = bench();
    for f in families() {
        let error = frames::ip(f.node, f.far, UDP, &frames::transport(UDP, 51234, 4789));
        let icmp_error = frames::ip(f.far, f.node, f.icmp, &frames::icmp(f.errors[0], 0, &error));
        let reply = frames::ip(f.far, f.node, f.icmp, &frames::icmp(f.reply, LO, b"pong"));
        for (frame, hole) in [
            (frames::packet(f.far, f.node, UDP, 1, 4789), "pinhole_vxlan"),
            (frames::packet(f.far, f.vip, TCP, 1, 80), "pinhole_frontend"),
            (frames::packet(f.far, f.node, SCTP, 1, 30080), "pinhole_node_port"),
            (frames::packet(f.far, f.node, TCP, 1, LO), "pinhole_snat"),
            (frames::packet(f.far, f.pod, TCP, 1, 1), "pinhole_pod"),
            (frames::ip_frame(&icmp_error), "pinhole_icmp_error"),
            (frames::ip_frame(&reply), "pinhole_snat"),
        ] {
            assert_eq!(bench.uplink(&frame), redirected(hole));
            for length in 14..frame.len() {
                // The IP header says more than is there.
                assert_eq!(bench.uplink(&frame[..length]), passed("malformed"), "{hole} cut to {length}");
            }
            // Ethernet's padding does not count as packet.
            assert_eq!(bench.uplink(&[&frame[..], &[0; 30]].concat()), redirected(hole));
        }
    }
}

#[test]
fn contradictory_headers_are_malformed() {
    let mut bench = bench();
    let [v4, v6] = families();
    let good = frames::packet(v4.far, v4.node, UDP, 1, 4789);
    let mut with = |frame: &[u8], at: usize, byte: u8| {
        let mut bad = frame.to_vec();
        bad[at] = byte;
        bench.uplink(&bad)
    };
    for byte in [0x44, 0x40, 0x55, 0x65, 0x4f] {
        assert_eq!(with(&good, 14, byte), passed("malformed"), "version and length {byte:02x}");
    }
    // A total length that ends inside the headers.
    for total in [0, 19, 20, 27] {
        assert_eq!(with(&good, 17, total), passed("malformed"), "total length {total}");
    }
    let good = frames::packet(v6.far, v6.node, UDP, 1, 4789);
    for byte in [0x40, 0x50, 0x00] {
        assert_eq!(with(&good, 14, byte), passed("malformed"), "version {byte:02x}");
    }
    for payload in [0, 7] {
        assert_eq!(with(&good, 19, payload), passed("malformed"), "payload length {payload}");
    }
}

#[test]
fn the_endpoint_takes_ip_and_arp_only() {
    let mut bench = Bench::new(OnFailure::Drop);
    let mut run = |frame: &[u8]| bench.run(Role::Endpoint, frame);
    for (ethertype, payload) in [(0x0800, 1), (0x0806, 28), (0x86dd, 0)] {
        // Whatever is inside: the dataplane judges.
        let frame = frames::ethernet(ethertype, &vec![0; payload]);
        assert_eq!(run(&frame), Verdict { action: REDIRECT, counted: vec!["redirected"] });
        let mut broadcast = frame.clone();
        broadcast[..6].fill(0xff);
        assert_eq!(run(&broadcast).action, REDIRECT);

        for tpid in [0x8100, 0x88a8] {
            assert_eq!(run(&frames::tagged(&frame, tpid, 7)), passed("passed_vlan"));
            assert_eq!(run(&frames::tagged(&frame, tpid, 0xe00f)), passed("passed_vlan"));
            // A priority tag would be stripped by the kernel, and the packet taken past the policies.
            let dropped = Verdict { action: DROP, counted: vec!["dropped_vlan0"] };
            assert_eq!(run(&frames::tagged(&frame, tpid, 0)), dropped);
            assert_eq!(run(&frames::tagged(&frame, tpid, 0xe000)), dropped);
        }
    }
    for ethertype in [0x88cc, 0x8847, 0x0026, 0xffff] {
        assert_eq!(run(&frames::ethernet(ethertype, &[0; 46])), passed(NOT_OURS), "{ethertype:04x}");
    }
    assert_eq!(run(&frames::ethernet(0x8100, &[0])).action, DROP, "a cut tag");
    bench.finish();
}

#[test]
fn stale_beats_and_missing_sockets_follow_on_failure() {
    let [f, _] = families();
    let ours = frames::packet(f.far, f.node, UDP, 1, 4789);
    let kernels = frames::packet(f.far, f.node, TCP, 1, 22);
    for (on_failure, action, stale, no_socket) in [
        (OnFailure::Drop, DROP, "stale_dropped", "no_socket_dropped"),
        (OnFailure::Pass, PASS, "stale_passed", "no_socket_passed"),
    ] {
        let mut bench = Bench::new(on_failure);
        bench.redirect.set_pinhole(&pinhole()).unwrap();
        let check = |bench: &mut Bench, endpoint: Verdict, uplink: Verdict| {
            assert_eq!(bench.run(Role::Endpoint, &kernels), endpoint);
            assert_eq!(bench.run(Role::Uplink, &ours), uplink);
            assert_eq!(bench.run(Role::Uplink, &kernels), passed(NOT_OURS), "SSH in every state");
            assert_eq!(bench.run(Role::Uplink, &frames::ethernet(0x0806, &[0; 28])), passed(NOT_OURS));
        };
        let failed = |why: &'static str| {
            // In the counters' alphabetical order.
            let mut counted = vec!["pinhole_vxlan", why];
            counted.sort_unstable();
            (Verdict { action, counted: vec![why] }, Verdict { action, counted })
        };
        let healthy =
            || (Verdict { action: REDIRECT, counted: vec!["redirected"] }, redirected("pinhole_vxlan"));

        let (endpoint, uplink) = healthy();
        check(&mut bench, endpoint, uplink);

        bench.heart.stop().unwrap();
        let (endpoint, uplink) = failed(stale);
        check(&mut bench, endpoint, uplink);

        bench.heart.beat().unwrap();
        let (endpoint, uplink) = healthy();
        check(&mut bench, endpoint, uplink);

        bench.redirect.unregister_socket(1, 0).unwrap();
        let (endpoint, uplink) = failed(no_socket);
        check(&mut bench, endpoint, uplink);

        // The slot is there, but its socket was closed without saying so.
        {
            let socket = lab::xsk();
            bench.redirect.register_socket(1, 0, std::os::fd::AsFd::as_fd(&socket)).unwrap();
        }
        let (endpoint, uplink) = failed(no_socket);
        check(&mut bench, endpoint, uplink);

        bench.register();
        let (endpoint, uplink) = healthy();
        check(&mut bench, endpoint, uplink);
        bench.finish();
    }
}

#[test]
fn a_beat_grows_stale_by_itself() {
    let mut config = lab::config(lab::pin_dir(), OnFailure::Pass);
    config.stale_after = std::time::Duration::from_millis(20);
    let mut redirect = fastpath_xdp::Redirect::load(&config).unwrap();
    let socket = lab::xsk();
    redirect.register_socket(1, 0, std::os::fd::AsFd::as_fd(&socket)).unwrap();
    let frame = frames::ethernet(0x0800, &[0; 40]);
    let action = |redirect: &mut fastpath_xdp::Redirect| {
        use aya::programs::{TestRun, TestRunOptions};
        let options = TestRunOptions { data_in: Some(&frame), ..TestRunOptions::new() };
        redirect.program(Role::Endpoint).unwrap().test_run(options).unwrap().return_value
    };
    assert_eq!(action(&mut redirect), PASS, "before the first beat");
    let mut heart = redirect.take_heartbeat().unwrap();
    // A slow machine may lose the race between beat and frame now and then, not a hundred times.
    let alive = (0..100).any(|_| {
        heart.beat().unwrap();
        action(&mut redirect) == REDIRECT
    });
    assert!(alive);
    std::thread::sleep(std::time::Duration::from_millis(50));
    assert_eq!(action(&mut redirect), PASS, "50 ms after a beat that lasts 20 ms");
    redirect.shutdown().unwrap();
}

#[test]
fn a_changed_pinhole_is_in_force_at_once() {
    let mut bench = bench();
    let [f, _] = families();
    let vip = frames::packet(f.far, f.vip, TCP, 1, 80);
    let pod = frames::packet(f.far, f.pod, TCP, 1, 1);
    assert_eq!(bench.uplink(&vip), redirected("pinhole_frontend"));

    let mut wider = Pinhole::default();
    wider.local.insert(Prefix::new(a("10.0.0.0"), 8).unwrap());
    bench.redirect.set_pinhole(&wider).unwrap();
    assert_eq!(bench.uplink(&vip), passed(NOT_OURS));
    assert_eq!(bench.uplink(&pod), redirected("pinhole_pod"));

    // The same endpoint under another class.
    let mut moved = Pinhole::default();
    moved.node_ports.insert(Endpoint { addr: f.vip, proto: Protocol::Tcp, port: 80 });
    bench.redirect.set_pinhole(&moved).unwrap();
    assert_eq!(bench.uplink(&vip), redirected("pinhole_node_port"));
    assert_eq!(bench.uplink(&pod), passed(NOT_OURS));

    // Refused as a whole: what was in force stays.
    let mut many = moved.clone();
    many.local.extend((0..65).map(|i| Prefix::host(IpAddr::V4(std::net::Ipv4Addr::new(10, 9, 9, i)))));
    assert!(bench.redirect.set_pinhole(&many).is_err());
    assert_eq!(bench.uplink(&vip), redirected("pinhole_node_port"));

    // A map filled to the brim is exchanged for another set as large.
    let full = |net: u8| {
        let mut pinhole = Pinhole::default();
        pinhole
            .local
            .extend((0..64).map(|i| Prefix::host(IpAddr::V4(std::net::Ipv4Addr::new(10, net, 0, i)))));
        pinhole
    };
    for net in [1, 2, 1] {
        bench.redirect.set_pinhole(&full(net)).unwrap();
        let expected = if net == 1 { redirected("pinhole_pod") } else { passed(NOT_OURS) };
        assert_eq!(bench.uplink(&pod), expected);
    }

    bench.redirect.set_pinhole(&Pinhole::default()).unwrap();
    assert_eq!(bench.uplink(&pod), passed(NOT_OURS));
}
