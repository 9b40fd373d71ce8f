//! Datagrams larger than a packet: whole at the other end, whatever is translated on the way, and bounded.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::Duration;

use serde_json::json;

use crate::harness::lab::Lab;
use crate::harness::object;
use crate::harness::spec::{Family, GATEWAY_MAC, LabSpec, OUTSIDE, underlay};
use crate::service::{self, TARGET, serve_ready, web};
use crate::traffic::capture::Injector;
use crate::traffic::fragment::pieces;
use crate::traffic::frame::Addresses;
use crate::traffic::{PATIENCE, SILENCE, eventually, is_timeout, udp};

/// Two packets and more, up to what UDP takes.
const SIZES: [usize; 5] = [1600, 3000, 9000, 30_000, 60_000];

/// Between pods of one node and of two, both ways: every datagram is echoed.
#[test]
fn between_pods() {
    for outer in Family::BOTH {
        let lab = Lab::start(LabSpec { outer, ..LabSpec::default() });
        for family in Family::BOTH {
            for (from, to) in [("a1", "a2"), ("a1", "b1"), ("b2", "a2")] {
                let (a, b, ip) = lab.between(from, to, family);
                udp::exchange(a, b, ip, &SIZES)
                    .unwrap_or_else(|e| panic!("{from} to {to} {family:?} outer {outer:?}: {e}"));
            }
        }
    }
}

/// Two workers: fragments of one datagram meet whoever has it.
#[test]
fn with_two_workers() {
    let lab = Lab::start(LabSpec { cores: vec![0, 1], ..LabSpec::default() });
    for family in Family::BOTH {
        for (from, to) in [("a1", "a2"), ("a2", "b1"), ("b2", "a1")] {
            let (a, b, ip) = lab.between(from, to, family);
            udp::exchange(a, b, ip, &SIZES).unwrap_or_else(|e| panic!("{from} to {to} {family:?}: {e}"));
        }
    }
}

/// Through a service, from pods and from outside; hairpin too.
#[test]
fn through_services() {
    let lab = service::lab();
    for backend in ["a2", "b2"] {
        serve_ready(&lab, &[backend], &service::external::spec(&json!({})));
        for family in Family::BOTH {
            let own = (lab.pod(backend).ip(family), TARGET).into();
            let _echo = udp::Echo::start(&lab.pod(backend).ns, own).unwrap();
            for client in ["a1", "b1", backend] {
                udp::exchange_with(&lab.pod(client).ns, web(family), &SIZES)
                    .unwrap_or_else(|e| panic!("{client} to {backend} {family:?}: {e}"));
            }
            for via in ["a", "b"] {
                let to = service::external::node_port(&lab, via, family);
                // The first ones may only tell the client how little the tunnel takes.
                eventually(&format!("{backend} through {via} {family:?}"), PATIENCE * 2, || {
                    udp::exchange_with(&lab.outside, to, &[1600]).ok()
                });
                udp::exchange_with(&lab.outside, to, &SIZES)
                    .unwrap_or_else(|e| panic!("{backend} through {via} {family:?}: {e}"));
            }
        }
    }
}

/// Through SNAT to the outside.
#[test]
fn through_snat() {
    let lab = Lab::start(LabSpec::default());
    for family in Family::BOTH {
        for pod in ["a1", "b1"] {
            udp::exchange(&lab.pod(pod).ns, &lab.outside, underlay(0, OUTSIDE, family), &SIZES)
                .unwrap_or_else(|e| panic!("{pod} {family:?}: {e}"));
        }
    }
}

/// Where fragments are injected and where the datagram must come out, whole or not at all.
struct Cut<'a> {
    injector: Injector,
    target: UdpSocket,
    addresses: Addresses,
    lab: &'a Lab,
    id: u32,
}

const PORT: u16 = 7070;

impl<'a> Cut<'a> {
    fn open(lab: &'a Lab, to: &str, family: Family) -> Self {
        let (from, target) = (lab.pod("a1"), lab.pod(to));
        let address: IpAddr = target.ip(family);
        let addresses =
            Addresses { from_mac: from.mac(), to_mac: GATEWAY_MAC, from: from.ip(family), to: address };
        Cut {
            injector: Injector::open(&from.ns, "eth0").unwrap(),
            target: target.ns.run(|| UdpSocket::bind((address, PORT))).unwrap(),
            addresses,
            lab,
            id: 0x1000,
        }
    }

    /// Sends the pieces in this order, as a datagram of its own.
    fn send(&mut self, payload: &[u8], ranges: &[std::ops::Range<usize>]) {
        self.id += 1;
        // A port of its own for each: no datagram follows another's flow.
        let sport = self.id.to_le_bytes()[..2].try_into().map(u16::from_le_bytes).unwrap();
        for piece in pieces(self.addresses, (sport, PORT), payload, self.id, ranges) {
            self.injector.send(&piece).unwrap();
        }
    }

    fn must_hear(&self, payload: &[u8], what: &str) {
        self.target.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut buffer = vec![0; 65_536];
        let len = self.target.recv(&mut buffer).unwrap_or_else(|e| panic!("{what}: {e}"));
        assert!(buffer[..len] == *payload, "{what}: other bytes");
    }

    fn must_be_silent(&self, what: &str) {
        self.target.set_read_timeout(Some(SILENCE)).unwrap();
        match self.target.recv(&mut [0; 64]) {
            Ok(_) => panic!("{what}: it came"),
            Err(e) => assert!(is_timeout(&e), "{what}: {e}"),
        }
    }

