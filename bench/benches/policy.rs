//! The classifier of new flows, and the service table: lookups over the axes, the policy node, compile time and memory.
//!
//! Lookups are timed by the time stamp counter, a vector of 256 at a time and step by step as the `policy` node asks them; what is
//! asked is made just before. The node is timed by its own counters, in the real worker over memory ports: every packet
//! opens a flow, asks the egress policies of its pod, and ends without a route, so that the next of its flow asks again.
//! Medians over vectors. `compile` is one compilation from nothing, `bytes` what the tables of the packet path hold.
//!
//! The last table, in Markdown, has all; with `POLICY_BENCH_JSON=FILE` the rows of goal 4 are written there.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a bench that cannot go on says so by panicking")]

use std::collections::BTreeSet;
use std::hint::black_box;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use fastpath::graph::{DropReason, NodeId};
use fastpath::io::Frame;
use fastpath::io::mem::MemHandle;
use fastpath::packet::{FlowKey, Ip, PortId, proto};
use fastpath::stats::RuleCounters;
use fastpath::tables::flow::{FlowConfig, Timeouts};
use fastpath::tables::policy::{Asked, Direction, GroupId, Spot};
use fastpath::tables::service::{AT_ONCE, Found};
use fastpath::testbed::{PODS, Underlay, bench_worker, from_pod, pod, pod_port, snapshot};
use fastpath::wire::testgen::Spec;
use fastpath::worker::Worker;
use fastpath_control::compile::policy::{self, Compiled, Scope};
use fastpath_control::compile::service::ServiceTables;
use fastpath_control::model::{
    Endpoint, EndpointPort, EndpointSlice, IpBlock, Labels, Model, NamespaceScope, NetworkPolicy, ObjectName,
    Origin, Peer, Pod, PortMatch, PortSpec, Protocol, Rule, Selector, Service, ServiceKind, ServicePort,
};
use ipnet::IpNet;
use quanta::Clock;
use serde_json::{Value, json};

const VECTOR: usize = 256;
/// Vectors that medians are taken from.
const SAMPLES: usize = 1 << 16;
/// Rules of one policy.
const A_POLICY: u32 = 100;
const RULES: [u32; 4] = [10, 1_000, 10_000, 100_000];
const MEMBERS: [u32; 4] = [1, 100, 10_000, 100_000];

/// xorshift64*.
struct Random(u64);

impl Random {
    fn below(&mut self, n: u32) -> u32 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        let next = self.0.wrapping_mul(0x2545_f491_4f6c_dd1d);
        u32::try_from(((next >> 32) * u64::from(n)) >> 32).unwrap()
    }
}

fn name(name: String) -> ObjectName {
    ObjectName { namespace: "n".into(), name }
}

fn labels(pairs: &[(&str, String)]) -> Labels {
    pairs.iter().map(|(k, v)| ((*k).to_owned(), v.clone())).collect()
}

/// Address `n` of the outside: scattered, so that neighbours in number are none in the table.
fn outside(v6: bool, n: u32) -> IpAddr {
    let [_, b, c, d] = n.wrapping_mul(0x9e37_79b1).to_be_bytes();
    if v6 {
        IpAddr::from([0x20, 1, 0xd, 0xb8, b, c, d, 0, 0, 0, 0, 0, 0, 0, c, d])
    } else {
        IpAddr::from([20, b, c, d])
    }
}

/// Address `n` of anywhere: over all of IPv4, over an eighth of IPv6.
fn anywhere(v6: bool, n: u32) -> IpAddr {
    let [a, b, c, d] = n.wrapping_mul(0x9e37_79b1).to_be_bytes();
    if v6 {
        let [e, f, g, h] = n.wrapping_mul(0x85eb_ca6b).to_be_bytes();
        IpAddr::from([0x20 | a & 0x1f, b, c, d, e, f, g, h, 0, 0, 0, 0, 0, 0, c, d])
    } else {
        IpAddr::from([a, b, c, d])
    }
}

fn block(addr: IpAddr, len: u8) -> Peer {
    Peer::Block(IpBlock { cidr: IpNet::new(addr, len).unwrap().trunc(), except: Vec::new() })
}

fn host(addr: IpAddr) -> Peer {
    block(addr, if addr.is_ipv4() { 32 } else { 128 })
}

fn tcp(port: u16) -> Vec<PortMatch> {
    vec![PortMatch { protocol: Protocol::Tcp, port: PortSpec::Range(port, port) }]
}

fn port_of(rule: u32) -> u16 {
    u16::try_from(1 + rule % 60_000).unwrap()
}

