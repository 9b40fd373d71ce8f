//! The daemon: ties source, kernel view, attachment, compilation and publication together, on one thread.
//!
//! Everything that changes marks the state dirty; a pass of `Daemon::sync` then brings attachment, snapshot,
//! pinhole and neighbours in line: at once after a while of quiet, else what comes within `COALESCE` is one pass.
#![forbid(unsafe_code)]

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use fastpath::engine::{Engine, Event};
use fastpath::packet::Mac;
use fastpath::snapshot::{PortRole, Snapshot};

use crate::attach::{Attacher, Wanted, max_mtu};
use crate::compile::tables::Tables;
use crate::compile::{self, Compiled, Inputs, Overlay};
use crate::config::{Config, OnFailure, XdpMode};
use crate::explain::LiveExplainer;
use crate::netdev::bound::bound_udp;
use crate::netdev::{HostPair, NetView, NudState, Resolver, select_uplinks};
use crate::source::{Severity, SourceState, Update};

mod applied;
mod asked;
mod claims;
mod cni;
mod endpoints;
mod enforced;
#[cfg(test)]
mod fixtures;
mod halt_poll;
mod health;
mod health_ports;
mod heartbeat;
mod host;
mod lost;
mod measure;
mod pinhole;
mod reserve;
mod start;
mod view;
mod web;

pub use start::run;

/// Shortest time from one pass to the next: changes that come meanwhile are gathered.
const COALESCE: Duration = Duration::from_millis(10);
/// How often the heartbeat is renewed, and workers' requests are read.
const BEAT: Duration = Duration::from_millis(100);
/// A worker that has not passed its loop for so long does not forward: no heartbeat then.
const WORKER_STALLED: Duration = Duration::from_secs(1);
/// How often devices that could not be attached are tried again.
const RETRY: Duration = Duration::from_secs(2);

/// The running daemon.
struct Daemon {
    config: Config,
    node: String,
    /// Core of each worker.
    cores: Vec<usize>,
    overlay: Overlay,
    started: Instant,
    attacher: Attacher,
    /// Ports, routes, tunnels as compiled last.
    kept: compile::Kept,
    /// Policies, services, source translation.
    tables: Tables,
    resolver: Resolver,
    /// The pair into the host's stack.
    host: Option<HostPair>,
    /// Ports kept from the kernel.
    reserved: reserve::Reserved,
    /// How long idle cores look out for work.
    halt_poll: halt_poll::HaltPoll,
    /// What the source says.
    source: Arc<Update>,
    /// What the CNI plugin made here.
    endpoints: endpoints::Endpoints,
    cni: cni::Cni,
    /// The two together.
    update: Arc<Update>,
    /// How the source is.
    source_state: tokio::sync::watch::Receiver<SourceState>,
    net: Arc<NetView>,
    /// What the workers were last given.
    snapshot: Arc<Snapshot>,
    /// How long changes take to be in force.
    applied: applied::Applied,
    /// When the newest snapshot was published.
    published: Option<Instant>,
    /// When what the workers go by was read from the source.
    in_force: Option<SystemTime>,
    /// Time of the last pass that found everything in order or brought it so.
    synced: Option<SystemTime>,
    /// Neighbours resolved at some time and not failed since.
    remembered: BTreeMap<(u32, IpAddr), Mac>,
    /// Neighbours that workers asked for.
    asked: asked::Asked,
    /// The pinned links of an earlier run have been seen to.
    reaped: bool,
    /// What could not be had at start.
    start_problems: Vec<String>,
    attach_problems: Vec<String>,
    compile_problems: Vec<String>,
    kernel_problems: Vec<String>,
    /// Ports that load balancers ask for backends on this node.
    health_ports: health_ports::HealthPorts,
    /// The HTTP server, if there is to be one.
    web: Option<web::Server>,
    /// What the ports' other ends did not take.
    lost: RefCell<lost::Lost>,
    /// Workers that gave up sending together.
    gave_up: BTreeSet<usize>,
    /// Answers `explain`.
    explainer: RefCell<LiveExplainer>,
}

