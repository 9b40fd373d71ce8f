//! How long a flow is what it was decided to be.

use std::time::Duration;

use fastpath::graph::DropReason;
use fastpath::testbed::{Bed, from_pod, pod, pod_port, snapshot};
use fastpath::wire::tcp;
use fastpath::wire::testgen::Spec;

use crate::{VXLAN4, flows};

#[test]
fn a_new_generation_decides_flows_again() {
    for v6 in [false, true] {
        let mut bed = Bed::new(snapshot(1, VXLAN4));
        bed.advance(Duration::from_secs(1));
        let there = Spec::udp(pod(v6, 1, 1), pod(v6, 1, 2), 1, 2);
        let back = Spec::udp(pod(v6, 1, 2), pod(v6, 1, 1), 2, 1);
        bed.send(pod_port(1), &from_pod(1, 1, there.clone()));
        assert!(matches!(bed.run().as_slice(), [(p, _)] if *p == pod_port(2)));
        // The address moves to another pod: the established flow follows at once, in both directions.
        bed.publish(|s| {
            s.local.insert(pod(v6, 1, 2), pod_port(3));
            s.ports[3].as_mut().unwrap().addrs.push(pod(v6, 1, 2));
        });
        bed.send(pod_port(1), &from_pod(1, 1, there.clone()));
        assert!(matches!(bed.run().as_slice(), [(p, _)] if *p == pod_port(3)));
        bed.send(pod_port(3), &from_pod(1, 3, back));
        assert!(matches!(bed.run().as_slice(), [(p, _)] if *p == pod_port(1)));
        assert_eq!(flows(&bed), 1);
        // Then it goes away.
        bed.publish(|s| s.local.retain(|ip, _| *ip != pod(v6, 1, 2)));
        bed.send(pod_port(1), &from_pod(1, 1, there));
        let got = bed.run();
        assert!(matches!(got.as_slice(), [(p, _)] if *p == pod_port(1)), "an ICMP error: {got:?}");
        assert_eq!(bed.drops(), [(DropReason::NoEndpoint, 1)].into());
        assert_eq!(flows(&bed), 0);
    }
}

#[test]
fn mid_stream_segments_by_setting() {
    let mut bed = Bed::new(snapshot(1, VXLAN4));
    bed.publish(|s| s.settings.tcp_pickup = false);
    let segment = |flags| from_pod(1, 1, Spec::tcp(pod(false, 1, 1), pod(false, 1, 2), 9, 80, flags));
    bed.send(pod_port(1), &segment(tcp::control::ACK));
    assert_eq!(bed.run(), []);
    assert_eq!(bed.drops(), [(DropReason::TcpNoFlow, 1)].into());
    for flags in [tcp::control::SYN, tcp::control::ACK] {
        bed.send(pod_port(1), &segment(flags));
        assert_eq!(bed.run().len(), 1);
    }
    let mut open = Bed::new(snapshot(1, VXLAN4));
    open.send(pod_port(1), &segment(tcp::control::ACK));
    assert_eq!(open.run().len(), 1);
}

#[test]
fn flows_time_out() {
    let mut bed = Bed::new(snapshot(1, VXLAN4));
    bed.send(pod_port(1), &from_pod(1, 1, Spec::echo(pod(false, 1, 1), pod(false, 1, 2), 1, 1)));
    bed.send(pod_port(1), &from_pod(1, 1, Spec::udp(pod(false, 1, 1), pod(false, 1, 2), 1, 1)));
    bed.run();
    assert_eq!(flows(&bed), 2);
    // The sweep passes over the whole table within the time allowed for it.
    let (passes, apart) = if cfg!(miri) { (75, 1000) } else { (3000, 25) };
    for _ in 0..passes {
        bed.advance(Duration::from_millis(apart));
        bed.run();
    }
    assert_eq!(flows(&bed), 0);
    assert_eq!(bed.worker.stats().unwrap().flows_expired.get(), 2);
}
