//! The pod's end of a veth, seen from the host's.

use fastpath_control::netdev::{Error, Netlink, Watcher};

use crate::lab::{Ns, until};

#[test]
fn the_other_end_is_read_without_entering_its_namespace() {
    let (host, pod) = (Ns::new("ph"), Ns::new("pp"));
    // The pod's end has an index that the host has given to another device.
    for n in 0..4 {
        host.ip(&format!("link add name f{n} type bridge"));
    }
    host.veth("cali0", &pod, "eth0");
    pod.ip("link set eth0 mtu 1450 address 02:00:00:00:01:01");
    host.ip("link add name here0 type veth peer name here1");
    host.within(|| {
        let mut netlink = Netlink::route().unwrap();
        let peer = netlink.peer_of(host.index("cali0")).unwrap();
        assert_eq!((peer.name.as_str(), peer.mtu, peer.up), ("eth0", 1450, true));
        assert_eq!(peer.mac.to_string(), "02:00:00:00:01:01");
        assert_eq!((peer.at.index, peer.rx_queues, peer.tx_queues), (pod.index("eth0"), 4, 4));
        assert!(peer.at.netns.is_some());
        // Both ends here.
        let peer = netlink.peer_of(host.index("here0")).unwrap();
        assert_eq!((peer.name.as_str(), peer.at.netns), ("here1", None));
        assert_eq!(peer.mac.to_string(), host.mac("here1"));

        let not_veth = netlink.peer_of(host.index("f0")).unwrap_err();
        assert!(matches!(&not_veth, Error::NotVeth { device, .. } if device == "f0"), "{not_veth}");
        let missing = netlink.peer_of(4711).unwrap_err();
        assert!(missing.is_gone() && missing.to_string().contains("#4711"), "{missing}");
        let missing = netlink.link_named("nosuch0").unwrap_err();
        assert!(matches!(&missing, Error::NoDevice { device } if device == "nosuch0"), "{missing}");
        assert!(missing.to_string().contains("'nosuch0'"));
        assert_eq!(netlink.link_named("cali0").unwrap().index, host.index("cali0"));
        let long = netlink.link_named("a-name-that-is-much-too-long").unwrap_err();
        assert!(long.to_string().contains("a-name-that-is-much-too-long"), "{long}");
    });
}

#[test]
fn changes_inside_the_pod_are_followed() {
    let (host, pod) = (Ns::new("qh"), Ns::new("qp"));
    host.veth("cali0", &pod, "eth0");
    host.block_on(|| async {
        let watcher = Watcher::start().unwrap();
        let mut views = watcher.subscribe();
        let cali0 = host.index("cali0");
        assert_eq!(watcher.view().peers[&cali0].mac.to_string(), pod.mac("eth0"));
        pod.ip("link set eth0 address 02:00:00:00:02:02");
        until(&mut views, "the MAC", |v| v.peers[&cali0].mac.to_string() == "02:00:00:00:02:02").await;
        pod.ip("link set eth0 mtu 1234");
        until(&mut views, "the MTU", |v| v.peers[&cali0].mtu == 1234).await;
        pod.ip("link set eth0 down");
        until(&mut views, "down", |v| !v.peers[&cali0].up).await;
        // The kernel may tell of the carrier up to a second later.
        until(&mut views, "no carrier", |v| v.links[&cali0].up && !v.links[&cali0].running).await;

        // A pod that comes later, and one whose end moves into its namespace after it was seen here.
        let late = Ns::new("ql");
        host.veth("cali1", &late, "eth0");
        let cali1 = host.index("cali1");
        let mac = late.mac("eth0");
        until(&mut views, "the late pod", |v| v.peers.get(&cali1).is_some_and(|p| p.mac.to_string() == mac))
            .await;
        host.ip("link add name cali2 type veth peer name tmp2");
        let cali2 = host.index("cali2");
        until(&mut views, "both here", |v| v.peers.get(&cali2).is_some_and(|p| p.at.netns.is_none())).await;
        host.ip(&format!("link set tmp2 netns {}", late.name));
        late.ip("link set tmp2 name eth1 address 02:00:00:00:03:03");
        until(&mut views, "moved", |v| {
            v.peers.get(&cali2).is_some_and(|p| p.at.netns.is_some() && p.name == "eth1")
        })
        .await;
        // The pod ends: its namespace takes the veth with it.
        drop(late);
        until(&mut views, "gone", |v| {
            [cali1, cali2].iter().all(|i| !v.peers.contains_key(i) && !v.links.contains_key(i))
        })
        .await;
    });
}
