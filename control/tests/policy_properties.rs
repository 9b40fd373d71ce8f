//! The compiled classifier gives the verdicts of the evaluator written from the API's text: for random worlds,
//! and after every one of a random sequence of changes.
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test may panic; clippy exempts only the test functions themselves"
)]

mod oracle;
mod worlds;

use std::net::IpAddr;
use std::sync::Arc;

use fastpath::packet::{Ip, proto};
use fastpath::tables::policy::{Direction, GroupId, RuleId};
use fastpath_control::compile::policy::{Compiled, Compiler, Decider, Scope, compile};
use fastpath_control::explain::{Explainer, Outcome, Query, QueryError};
use fastpath_control::model::{Model, Pod};
use oracle::{Connection, Decision, World};
use proptest::prelude::*;
use proptest::test_runner::TestCaseResult;
use worlds::{Change, apply, change, model, probe_addresses, world};

const PORTS: [(u8, u16); 14] = [
    (proto::TCP, 80),
    (proto::TCP, 81),
    (proto::TCP, 443),
    (proto::TCP, 8079),
    (proto::TCP, 8080),
    (proto::TCP, 8085),
    (proto::TCP, 1),
    (proto::TCP, 65535),
    (proto::UDP, 53),
    (proto::UDP, 80),
    (proto::SCTP, 80),
    (proto::SCTP, 8080),
    (proto::ICMP, 0),
    (47, 80),
];

/// Every pod in scope, every probe address, every port, both directions.
fn check(
    world: &World,
    model: &Model,
    scope: &Scope,
    compiled: &Compiled,
    compiler: &Compiler,
) -> TestCaseResult {
    let mut endpoints = 0;
    for pod in &world.pods {
        let expected = !pod.host_network
            && !pod.finished
            && matches!(scope, Scope::Cluster)
                | matches!(scope, Scope::Node(n) if Some(n) == pod.node.as_ref());
        let group = compiled.endpoints.get(&pod.name);
        prop_assert_eq!(group.is_some(), expected, "{}", pod.name);
        let Some(group) = group else { continue };
        endpoints += 1;
        for own in &pod.addresses {
            for peer in probe_addresses(world).into_iter().filter(|p| p.is_ipv4() == own.is_ipv4()) {
                for (proto, port) in PORTS {
                    let c = Connection { pod, own: *own, peer, proto, port };
                    check_one(world.ingress(c), c, *group, Direction::Ingress, compiled, compiler)?;
                    check_one(world.egress(c), c, *group, Direction::Egress, compiled, compiler)?;
                }
            }
        }
    }
    prop_assert_eq!(compiled.endpoints.len(), endpoints);
    prop_assert_eq!(model.policies.len(), world.policies.len());
    Ok(())
}

fn check_one(
    want: Decision,
    c: Connection,
    group: GroupId,
    direction: Direction,
    compiled: &Compiled,
    compiler: &Compiler,
) -> TestCaseResult {
    let (own, peer) = (Ip::from(c.own), Ip::from(c.peer));
    let got = compiled.table.evaluate(group, direction, own, peer, c.proto, c.port);
    let info = compiled.rules.get(got.rule);
    prop_assert_eq!(got.allow, want.allow, "{} {:?}: {:?} {:?}", direction, c, info, want);
    match (got.rule, info.map(|i| &i.decider)) {
        (RuleId::SELF, None) => prop_assert_eq!(c.own, c.peer),
        (RuleId::NOT_ISOLATED, None) => prop_assert!(want.isolated_by.is_empty()),
        (RuleId::OWN_NODE, None) => prop_assert_eq!(direction, Direction::Ingress),
        (_, Some(Decider::Rule { policy, direction: of, index })) => {
            prop_assert_eq!(*of, direction);
            // The first rule that allows, by the policies' names and the order within.
            let mut allowed = want.allowed_by.clone();
            allowed.sort();
            prop_assert_eq!(Some(&(policy.to_string(), *index)), allowed.first());
        }
        (_, Some(Decider::Isolated { direction: of, policies })) => {
            prop_assert_eq!(*of, direction);
            let policies: Vec<_> = policies.iter().map(ToString::to_string).collect();
            prop_assert_eq!(&policies, &want.isolated_by);
        }
        other => prop_assert!(false, "{:?}", other),
    }
    // The explanation finds the same rules as the verdict.
    let reasons = compiler.reasons(&c.pod.name, direction, peer, c.proto, c.port);
    let isolating: Vec<_> = reasons.iter().map(|r| r.policy.to_string()).collect();
    prop_assert_eq!(&isolating, &want.isolated_by);
    let allowing = reasons
        .iter()
        .flat_map(|p| p.rules.iter().filter(|r| r.peer && r.port).map(|r| (p.policy.to_string(), r.index)));
    let mut allowed = want.allowed_by;
    allowed.sort();
    prop_assert_eq!(allowing.collect::<Vec<_>>(), allowed);
    Ok(())
}

