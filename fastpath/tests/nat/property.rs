//! Any mixture of flows: every translation is undone, and no two flows look the same.

use std::collections::HashMap;

use fastpath::graph::DropReason;
use fastpath::packet::{FlowKey, proto};
use fastpath::tables::service::Backend;
use fastpath::testbed::{UPLINK, from_pod, pod, pod_port, underlay};
use fastpath::wire::testgen::Spec;
use proptest::prelude::*;

use crate::SYN;
use crate::world::{self, answer, bed, client, from_outside, node_port, seen, service, set_services, vip};

/// A first packet of some flow.
#[derive(Clone, Debug)]
struct Open {
    v6: bool,
    from: u8,
    /// 0: outside; 1..=2: a service; 3: from outside to a node port.
    to: u8,
    proto: u8,
    sport: u16,
    dport: u8,
}

fn opens() -> impl Strategy<Value = Vec<Open>> {
    let open = (any::<bool>(), 1u8..=4, 0u8..4, 0u8..4, 0u16..6, 0u8..3)
        .prop_map(|(v6, from, to, proto, sport, dport)| Open { v6, from, to, proto, sport, dport });
    prop::collection::vec(open, 1..120)
}

impl Open {
    fn spec(&self) -> Spec {
        let (src, dst, dport) = match self.to {
            0 => (pod(self.v6, 1, self.from), client(self.v6, self.dport), 53),
            3 => (client(self.v6, self.from), underlay(self.v6, 1), 30_000),
            n => (pod(self.v6, 1, self.from), vip(self.v6, n), 80),
        };
        let sport = 1000 + self.sport;
        match self.proto {
            0 => Spec::tcp(src, dst, sport, dport, SYN),
            1 => Spec::udp(src, dst, sport, dport),
            2 => Spec::sctp(src, dst, sport, dport),
            _ if self.to == 0 => Spec::echo(src, dst, sport, 1),
            _ => Spec::udp(src, dst, sport, dport),
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever flows there are: checksums are right (`seen` verifies them), no two live flows look the same to
    /// the other side, every answer comes back as if the one who was asked had answered; and with too few
    /// ports the rest is dropped by name.
    #[test]
    fn every_translation_is_undone(opens in opens(), ports in 1u16..40) {
        let mut a = bed(1);
        a.publish(|s| {
            let mut snat = (*s.snat).clone();
            (snat.first, snat.last) = (50_000, 50_000 + ports - 1);
            s.snat = snat.into();
        });
        let mut services = Vec::new();
        for v6 in [false, true] {
            let backends: Vec<Backend> = (1..=2).map(|n| Backend { addr: pod(v6, 1, n), port: 8080 }).collect();
            // Two services with the same backends: their flows collide behind the translation.
            services.push(service(vip(v6, 1), 80, backends.clone()));
            services.push(service(vip(v6, 2), 80, backends.clone()));
            services.push(node_port(v6, 30_000, backends));
        }
        set_services(&a, &services);
        let mut live: HashMap<FlowKey, FlowKey> = HashMap::new();
        for open in &opens {
            let spec = open.spec();
            let original = world::key(&spec);
            if open.to == 3 {
                a.send(UPLINK, &from_outside(1, spec));
            } else {
                a.send(pod_port(open.from), &from_pod(1, open.from, spec));
            }
            let got = a.run();
            let [(port, frame)] = got.as_slice() else {
                let drops = a.drops();
                prop_assert!(drops.keys().all(|r| *r == DropReason::SnatExhausted), "{:?}", drops);
                continue;
            };
            let translated = seen(frame);
            if let Some(before) = live.get(&translated) {
                prop_assert_eq!(*before, original, "two flows with one tuple");
            }
            live.insert(translated, original);
            let back = answer(frame);
            a.send(*port, &back);
            let got = a.run();
            prop_assert_eq!(got.len(), 1, "{:?} {:?}", original, a.drops());
            prop_assert_eq!(seen(&got[0].1), original.reversed());
        }
        // Each live flow answers still, after all the others came.
        for (translated, original) in &live {
            if translated.proto == proto::UDP {
                let frame = world::reply_frame(translated);
                let port = world::port_of(translated.dst);
                a.send(port, &frame);
                let got = a.run();
                prop_assert_eq!(got.len(), 1);
                prop_assert_eq!(seen(&got[0].1), original.reversed());
            }
        }
    }
}
