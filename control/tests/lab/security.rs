//! What may not pass does not pass, and `show drops` says by name why.

use std::net::{IpAddr, UdpSocket};

use crate::harness::lab::Lab;
use crate::harness::spec::{
    Family, GATEWAY_MAC, LabSpec, OUTSIDE, UPLINK, VNI, pod_address, underlay, vtep_mac,
};
use crate::traffic::capture::Injector;
use crate::traffic::frame::{self, Addresses, Mac};
use crate::traffic::{PATIENCE, SILENCE, eventually, icmp, is_timeout, udp};

const PORT: u16 = 7777;

/// A socket that must stay silent, or not.
struct Target(UdpSocket);

impl Target {
    fn open(lab: &Lab, pod: &str, family: Family) -> Self {
        let pod = lab.pod(pod);
        let address = pod.ip(family);
        Target(pod.ns.run(|| UdpSocket::bind((address, PORT))).unwrap())
    }

    fn must_hear(&self, what: &str) {
        self.0.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut buffer = [0; 128];
        self.0.recv(&mut buffer).unwrap_or_else(|e| panic!("{what}: {e}"));
    }

    fn must_be_silent(&self, what: &str) {
        self.0.set_read_timeout(Some(SILENCE)).unwrap();
        let mut buffer = [0; 128];
        match self.0.recv_from(&mut buffer) {
            Ok((_, from)) => panic!("{what}: a datagram came from {from}"),
            Err(e) => assert!(is_timeout(&e), "{what}: {e}"),
        }
    }
}

/// Runs `act` and waits until the counter has grown by `count`, exactly.
fn counted(lab: &Lab, reason: &str, count: u64, act: impl FnOnce()) {
    let before = lab.node("a").cli().drop_count(reason);
    counted_also(lab, reason, count, act);
    assert_eq!(lab.node("a").cli().drop_count(reason), before + count, "{reason}");
}

/// The same for a reason that the pods' own kernels may give too (multicast): at least `count`.
fn counted_also(lab: &Lab, reason: &str, count: u64, act: impl FnOnce()) {
    let cli = lab.node("a").cli();
    let before = cli.drop_count(reason);
    act();
    eventually(&format!("{reason} counts {count} more than {before}"), PATIENCE, || {
        (cli.drop_count(reason) >= before + count).then_some(())
    });
}

fn from_pod(lab: &Lab, from: IpAddr, to: IpAddr) -> Vec<u8> {
    let addresses = Addresses { from_mac: lab.pod("a1").mac(), to_mac: GATEWAY_MAC, from, to };
    frame::udp(addresses, (5555, PORT), b"spoofed?")
}

/// A pod sends only from its own addresses.
#[test]
fn spoofed_sources_are_dropped() {
    let lab = Lab::start(LabSpec::default());
    let injector = Injector::open(&lab.pod("a1").ns, "eth0").unwrap();
    for family in Family::BOTH {
        for to in ["a2", "b1"] {
            let target = Target::open(&lab, to, family);
            let address = lab.pod(to).ip(family);
            injector.send(&from_pod(&lab, lab.pod("a1").ip(family), address)).unwrap();
            target.must_hear("from its own address");
            let forged = [
                lab.pod("a2").ip(family),
                lab.pod("b2").ip(family),
                pod_address(1, 99, family),
                lab.node("a").ip(family),
                underlay(0, OUTSIDE, family),
            ];
            let count = forged.len() as u64;
            counted(&lab, "source_not_own", count, || {
                for from in forged {
                    injector.send(&from_pod(&lab, from, address)).unwrap();
                }
            });
            target.must_be_silent("from an address of another");
        }
    }
    udp::exchange(&lab.pod("a1").ns, &lab.pod("b1").ns, lab.pod("b1").ip(Family::V4), &[64]).unwrap();
}

/// Tunnel packets only from known VTEPs, with the right VNI, from addresses that are not our own pods'.
#[test]
fn the_tunnel_takes_only_its_own() {
    for outer in Family::BOTH {
        let lab = Lab::start(LabSpec { outer, ..LabSpec::default() });
        // From the bridge itself, so that any outer source can be forged.
        let injector = Injector::open(&lab.outside, UPLINK).unwrap();
        let uplink_mac = lab.node("a").ns.mac(UPLINK);
        let from_mac: Mac = lab.outside.mac(UPLINK);
        let (known, unknown) = (lab.node("b").ip(outer), underlay(0, OUTSIDE, outer));
        for family in Family::BOTH {
            let target = Target::open(&lab, "a1", family);
            let send = |from: IpAddr, vni: u32, inner_from: IpAddr, inner_to: IpAddr| {
                let inner = Addresses {
                    from_mac: vtep_mac(2, outer),
                    to_mac: vtep_mac(1, outer),
                    from: inner_from,
                    to: inner_to,
                };
                let inner = frame::udp(inner, (5555, PORT), b"from the tunnel?");
                let outer = Addresses { from_mac, to_mac: uplink_mac, from, to: lab.node("a").ip(outer) };
                injector.send(&frame::vxlan(outer, vni, &inner)).unwrap();
            };
            let (b1, a1) = (lab.pod("b1").ip(family), lab.pod("a1").ip(family));
            send(known, VNI, b1, a1);
            target.must_hear("as node b sends it");
            counted(&lab, "unknown_vtep", 1, || send(unknown, VNI, b1, a1));
            counted(&lab, "wrong_vni", 1, || send(known, VNI + 1, b1, a1));
            counted(&lab, "source_is_local", 1, || send(known, VNI, lab.pod("a2").ip(family), a1));
            counted(&lab, "tunnel_not_local", 1, || send(known, VNI, b1, lab.pod("b2").ip(family)));
            target.must_be_silent("none of these");
        }
        assert!(icmp::reachable(&lab.pod("a1").ns, lab.pod("b1").ip(Family::V4)));
    }
}

