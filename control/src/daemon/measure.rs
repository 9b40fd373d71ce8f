//! What `/metrics` tells of the running daemon.
//!
//! Labels are bounded: devices, nodes of the graph, reasons and workers by what there is; policies and services by
//! [`crate::metrics::MOST_SERIES`]. A scrape reads counters, and walks the flow table once.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, SystemTime};

use fastpath::graph::{DropReason, NodeId};
use fastpath::io::PortStats;
use fastpath::packet::PortId;
use fastpath::stats::{Counter, WorkerStats};
use fastpath::tables::flow::{EvictClass, Pair};

use super::view::role;
use super::{Daemon, enforced};
use crate::config::SourceKind;
use crate::metrics::Family;
use crate::source::{Severity, SourceState};

impl Daemon {
    /// Every metric.
    pub(super) fn measure(&self) -> Vec<Family> {
        let mut out = Vec::with_capacity(80);
        self.measure_daemon(&mut out);
        self.measure_source(&mut out);
        self.measure_ports(&mut out);
        self.measure_xdp(&mut out);
        self.measure_drops(&mut out);
        self.measure_flows(&mut out);
        self.measure_workers(&mut out);
        self.measure_graph(&mut out);
        self.measure_policies(&mut out);
        self.measure_services(&mut out);
        out
    }

    fn measure_daemon(&self, out: &mut Vec<Family>) {
        let mut problems = Family::gauge(
            "fastpath_problems",
            "What does not work as it should, by part; `fastpath status` names each.",
            &["part"],
        );
        for (part, list) in [
            ("start", &self.start_problems),
            ("attach", &self.attach_problems),
            ("compile", &self.compile_problems),
            ("kernel", &self.kernel_problems),
        ] {
            problems.add([part], count(list.len()));
        }
        let age = self.published.map_or(0.0, |at| at.elapsed().as_secs_f64());
        out.extend([
            Family::gauge(
                "fastpath_build_info",
                "Version of the daemon; the value is 1.",
                &["version", "node"],
            )
            .with([env!("CARGO_PKG_VERSION"), &self.node], 1),
            Family::gauge("fastpath_uptime_seconds", "Time since the daemon started.", &[])
                .with_f64([], self.started.elapsed().as_secs_f64()),
            Family::gauge(
                "fastpath_ready",
                "Whether the node is known, has an uplink, and every worker forwards by the newest snapshot.",
                &[],
            )
            .with([], u64::from(self.ready())),
            problems,
            Family::gauge("fastpath_snapshot_generation", "Generation of the newest snapshot.", &[])
                .with([], self.snapshot.generation.into()),
            Family::gauge(
                "fastpath_snapshot_acknowledged_generation",
                "Newest generation that every worker forwards by.",
                &[],
            )
            .with([], self.attacher.engine.acked().into()),
            Family::gauge(
                "fastpath_snapshot_age_seconds",
                "Time since the newest snapshot was published.",
                &[],
            )
            .with_f64([], age),
        ]);
        process(out);
    }

    fn measure_source(&self, out: &mut Vec<Family>) {
        let model = &self.update.model;
        let mut objects =
            Family::gauge("fastpath_source_objects", "Objects that the source has, by kind.", &["kind"]);
        let kinds = [
            ("Node", model.nodes.len()),
            ("Namespace", model.namespaces.len()),
            ("Pod", model.pods.len()),
            ("NetworkPolicy", model.policies.len()),
            ("Service", model.services.len()),
            ("EndpointSlice", model.slices.len()),
        ];
        for (kind, n) in kinds {
            objects.add([kind], count(n));
        }
        let mut problems = Family::gauge(
            "fastpath_source_problems",
            "What is wrong in the source, by severity and kind of object (empty where no object's kind is known). error: it \
             is not in force, its last good state is, if there was one. warning: in force, but not as written. ignored: of \
             no use to the dataplane. Each is an Event on its object, where the API is the source.",
            &["severity", "kind"],
        );
        // Zeros too: what is alerted on must be there before.
        for severity in [Severity::Error, Severity::Warning, Severity::Ignored] {
            for (kind, _) in kinds {
                problems.add([&severity.to_string(), kind], 0);
            }
        }
        for problem in &self.update.problems {
            problems.add([&problem.severity.to_string(), problem.origin.kind().unwrap_or_default()], 1);
        }
        let age = SystemTime::now().duration_since(self.update.loaded_at).unwrap_or_default();
        out.extend([
            objects,
            problems,
            self.measure_applied(),
            Family::gauge(
                "fastpath_source_age_seconds",
                "Time since the source was last read in full; of a saved state, since it was saved.",
                &[],
            )
            .with_f64([], age.as_secs_f64()),
        ]);
        if self.config.source.kind == SourceKind::Kubernetes {
            measure_api(&self.source_state.borrow(), out);
        }
    }

