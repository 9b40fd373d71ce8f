//! Who is answered on a link, and whose address is asked for.

use std::time::Duration;

use fastpath::graph::{DropReason, Event};
use fastpath::packet::{Ip, Mac};
use fastpath::snapshot::{GATEWAY_MAC, GATEWAY_V4, GATEWAY_V6};
use fastpath::testbed::{Bed, UPLINK, from_pod, mac, pod, pod_port, snapshot, underlay};
use fastpath::wire::testgen::Spec;
use fastpath::wire::{arp, eth};

use crate::{NATIVE, VXLAN4};

#[test]
fn only_the_gateway_is_answered() {
    let mut bed = Bed::new(snapshot(1, VXLAN4));
    let request = |target| {
        let r = arp::Repr {
            operation: arp::Operation::Request,
            sender_mac: mac(1, 1),
            sender_ip: pod(false, 1, 1),
            target_mac: Mac::default(),
            target_ip: target,
        };
        let mut out = vec![0; 42];
        assert_eq!(r.emit_frame(&mut out), Some(42));
        out
    };
    bed.send(pod_port(1), &request(GATEWAY_V4));
    let answers = bed.run();
    let [(port, answer)] = answers.as_slice() else { panic!("{answers:?}") };
    assert_eq!(*port, pod_port(1));
    let reply = arp::Repr::parse(&arp::Packet::new_checked(&answer[14..]).unwrap()).unwrap();
    assert_eq!((reply.sender_mac, reply.sender_ip), (GATEWAY_MAC, GATEWAY_V4));
    for other in [pod(false, 1, 2), pod(false, 2, 1), underlay(false, 1)] {
        bed.send(pod_port(1), &request(other));
        assert_eq!(bed.run(), [], "{other}");
    }
    assert_eq!(bed.drops(), [(DropReason::NotGateway, 3)].into());

    let solicit = |target: Ip| {
        let repr = smoltcp::wire::Icmpv6Repr::Ndisc(smoltcp::wire::NdiscRepr::NeighborSolicit {
            target_addr: std::net::Ipv6Addr::from(target.bits()),
            lladdr: Some(smoltcp::wire::RawHardwareAddress::from_bytes(&mac(1, 1).0)),
        });
        let (src, dst) =
            (std::net::Ipv6Addr::from(pod(true, 1, 1).bits()), std::net::Ipv6Addr::from(target.bits()));
        let mut frame = vec![0; 14 + 40 + repr.buffer_len()];
        frame[..6].copy_from_slice(&GATEWAY_MAC.0);
        frame[6..12].copy_from_slice(&mac(1, 1).0);
        frame[12..14].copy_from_slice(&eth::ethertype::IPV6.to_be_bytes());
        let mut ip = smoltcp::wire::Ipv6Packet::new_unchecked(&mut frame[14..]);
        smoltcp::wire::Ipv6Repr {
            src_addr: src,
            dst_addr: dst,
            next_header: smoltcp::wire::IpProtocol::Icmpv6,
            payload_len: repr.buffer_len(),
            hop_limit: 255,
        }
        .emit(&mut ip);
        let mut message = smoltcp::wire::Icmpv6Packet::new_unchecked(ip.payload_mut());
        repr.emit(&src, &dst, &mut message, &smoltcp::phy::ChecksumCapabilities::default());
        frame
    };
    bed.send(pod_port(1), &solicit(GATEWAY_V6));
    let answers = bed.run();
    let [(port, answer)] = answers.as_slice() else { panic!("{answers:?} {:?}", bed.drops()) };
    assert_eq!((*port, answer[..6].to_vec(), answer[54]), (pod_port(1), mac(1, 1).0.to_vec(), 136));
    bed.send(pod_port(1), &solicit(pod(true, 1, 2)));
    assert_eq!(bed.run(), []);
    assert_eq!(bed.drops(), [(DropReason::NotGateway, 4)].into());
}

#[test]
fn an_error_asks_for_the_neighbour_it_is_for() {
    let mut a = Bed::new(snapshot(1, NATIVE));
    a.publish(|s| {
        for hop in &mut s.next_hops {
            (hop.dst_mac, hop.addr) = (None, None);
        }
    });
    let mut spec = Spec::udp(pod(false, 2, 1), pod(false, 1, 99), 1, 2);
    (spec.src_mac, spec.dst_mac) = (mac(2, 0), mac(1, 0));
    a.send(UPLINK, &spec.build());
    assert_eq!(a.run(), []);
    let want = Event::Resolve { port: UPLINK, addr: pod(false, 2, 1) };
    assert_eq!(a.worker.events().collect::<Vec<_>>(), [want]);
}

#[test]
#[cfg_attr(miri, ignore = "needs more frames than an interpreter is given")]
fn a_scan_of_the_link_leaves_room_for_others_to_ask() {
    let mut a = Bed::new(snapshot(1, NATIVE));
    a.publish(|s| {
        for hop in &mut s.next_hops {
            (hop.dst_mac, hop.addr) = (None, None);
        }
    });
    let to = |n: u8, dst: u8| from_pod(1, n, Spec::udp(pod(false, 1, n), pod(false, 2, dst), 1, 2));
    for _ in 0..3 {
        for dst in 1..200 {
            a.send(pod_port(1), &to(1, dst));
        }
        for _ in 0..3 {
            a.send(pod_port(2), &to(2, 201));
        }
        a.run();
        let asked: Vec<Event> = a.worker.events().collect();
        let wanted = Event::Resolve { port: UPLINK, addr: pod(false, 2, 201) };
        assert_eq!(asked.iter().filter(|e| **e == wanted).count(), 1, "{}", asked.len());
        assert_eq!(asked.len(), 33);
        a.advance(Duration::from_millis(100));
    }
}

#[test]
fn only_a_destination_on_the_link_is_asked_for() {
    let to_b = || from_pod(1, 1, Spec::udp(pod(false, 1, 1), pod(false, 2, 1), 1, 2));
    for (underlay, on_link, asked) in [
        (NATIVE, true, Some(pod(false, 2, 1))),
        (NATIVE, false, None),
        (VXLAN4, true, None),
        (VXLAN4, false, None),
    ] {
        let mut a = Bed::new(snapshot(1, underlay));
        a.publish(|s| {
            for hop in &mut s.next_hops {
                hop.dst_mac = None;
                hop.addr = hop.addr.filter(|_| !on_link);
            }
        });
        a.send(pod_port(1), &to_b());
        assert_eq!(a.run(), []);
        assert_eq!(a.drops(), [(DropReason::NeighborUnresolved, 1)].into());
        let want = asked.map(|addr| Event::Resolve { port: UPLINK, addr });
        assert_eq!(a.worker.events().collect::<Vec<_>>(), want.into_iter().collect::<Vec<_>>());
        a.publish(|s| s.next_hops.iter_mut().for_each(|h| h.dst_mac = Some(mac(2, 0))));
        a.send(pod_port(1), &to_b());
        assert_eq!(a.run().len(), 1);
        assert_eq!(a.worker.events().count(), 0);
    }
}