fn scopes() -> [Scope; 2] {
    [Scope::Cluster, Scope::Node("node-0".into())]
}

fn cases(default: u32) -> ProptestConfig {
    ProptestConfig { max_shrink_iters: 20_000, ..ProptestConfig::with_cases(default) }
}

proptest! {
    #![proptest_config(cases(300))]
    #[test]
    fn compiled_is_the_api_text(world in world()) {
        let model = model(&world);
        for scope in scopes() {
            let mut compiler = Compiler::new(scope.clone());
            let compiled = compiler.update(&model);
            check(&world, &model, &scope, &compiled, &compiler)?;
        }
    }

    /// The same model gives the same tables, to the last id.
    #[test]
    fn compilation_is_deterministic(world in world()) {
        let model = model(&world);
        for scope in scopes() {
            let [a, b] = [(); 2].map(|()| compile(&model, scope.clone()));
            prop_assert_eq!(&a.endpoints, &b.endpoints);
            prop_assert_eq!(a.rules.iter().collect::<Vec<_>>(), b.rules.iter().collect::<Vec<_>>());
            for (pod, group) in a.endpoints.iter() {
                let own: Vec<IpAddr> = model.pods[pod].addresses.clone();
                for peer in probe_addresses(&world) {
                    prop_assert_eq!(a.table.peers.lookup(peer.into()), b.table.peers.lookup(peer.into()));
                    for (proto, port) in PORTS {
                        for own in &own {
                            for d in Direction::BOTH {
                                let v = |c: &Compiled| c.table.evaluate(*group, d, (*own).into(), peer.into(), proto, port);
                                prop_assert_eq!(v(&a), v(&b));
                            }
                        }
                    }
                }
            }
        }
    }
}

proptest! {
    #![proptest_config(cases(120))]
    #[test]
    fn compiled_is_the_api_text_after_changes(
        mut world in world(),
        changes in prop::collection::vec(prop::collection::vec(change(), 1..4), 1..8),
        node_scope in any::<bool>(),
    ) {
        let scope = scopes()[usize::from(node_scope)].clone();
        let mut compiler = Compiler::new(scope.clone());
        let mut before = model(&world);
        compiler.update(&before);
        for step in changes {
            let step: Vec<Change> = step;
            for c in step {
                apply(&mut world, c);
            }
            let mut now = model(&world);
            share(&before, &mut now);
            let compiled = compiler.update(&now);
            check(&world, &now, &scope, &compiled, &compiler)?;
            before = now;
        }
    }
}