    fn measure_applied(&self) -> Family {
        let row = self.applied.row();
        let mut family = Family::gauge(
            "fastpath_snapshot_apply_seconds",
            "From a new state of the source to the last worker's acknowledgement, over the last 1024 changes.",
            &["quantile"],
        );
        for (quantile, us) in [("0.5", row.p50_us), ("0.99", row.p99_us), ("1", row.max_us)] {
            family.add_f64([quantile], Duration::from_micros(us).as_secs_f64());
        }
        family
    }

    fn measure_ports(&self, out: &mut Vec<Family>) {
        let mut info = Family::gauge(
            "fastpath_port_info",
            "An attached device and what it is for; the value is 1.",
            &["device", "role", "mode", "zero_copy", "namespace", "pod"],
        );
        let mut families: Vec<Family> =
            PORT.iter().map(|(name, help, ..)| Family::counter(name, *help, &["device"])).collect();
        let mut faults = Family::counter("fastpath_port_faults", FAULTS_HELP, &["device", "fault"]);
        let queues = self.attacher.attached().map(|a| a.port.queues.len()).sum();
        let mut totals: BTreeMap<PortId, Vec<PortStats>> = BTreeMap::new();
        // A worker that does not answer is told by its heartbeat.
        for report in self.attacher.engine.port_reports(queues).unwrap_or_default() {
            totals.entry(report.id).or_default().push(report.stats);
        }
        self.lost.borrow_mut().look();
        let lost = self.lost.borrow();
        for attached in self.attacher.attached() {
            let device = &*attached.port.name;
            let pod = attached.port.pod.as_ref();
            let (namespace, name) = pod.map_or(("", ""), |p| (&p.namespace, &p.name));
            let zero_copy = if attached.zero_copy { "true" } else { "false" };
            info.add(
                [device, role(attached.port.role), attached.mode.as_str(), zero_copy, namespace, name],
                1,
            );
            let Some(stats) = totals.get(&attached.port.id) else { continue };
            for (family, (_, _, of)) in families.iter_mut().zip(PORT) {
                family.add([device], stats.iter().map(of).sum());
            }
            for (fault, of) in FAULTS {
                faults.add([device, fault], stats.iter().map(of).sum());
            }
            faults.add([device, "receiver_full"], lost.of(attached.port.ifindex));
        }
        out.push(info);
        out.extend(families);
        out.push(faults);
    }

    fn measure_xdp(&self, out: &mut Vec<Family>) {
        let mut help =
            "Frames an XDP program saw, by what it did with them (pinhole_*: the hole that let them in)."
                .to_owned();
        // What cannot be read is left out; `show ports` says why.
        let counters = self.attacher.redirect.counters().unwrap_or_default();
        let mut family = Family::counter("fastpath_xdp_packets", "", &["program", "outcome"]);
        let mut told = std::collections::BTreeSet::new();
        for c in &counters {
            family.add([c.program, c.name], c.value);
            if told.insert(c.name) {
                help.push_str(&format!(" {}: {}.", c.name, c.help.trim_end_matches('.')));
            }
        }
        out.push(family.with_help(help));
    }

