//! Backends that come and go: what is new moves, what is established ends or stays, by what the API says.

use std::collections::BTreeSet;
use std::io;

use serde_json::json;

use super::{lab, serve, serve_ready, servers, shares, web};
use crate::harness::lab::Lab;
use crate::harness::object::Condition::{Gone, NotReady, Ready, Terminating};
use crate::harness::spec::Family;
use crate::traffic::named::{self, Asker, Conversation};
use crate::traffic::{PATIENCE, SILENCE};

/// The servers that answer 20 TCP connections and 20 UDP sockets.
fn answering(lab: &Lab, client: &str, family: Family) -> BTreeSet<String> {
    shares(&lab.pod(client).ns, web(family), 20, |_| ()).into_keys().collect()
}

fn set(names: &[&str]) -> BTreeSet<String> {
    names.iter().map(|n| (*n).to_owned()).collect()
}

/// Only ready endpoints; when there is none, those that terminate and still serve.
#[test]
fn only_ready_endpoints_are_used() {
    let lab = lab();
    let _servers = servers(&lab, &["a2", "a3", "b2"]);
    let cases: [(&[_], &[&str]); 4] = [
        (&[("a2", Ready), ("a3", NotReady), ("b2", Ready)], &["a2", "b2"]),
        (&[("a2", Ready), ("a3", Terminating), ("b2", Gone)], &["a2"]),
        (&[("a2", NotReady), ("a3", Terminating), ("b2", Terminating)], &["a3", "b2"]),
        (&[("a2", Gone), ("a3", Gone), ("b2", Ready)], &["b2"]),
    ];
    for (backends, used) in cases {
        serve(&lab, backends, &json!({}));
        for (client, family) in [("a1", Family::V4), ("b1", Family::V6)] {
            assert_eq!(answering(&lab, client, family), set(used), "{backends:?}");
        }
    }
}

/// Open connections to both backends, by name.
fn conversations(lab: &Lab, family: Family, backends: [&str; 2]) -> [Conversation; 2] {
    backends.map(|wanted| {
        (0..200)
            .find_map(|_| {
                let mut c = Conversation::open(&lab.pod("a1").ns, web(family)).unwrap();
                (c.ask().unwrap().name == wanted).then_some(c)
            })
            .unwrap_or_else(|| panic!("200 connections and none to {wanted}"))
    })
}

/// UDP sockets that are bound to both backends, by name.
fn askers(lab: &Lab, family: Family, backends: [&str; 2]) -> [Asker; 2] {
    backends.map(|wanted| {
        (0..200)
            .find_map(|_| {
                let a = Asker::open(&lab.pod("a1").ns, web(family)).unwrap();
                (a.ask(PATIENCE).unwrap().name == wanted).then_some(a)
            })
            .unwrap_or_else(|| panic!("200 sockets and none to {wanted}"))
    })
}

/// TCP to a removed backend ends with a reset, UDP moves on with the next datagram; others notice nothing.
#[test]
fn a_removed_backend_ends_its_flows() {
    let lab = lab();
    let _servers = servers(&lab, &["a2", "b2"]);
    for family in Family::BOTH {
        for (removed, stays) in [("a2", "b2"), ("b2", "a2")] {
            serve_ready(&lab, &["a2", "b2"], &json!({}));
            let [mut ends, mut goes_on] = conversations(&lab, family, [removed, stays]);
            let [moves, keeps] = askers(&lab, family, [removed, stays]);
            serve_ready(&lab, &[stays], &json!({}));
            let what = format!("{family:?}, {removed} removed");
            let error = ends.ask().expect_err(&what);
            assert_eq!(error.kind(), io::ErrorKind::ConnectionReset, "{what}: {error}");
            assert_eq!(goes_on.ask().unwrap().name, stays, "{what}");
            assert_eq!(moves.ask(PATIENCE).unwrap().name, stays, "{what}: the very next datagram");
            assert_eq!(keeps.ask(PATIENCE).unwrap().name, stays, "{what}");
            assert_eq!(answering(&lab, "a1", family), set(&[stays]));
        }
    }
}

