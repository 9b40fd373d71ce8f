//! The scenarios of the upstream NetworkPolicy conformance suite, and more, against the API's text.
//!
//! Nine pods in three namespaces on two nodes (`cluster`), and for each set of policies (`sets`) everybody
//! asks everybody: two ports, three protocols and ICMP echo, both families, by real sockets at the same time.
//! What must come is what the evaluator of `tests/oracle` says; what must not is not seen at the server.

mod cluster;
mod sets;

use std::fmt::Write as _;
use std::time::Instant;

use cluster::{Cluster, PODS, PORTS, addresses};
use sets::{Set, changes, combined, egress, ingress, selectors};

use serde_json::json;

use crate::harness::cli::fastpath;
use crate::harness::lab::Lab;
use crate::harness::spec::{Family, LabSpec, NodeSpec};
use crate::oracle::{Connection, World};
use crate::traffic::SILENCE;
use crate::traffic::matrix::{Matrix, Outcome, Probe, Proto, Station};

/// Every question there is.
fn probes() -> Vec<Probe> {
    let mut all = Vec::new();
    for from in 0..PODS.len() {
        for to in 0..PODS.len() {
            for family in Family::BOTH {
                for proto in [Proto::Tcp, Proto::Udp, Proto::Sctp] {
                    all.extend(PORTS.map(|port| Probe { from, to, family, proto, port }));
                }
                all.push(Probe { from, to, family, proto: Proto::Icmp, port: 0 });
            }
        }
    }
    all
}

/// What the API's text says.
fn allowed(world: &World, lab: &Lab, p: &Probe) -> bool {
    let ip = |index| addresses(lab, index)[usize::from(p.family == Family::V6)];
    let (from, to) = (ip(p.from), ip(p.to));
    let at = |index: usize, own, peer| Connection {
        pod: &world.pods[index],
        own,
        peer,
        proto: p.proto.number(p.family),
        port: p.port,
    };
    world.egress(at(p.from, from, to)).allow && world.ingress(at(p.to, to, from)).allow
}

/// The differences, one a line; equal pairs of both families and ports are not folded: each is a fact.
fn differences(outcomes: &[Outcome], want: impl Fn(&Probe) -> bool) -> Vec<String> {
    let pod = |index: usize| format!("{}/{} ({})", PODS[index].0, PODS[index].1, PODS[index].2);
    let mut lines: Vec<String> = outcomes
        .iter()
        .filter(|o| (o.answered, o.delivered) != (want(&o.probe), want(&o.probe)))
        .map(|o| {
            let p = o.probe;
            let word = |allow| if allow { "allowed" } else { "denied" };
            let got = match (o.answered, o.delivered) {
                (true, true) => "delivered and answered",
                (false, true) => "delivered, no answer",
                (true, false) => "answered, though not seen at the server",
                (false, false) => "not delivered",
            };
            let (from, to) = (pod(p.from), pod(p.to));
            format!(
                "  {from:10} -> {to:10} {:?} {:?} port {:2}: want {}, got {got}",
                p.family,
                p.proto,
                p.port,
                word(want(&p))
            )
        })
        .collect();
    lines.sort();
    lines
}

/// The probes that `explain` says otherwise of: by the running daemon, or from the manifests.
fn explained_otherwise(
    lab: &Lab,
    live: bool,
    probes: &[Probe],
    want: impl Fn(&Probe) -> bool,
) -> Vec<String> {
    let address = |index, family| addresses(lab, index)[usize::from(family == Family::V6)].to_string();
    let mut queries = String::new();
    for p in probes {
        let proto = format!("{:?}", p.proto).to_lowercase();
        let mut query =
            json!({"from": address(p.from, p.family), "to": address(p.to, p.family), "proto": proto});
        if p.proto != Proto::Icmp {
            query["dport"] = json!(p.port);
        }
        writeln!(queries, "{query}").expect("writing to memory");
    }
    let file = lab.root().join("queries.json");
    std::fs::write(&file, queries).expect("write the queries");
    let (file, dir) = (file.to_str().expect("UTF-8"), lab.manifests.dir().to_str().expect("UTF-8"));
    let out = if live {
        lab.node("a").cli().run(&["explain", "--batch", file])
    } else {
        fastpath(&["explain", "--batch", file, "--manifests", dir])
    };
    assert_eq!((out.code, out.stdout.lines().count()), (0, probes.len()), "explain --batch: {}", out.stderr);
    let answers = out.stdout.lines().zip(probes);
    answers
        .filter(|(line, p)| {
            let answer: serde_json::Value = serde_json::from_str(line).expect("a line is JSON");
            answer["verdict"] != if want(p) { "allow" } else { "deny" }
        })
        .map(|(line, p)| format!("  {p:?}: {line}"))
        .collect()
}