    fn measure_drops(&self, out: &mut Vec<Family>) {
        let mut help = "Packets dropped, by reason.".to_owned();
        let mut family = Family::counter("fastpath_drops", "", &["reason"]);
        for reason in DropReason::ALL {
            family.add([reason.name()], self.dropped(*reason));
            help.push_str(&format!(" {}: {}", reason.name(), reason.help()));
            if !help.ends_with('.') {
                help.push('.');
            }
        }
        out.push(family.with_help(help));
    }

    fn measure_flows(&self, out: &mut Vec<Family>) {
        let engine = &self.attacher.engine;
        let table = engine.flows();
        let mut live = Family::gauge(
            "fastpath_flows",
            "Flows that have not timed out, by family and state.",
            &["family", "state"],
        );
        let mut found: BTreeMap<(bool, String), u64> = BTreeMap::new();
        table.for_each(engine.now(), |pair: &Pair| {
            *found.entry((pair.original.dst.is_v4(), pair.state.to_string())).or_default() += 1;
        });
        for family in [true, false] {
            for state in ["new", "established", "half-closed", "closing", "reset"] {
                let n = found.get(&(family, state.to_owned())).copied().unwrap_or(0);
                live.add([if family { "ipv4" } else { "ipv6" }, &state.replace('-', "_")], n);
            }
        }
        let sum = |f: fn(&WorkerStats) -> &Counter| engine.stats().map(|s| f(s).get()).sum();
        let mut evicted = Family::counter(
            "fastpath_flow_evictions",
            "Flows pushed out of a full table before their time, by what they were.",
            &["class"],
        );
        for class in EvictClass::ALL {
            let counters = engine.stats().filter_map(|s| s.flows_evicted.get(class as usize));
            evicted.add([class.name()], counters.map(Counter::get).sum());
        }
        out.extend([
            live,
            Family::gauge(
                "fastpath_flow_table_entries",
                "Entries of the flow table in use, two for each flow.",
                &[],
            )
            .with([], count(table.len())),
            Family::gauge(
                "fastpath_flow_table_capacity",
                "Entries the flow table has room for, two for each flow.",
                &[],
            )
            .with([], count(table.capacity())),
            Family::counter("fastpath_flow_inserts", "Flows installed.", &[])
                .with([], sum(|s| &s.flows_installed)),
            Family::counter("fastpath_flow_expirations", "Flows that timed out.", &[])
                .with([], sum(|s| &s.flows_expired)),
            evicted,
            Family::counter(
                "fastpath_flow_reevaluations",
                "Flows decided again because a snapshot changed.",
                &[],
            )
            .with([], sum(|s| &s.flows_reevaluated)),
            Family::counter(
                "fastpath_flow_bypasses",
                "Packets forwarded without a flow's entry because its place was busy or full.",
                &[],
            )
            .with([], sum(|s| &s.flows_bypassed)),
        ]);
    }