proptest! {
    #![proptest_config(cases(60))]
    /// `explain` between any two ends is what the API's text says of both.
    #[test]
    fn explanations_are_the_api_text(world in world()) {
        let mut explainer = Explainer::new(Arc::new(model(&world)));
        let own = |p: &&Arc<Pod>| p.addresses.iter().all(|a| p.host_network || world.owner(*a).is_some_and(|o| o.name == p.name));
        let pods: Vec<_> = world.pods.iter().filter(|p| !p.finished).filter(own).collect();
        for (i, from) in pods.iter().enumerate() {
            for (j, to) in pods.iter().enumerate() {
                let (number, port) = PORTS[(i * 5 + j) % 13];
                let proto = match number {
                    proto::TCP => "tcp",
                    proto::UDP => "udp",
                    proto::SCTP => "sctp",
                    _ => "icmp",
                };
                // By name, or by the address they would use.
                let pair = to.addresses.iter().find_map(|t| Some((from.addresses.iter().find(|f| f.is_ipv4() == t.is_ipv4())?, t)));
                let by_name = (i + j) % 2 == 0;
                let (f, t) = match pair {
                    Some((f, t)) if !by_name => (f.to_string(), t.to_string()),
                    _ => (from.name.to_string(), to.name.to_string()),
                };
                let answer = explainer.answer(&Query::new(&f, &t, proto, Some(port)).unwrap());
                let Some((src, dst)) = pair else {
                    prop_assert!(matches!(answer, Err(QueryError::NoCommonFamily(..))), "{:?}", answer);
                    continue;
                };
                let number = if number == proto::ICMP && src.is_ipv6() { proto::ICMPV6 } else { number };
                let answer = answer.unwrap();
                let egress = world.egress(Connection { pod: from, own: *src, peer: *dst, proto: number, port });
                let ingress = world.ingress(Connection { pod: to, own: *dst, peer: *src, proto: number, port });
                for (side, want) in [(&answer.egress, &egress), (&answer.ingress, &ingress)] {
                    prop_assert_eq!(side.verdict == Outcome::Allow, want.allow, "{} {} {} {}: {:?}", f, t, proto, port, want);
                    match (&side.policy, side.rule) {
                        (Some(p), Some(r)) => prop_assert!(want.allowed_by.contains(&(p.to_string(), r))),
                        (Some(p), None) => prop_assert!(!want.allow && want.isolated_by[0] == p.to_string()),
                        (None, _) => prop_assert!(want.allow && (src == dst || want.isolated_by.is_empty() || side.by.contains("own node"))),
                    }
                }
                prop_assert_eq!(answer.verdict == Outcome::Allow, egress.allow && ingress.allow);
            }
        }
    }
}

/// Sources keep the `Arc` of an object that did not change; half of them here, so that both paths are taken.
fn share(before: &Model, now: &mut Model) {
    for (i, (name, pod)) in now.pods.iter_mut().enumerate() {
        if let Some(old) = before.pods.get(name).filter(|old| i % 2 == 0 && ***old == **pod) {
            *pod = old.clone();
        }
    }
    for (i, (name, policy)) in now.policies.iter_mut().enumerate() {
        if let Some(old) = before.policies.get(name).filter(|old| i % 2 == 0 && ***old == **policy) {
            *policy = old.clone();
        }
    }
}

#[test]
fn probes_hold_every_kind_of_address() {
    use proptest::strategy::ValueTree;
    use proptest::test_runner::TestRunner;
    let mut runner = TestRunner::deterministic();
    let (mut pods, mut nodes, mut outside, mut denied, mut by_rule) = (0, 0, 0, 0, 0);
    for _ in 0..50 {
        let w = world().new_tree(&mut runner).unwrap().current();
        for peer in probe_addresses(&w) {
            match w.owner(peer) {
                Some(_) => pods += 1,
                None if w.nodes.iter().any(|n| n.addresses.contains(&peer)) => nodes += 1,
                None => outside += 1,
            }
            let subject = |p: &&Arc<Pod>| !p.host_network && !p.finished;
            for pod in w.pods.iter().filter(subject) {
                for own in pod.addresses.iter().filter(|o| o.is_ipv4() == peer.is_ipv4()) {
                    for (proto, port) in PORTS {
                        let c = Connection { pod, own: *own, peer, proto, port };
                        for d in [w.ingress(c), w.egress(c)] {
                            denied += usize::from(!d.allow);
                            by_rule += usize::from(!d.allowed_by.is_empty());
                        }
                    }
                }
            }
        }
    }
    // A generator that makes one answer only proves nothing.
    assert!(pods > 100 && nodes > 50 && outside > 100, "{pods} {nodes} {outside}");
    assert!(denied > 10_000 && by_rule > 10_000, "{denied} denied, {by_rule} allowed by a rule");
}
