use std::collections::BTreeMap;

use fastpath::packet::{Ip, proto};
use fastpath::snapshot::NodeInfo;
use fastpath::tables::flow::{FlowConfig, FlowTable, Inserted, Millis, NewFlow, Timeouts};
use fastpath::tables::policy::{RuleId, Rules};

use super::*;
use crate::compile::tables::SnatSettings;
use crate::explain::tests::{CLUSTER, Folder};
use crate::source::load_dir;

fn ip(text: &str) -> Ip {
    Ip::from(text.parse::<IpAddr>().unwrap())
}

/// Node `b` of the cluster, and the folder it was read from.
fn world() -> (Tables, Snapshot, String) {
    let folder = Folder::new(CLUSTER);
    let model = load_dir(&folder.0).unwrap().model;
    let settings = SnatSettings { outgoing: true, ports: (40_000, 41_000), inside: Vec::new() };
    let mut tables = Tables::new("b", 2, settings);
    let addresses = vec![ip("192.0.2.2"), ip("2001:db8::2")];
    let mut snapshot =
        Snapshot { node: NodeInfo { addresses, ..NodeInfo::default() }, ..Snapshot::default() };
    tables.fill(&model, &BTreeMap::new(), &mut snapshot);
    (tables, snapshot, folder.0.display().to_string())
}

/// Counter of the first decider that `wanted` picks.
fn counter(tables: &Tables, wanted: impl Fn(&Decider) -> bool) -> u16 {
    (4..100).find(|n| tables.counters().decider(*n, 1).is_some_and(&wanted)).unwrap()
}

fn is_isolation(decider: &Decider) -> bool {
    matches!(decider, Decider::Isolated { .. })
}

fn count(tables: &Tables, worker: usize, rule: u16, packets: u64) {
    let counters = tables.counters().current();
    let at = &counters.of(worker)[usize::from(rule)];
    at.packets.add(packets);
    at.bytes.add(packets * 100);
    at.flows.add(1);
}

#[test]
fn rules_and_isolations_with_what_they_counted() {
    let (tables, _, folder) = world();
    let isolation = counter(&tables, is_isolation);
    let rule = counter(&tables, |d| matches!(d, Decider::Rule { index: 1, .. }));
    count(&tables, 0, rule, 3);
    count(&tables, 1, rule, 4);
    count(&tables, 1, isolation, 5);
    let line = |text: &str| CLUSTER.lines().position(|l| l.contains(text)).unwrap() + 1;
    let row = |rule: Option<usize>, decides: &str, counts: [u64; 3], line: usize| PolicyRow {
        policy: "shop/db".into(),
        policies: vec!["shop/db".into()],
        direction: "ingress".into(),
        rule,
        verdict: if rule.is_some() { Outcome::Allow } else { Outcome::Deny },
        decides: decides.into(),
        packets: counts[0],
        bytes: counts[1],
        flows: counts[2],
        origin: format!("{folder}/all.yaml:{line}"),
    };
    let block = line("- from: [{ipBlock: {cidr: 203.0.113.0/24}}]");
    let policy = line("kind: NetworkPolicy") - 1;
    assert_eq!(
        policies(&tables),
        [
            row(Some(0), "rule 0", [0, 0, 0], block),
            row(Some(1), "rule 1", [7, 700, 2], block + 1),
            row(None, "isolated: no policy allows", [5, 500, 1], policy),
        ]
    );
    let detail = DropDetail {
        detail: "isolated: no policy allows (shop/db)".into(),
        packets: 5,
        origin: format!("{folder}/all.yaml:{policy}"),
    };
    assert_eq!(drop_details(&tables, DropReason::PolicyDeniedIngress), [detail]);
    for reason in [DropReason::PolicyDeniedEgress, DropReason::NoBackend] {
        assert_eq!(drop_details(&tables, reason), []);
    }
}

