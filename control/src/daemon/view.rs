//! What the API tells of the running daemon. Questions come by a queue, so that the state has one owner.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use fastpath::graph::{DropReason, NodeId};
use fastpath::packet::{FlowKey, NO_INDEX, PortId, proto};
use fastpath::snapshot::{PortRole, Route};
use fastpath::stats::{Counter, WorkerStats};
use fastpath::tables::flow::{Pair, Transform};
use serde_json::Value;
use tokio::sync::{mpsc, oneshot};

use super::{Daemon, claims, enforced};
use crate::api::server::{Answer, to_value};
use crate::api::types::{
    Drop, Endpoint, Flow, Flows, Neighbor, Node, NodeRuntime, PortRow, PortStatus, Ports, Problem,
    QueueStats, Reach, RouteRow, Runtime, SourceStatus, Status, Sync, Tuple, Version, WorkerRuntime,
    WorkerStatus, XdpCounter,
};
use crate::api::{ApiError, DEFAULT_FLOWS, ErrorCode, MAX_FLOWS, Request, StateView};
use crate::config::Polling;
use crate::explain::Query;
use crate::source::Severity;

/// A request and where its answer goes.
pub(super) struct Question {
    request: Request,
    reply: oneshot::Sender<Result<Value, ApiError>>,
}

/// The API's end of the queue.
pub(super) struct Asker(mpsc::Sender<Question>);

impl Asker {
    pub(super) fn new() -> (Self, mpsc::Receiver<Question>) {
        let (tx, rx) = mpsc::channel(16);
        (Self(tx), rx)
    }
}

impl StateView for Asker {
    fn answer(&self, request: Request) -> Answer<'_> {
        let ending = || ApiError::new(ErrorCode::NotReady, "the daemon is stopping");
        Box::pin(async move {
            let (reply, answer) = oneshot::channel();
            self.0.send(Question { request, reply }).await.map_err(|_| ending())?;
            answer.await.map_err(|_| ending())?
        })
    }
}

impl Daemon {
    /// Answers one question, now or, for the CNI plugin, when it is so; returns whether to sync at once. A client that is
    /// gone by then loses nothing.
    pub(super) fn answer(&mut self, question: Question) -> bool {
        let Question { request, reply } = question;
        let result = match request {
            Request::CniAttach { record, wait_ms } => {
                return self.cni_attach(*record, Duration::from_millis(wait_ms), reply);
            }
            Request::CniDetach { key } => return self.cni_detach(&key, reply),
            Request::CniNode => to_value(&self.cni_node()),
            Request::CniCheck { key } => to_value(&self.cni_check(&key)),
            Request::Version => to_value(&Version::own()),
            Request::Status => to_value(&self.status()),
            Request::Endpoints => to_value(&self.endpoints()),
            Request::Nodes => to_value(&self.nodes()),
            Request::Flows { limit } => to_value(&self.flows(limit.unwrap_or(DEFAULT_FLOWS).min(MAX_FLOWS))),
            Request::Routes => to_value(&self.routes()),
            Request::Neighbors => to_value(&self.neighbors()),
            Request::Drops => self.drops().and_then(|rows| to_value(&rows)),
            Request::Policies => to_value(&enforced::policies(&self.tables)),
            Request::Services => to_value(&enforced::services(&self.tables, &self.snapshot)),
            Request::Ports => self.ports().and_then(|ports| to_value(&ports)),
            Request::Runtime => to_value(&self.runtime()),
            Request::Explain { from, to, proto, dport } => self.explain(&from, &to, &proto, dport),
        };
        let _ = reply.send(result);
        false
    }

    fn explain(&self, from: &str, to: &str, proto: &str, dport: Option<u16>) -> Result<Value, ApiError> {
        let query = Query::new(from, to, proto, dport)
            .map_err(|e| ApiError::new(ErrorCode::BadRequest, e.to_string()))?;
        let mut explainer = self.explainer.borrow_mut();
        let explained = explainer.at(&self.update.model).explain(&query);
        to_value(&explained.map_err(|e| ApiError::new(ErrorCode::NotFound, e.to_string()))?)
    }