/// Applies each set, step by step, to a fresh cluster, and compares after every step.
fn run(groups: &[(&str, Vec<Set>)]) {
    let nodes = vec![NodeSpec::fastpath("a", 5), NodeSpec::fastpath("b", 4)];
    // A machine that is busy with something else is no failure of the daemon's: its packets wait.
    let mut lab = Lab::wire(LabSpec { nodes, stale_after_ms: 30_000, ..LabSpec::default() });
    Cluster::new().write(&lab);
    lab.start_daemons();
    let lab = lab;
    let stations = (0..PODS.len())
        .map(|i| Station { ns: &lab.pod(PODS[i].2).ns, addresses: addresses(&lab, i) })
        .collect();
    let mut matrix = Matrix::start(stations, &PORTS).expect("servers and observers start");
    let probes = probes();
    // Rings grow by the bursts they see, and neighbours are resolved: these rounds are not judged.
    for _ in 0..2 {
        matrix.round(&probes, |_| true).expect("a round");
    }
    let mut failures = String::new();
    for (group, sets) in groups {
        for set in sets {
            let start = Instant::now();
            let mut cluster = Cluster::new();
            let mut denied = Vec::new();
            for (number, step) in (1..).zip(&set.steps) {
                step.iter().for_each(|change| cluster.change(change));
                cluster.apply(&lab);
                let world = cluster.world(&lab);
                let want = |p: &Probe| allowed(&world, &lab, p);
                denied.push(probes.iter().filter(|p| !want(p)).copied().collect::<Vec<_>>());
                let what = format!("{group}: {}, step {number}", set.name);
                let otherwise = explained_otherwise(&lab, number % 2 == 1, &probes, want);
                if !otherwise.is_empty() {
                    writeln!(failures, "{what}: explained otherwise\n{}", otherwise.join("\n"))
                        .expect("writing to memory");
                }
                match matrix.round(&probes, want) {
                    Err(e) => writeln!(failures, "{what}: {e}").expect("writing to memory"),
                    Ok(outcomes) => {
                        let wrong = differences(&outcomes, want);
                        if !wrong.is_empty() {
                            let (shown, all) = (wrong.len().min(60), wrong.len());
                            let lines = wrong[..shown].join("\n");
                            writeln!(failures, "{what}: {all} of {} differ\n{lines}", probes.len())
                                .expect("writing to memory");
                        }
                    }
                }
            }
            let counts: Vec<_> = denied.iter().map(Vec::len).collect();
            eprintln!("{group}: {}: denied {counts:?} of {}, {:?}", set.name, probes.len(), start.elapsed());
            // A set under which nothing is denied, or all of it, would show nothing, nor would a step.
            let telling =
                counts.iter().any(|d| *d > 0 && *d < probes.iter().filter(|p| p.from != p.to).count());
            assert!(telling || set.open, "{group}: {}: {counts:?} denied", set.name);
            let distinct = denied.windows(2).all(|d| d[0] != d[1]);
            assert!(distinct, "{group}: {}: a step changes nothing: {counts:?}", set.name);
        }
    }
    std::thread::sleep(SILENCE);
    if let Err(e) = matrix.nothing_late() {
        writeln!(failures, "{e}").expect("writing to memory");
    }
    assert!(failures.is_empty(), "\n{failures}");
}

/// Policies that isolate for ingress.
#[test]
fn ingress_policies() {
    run(&[("ingress", ingress::sets()), ("selectors", selectors::sets())]);
}

/// Policies that isolate for egress, and for both.
#[test]
fn egress_policies() {
    run(&[("egress", egress::sets()), ("combined", combined::sets())]);
}

/// Policies, pods and namespaces that change.
#[test]
fn changing_policies() {
    run(&[("changes", changes::sets())]);
}

#[test]
fn there_are_enough_sets() {
    let all = [ingress::sets(), selectors::sets(), egress::sets(), combined::sets(), changes::sets()];
    let names: std::collections::BTreeSet<_> =
        all.iter().enumerate().flat_map(|(group, sets)| sets.iter().map(move |s| (group, s.name))).collect();
    assert_eq!(names.len(), all.iter().map(Vec::len).sum::<usize>(), "names are distinct within a group");
    assert!(names.len() >= 40, "{}", names.len());
}