fn pods_with(pairs: &[(&str, String)]) -> Peer {
    let pods: Selector = labels(pairs).into_iter().collect();
    Peer::Pods { namespaces: NamespaceScope::Own, pods }
}

fn add_policy(model: &mut Model, n: String, selects: Selector, egress: Vec<Rule>) {
    let policy = NetworkPolicy {
        name: name(n),
        pod_selector: selects,
        isolates_ingress: false,
        isolates_egress: true,
        ingress: Vec::new(),
        egress,
        closed: false,
        origin: Origin::Api,
    };
    model.policies.insert(policy.name.clone(), Arc::new(policy));
}

fn add_pod(model: &mut Model, n: String, node: &str, addresses: Vec<IpAddr>, l: Labels) {
    let pod = Pod {
        name: name(n),
        uid: None,
        labels: l,
        node: Some(node.into()),
        addresses,
        host_network: false,
        finished: false,
        ports: BTreeSet::new(),
        host_ports: BTreeSet::new(),
        interface: None,
        mac: None,
        netns: None,
        origin: Origin::Api,
    };
    model.pods.insert(pod.name.clone(), Arc::new(pod));
}

fn rule(peers: Vec<Peer>, ports: Vec<PortMatch>) -> Rule {
    Rule { peers, ports, origin: Origin::Api }
}

/// The pods of the bed's node 1, under all policies.
fn subjects(model: &mut Model) {
    for n in 1..=PODS {
        let addresses = vec![pod(false, 1, n).into(), pod(true, 1, n).into()];
        add_pod(model, format!("here-{n}"), "a", addresses, labels(&[("role", "here".into())]));
    }
}

fn here() -> Selector {
    labels(&[("role", "here".into())]).into_iter().collect()
}

/// So many rules over the same pods, each for another address and port.
fn rules(v6: bool, count: u32) -> Model {
    let mut model = Model::default();
    subjects(&mut model);
    for first in (0..count).step_by(usize::try_from(A_POLICY).unwrap()) {
        let some = first..count.min(first + A_POLICY);
        let rules = some.map(|n| rule(vec![host(outside(v6, n))], tcp(port_of(n)))).collect();
        add_policy(&mut model, format!("p{first}"), here(), rules);
    }
    model
}

/// One rule with so many blocks, all of one address or of lengths from 17 (IPv6: 33) on.
fn blocks(v6: bool, count: u32, one: bool) -> Model {
    let mut model = Model::default();
    subjects(&mut model);
    let len = |n: u32| u8::try_from(if v6 { 33 + n % 31 } else { 17 + n % 15 }).unwrap();
    let peer = |n| if one { host(outside(v6, n)) } else { block(anywhere(v6, n), len(n)) };
    add_policy(&mut model, "p".into(), here(), vec![rule((0..count).map(peer).collect(), tcp(443))]);
    model
}

/// Address of pod `n` of other nodes.
fn far(v6: bool, n: u32) -> IpAddr {
    let [_, b, c, d] = n.to_be_bytes();
    if v6 {
        IpAddr::from([0xfd, 1, 0, 0, 0, 0, 0, b, 0, c, 0, 0, 0, 0, 0, d])
    } else {
        IpAddr::from([11, b, c, d])
    }
}

/// One rule for so many pods by their label.
fn members(v6: bool, count: u32) -> Model {
    let mut model = Model::default();
    subjects(&mut model);
    for n in 0..count {
        add_pod(&mut model, format!("p{n}"), "b", vec![far(v6, n)], labels(&[("app", "a".into())]));
    }
    add_policy(&mut model, "p".into(), here(), vec![rule(vec![pods_with(&[("app", "a".into())])], tcp(443))]);
    model
}

/// 1,000 policies, each with another combination of selectors, and pods of all combinations.
fn combinations(v6: bool, pods: u32) -> Model {
    let mut model = Model::default();
    subjects(&mut model);
    for n in 0..pods {
        let l = labels(&[("app", (n % 1000).to_string()), ("tier", (n % 7).to_string())]);
        add_pod(&mut model, format!("p{n}"), "b", vec![far(v6, n)], l);
    }
    for n in 0..1000 {
        let peers = vec![
            pods_with(&[("app", n.to_string())]),
            pods_with(&[("app", ((n + 1) % 1000).to_string()), ("tier", (n % 7).to_string())]),
        ];
        add_policy(&mut model, format!("p{n}"), here(), vec![rule(peers, tcp(port_of(n)))]);
    }
    model
}