    fn drops(&self, reason: &str) -> u64 {
        self.lab.node("a").cli().drop_count(reason)
    }

    fn must_count(&self, reason: &str, before: u64, more: u64) {
        eventually(&format!("{reason} counts {more} more than {before}"), PATIENCE * 3, || {
            (self.drops(reason) >= before + more).then_some(())
        });
    }
}

fn payload(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i * 31 + 7).to_le_bytes()[0]).collect()
}

/// In any order; twice; small first pieces.
#[test]
fn the_order_does_not_matter() {
    let lab = Lab::start(LabSpec::default());
    let payload = payload(3000 - 8);
    let (a, b, c) = (0..1000, 1000..2000, 2000..3000);
    let orders: [(&str, Vec<std::ops::Range<usize>>); 6] = [
        ("in order", vec![a.clone(), b.clone(), c.clone()]),
        ("backwards", vec![c.clone(), b.clone(), a.clone()]),
        ("the first in the middle", vec![b.clone(), a.clone(), c.clone()]),
        ("the last first", vec![c.clone(), a.clone(), b.clone()]),
        ("one twice", vec![a.clone(), b.clone(), b, c]),
        ("a first one of 8 bytes", vec![1400..2800, 0..8, 8..1400, 2800..3000]),
    ];
    for to in ["a2", "b1"] {
        for family in Family::BOTH {
            let mut cut = Cut::open(&lab, to, family);
            for (what, order) in &orders {
                cut.send(&payload, order);
                cut.must_hear(&payload, &format!("{what}, to {to} {family:?}"));
            }
        }
    }
}

/// Fragments that overlap are dropped by that name: neither half is delivered.
#[test]
fn overlaps_are_dropped() {
    let lab = Lab::start(LabSpec::default());
    let payload = payload(3000 - 8);
    for to in ["a2", "b1"] {
        for family in Family::BOTH {
            let mut cut = Cut::open(&lab, to, family);
            for ranges in [
                vec![0..1000, 992..2000, 2000..3000],
                vec![2000..3000, 992..2008, 0..1000],
                vec![0..1000, 1000..2000, 8..1008, 2000..3000],
            ] {
                let before = cut.drops("fragment_overlap");
                cut.send(&payload, &ranges);
                cut.must_be_silent(&format!("{ranges:?} to {to} {family:?}"));
                cut.must_count("fragment_overlap", before, 1);
            }
            cut.send(&payload, &[0..1400, 1400..2200, 2200..3000]);
            cut.must_hear(&payload, "after that");
        }
    }
}

/// Later fragments without a first one are not delivered, and kept neither for ever nor without bound.
#[test]
fn without_a_first_one() {
    let lab = Lab::start(LabSpec::default());
    for family in Family::BOTH {
        let mut cut = Cut::open(&lab, "b1", family);
        let payload = payload(3000 - 8);
        let before = cut.drops("fragment_unmatched");
        cut.send(&payload, &[1000..2000, 2000..3000]);
        cut.must_be_silent("no first one");
        cut.must_count("fragment_unmatched", before, 2);

        let held = |c: &Cut| c.drops("fragment_limit") + c.drops("fragment_unmatched");
        let before = held(&cut);
        let last = 504..1008;
        for i in 0..20_000 {
            cut.send(&payload[..1000], std::slice::from_ref(&last));
            if i % 64 == 0 {
                std::thread::sleep(Duration::from_millis(1));
            }
        }
        // Others are served meanwhile, and what fits in the bounds gives way or ends.
        udp::exchange(&lab.pod("a2").ns, &lab.pod("b1").ns, lab.pod("b1").ip(family), &[100, 9000]).unwrap();
        eventually("all of them are dropped", Duration::from_secs(60), || {
            (held(&cut) >= before + 19_000).then_some(())
        });
        cut.must_be_silent("none of them was delivered");
        cut.send(&payload, &[0..1400, 1400..2200, 2200..3000]);
        cut.must_hear(&payload, "after the flood");
    }
}

/// Later fragments follow the verdict on the first one.
#[test]
fn policies_hold_for_every_fragment() {
    let lab = Lab::start(LabSpec::default());
    let spec = json!({
        "podSelector": {"matchLabels": {"app": "b1"}},
        "policyTypes": ["Ingress"],
        "ingress": [{"ports": [{"protocol": "UDP", "port": 8081}]}],
    });
    lab.apply("policy.yaml", &[object::policy("default", "one", &spec)]);
    for family in Family::BOTH {
        let b1 = lab.pod("b1");
        let ip = b1.ip(family);
        let seen = crate::traffic::capture::Capture::start(&b1.ns, "eth0").unwrap();
        let denied = udp::Echo::start(&b1.ns, (ip, 8080).into()).unwrap();
        let sender = lab.pod("a1").ns.run(|| UdpSocket::bind((lab.pod("a1").ip(family), 0))).unwrap();
        for size in SIZES {
            sender.send_to(&payload(size), (ip, denied.port())).unwrap();
        }
        std::thread::sleep(SILENCE);
        let from = lab.pod("a1").ip(family);
        let came = seen.stop();
        let came = crate::traffic::capture::views(&came).filter(|(out, v)| !out && v.is_between(from, ip));
        assert_eq!(came.count(), 0, "{family:?}: fragments of what is denied");
        let allowed = udp::Echo::start(&b1.ns, (ip, 8081).into()).unwrap();
        let to = SocketAddr::new(ip, allowed.port());
        udp::exchange_with(&lab.pod("a1").ns, to, &SIZES).unwrap();
    }
}
