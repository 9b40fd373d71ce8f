use std::net::IpAddr;

use proptest::prelude::*;

use super::*;
use crate::packet::proto;
use crate::tables::Prefix;

fn ip(s: &str) -> Ip {
    s.parse::<IpAddr>().unwrap().into()
}

proptest! {
    /// A port map is the last change at or below the port, however many there are.
    #[test]
    fn port_map_is_a_scan(
        mut changes in prop::collection::btree_map(prop_oneof![0u16..20, any::<u16>(), Just(u16::MAX)], 0u32..6, 0..40),
        few in 0usize..12,
        probes in prop::collection::vec(any::<u16>(), 20),
    ) {
        if few < 9 {
            changes = changes.into_iter().take(few).collect();
        }
        let first = Cell::deny(RuleId(9));
        let list: Vec<_> = changes.iter().map(|(p, c)| (*p, Cell::allow(RuleId(*c)))).collect();
        let map = PortMap::new(first, &list);
        let edges = changes.keys().flat_map(|p| [p.saturating_sub(1), *p, p.saturating_add(1)]);
        for port in edges.chain(probes).chain([0, u16::MAX]) {
            let want = list.iter().rfind(|(p, _)| *p <= port).map_or(first, |(_, c)| *c);
            prop_assert_eq!(map.lookup(port), want, "port {}", port);
        }
    }

    /// Exact entries win over blocks, the last insert wins, removal uncovers the block.
    #[test]
    fn peer_table_is_a_scan(ops in prop::collection::vec((0u8..8, any::<bool>(), 1u32..9), 0..60)) {
        let mut table = PeerTable::default();
        table.paint(Prefix::new("10.0.0.4".parse().unwrap(), 30).unwrap(), ClassId(99));
        let mut naive = std::collections::BTreeMap::new();
        for (host, add, class) in ops {
            let addr = Ip::v4([10, 0, 0, host]);
            if add {
                let info = PeerInfo { class: ClassId(class), node: NodeIndex::NONE };
                table.insert(addr, info);
                naive.insert(host, info);
            } else {
                table.remove(addr);
                naive.remove(&host);
            }
        }
        for host in 0..8u8 {
            let default = PeerInfo { class: if host >= 4 { ClassId(99) } else { ClassId::OTHER }, ..PeerInfo::default() };
            prop_assert_eq!(table.lookup(Ip::v4([10, 0, 0, host])), naive.get(&host).copied().unwrap_or(default));
        }
        prop_assert_eq!(table.len(), naive.len());
    }
}

#[test]
fn a_copy_is_not_changed_through_the_original() {
    let mut a = PeerTable::default();
    a.insert(ip("fd00::1"), PeerInfo { class: ClassId(1), node: NodeIndex(2) });
    let before = a.clone();
    a.insert(ip("fd00::1"), PeerInfo { class: ClassId(5), node: NodeIndex(2) });
    a.insert(ip("fd00::2"), PeerInfo { class: ClassId(6), node: NodeIndex(2) });
    assert_eq!(before.lookup(ip("fd00::1")).class, ClassId(1));
    assert_eq!(before.get(ip("fd00::2")), None);
    assert_eq!(a.lookup(ip("fd00::1")).class, ClassId(5));
}

/// Verdicts before any rule: itself, not isolated, own node, unknown group.
#[test]
fn what_comes_before_the_rules() {
    let web = RuleId(7);
    let isolated = RuleId(8);
    let mut function = PortFn::constant(Cell::deny(isolated));
    function.tcp = PortMap::new(Cell::deny(isolated), &[(80, Cell::allow(web)), (81, Cell::deny(isolated))]);
    let closed = PortFn::constant(Cell::deny(isolated));
    let rows = [(ClassId(3), Row::function(1))].into_iter().collect();
    let matrix = Arc::new(Matrix::new(Cell::deny(isolated), Row::function(0), rows, vec![closed, function]));
    let mut table = PolicyTable::default();
    table.groups.push(Group { node: NodeIndex(0), ingress: Some(matrix.clone()), egress: None });
    table.groups.push(Group { node: NodeIndex::NONE, ingress: Some(matrix.clone()), egress: Some(matrix) });
    table.peers.insert(ip("10.0.0.2"), PeerInfo { class: ClassId(3), node: NodeIndex::NONE });
    table.peers.insert(ip("192.0.2.1"), PeerInfo { class: ClassId::OTHER, node: NodeIndex(0) });
    table.peers.insert(ip("192.0.2.2"), PeerInfo { class: ClassId::OTHER, node: NodeIndex(1) });

    let own = ip("10.0.0.1");
    let allow = |rule| Verdict { allow: true, rule };
    let deny = |rule| Verdict { allow: false, rule };
    use Direction::{Egress, Ingress};
    for (group, direction, peer, proto, port, want) in [
        (0, Ingress, "10.0.0.1", proto::TCP, 1, allow(RuleId::SELF)),
        (0, Egress, "198.51.100.1", proto::TCP, 1, allow(RuleId::NOT_ISOLATED)),
        (0, Ingress, "192.0.2.1", proto::ICMP, 0, allow(RuleId::OWN_NODE)),
        (0, Ingress, "192.0.2.2", proto::ICMP, 0, deny(isolated)),
        (0, Ingress, "10.0.0.2", proto::TCP, 80, allow(web)),
        (0, Ingress, "10.0.0.2", proto::TCP, 81, deny(isolated)),
        (0, Ingress, "10.0.0.2", proto::UDP, 80, deny(isolated)),
        (0, Ingress, "10.0.0.2", proto::ICMP, 80, deny(isolated)),
        (0, Ingress, "10.0.0.3", proto::TCP, 80, deny(isolated)),
        // A group on no node is not let in by "no node", and its own node counts for ingress only.
        (1, Ingress, "198.51.100.1", proto::TCP, 80, deny(isolated)),
        (1, Egress, "192.0.2.1", proto::TCP, 80, deny(isolated)),
        (2, Ingress, "10.0.0.2", proto::TCP, 80, deny(RuleId::UNKNOWN_GROUP)),
    ] {
        let got = table.evaluate(GroupId(group), direction, own, ip(peer), proto, port);
        assert_eq!(got, want, "{group} {direction} {peer} {proto} {port}");
    }
}