/// What one case gave.
struct Row {
    name: String,
    cycles: f64,
    compile_ms: Option<f64>,
    bytes: Option<usize>,
}

/// Runs `timed` on what `prepare` made, a vector each; gives the median of cycles for one of the vector.
fn cycles<T>(
    c: &mut Criterion,
    name: &str,
    mut prepare: impl FnMut() -> T,
    mut timed: impl FnMut(&T) -> u64,
) -> Option<f64> {
    let clock = Clock::new();
    let mut samples = Vec::with_capacity(SAMPLES);
    let mut group = c.benchmark_group("policy");
    group.throughput(Throughput::Elements(VECTOR as u64));
    group.bench_function(name, |b| {
        b.iter_custom(|iterations| {
            let mut total = 0;
            for _ in 0..iterations {
                let asked = prepare();
                let took = timed(&asked);
                total += took;
                if samples.len() < SAMPLES {
                    samples.push(took);
                }
            }
            Duration::from_nanos(clock.delta_as_nanos(0, total))
        });
    });
    group.finish();
    samples.sort_unstable();
    let median = *samples.get(samples.len() / 2)?;
    Some(median as f64 / VECTOR as f64)
}

/// Egress questions of a pod here: peers by `peer`, with the port that is allowed there.
fn lookup(
    c: &mut Criterion,
    rows: &mut Vec<Row>,
    name: &str,
    v6: bool,
    model: &Model,
    peer: impl Fn(&mut Random) -> (Ip, u16),
) {
    let start = Instant::now();
    let compiled = policy::compile(model, Scope::Node("a".into()));
    let compile_ms = start.elapsed().as_secs_f64() * 1e3;
    let Compiled { table, endpoints, .. } = compiled;
    let group = endpoints[&self::name("here-1".into())];
    let own = pod(v6, 1, 1);
    let clock = Clock::new();
    let mut random = Random(0x5bd1_e995_0f0e_1d2c);
    let mut allowed = 0;
    let mut spots: Vec<Spot> = Vec::with_capacity(VECTOR);
    let mut asked: Vec<Asked> = Vec::with_capacity(VECTOR);
    let median = cycles(
        c,
        name,
        || (0..VECTOR).map(|_| peer(&mut random)).collect::<Vec<_>>(),
        |questions| {
            let start = clock.raw();
            spots.clear();
            asked.clear();
            spots.extend(questions.iter().map(|(peer, _)| table.fetch(*peer)));
            let step = |((peer, _), spot): (&(Ip, u16), &Spot)| {
                table.ask_at(group, Direction::Egress, own, *peer, *spot)
            };
            asked.extend(questions.iter().zip(&spots).map(step));
            for (asked, (_, port)) in asked.iter().zip(questions) {
                let verdict = table.answer(*asked, group, Direction::Egress, proto::TCP, *port);
                allowed += u64::from(black_box(verdict).allow);
            }
            clock.raw() - start
        },
    );
    let Some(cycles) = median else { return };
    assert!(allowed > 0, "{name}: what is asked is allowed");
    rows.push(Row {
        name: name.to_owned(),
        cycles,
        compile_ms: Some(compile_ms),
        bytes: Some(table.bytes()),
    });
}

/// The policy node in the real graph.
struct Rig {
    worker: Worker,
    wires: Vec<MemHandle>,
    spare: Vec<Frame>,
}

impl Rig {
    fn new(compiled: &Compiled) -> Self {
        let mut tables = snapshot(1, Underlay { encap: true, outer_v6: false });
        tables.policy = compiled.table.clone();
        tables.rule_counters = Arc::new(RuleCounters::new(1, compiled.rules.len().min(1 << 16)));
        for n in 1..=PODS {
            let group: GroupId = compiled.endpoints[&name(format!("here-{n}"))];
            tables.ports[usize::from(n)].as_mut().unwrap().group = Some(group);
        }
        tables.settings.icmp_rate = 0;
        let flow = FlowConfig { entries_v4: 1024, entries_v6: 1024, timeouts: Timeouts::default(), seed: 7 };
        let (worker, wires, spare) = bench_worker(tables, &flow);
        Self { worker, wires, spare }
    }

    fn node(&self) -> (u64, u64) {
        let n = &self.worker.stats().unwrap().nodes[NodeId::Policy as usize];
        (n.clocks.get(), n.packets.get())
    }