    fn measure_workers(&self, out: &mut Vec<Family>) {
        let engine = &self.attacher.engine;
        let mut families: Vec<Family> =
            WORKER.iter().map(|(name, help, _)| Family::counter(name, *help, &["worker"])).collect();
        let mut age = Family::gauge(
            "fastpath_worker_heartbeat_age_seconds",
            "Time since a worker last passed its loop.",
            &["worker"],
        );
        let mut sleeping = Family::gauge(
            "fastpath_worker_sleeping",
            "Whether a worker waits for packets in the kernel.",
            &["worker"],
        );
        let mut together = Family::gauge(
            "fastpath_worker_sends_together",
            "Whether a worker sends full vectors in one call for all veths, and not by each port's socket.",
            &["worker"],
        );
        let mut frames = Family::gauge(
            "fastpath_worker_free_frames",
            "Free packet buffers in a worker's pool.",
            &["worker"],
        );
        let mut generation = Family::gauge(
            "fastpath_worker_generation",
            "Generation of the snapshot a worker forwards by.",
            &["worker"],
        );
        let mut cpu = Family::counter(
            "fastpath_worker_cpu_seconds",
            "Processor time a worker has used; busy polling uses all there is.",
            &["worker", "core"],
        );
        let mut ports =
            Family::gauge("fastpath_worker_queues", "Queues of devices that a worker serves.", &["worker"]);
        let threads = worker_cpu();
        for (number, (stats, beat)) in engine.stats().zip(engine.beat_ages()).enumerate() {
            let worker = &*number.to_string();
            for (family, (_, _, of)) in families.iter_mut().zip(WORKER) {
                family.add([worker], of(stats).get());
            }
            age.add_f64([worker], beat.as_secs_f64());
            sleeping.add([worker], stats.sleeping.load(Relaxed).into());
            together.add([worker], stats.sends_together.load(Relaxed).into());
            frames.add([worker], stats.frames_free.load(Relaxed));
            generation.add([worker], stats.acked.load(Relaxed).into());
            let queues = self.attacher.attached().flat_map(|a| &a.port.queues);
            ports.add([worker], count(queues.filter(|w| usize::from(**w) == number).count()));
            if let Some(seconds) = threads.get(&number) {
                let core = self.cores.get(number).map(ToString::to_string).unwrap_or_default();
                cpu.add_f64([worker, &core], *seconds);
            }
        }
        out.extend(families);
        out.extend([age, sleeping, together, frames, generation, cpu, ports]);
    }

    fn measure_graph(&self, out: &mut Vec<Family>) {
        let mut packets =
            Family::counter("fastpath_graph_packets", "Packets that passed a node of the graph.", &["node"]);
        let mut vectors = Family::counter(
            "fastpath_graph_vectors",
            "Vectors of packets that passed a node of the graph.",
            &["node"],
        );
        let mut clocks = Family::counter(
            "fastpath_graph_clocks",
            "Processor clocks (TSC) spent in a node of the graph.",
            &["node"],
        );
        for stats in self.attacher.engine.stats() {
            for (id, counters) in NodeId::ALL.iter().zip(&stats.nodes) {
                packets.add([id.name()], counters.packets.get());
                vectors.add([id.name()], counters.vectors.get());
                clocks.add([id.name()], counters.clocks.get());
            }
        }
        out.extend([packets, vectors, clocks]);
    }

    fn measure_policies(&self, out: &mut Vec<Family>) {
        const LABELS: &[&str] = &["policy", "direction", "rule", "verdict"];
        let mut packets = Family::counter(
            "fastpath_policy_packets",
            "Packets of the flows that a rule allowed, both ways; with verdict deny those that no rule allowed.",
            LABELS,
        );
        let mut bytes = Family::counter("fastpath_policy_bytes", "Their bytes, as IP packets.", LABELS);
        let mut flows = Family::counter(
            "fastpath_policy_flows",
            "Flows that a rule allowed; with verdict deny the packets that would have opened one.",
            LABELS,
        );
        for row in enforced::policies(&self.tables) {
            let rule = row.rule.map_or_else(|| "isolation".to_owned(), |n| n.to_string());
            let labels = [row.policy.as_str(), &row.direction, &rule, row.verdict.name()];
            packets.add(labels, row.packets);
            bytes.add(labels, row.bytes);
            flows.add(labels, row.flows);
        }
        out.extend([packets, bytes, flows]);
    }

