//! Path MTU discovery through SNAT, DNAT and the tunnel.

use std::net::SocketAddr;

use serde_json::json;

use super::{FAR_MTU, Far, router};
use crate::harness::lab::Lab;
use crate::harness::spec::{Family, LabSpec};
use crate::service::{self, TARGET, serve_ready};
use crate::traffic::icmp::{Icmp, Kind};
use crate::traffic::{PATIENCE, eventually, tcp, udp};

/// A pod sends much to a host behind a narrow link.
#[test]
fn through_snat() {
    let lab = Lab::start(LabSpec::default());
    let far = Far::create(&lab);
    for family in Family::BOTH {
        for pod in ["a1", "b1"] {
            let what = format!("{pod} {family:?}");
            let ns = &lab.pod(pod).ns;
            let watch = Icmp::open(ns, far.ip(family)).unwrap();
            tcp::transfer(ns, &far.ns, far.ip(family), 3_000_000, 3_000_000)
                .unwrap_or_else(|e| panic!("{what}: {e}"));
            let error = watch.error(PATIENCE).unwrap().unwrap_or_else(|| panic!("{what}: no error"));
            assert_eq!((error.kind(), error.from), (Kind::TooBig(FAR_MTU), router(family)), "{what}");
            // UDP learns too: its next datagram of that size is sent in fragments that fit.
            udp::exchange(ns, &far.ns, far.ip(family), &[1380, 1400])
                .unwrap_or_else(|e| panic!("{what}: {e}"));
        }
    }
}

/// A backend sends much to a client behind a narrow link: the error is about the service's address.
#[test]
fn through_dnat_and_the_tunnel() {
    let lab = service::lab();
    let far = Far::create(&lab);
    for backend in ["a2", "b2"] {
        for local in ["Cluster", "Local"] {
            let spec = service::external::spec(&json!({"externalTrafficPolicy": local}));
            serve_ready(&lab, &[backend], &spec);
            for via in ["a", "b"].into_iter().filter(|via| local == "Cluster" || backend.starts_with(via)) {
                for family in Family::BOTH {
                    let what = format!("{backend} through {via}, {local}, {family:?}");
                    let ns = &lab.pod(backend).ns;
                    // What an earlier round has learned is forgotten.
                    for v in ["-4", "-6"] {
                        ns.exec("ip", &[v, "route", "flush", "cache"]);
                    }
                    let watch = Icmp::open(ns, far.ip(family)).unwrap();
                    let own = SocketAddr::new(lab.pod(backend).ip(family), TARGET);
                    let listener = tcp::listen_on(ns, own).unwrap();
                    let target = service::external::node_port(&lab, via, family);
                    tcp::transfer_by(&far.ns, &listener, target, 1_000_000, 3_000_000)
                        .unwrap_or_else(|e| panic!("{what}: {e}"));
                    let error = watch.error(PATIENCE).unwrap().unwrap_or_else(|| panic!("{what}: no error"));
                    assert_eq!((error.kind(), error.from), (Kind::TooBig(FAR_MTU), router(family)), "{what}");
                }
            }
        }
    }
}

/// A client outside sends more than the tunnel to the backend's node takes: it is told by the address it knows.
#[test]
fn the_tunnel_is_narrower_than_the_client() {
    let lab = service::lab();
    serve_ready(&lab, &["b2"], &service::external::spec(&json!({})));
    let echoes: Vec<_> = Family::BOTH
        .into_iter()
        .map(|f| udp::Echo::start(&lab.pod("b2").ns, (lab.pod("b2").ip(f), TARGET).into()).unwrap())
        .collect();
    for family in Family::BOTH {
        let to = service::external::node_port(&lab, "a", family);
        let watch = Icmp::open(&lab.outside, to.ip()).unwrap();
        eventually("a datagram of 1440 bytes gets there and back", PATIENCE * 4, || {
            udp::exchange_with(&lab.outside, to, &[1440]).ok()
        });
        let error = watch.error(PATIENCE).unwrap().expect("an ICMP error");
        assert_eq!((error.kind(), error.from), (Kind::TooBig(1450), to.ip()), "{family:?}");
        udp::exchange_with(&lab.outside, to, &[100, 1300, 1440]).unwrap();
        // And by TCP both ways.
        let ns = &lab.pod("b2").ns;
        let listener = tcp::listen_on(ns, (lab.pod("b2").ip(family), TARGET).into()).unwrap();
        tcp::transfer_by(&lab.outside, &listener, to, 3_000_000, 3_000_000).unwrap();
    }
    drop(echoes);
}