    /// One vector of these frames, a share to each pod; gives the node's clocks.
    fn pass(&mut self, frames: &[(PortId, Vec<u8>)]) -> u64 {
        for (port, bytes) in frames {
            let mut frame = self.spare.pop().unwrap_or_else(|| self.worker.pool().get().unwrap());
            assert!(frame.fill(bytes));
            assert!(self.wires[usize::from(port.0)].inject(frame).is_ok());
        }
        let before = self.node();
        self.worker.pass();
        let after = self.node();
        let drops = || {
            let stats = self.worker.stats().unwrap();
            let of = |r: &DropReason| (r.name(), stats.drops[*r as usize].get());
            DropReason::ALL.iter().map(of).filter(|(_, n)| *n > 0).collect::<Vec<_>>()
        };
        // What is refused before costs the node nothing, and is left out.
        let asked = after.1 - before.1;
        assert!(asked * 2 > VECTOR as u64, "most packets ask: {asked}, {:?}", drops());
        (after.0 - before.0) * VECTOR as u64 / asked
    }
}

fn node(c: &mut Criterion, rows: &mut Vec<Row>, name: &str, v6: bool, model: &Model, count: u32) {
    let compiled = policy::compile(model, Scope::Node("a".into()));
    let mut rig = Rig::new(&compiled);
    let mut random = Random(7);
    let frames: Vec<(PortId, Vec<u8>)> = (0..1u32 << 15)
        .map(|i| {
            let n = random.below(count);
            let from = 1 + u8::try_from(i % u32::from(PODS)).unwrap();
            let to = Ip::from(outside(v6, n));
            const SYN: u8 = 2;
            let spec = Spec::tcp(pod(v6, 1, from), to, 40_000, port_of(n), SYN);
            (pod_port(from), from_pod(1, from, spec))
        })
        .collect();
    let mut at = 0;
    let median = cycles(
        c,
        name,
        || {
            at = (at + VECTOR) % frames.len();
            at
        },
        |at| rig.pass(&frames[*at..*at + VECTOR]),
    );
    if let Some(cycles) = median {
        rows.push(Row { name: name.to_owned(), cycles, compile_ms: None, bytes: None });
    }
}

fn service(c: &mut Criterion, rows: &mut Vec<Row>, count: u32) {
    let ip =
        |n: u32| IpAddr::from([10, 96, u8::try_from(n / 250).unwrap(), u8::try_from(n % 250 + 1).unwrap()]);
    let mut model = Model::default();
    for n in 0..count {
        let name = name(format!("s{n}"));
        let service = Service {
            name: name.clone(),
            kind: ServiceKind::ClusterIp,
            cluster_ips: vec![ip(n)],
            external_ips: Vec::new(),
            load_balancer_ips: Vec::new(),
            load_balancer_source_ranges: Vec::new(),
            ports: vec![ServicePort {
                name: String::new(),
                protocol: Protocol::Tcp,
                port: 80,
                node_port: None,
            }],
            affinity_seconds: None,
            external_local: false,
            internal_local: false,
            health_check_node_port: None,
            traffic_distribution: None,
            origin: Origin::Api,
        };
        model.services.insert(name.clone(), Arc::new(service));
        let endpoint = |i| Endpoint {
            address: far(false, n * 10 + i),
            ready: true,
            serving: true,
            terminating: false,
            node: None,
            zone: None,
            for_zones: Vec::new(),
            for_nodes: Vec::new(),
            pod: None,
        };
        let slice = EndpointSlice {
            name: name.clone(),
            service: Some(name.clone()),
            ipv4: Some(true),
            ports: vec![EndpointPort { name: String::new(), protocol: Protocol::Tcp, port: 8080 }],
            endpoints: (0..10).map(endpoint).collect(),
            origin: Origin::Api,
        };
        model.slices.insert(name, Arc::new(slice));
    }
    let mut tables = ServiceTables::new("a");
    let start = Instant::now();
    tables.update(&Arc::new(model), &[]);
    let compile_ms = start.elapsed().as_secs_f64() * 1e3;
    let table = Arc::clone(tables.table());
    let clock = Clock::new();
    let mut random = Random(11);
    let title = format!("services-{count}-of-10");
    let median = cycles(
        c,
        &title,
        || {
            let key = |r: &mut Random| FlowKey {
                src: Ip::v4([10, 1, 0, 7]),
                dst: ip(r.below(count)).into(),
                sport: u16::try_from(r.below(60_000)).unwrap(),
                dport: 80,
                proto: proto::TCP,
            };
            (0..VECTOR).map(|_| key(&mut random)).collect::<Vec<_>>()
        },
        |keys| {
            let start = clock.raw();
            for some in keys.chunks(AT_ONCE) {
                table.fetch(some.iter());
                for key in some {
                    let Found::Frontend(f) = table.find(key.dst, key.proto, key.dport) else {
                        panic!("{key:?}")
                    };
                    black_box(f.spread(false).and_then(|s| s.choose(key)));
                }
            }
            clock.raw() - start
        },
    );
    if let Some(cycles) = median {
        rows.push(Row { name: title, cycles, compile_ms: Some(compile_ms), bytes: Some(table.bytes()) });
    }
}