    fn measure_services(&self, out: &mut Vec<Family>) {
        let mut backends = Family::gauge(
            "fastpath_service_backends",
            "Backends of a service's port, by state; both families.",
            &["service", "port", "protocol", "state"],
        );
        let mut frontends = Family::gauge(
            "fastpath_service_frontends",
            "Addresses and ports of services in force, by kind.",
            &["kind"],
        );
        let mut seen = std::collections::BTreeSet::new();
        for row in enforced::services(&self.tables, &self.snapshot) {
            frontends.add([&row.kind], count(row.addresses.len()));
            for b in &row.backends {
                // The same backends stand behind every kind of address.
                if seen.insert((
                    row.service.clone(),
                    row.port_name.clone(),
                    row.protocol.clone(),
                    b.address,
                    b.port,
                )) {
                    backends
                        .add([&row.service, &row.port_name, &row.protocol, &b.state.replace('-', "_")], 1);
                }
            }
            if row.backends.is_empty() {
                backends.add([&row.service, &row.port_name, &row.protocol, "ready"], 0);
            }
        }
        out.extend([backends, frontends]);
    }
}

/// How the Kubernetes API is followed.
fn measure_api(state: &SourceState, out: &mut Vec<Family>) {
    let gauge = |name, help: &str| Family::gauge(name, help, &[]);
    let counter = |name, help: &str, n| Family::counter(name, help, &[]).with([], n);
    let unix = |at: SystemTime| at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs_f64();
    out.extend([
        gauge("fastpath_source_connected", "Whether every kind of object is watched at the Kubernetes API.")
            .with([], state.connected.into()),
        gauge(
            "fastpath_source_connected_change_timestamp_seconds",
            "When fastpath_source_connected last changed, or the daemon started.",
        )
        .with_f64([], unix(state.since)),
        gauge(
            "fastpath_source_synced",
            "Whether every kind of object has been read in full from the Kubernetes API since the start.",
        )
        .with([], state.synced.into()),
        gauge(
            "fastpath_source_saved_state",
            "Whether a state saved by an earlier daemon is in force, for want of the Kubernetes API.",
        )
        .with([], state.saved_at.is_some().into()),
        counter("fastpath_source_lists", "Complete lists of one kind read from the Kubernetes API.", state.lists),
        counter(
            "fastpath_source_relists",
            "Complete lists that were not the first of their kind: a watch could not be taken up where it ended.",
            state.relists,
        ),
        counter("fastpath_source_errors", "Lists and watches of the Kubernetes API that failed.", state.errors),
        counter("fastpath_source_updates", "Changes that became a new model; many may be one.", state.updates),
        counter("fastpath_source_events_written", "Kubernetes Events written on objects.", state.reported),
    ]);
    // Without a contact there is no time to tell.
    if let Some(at) = state.last_contact {
        out.push(
            gauge(
                "fastpath_source_last_contact_timestamp_seconds",
                "When an object or a bookmark last came from the Kubernetes API.",
            )
            .with_f64([], unix(at)),
        );
    }
}

type OfPort = fn(&PortStats) -> u64;

/// Counters of ports: name, help, value.
const PORT: [(&str, &str, OfPort); 6] = [
    ("fastpath_port_receive_packets", "Frames received by a port.", |s| s.rx_packets),
    ("fastpath_port_receive_bytes", "Bytes received by a port, with the Ethernet header.", |s| s.rx_bytes),
    ("fastpath_port_transmit_packets", "Frames sent by a port.", |s| s.tx_packets),
    ("fastpath_port_transmit_bytes", "Bytes sent by a port, with the Ethernet header.", |s| s.tx_bytes),
    (
        "fastpath_port_receive_drops",
        "Frames for a port that the kernel dropped before its socket, for want of frames or of room in the rx ring.",
        |s| s.kernel_rx_dropped.wrapping_add(s.kernel_rx_ring_full),
    ),
    ("fastpath_port_transmit_kicks", "System calls to start transmission.", |s| s.tx_kicks),
];

const FAULTS_HELP: &str = "What went wrong at a port. rx_dropped: dropped by the kernel before the socket. rx_ring_full: \
    dropped because the rx ring was full. fill_ring_empty: times the kernel had no frame to receive into. tx_ring_full: \
    attempts to send that found no room. tx_invalid: frames too short or too long to be sent. tx_errors: system calls to \
    send that failed. tx_refused: descriptors the kernel refused. ring_errors: ring entries that named no frame. \
    receiver_full: frames sent that the other end of a veth did not take, its ring being full.";