    fn status(&self) -> Status {
        let engine = &self.attacher.engine;
        let mut degraded: Vec<String> = self.start_problems.clone();
        degraded.extend(self.web.as_ref().and_then(|w| w.problem.clone()));
        degraded.extend(self.attach_problems.iter().cloned());
        degraded.extend(self.endpoints.problems().iter().cloned());
        degraded.extend(self.compile_problems.iter().cloned());
        degraded.extend(self.kernel_problems.iter().cloned());
        let wrong = self.update.problems.iter().filter(|p| p.severity == Severity::Error).count();
        if wrong > 0 {
            let errors = if wrong == 1 { "error" } else { "errors" };
            degraded.push(format!("source: {wrong} {errors}: what is wrong there is not in force"));
        }
        let source = self.source_state.borrow().clone();
        degraded.extend(source.trouble());
        if self.source_ended() {
            degraded.push("source: its thread has ended: no change is seen any more".to_owned());
        }
        degraded.extend(self.stalled().map(|w| format!("worker {w} does not pass its loop")));
        degraded.extend(engine.stats().enumerate().filter_map(|(w, stats)| gave_up(w, stats)));
        let outlives = self.attacher.redirect.links_outlive_process();
        if self.config.xdp.on_failure == crate::config::OnFailure::Drop && !outlives {
            degraded.push(format!(
                "xdp.on_failure = \"drop\" does not hold after kill -9: {} is in a mount namespace of its own",
                self.config.xdp.pin_dir.display()
            ));
        }
        Status {
            version: Version::own().version,
            node: self.node.clone(),
            pid: std::process::id(),
            uptime_s: self.started.elapsed().as_secs(),
            generation: self.snapshot.generation,
            acked_generation: engine.acked(),
            ready: self.ready(),
            last_sync: self.in_force.map(Sync::from),
            applied: self.applied.row(),
            source: Some(SourceStatus::from(&source)),
            problems: self.update.problems.iter().map(Problem::from).collect(),
            ports: self.port_status(),
            workers: self.worker_status(),
            degraded,
        }
    }

    fn port_status(&self) -> Vec<PortStatus> {
        let ports = self.attacher.attached().map(|a| PortStatus {
            name: a.port.name.to_string(),
            role: role(a.port.role).to_owned(),
            mode: Some(a.mode.as_str().to_owned()),
            zero_copy: a.zero_copy,
            queues: u32::try_from(a.port.queues.len()).unwrap_or(u32::MAX),
            workers: a.port.queues.iter().map(|w| u32::from(*w)).collect(),
            state: self
                .net
                .links
                .get(&a.port.ifindex)
                .map_or("gone", |l| if l.up { "up" } else { "down" })
                .to_owned(),
            notes: a.notes.clone(),
        });
        ports.collect()
    }

    fn worker_status(&self) -> Vec<WorkerStatus> {
        let engine = &self.attacher.engine;
        let known = engine.beat_ages().into_iter().zip(engine.stats());
        let workers = (0u32..).zip(known).zip(&self.cores).map(|((id, (age, stats)), core)| WorkerStatus {
            id,
            core: u32::try_from(*core).ok(),
            polling: if self.config.workers.polling == Polling::Busy { "busy" } else { "adaptive" }
                .to_owned(),
            transmit: if stats.sends_together.load(Relaxed) { "together" } else { "sockets" }.to_owned(),
            ports: u32::try_from(
                self.attacher
                    .attached()
                    .filter(|a| a.port.queues.iter().any(|w| u32::from(*w) == id))
                    .count(),
            )
            .unwrap_or(u32::MAX),
            heartbeat_age_ms: u64::try_from(age.as_millis()).unwrap_or(u64::MAX),
        });
        workers.collect()
    }