impl Daemon {
    /// Brings attachment, snapshot, pinhole and neighbours in line with what source and kernel say.
    fn sync(&mut self) {
        // Half of what the source holds may be pods without their policies.
        if !self.update.synced {
            self.keep_local();
            return;
        }
        let wanted = self.wanted();
        let generation = self.snapshot.generation;
        let failed = self.attacher.reconcile(&wanted, &self.net, generation);
        self.lost.get_mut().follow(self.attacher.attached().filter(|a| a.is_veth()).map(|a| a.port.ifindex));
        self.attach_problems.extend(failed.into_iter().map(|(device, e)| format!("{device}: {e}")));

        self.remember();
        let ports = self.attacher.ports();
        let inputs = Inputs {
            node: &self.node,
            model: &self.update.model,
            net: &self.net,
            ports: &ports,
            remembered: &self.remembered,
            overlay: &self.overlay,
            generation,
        };
        let Compiled { mut snapshot, neighbors, mut problems } = self.kept.compile(&inputs, &self.net);
        problems.extend(self.tables.fill(&self.update.model, &ports, &mut snapshot));
        self.compile_problems = problems;
        // What does not change forwarding makes no flow be decided again.
        if snapshot.succeed(&self.snapshot) {
            self.snapshot = Arc::new(snapshot);
            self.attacher.engine.publish(Arc::clone(&self.snapshot));
            self.published = Some(Instant::now());
            tracing::debug!(generation = self.snapshot.generation, "published");
        }
        let next = Some(self.snapshot.generation).filter(|g| *g != generation);
        self.await_workers(next);
        self.kernel_problems.clear();
        self.open_pinhole();
        self.sync_host();
        self.sync_reserved();
        self.resolver.want(neighbors.into_iter().chain(self.asked.iter()));
        let failed = self.resolver.maintain(&self.net);
        self.kernel_problems.extend(failed.into_iter().map(|e| e.to_string()));
        self.reap();
        self.in_force = Some(self.update.loaded_at);
        self.synced = Some(SystemTime::now());
        self.cni_synced();
        self.serve_health_ports();
        self.tables.tidy();
        self.attacher.engine.tidy();
        self.applied.acked(self.attacher.engine.acked());
    }

    /// Drops, once, the pinned links of an earlier run that nothing took over.
    ///
    /// With `on_failure = "drop"` they protect pods that this run may not know yet, because their manifests are late or
    /// wrong, or their device could not be attached: they go only when nothing of that kind is open.
    fn reap(&mut self) {
        let in_doubt = !self.attach_problems.is_empty()
            || !self.update.model.nodes.contains_key(&self.node)
            || self.update.problems.iter().any(|p| p.severity == Severity::Error)
            || !self.endpoints.problems().is_empty();
        if self.reaped || in_doubt && self.config.xdp.on_failure == OnFailure::Drop {
            return;
        }
        match self.attacher.redirect.reap_stale() {
            Ok(_) => self.reaped = true,
            Err(e) => self.kernel_problems.push(e.to_string()),
        }
    }

    /// Keeps the addresses of neighbours whose entry the kernel dropped (`ip neigh flush`, a link's new address):
    /// until it has resolved them again, the old one is the best there is. One that failed is forgotten.
    fn remember(&mut self) {
        for (key, neighbor) in &self.net.neighbors {
            if let Some(mac) = neighbor.usable_mac() {
                self.remembered.insert(*key, mac);
            } else if neighbor.state == NudState::Failed {
                self.remembered.remove(key);
            }
        }
        let wanted: BTreeSet<(u32, IpAddr)> = self.resolver.wanted().collect();
        self.remembered.retain(|key, _| wanted.contains(key) || self.net.neighbors.contains_key(key));
    }