#[test]
fn services_by_kind_of_address() {
    let (tables, snapshot, _) = world();
    let rows = services(&tables, &snapshot);
    let shown: Vec<_> = rows
        .iter()
        .map(|r| {
            let addresses: Vec<String> = r.addresses.iter().map(ToString::to_string).collect();
            let backends: Vec<String> =
                r.backends.iter().map(|b| format!("{}:{} {}", b.address, b.port, b.state)).collect();
            format!(
                "{} {} {} {} {} {} [{}] {}",
                r.service,
                r.kind,
                addresses.join(","),
                r.protocol,
                r.port,
                r.ready,
                backends.join(","),
                r.local
            )
        })
        .collect();
    assert_eq!(
        shown,
        [
            "shop/db ClusterIP 10.96.0.1 TCP 1 1 [10.0.1.1:5432 ready] false",
            "shop/db LoadBalancer 198.51.100.1 TCP 1 1 [10.0.1.1:5432 ready] false",
            "shop/db NodePort 192.0.2.2 TCP 30001 1 [10.0.1.1:5432 ready] false",
            "shop/empty ClusterIP 10.96.0.3 TCP 80 0 [] false",
            "shop/web ClusterIP 10.96.0.2 TCP 80 1 [10.0.0.1:8080 ready] true",
            "shop/web NodePort 192.0.2.2 TCP 30080 1 [10.0.0.1:8080 ready] true",
        ]
    );
}

#[test]
fn backends_by_state() {
    let of = |ready: bool, terminating: bool| Backend {
        address: "10.0.0.1".parse().unwrap(),
        port: 80,
        ready,
        serving: true,
        terminating,
        node: Some("a".into()),
    };
    let all = [of(true, false), of(false, true), of(false, false)];
    let states: Vec<_> = all.iter().map(|b| backend(b, &[&all[0]])).map(|b| (b.state, b.used)).collect();
    let want = [("ready", true), ("terminating", false), ("not-ready", false)];
    assert_eq!(states, want.map(|(s, u)| (s.to_owned(), u)));
}

/// A flow as the table gives it back.
fn flow(original: FlowKey, translated: FlowKey, rules: Rules, bits: u8) -> Pair {
    let timeouts = Timeouts::default();
    let table = FlowTable::new(&FlowConfig { entries_v4: 1024, entries_v6: 1024, timeouts, seed: 1 });
    let transform = Transform { rules, bits, ..Transform::identity(&translated) };
    let new = NewFlow {
        original,
        original_transform: transform,
        reply: translated.reversed(),
        reply_transform: Transform { rules, bits, ..Transform::identity(&original.reversed()) },
        generation: 1,
        tcp_flags: 2,
    };
    assert!(matches!(table.insert(&new, Millis(0)), Inserted::New(..)));
    let mut out = None;
    table.for_each(Millis(1), |pair: &Pair| out = Some(*pair));
    out.unwrap()
}

#[test]
fn flows_by_service_and_rules() {
    let (tables, ..) = world();
    let key = |dst: &str, dport: u16| FlowKey {
        src: ip("10.0.0.1"),
        dst: ip(dst),
        sport: 1000,
        dport,
        proto: proto::TCP,
    };
    let backend = key("10.0.1.1", 5432);
    let rule = counter(&tables, |d| matches!(d, Decider::Rule { index: 0, .. }));
    let rules = Rules { egress: 0, ingress: rule };

    let plain = flow(backend, backend, rules, 0);
    assert_eq!(
        (translated(&plain), service_of(&tables, &plain), verdict(&plain)),
        (None, None, Outcome::Allow)
    );
    assert_eq!(rules_of(&tables, &plain), ["shop/db ingress rule 0"]);

    for (dst, dport) in [("10.96.0.1", 1), ("198.51.100.1", 1), ("192.0.2.2", 30001)] {
        let served = flow(key(dst, dport), backend, Rules::NONE, 0);
        assert_eq!(translated(&served), Some(backend));
        assert_eq!(service_of(&tables, &served).as_deref(), Some("shop/db"), "{dst}");
        assert_eq!(rules_of(&tables, &served), Vec::<String>::new());
    }

    // Source translation alone is no service's, also where the destination is one's address.
    let out = key("198.51.100.1", 1);
    let masked = flow(out, FlowKey { src: ip("192.0.2.1"), sport: 40_000, ..out }, Rules::NONE, 0);
    assert!(translated(&masked).is_some() && service_of(&tables, &masked).is_none());

    let isolation = counter(&tables, is_isolation);
    let denied = flow(
        backend,
        backend,
        Rules::NONE.with(Direction::Ingress, RuleId(isolation.into())),
        Transform::DENY,
    );
    assert_eq!(verdict(&denied), Outcome::Deny);
    assert_eq!(rules_of(&tables, &denied), ["isolated: no policy allows (ingress: shop/db)"]);
}