    fn endpoints(&self) -> Vec<Endpoint> {
        let pods = self.update.model.pods.values();
        let ours = pods.filter(|p| p.node.as_deref() == Some(&self.node) && !p.host_network && !p.finished);
        ours.map(|pod| {
            let attached = self.attacher.attached().find(|a| a.port.pod.as_ref() == Some(&pod.name));
            let named = claims::device_of(&self.config, &self.endpoints, pod);
            let problem = || {
                let Some(device) = named else { return "no interface named".to_owned() };
                let about = [format!("pod {}: ", pod.name), format!("{device}: ")];
                let why =
                    about.iter().find_map(|a| self.attach_problems.iter().find_map(|p| p.strip_prefix(a)));
                why.unwrap_or("not attached").to_owned()
            };
            Endpoint {
                namespace: pod.name.namespace.clone(),
                pod: pod.name.name.clone(),
                addresses: pod.addresses.clone(),
                interface: named.map(str::to_owned),
                port: attached.map(|a| a.port.id.0),
                mac: attached.and_then(|a| a.port.peer_mac).or(pod.mac).map(|m| m.to_string()),
                state: attached.map_or_else(problem, |_| "attached".to_owned()),
                worker: attached.and_then(|a| a.port.queues.first()).map(|w| u32::from(*w)),
            }
        })
        .collect()
    }

    fn nodes(&self) -> Vec<Node> {
        let nodes = self.update.model.nodes.values().map(|n| {
            let tunnel = self.snapshot.tunnels.iter().find(|t| *t.node == *n.name);
            let first = n.pod_cidrs.first().and_then(|c| self.snapshot.routes.lookup(c.network().into()));
            let reach = match first {
                _ if n.name == self.node => Reach::Local,
                Some(Route::Tunnel(i)) if self.is_usable(*i) => Reach::Tunnel,
                Some(Route::NextHop(_)) => Reach::Direct,
                _ => Reach::Unreachable,
            };
            Node {
                name: n.name.clone(),
                addresses: n.addresses.clone(),
                pod_cidrs: n.pod_cidrs.iter().map(ToString::to_string).collect(),
                reach,
                vtep: tunnel.map(|t| t.remote.into()),
                vtep_mac: tunnel.map(|t| t.dst_mac.to_string()),
            }
        });
        nodes.collect()
    }

    /// Whether there is a tunnel of that index, and a way to its other end.
    fn is_usable(&self, tunnel: u16) -> bool {
        let tunnel = self.snapshot.tunnels.get(usize::from(tunnel));
        tunnel.is_some_and(|t| usize::from(t.next_hop) < self.snapshot.next_hops.len())
    }

    fn flows(&self, limit: u32) -> Flows {
        let now = self.attacher.engine.now();
        let mut out = Flows::default();
        self.attacher.engine.flows().for_each(now, |pair: &Pair| {
            out.total += 1;
            if out.flows.len() < usize::try_from(limit).unwrap_or(usize::MAX) {
                out.flows.push(Flow {
                    proto: protocol(pair.original.proto),
                    original: tuple(&pair.original),
                    reply: tuple(&pair.reply),
                    translated: enforced::translated(pair).map(|key| tuple(&key)),
                    service: enforced::service_of(&self.tables, pair),
                    verdict: enforced::verdict(pair),
                    rules: enforced::rules_of(&self.tables, pair),
                    state: pair.state.to_string(),
                    idle_ms: u64::from(now.since(pair.last_seen)),
                    generation: pair.generation,
                    egress: self.way(&pair.original_transform),
                });
            }
        });
        out
    }

    /// Device, and node when through the overlay.
    fn way(&self, t: &Transform) -> String {
        if t.bits & Transform::DENY != 0 {
            return "dropped".to_owned();
        }
        let device = self.snapshot.port(t.egress).map_or("gone", |p| &p.name);
        let tunnel = self.snapshot.tunnels.get(usize::from(t.tunnel)).filter(|_| t.tunnel != NO_INDEX);
        tunnel.map_or_else(|| device.to_owned(), |t| format!("{device} to {}", t.node))
    }