    /// The devices that should be ports: this node's pods and the uplinks.
    fn wanted(&mut self) -> BTreeMap<String, Wanted> {
        let (mut wanted, problems) =
            claims::of_pods(&self.config, &self.node, &self.update.model, &self.endpoints);
        self.attach_problems = problems;
        if let Some(pair) = &self.host {
            let entry = Wanted { role: PortRole::Host, pod: None, peer_mac: None, netns: None };
            wanted.insert(pair.ours().to_owned(), entry);
        }
        let devices: BTreeSet<&str> = self.net.links.values().map(|l| l.name.as_str()).collect();
        // Their pods are not known (yet): attached all the same, and under no policy, so that nothing passes. A device
        // that is gone is missed by nobody.
        for record in self.endpoints.strangers().filter(|r| devices.contains(r.device.as_str())) {
            wanted.entry(record.device.clone()).or_insert_with(|| Wanted {
                role: PortRole::Pod,
                pod: None,
                peer_mac: Some(record.mac),
                netns: (self.config.xdp.mode == XdpMode::Generic).then(|| record.netns.clone()),
            });
        }
        let max_mtu = max_mtu(self.config.memory.frame_size);
        let (uplinks, errors) =
            select_uplinks(&self.net, &self.config.uplink.interfaces, &self.config.uplink.cidrs, max_mtu);
        let attached: Vec<&str> = self
            .attacher
            .attached()
            .filter(|a| a.port.role == PortRole::Uplink)
            .map(|a| &*a.port.name)
            .collect();
        // While this node is not known, nothing is known to be for us. A program that an earlier run left on the uplink
        // knows: it stays, and drops.
        let known = self.update.model.nodes.contains_key(&self.node);
        let chosen = uplinks.iter().map(|u| &*u.link.name).filter(|name| known || attached.contains(name));
        let kept = attached.iter().copied().filter(|name| errors.iter().any(|e| e.keeps(name)));
        for name in chosen.chain(kept) {
            let entry = Wanted { role: PortRole::Uplink, pod: None, peer_mac: None, netns: None };
            if wanted.insert(name.to_owned(), entry).is_some_and(|w| w.role != PortRole::Uplink) {
                self.attach_problems.push(format!("{name}: is an uplink and named by a pod"));
            }
        }
        self.attach_problems.extend(errors.iter().map(ToString::to_string));
        wanted
    }

    /// Leaves the UDP ports out of source translation that the node's own sockets are bound to. Returns whether to sync.
    ///
    /// The range is kept from the kernel (`reserved`): such a socket is older than that, or asked for its port by number.
    fn look_at_sockets(&mut self) -> bool {
        match bound_udp() {
            Ok(ports) => self.tables.set_bound_udp(&ports),
            Err(e) => {
                // What was read before stays. Without any of it a port in 16,384 may be given out in vain.
                tracing::warn!("{e}");
                false
            }
        }
    }

    /// Takes what workers ask for, and sees to it that the kernel resolves what it dropped. Returns whether to sync.
    fn tick(&mut self) -> bool {
        for e in self.resolver.maintain(&self.net) {
            tracing::debug!("{e}");
        }
        self.applied.acked(self.attacher.engine.acked());
        self.attacher.engine.tidy();
        self.look_at_outboxes();
        let now = Instant::now();
        let mut dirty = self.asked.expire(&self.net, now);
        for Event::Resolve { port, addr } in self.attacher.engine.events() {
            if let Some(link) = self.attacher.attached().find(|a| a.port.id == port).map(|a| a.port.ifindex) {
                dirty |= self.asked.ask((link, addr.into()), &self.net, now);
            }
        }
        dirty
    }

    /// Says once of each worker that it does not send together any more; `status` goes on saying it.
    fn look_at_outboxes(&mut self) {
        for (worker, stats) in self.attacher.engine.stats().enumerate() {
            if let Some(why) = view::gave_up(worker, stats).filter(|_| self.gave_up.insert(worker)) {
                tracing::warn!("{why}");
            }
        }
    }

    /// Whether this node forwards: it is known, has an uplink, and every worker goes by the newest snapshot. What is
    /// wrong with single pods or objects is `degraded`, and does not make the others wait.
    fn ready(&self) -> bool {
        self.synced.is_some()
            && self.attacher.attached().any(|a| a.port.role == PortRole::Uplink)
            && self.snapshot.generation > 0
            && self.attacher.engine.acked() >= self.snapshot.generation
            && self.update.model.nodes.contains_key(&self.node)
    }
}