/// Faults of ports by label.
const FAULTS: [(&str, OfPort); 8] = [
    ("rx_dropped", |s| s.kernel_rx_dropped),
    ("rx_ring_full", |s| s.kernel_rx_ring_full),
    ("fill_ring_empty", |s| s.kernel_fill_empty),
    ("tx_ring_full", |s| s.tx_ring_full),
    ("tx_invalid", |s| s.tx_invalid),
    ("tx_errors", |s| s.tx_errors),
    ("tx_refused", |s| s.kernel_tx_invalid),
    ("ring_errors", |s| s.ring_errors),
];

type OfWorker = fn(&WorkerStats) -> &Counter;

/// Counters of workers: name, help, value.
const WORKER: [(&str, &str, OfWorker); 9] = [
    ("fastpath_worker_loops", "Passes of a worker's loop, with or without packets.", |s| &s.loops),
    ("fastpath_worker_sleeps", "Times a worker slept for want of packets.", |s| &s.sleeps),
    ("fastpath_worker_handoffs", "Packets handed to another worker for transmission.", |s| &s.handoffs),
    (
        "fastpath_worker_outbox_calls",
        "System calls by which packets for any number of veths were sent.",
        |s| &s.outbox_calls,
    ),
    ("fastpath_worker_outbox_packets", "Packets sent by such calls.", |s| &s.outbox_packets),
    (
        "fastpath_worker_outbox_errors",
        "Such calls that failed, with what was not sent yet; after eight in a row the sockets send for good.",
        |s| &s.outbox_errors,
    ),
    ("fastpath_worker_icmp_errors", "ICMP errors sent.", |s| &s.icmp_errors),
    ("fastpath_worker_neighbor_replies", "ARP replies and neighbour advertisements sent.", |s| {
        &s.neighbor_replies
    }),
    (
        "fastpath_worker_checksums_finished",
        "Transport checksums finished for senders that left them to the device.",
        |s| &s.checksums_finished,
    ),
];

fn count(n: usize) -> u64 {
    u64::try_from(n).unwrap_or(u64::MAX)
}

/// Processor time of the worker threads by number, in seconds.
fn worker_cpu() -> BTreeMap<usize, f64> {
    let Ok(tasks) = std::fs::read_dir("/proc/self/task") else { return BTreeMap::new() };
    let of = |dir: std::path::PathBuf| {
        let name = std::fs::read_to_string(dir.join("comm")).ok()?;
        let number = name.trim_end().strip_prefix("fp-worker-")?.parse().ok()?;
        let stat = std::fs::read_to_string(dir.join("schedstat")).ok()?;
        let nanoseconds: u64 = stat.split(' ').next()?.parse().ok()?;
        Some((number, std::time::Duration::from_nanos(nanoseconds).as_secs_f64()))
    };
    tasks.flatten().filter_map(|task| of(task.path())).collect()
}

/// The metrics every process has, by their usual names.
fn process(out: &mut Vec<Family>) {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let rss =
        status.lines().find_map(|l| l.strip_prefix("VmRSS:")?.split_whitespace().next()?.parse::<u64>().ok());
    if let Some(kilobytes) = rss {
        out.push(
            Family::gauge("process_resident_memory_bytes", "Resident memory size.", &[])
                .with([], kilobytes * 1024),
        );
    }
    if let Ok(fds) = std::fs::read_dir("/proc/self/fd") {
        out.push(
            Family::gauge("process_open_fds", "Number of open file descriptors.", &[])
                .with([], count(fds.count())),
        );
    }
    let cpu = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    if let Ok(cpu) = std::time::Duration::try_from(cpu) {
        out.push(
            Family::counter("process_cpu_seconds", "User and system processor time.", &[])
                .with_f64([], cpu.as_secs_f64()),
        );
    }
}