    fn routes(&self) -> Vec<RouteRow> {
        let snap = &self.snapshot;
        let owner = |ip: IpAddr| {
            let nodes = self.update.model.nodes.values();
            nodes.filter(|n| n.pod_cidrs.iter().any(|c| c.contains(&ip))).map(|n| n.name.clone()).next()
        };
        let device = |port: PortId| snap.port(port).map(|p| p.name.to_string());
        let mut rows: Vec<RouteRow> = snap
            .routes
            .iter()
            .map(|(prefix, route)| {
                let (kind, via, device) = match route {
                    Route::Tunnel(NO_INDEX) => ("unreachable", None, None),
                    Route::Tunnel(i) => {
                        let tunnel = snap.tunnels.get(usize::from(*i));
                        let hop = tunnel.and_then(|t| snap.next_hops.get(usize::from(t.next_hop)));
                        ("tunnel", tunnel.map(|t| t.remote.into()), hop.and_then(|h| device(h.port)))
                    }
                    Route::NextHop(i) => {
                        let hop = snap.next_hops.get(usize::from(*i));
                        (
                            "direct",
                            hop.and_then(|h| h.addr).map(IpAddr::from),
                            hop.and_then(|h| device(h.port)),
                        )
                    }
                    Route::Host => ("host", None, snap.host_port().and_then(device)),
                    Route::NoEndpoint => ("no-endpoint", None, None),
                };
                RouteRow {
                    prefix: prefix.to_string(),
                    kind: kind.to_owned(),
                    via,
                    device,
                    node: owner(prefix.addr().into()),
                }
            })
            .collect();
        rows.extend(snap.local.iter().map(|(ip, port)| RouteRow {
            prefix: format!("{ip}/{}", if ip.is_v4() { 32 } else { 128 }),
            kind: "endpoint".to_owned(),
            via: None,
            device: device(*port),
            node: Some(self.node.clone()),
        }));
        rows.sort_by(|a, b| (&a.kind, &a.prefix).cmp(&(&b.kind, &b.prefix)));
        rows
    }

    fn neighbors(&self) -> Vec<Neighbor> {
        let hops = self.snapshot.next_hops.iter().filter_map(|h| Some((h, h.addr?)));
        let rows = hops.filter_map(|(hop, addr)| {
            let attached = self.attacher.attached().find(|a| a.port.id == hop.port)?;
            let address = IpAddr::from(addr);
            let known = self.net.neighbors.get(&(attached.port.ifindex, address));
            Some(Neighbor {
                address,
                device: attached.port.name.to_string(),
                mac: hop.dst_mac.map(|m| m.to_string()),
                state: known
                    .map_or_else(|| "unresolved".to_owned(), |n| format!("{:?}", n.state).to_lowercase()),
            })
        });
        rows.collect()
    }

    /// Packets dropped for a reason: by the workers, and, of what their receivers lost, as last read.
    pub(super) fn dropped(&self, reason: DropReason) -> u64 {
        let counters = self.attacher.engine.stats().filter_map(|s| s.drops.get(reason as usize));
        let ours: u64 = counters.map(Counter::get).sum();
        ours + if reason == DropReason::ReceiverFull { self.lost.borrow().total() } else { 0 }
    }

    fn drops(&self) -> Result<Vec<Drop>, ApiError> {
        self.lost.borrow_mut().look();
        let mut rows: Vec<Drop> = DropReason::ALL
            .iter()
            .map(|r| Drop {
                reason: r.name().to_owned(),
                packets: self.dropped(*r),
                help: r.help().to_owned(),
                details: enforced::drop_details(&self.tables, *r),
            })
            .collect();
        let mut xdp: BTreeMap<&str, Drop> = BTreeMap::new();
        for c in self.attacher.redirect.counters().map_err(internal)?.into_iter().filter(|c| c.dropped) {
            let row = xdp.entry(c.name).or_insert_with(|| Drop {
                reason: format!("xdp_{}", c.name),
                packets: 0,
                help: format!("{}.", c.help),
                details: Vec::new(),
            });
            row.packets += c.value;
        }
        rows.extend(xdp.into_values());
        Ok(rows)
    }