/// A service whose last backend goes refuses what is established.
#[test]
fn the_last_backend_goes() {
    let lab = lab();
    let _servers = servers(&lab, &["a2", "b2"]);
    for family in Family::BOTH {
        serve_ready(&lab, &["a2", "b2"], &json!({}));
        let open = conversations(&lab, family, ["a2", "b2"]);
        let sockets = askers(&lab, family, ["a2", "b2"]);
        serve(&lab, &[], &json!({}));
        for mut conversation in open {
            assert_eq!(conversation.ask().unwrap_err().kind(), io::ErrorKind::ConnectionReset);
        }
        for socket in sockets {
            assert_eq!(socket.ask(PATIENCE).unwrap_err().kind(), io::ErrorKind::ConnectionRefused);
        }
    }
}

/// A backend that terminates takes nothing new and keeps what it has, until it is gone.
#[test]
fn a_terminating_backend_keeps_its_flows() {
    let lab = lab();
    let _servers = servers(&lab, &["a2", "b2"]);
    for family in Family::BOTH {
        serve_ready(&lab, &["a2", "b2"], &json!({}));
        let [mut leaving, mut stays] = conversations(&lab, family, ["b2", "a2"]);
        let [datagrams, _] = askers(&lab, family, ["b2", "a2"]);
        serve(&lab, &[("a2", Ready), ("b2", Terminating)], &json!({}));
        assert_eq!(answering(&lab, "a1", family), set(&["a2"]));
        for _ in 0..5 {
            assert_eq!(leaving.ask().unwrap().name, "b2");
            assert_eq!(stays.ask().unwrap().name, "a2");
            assert_eq!(datagrams.ask(PATIENCE).unwrap().name, "b2");
        }
        serve_ready(&lab, &["a2"], &json!({}));
        assert_eq!(leaving.ask().unwrap_err().kind(), io::ErrorKind::ConnectionReset);
        assert_eq!(datagrams.ask(PATIENCE).unwrap().name, "a2");
        assert_eq!(stays.ask().unwrap().name, "a2");
    }
}

/// New backends move nobody who is connected.
#[test]
fn new_backends_move_nobody() {
    let lab = lab();
    let all = ["a2", "a3", "b1", "b2"];
    let _servers = servers(&lab, &all);
    for family in Family::BOTH {
        serve_ready(&lab, &all[..2], &json!({}));
        let ns = &lab.pod("a1").ns;
        let mut open: Vec<_> = (0..60)
            .map(|_| {
                let mut conversation = Conversation::open(ns, web(family)).unwrap();
                let name = conversation.ask().unwrap().name;
                let socket = Asker::open(ns, web(family)).unwrap();
                let of_socket = socket.ask(PATIENCE).unwrap().name;
                (conversation, name, socket, of_socket)
            })
            .collect();
        for backends in [&all[..], &all[..3], &all[1..3], &all[..2]] {
            serve_ready(&lab, backends, &json!({}));
            // One of the first two was away for a while: those who had it are no longer looked at.
            open.retain(|(_, name, _, of_socket)| {
                [name, of_socket].iter().all(|n| backends.contains(&n.as_str()))
            });
            assert!(open.len() >= 3, "{} are left", open.len());
            for (conversation, name, socket, of_socket) in &mut open {
                assert_eq!(conversation.ask().unwrap().name, *name, "{family:?} with {backends:?}");
                assert_eq!(socket.ask(PATIENCE).unwrap().name, *of_socket, "{family:?} with {backends:?}");
            }
        }
    }
}

/// `internalTrafficPolicy: Local`: clients stay on their node, and one without a backend there gets nothing.
#[test]
fn internal_traffic_policy_local() {
    let lab = lab();
    let _servers = servers(&lab, &["a2", "a3", "b2"]);
    let local = json!({"internalTrafficPolicy": "Local"});
    serve_ready(&lab, &["a2", "a3", "b2"], &local);
    for family in Family::BOTH {
        assert_eq!(answering(&lab, "a1", family), set(&["a2", "a3"]));
        assert_eq!(answering(&lab, "b1", family), set(&["b2"]));
    }
    serve_ready(&lab, &["a2", "a3"], &local);
    for family in Family::BOTH {
        let b1 = &lab.pod("b1").ns;
        let connected = b1.run(|| std::net::TcpStream::connect_timeout(&web(family), SILENCE));
        assert!(connected.is_err(), "{family:?}: a backend of the other node answered");
        assert!(Asker::open(b1, web(family)).unwrap().ask(SILENCE).is_err());
        assert_eq!(answering(&lab, "a1", family), set(&["a2", "a3"]));
    }
    // Without it again.
    serve_ready(&lab, &["a2", "a3"], &json!({}));
    assert!(named::ask_tcp(&lab.pod("b1").ns, web(Family::V4)).is_ok());
}
