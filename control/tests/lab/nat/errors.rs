//! ICMP errors about translated packets: they reach whom they are for, with the addresses it knows.

use std::io;
use std::net::{SocketAddr, UdpSocket};

use serde_json::json;

use super::{Far, router};
use crate::harness::lab::Lab;
use crate::harness::ns::NetNs;
use crate::harness::spec::{Family, LabSpec, OUTSIDE, underlay};
use crate::service::{self, TARGET, serve_ready, web};
use crate::traffic::icmp::{self, Icmp, Kind};
use crate::traffic::named::Asker;
use crate::traffic::{PATIENCE, unspecified};

/// A datagram to a port nobody listens on: the client's kernel takes the error for its own socket, so what it
/// quotes is right, and it comes from the address that was asked.
fn port_unreachable(client: &NetNs, to: SocketAddr, what: &str) {
    let watch = Icmp::open(client, to.ip()).unwrap();
    let error = Asker::open(client, to).unwrap().ask(PATIENCE).expect_err(what);
    assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused, "{what}: {error}");
    let message = watch.error(PATIENCE).unwrap().expect("the error itself");
    assert_eq!((message.kind(), message.from), (Kind::PortUnreachable, to.ip()), "{what}");
}

/// A service whose backend has no socket: from pods, from outside, with the backend on either node.
#[test]
fn a_backend_without_a_socket() {
    let lab = service::lab();
    service::external::acquaint(&lab);
    for backend in ["a2", "b2"] {
        serve_ready(&lab, &[backend], &service::external::spec(&json!({})));
        for family in Family::BOTH {
            let what = format!("{backend} {family:?}");
            port_unreachable(&lab.pod("a1").ns, web(family), &what);
            port_unreachable(&lab.pod(backend).ns, web(family), &format!("{what}, itself"));
            for via in ["a", "b"] {
                let to = service::external::node_port(&lab, via, family);
                port_unreachable(&lab.outside, to, &format!("{what}, through {via}"));
            }
        }
    }
}

/// The outside has no socket: the pod is told, though the error is about the node's address.
#[test]
fn the_outside_without_a_socket() {
    let lab = Lab::start(LabSpec::default());
    service::external::acquaint(&lab);
    for family in Family::BOTH {
        for pod in ["a1", "b1"] {
            let to = SocketAddr::new(underlay(0, OUTSIDE, family), 9);
            port_unreachable(&lab.pod(pod).ns, to, &format!("{pod} {family:?}"));
        }
    }
}

/// The client closes its socket before the answer: the server is told, through the translation back.
#[test]
fn a_client_that_is_gone() {
    let lab = service::lab();
    service::external::acquaint(&lab);
    for backend in ["a2", "b2"] {
        serve_ready(&lab, &[backend], &service::external::spec(&json!({})));
        for family in Family::BOTH {
            let frontends = [
                (&lab.pod("a1").ns, web(family)),
                (&lab.pod(backend).ns, web(family)),
                (&lab.outside, service::external::node_port(&lab, "a", family)),
                (&lab.outside, service::external::node_port(&lab, "b", family)),
            ];
            for (client, to) in frontends {
                let what = format!("{} to {to}, backend {backend}", client.name());
                let own = SocketAddr::new(unspecified(to.ip()), TARGET);
                let server = lab.pod(backend).ns.run(|| UdpSocket::bind(own)).unwrap();
                server.set_read_timeout(Some(PATIENCE)).unwrap();
                let asking = client.run(|| UdpSocket::bind((unspecified(to.ip()), 0))).unwrap();
                asking.send_to(b"and away", to).unwrap();
                let mut buffer = [0; 64];
                let (_, from) = server.recv_from(&mut buffer).unwrap_or_else(|e| panic!("{what}: {e}"));
                drop(asking);
                server.connect(from).unwrap();
                server.send(b"too late").unwrap();
                let error = server.recv(&mut buffer).expect_err(&what);
                assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused, "{what}: {error}");
            }
        }
    }
}

/// Hops beyond the node answer a pod's traceroute through SNAT.
#[test]
fn traceroute_to_the_outside() {
    let lab = Lab::start(LabSpec::default());
    let far = Far::create(&lab);
    for family in Family::BOTH {
        let hops = icmp::traceroute(&lab.pod("a1").ns, far.ip(family), 6).unwrap();
        let [Some(_), Some(second), Some(last)] = hops[..] else { panic!("{family:?}: {hops:?}") };
        assert_eq!((second.address, second.kind), (router(family), Kind::TimeExceeded), "{hops:?}");
        assert_eq!((last.address, last.kind), (far.ip(family), Kind::PortUnreachable), "{hops:?}");
    }
}