fn all(c: &mut Criterion) {
    let mut rows = Vec::new();
    for v6 in [false, true] {
        let family = if v6 { "v6" } else { "v4" };
        for count in RULES {
            let model = rules(v6, count);
            lookup(c, &mut rows, &format!("rules-{count}-{family}"), v6, &model, |r| {
                let n = r.below(count);
                (outside(v6, n).into(), port_of(n))
            });
            node(c, &mut rows, &format!("node-rules-{count}-{family}"), v6, &model, count);
        }
        for count in MEMBERS {
            let pods = members(v6, count);
            lookup(c, &mut rows, &format!("pods-{count}-{family}"), v6, &pods, |r| {
                (far(v6, r.below(count)).into(), 443)
            });
            for (kind, one) in [("hosts", true), ("nets", false)] {
                let model = blocks(v6, count, one);
                lookup(c, &mut rows, &format!("{kind}-{count}-{family}"), v6, &model, |r| {
                    let n = r.below(count);
                    (if one { outside(v6, n) } else { anywhere(v6, n) }.into(), 443)
                });
            }
        }
        let model = combinations(v6, 100_000);
        lookup(c, &mut rows, &format!("combinations-1000-{family}"), v6, &model, |r| {
            let n = r.below(100_000);
            (far(v6, n).into(), port_of(n % 1000))
        });
    }
    for count in [1, 1_000, 10_000] {
        service(c, &mut rows, count);
    }
    println!("| Case | cycles | compile, ms | KiB |\n|---|---|---|---|");
    for row in &rows {
        let ms = row.compile_ms.map_or_else(String::new, |ms| format!("{ms:.2}"));
        let kib = row.bytes.map_or_else(String::new, |b| format!("{}", b / 1024));
        println!("| {} | {:.1} | {ms} | {kib} |", row.name, row.cycles);
    }
    if let Some(path) = std::env::var_os("POLICY_BENCH_JSON") {
        std::fs::write(path, serde_json::to_string_pretty(&goals(&rows)).unwrap() + "\n").unwrap();
    }
}

/// Rows of goal 4: the cost itself, and how flat it is from the smallest to the largest of each axis.
fn goals(rows: &[Row]) -> Vec<Value> {
    let mut out = Vec::new();
    let of = |name: String| rows.iter().find(|r| r.name == name).map(|r| r.cycles);
    for family in ["v4", "v6"] {
        for (axis, sizes) in [
            ("rules", RULES),
            ("node-rules", RULES),
            ("pods", MEMBERS),
            ("hosts", MEMBERS),
            ("nets", MEMBERS),
        ] {
            let runs: Vec<f64> = sizes.iter().filter_map(|n| of(format!("{axis}-{n}-{family}"))).collect();
            let (Some(first), Some(last)) = (runs.first(), runs.last()) else { continue };
            let worst = runs.iter().copied().fold(0.0, f64::max);
            let name = format!("policy: {axis} {} to {}, {family}", sizes[0], sizes[sizes.len() - 1]);
            out.push(
                json!({"goal": 4, "name": name, "unit": "cycles", "ours": worst, "peer": "", "theirs": null,
                "ratio": null, "goal_value": 200.0, "better": "lower", "met": worst <= 200.0, "runs": runs}),
            );
            out.push(json!({"goal": 4, "name": format!("{name}: growth"), "unit": "ratio", "ours": last, "peer": "smallest",
                "theirs": first, "ratio": last / first, "goal_value": 1.25, "better": "lower", "met": last / first <= 1.25, "runs": runs}));
        }
        if let Some(cycles) = of(format!("combinations-1000-{family}")) {
            out.push(json!({"goal": 4, "name": format!("policy: 1,000 selector combinations, {family}"), "unit": "cycles",
                "ours": cycles, "peer": "", "theirs": null, "ratio": null, "goal_value": 200.0, "better": "lower", "met": cycles <= 200.0,
                "runs": [cycles]}));
        }
    }
    out
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .sample_size(10)
        .warm_up_time(Duration::from_millis(100))
        .measurement_time(Duration::from_millis(400));
    targets = all
}
criterion_main!(benches);