/// Without encapsulation too, nobody outside speaks as a pod of this node.
#[test]
fn local_sources_do_not_come_from_outside() {
    let lab = Lab::start(LabSpec { encap: crate::harness::spec::Encap::None, ..LabSpec::default() });
    let injector = Injector::open(&lab.outside, UPLINK).unwrap();
    for family in Family::BOTH {
        let target = Target::open(&lab, "a1", family);
        let addresses = Addresses {
            from_mac: lab.outside.mac(UPLINK),
            to_mac: lab.node("a").ns.mac(UPLINK),
            from: lab.pod("a2").ip(family),
            to: lab.pod("a1").ip(family),
        };
        counted(&lab, "source_is_local", 1, || {
            injector.send(&frame::udp(addresses, (5555, PORT), b"forged")).unwrap();
        });
        target.must_be_silent("forged");
    }
}

/// Packets cut short or with lengths that lie.
#[test]
fn malformed_packets_are_named() {
    let lab = Lab::start(LabSpec::default());
    let injector = Injector::open(&lab.pod("a1").ns, "eth0").unwrap();
    let whole = |family| from_pod(&lab, lab.pod("a1").ip(family), lab.pod("b1").ip(family));
    let (v4, v6) = (whole(Family::V4), whole(Family::V6));
    let changed = |frame: &[u8], at: usize, value: u8| {
        let mut frame = frame.to_vec();
        frame[at] = value;
        frame
    };
    let cases: Vec<(&str, &str, Vec<u8>)> = vec![
        ("malformed_ipv4", "cut in the IPv4 header", v4[..14 + 12].to_vec()),
        ("malformed_ipv4", "header length of 16", changed(&v4, 14, 0x44)),
        ("malformed_ipv4", "version 6 in an IPv4 frame", changed(&v4, 14, 0x65)),
        ("malformed_ipv4", "total length beyond the frame", changed(&v4, 16, 0x7f)),
        ("malformed_ipv4", "header checksum", changed(&v4, 14 + 10, v4[14 + 10] ^ 1)),
        ("malformed_ipv6", "cut in the IPv6 header", v6[..14 + 30].to_vec()),
        ("malformed_ipv6", "payload length beyond the frame", changed(&v6, 14 + 4, 0x7f)),
        ("malformed_transport", "UDP length beyond the packet", changed(&v4, 14 + 20 + 4, 0x7f)),
        ("malformed_transport", "UDP length of 1", {
            let frame = changed(&v6, 14 + 40 + 4, 0);
            changed(&frame, 14 + 40 + 5, 1)
        }),
    ];
    for (reason, what, frame) in cases {
        eprintln!("{what}");
        counted(&lab, reason, 1, || injector.send(&frame).unwrap());
    }

    // On the wire side: VXLAN without the flag that says its VNI is valid (RFC 7348 §5).
    let outside = Injector::open(&lab.outside, UPLINK).unwrap();
    let outer = Addresses {
        from_mac: lab.outside.mac(UPLINK),
        to_mac: lab.node("a").ns.mac(UPLINK),
        from: lab.node("b").ip(Family::V4),
        to: lab.node("a").ip(Family::V4),
    };
    let no_flag =
        frame::udp(outer, (50_000, frame::VXLAN_PORT), &[&[0, 0, 0, 0, 0, 0x10, 0, 0], &v4[..]].concat());
    let short = frame::udp(outer, (50_000, frame::VXLAN_PORT), &[8, 0, 0]);
    for frame in [no_flag, short] {
        counted(&lab, "malformed_vxlan", 1, || outside.send(&frame).unwrap());
    }
    assert!(icmp::reachable(&lab.pod("a1").ns, lab.pod("b1").ip(Family::V4)));
}

/// Addresses that may not be routed, and destinations that are nobody's own.
#[test]
fn martians_and_multicast_stop_here() {
    let lab = Lab::start(LabSpec::default());
    let injector = Injector::open(&lab.pod("a1").ns, "eth0").unwrap();
    let own = |family| lab.pod("a1").ip(family);
    for (from, to) in [
        (own(Family::V4), "127.0.0.1"),
        (own(Family::V6), "::1"),
        (own(Family::V4), "0.0.0.0"),
        (own(Family::V6), "::ffff:10.77.1.12"),
    ] {
        let frame = from_pod(&lab, from, to.parse().unwrap());
        counted_also(&lab, "martian_address", 1, || injector.send(&frame).unwrap());
    }
    let mut frame = from_pod(&lab, own(Family::V4), "224.0.0.251".parse().unwrap());
    frame[..6].copy_from_slice(&[1, 0, 0x5e, 0, 0, 0xfb]);
    counted_also(&lab, "multicast", 1, || injector.send(&frame).unwrap());
}