    fn ports(&self) -> Result<Ports, ApiError> {
        let queues: usize = self.attacher.attached().map(|a| a.port.queues.len()).sum();
        let reports = self.attacher.engine.port_reports(queues).map_err(internal)?;
        let mut by_port: BTreeMap<PortId, Vec<QueueStats>> = BTreeMap::new();
        for r in &reports {
            let stats = QueueStats::of(u32::from(r.queue), u32::from(r.worker), &r.stats);
            by_port.entry(r.id).or_default().push(stats);
        }
        for queues in by_port.values_mut() {
            queues.sort_by_key(|q| q.queue);
        }
        self.lost.borrow_mut().look();
        let lost = self.lost.borrow();
        let ports = self.attacher.attached().map(|a| PortRow {
            port: a.port.id.0,
            name: a.port.name.to_string(),
            role: role(a.port.role).to_owned(),
            mode: Some(a.mode.as_str().to_owned()),
            zero_copy: a.zero_copy,
            receiver_full: lost.of(a.port.ifindex),
            queues: by_port.remove(&a.port.id).unwrap_or_default(),
        });
        let counters = self.attacher.redirect.counters().map_err(internal)?;
        let xdp = counters.iter().map(|c| XdpCounter {
            program: c.program.to_owned(),
            outcome: c.name.to_owned(),
            packets: c.value,
            help: c.help.to_owned(),
        });
        Ok(Ports { ports: ports.collect(), xdp: xdp.collect() })
    }

    fn runtime(&self) -> Runtime {
        let workers: Vec<WorkerRuntime> = (0u32..)
            .zip(self.attacher.engine.stats())
            .map(|(worker, stats)| WorkerRuntime {
                worker,
                nodes: NodeId::ALL.iter().map(|n| node_runtime(*n, &[stats])).collect(),
            })
            .collect();
        let all: Vec<&WorkerStats> = self.attacher.engine.stats().collect();
        Runtime { workers, total: NodeId::ALL.iter().map(|n| node_runtime(*n, &all)).collect() }
    }

    /// Numbers of the workers that do not pass their loop.
    pub(super) fn stalled(&self) -> impl Iterator<Item = usize> {
        let ages = self.attacher.engine.beat_ages();
        ages.into_iter().enumerate().filter(|(_, age)| *age >= super::WORKER_STALLED).map(|(w, _)| w)
    }
}

/// Why a worker that sent together does so no more.
pub(super) fn gave_up(worker: usize, stats: &WorkerStats) -> Option<String> {
    let number = Some(stats.outbox_given_up.load(Relaxed)).filter(|number| *number != 0)?;
    let error = std::io::Error::from_raw_os_error(number);
    Some(format!(
        "workers.transmit: worker {worker} sends by its sockets from now on: too many calls in a row to send \
         together failed, the last one by: {error}"
    ))
}

fn node_runtime(id: NodeId, stats: &[&WorkerStats]) -> NodeRuntime {
    let sum = |f: fn(&fastpath::stats::NodeCounters) -> u64| {
        stats.iter().filter_map(|s| s.nodes.get(id as usize)).map(f).sum::<u64>()
    };
    let (vectors, packets, clocks) =
        (sum(|n| n.vectors.get()), sum(|n| n.packets.get()), sum(|n| n.clocks.get()));
    let loops: u64 = stats.iter().map(|s| s.loops.get()).sum();
    #[expect(clippy::cast_precision_loss, reason = "a ratio for display")]
    let per = |a: u64, b: u64| if b == 0 { 0.0 } else { a as f64 / b as f64 };
    NodeRuntime {
        node: id.name().to_owned(),
        // Every pass of the loop asks the ports; the other nodes run only when they have packets.
        calls: if id == NodeId::Rx { loops } else { vectors },
        vectors,
        packets,
        packets_per_vector: per(packets, vectors),
        clocks_per_packet: per(clocks, packets),
    }
}

/// What went wrong here is not the client's to mend.
fn internal(e: impl std::fmt::Display) -> ApiError {
    ApiError::new(ErrorCode::Internal, e.to_string())
}

pub(super) fn role(role: PortRole) -> &'static str {
    match role {
        PortRole::Pod => "pod",
        PortRole::Uplink => "uplink",
        PortRole::Host => "host",
    }
}

fn protocol(number: u8) -> String {
    match number {
        proto::TCP => "tcp".to_owned(),
        proto::UDP => "udp".to_owned(),
        proto::SCTP => "sctp".to_owned(),
        proto::ICMP => "icmp".to_owned(),
        proto::ICMPV6 => "icmpv6".to_owned(),
        n => n.to_string(),
    }
}

fn tuple(key: &FlowKey) -> Tuple {
    Tuple { src: key.src.into(), sport: key.sport, dst: key.dst.into(), dport: key.dport }
}
