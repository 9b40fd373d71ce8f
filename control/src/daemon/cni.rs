//! The CNI plugin's requests. Those that wait for the workers are answered when they have it: nobody else waits.
#![forbid(unsafe_code)]

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use fastpath::packet::Ip;
use fastpath::snapshot::PortRole;
use fastpath_xdp::Mode;
use serde_json::Value;
use tokio::sync::oneshot;

use super::Daemon;
use crate::api::server::to_value;
use crate::api::types::{CniAttached, CniChecked, CniDetached, CniNode};
use crate::api::{ApiError, ErrorCode};
use crate::attach::max_mtu;
use crate::cni::record::{Key, Record};
use crate::config::{Encap, Family, XdpMode};
use crate::netdev::{Error, Link, NetView, Netlink};
use crate::source::Update;

/// A device that was asked for by name is believed for so long, until the view of all devices has it.
const FRESH: Duration = Duration::from_secs(2);
/// How long a detachment waits for the workers.
const DETACH: Duration = Duration::from_secs(2);
/// Workers answer within a vector: this often, and so many times, they are asked in one go.
const ACK: (u32, Duration) = (20, Duration::from_micros(50));
/// Then this often.
const LOOK_AGAIN: Duration = Duration::from_millis(1);
/// What waits for the source is looked at this often, for its time to end.
const LOOK_LATER: Duration = Duration::from_millis(20);

/// Where an answer goes.
type Reply = oneshot::Sender<Result<Value, ApiError>>;

/// What the plugin's requests need to keep.
#[derive(Debug)]
pub(super) struct Cni {
    netlink: Netlink,
    /// Devices that the plugin has just made, which the view of all devices may not have yet.
    fresh: BTreeMap<u32, (Link, Instant)>,
    waiting: Vec<Waiting>,
}

#[derive(Debug)]
struct Waiting {
    what: What,
    /// The generation from which it is so.
    since: Option<u32>,
    until: Instant,
    reply: Reply,
}

#[derive(Debug)]
enum What {
    Attach(Key),
    Detach,
}

/// Why an attachment is not in force.
enum Hindrance {
    /// It will be, when something else comes.
    Yet(String),
    /// It will not.
    Never(String),
}

impl Cni {
    pub(super) fn new() -> Result<Self, Error> {
        Ok(Self { netlink: Netlink::route()?, fresh: BTreeMap::new(), waiting: Vec::new() })
    }

    /// How soon to look again at what waits; `None` when nothing does.
    pub(super) fn look_again(&self) -> Option<Duration> {
        let soon = self.waiting.iter().any(|w| w.since.is_some());
        (!self.waiting.is_empty()).then_some(if soon { LOOK_AGAIN } else { LOOK_LATER })
    }

    /// A view of all devices, with those made so lately that it may lack them.
    pub(super) fn complete(&mut self, mut view: Arc<NetView>) -> Arc<NetView> {
        let now = Instant::now();
        self.fresh.retain(|index, (link, seen)| {
            // Its first message comes before it is up.
            let there = view.links.get(index).is_some_and(|l| l.name == link.name && l.up);
            !there && now.duration_since(*seen) < FRESH
        });
        if !self.fresh.is_empty() {
            let links = &mut Arc::make_mut(&mut view).links;
            // One that had its name before is gone, also where the view has it still.
            links.retain(|_, l| !self.fresh.values().any(|(link, _)| link.name == l.name));
            links.extend(self.fresh.iter().map(|(index, (link, _))| (*index, link.clone())));
        }
        view
    }
}

impl Daemon {
    /// Takes over what the source says now.
    pub(super) fn learn(&mut self, update: Arc<Update>) {
        if update.synced {
            // What was saved before the start has been waited for since the start only.
            let started = SystemTime::now().checked_sub(self.started.elapsed());
            self.applied.changed(started.map_or(update.loaded_at, |started| started.max(update.loaded_at)));
        }
        self.source = update;
        self.lay_over();
    }

    /// Takes over what plugins recorded without telling; returns whether to sync.
    pub(super) fn reload_endpoints(&mut self) -> bool {
        let changed = self.endpoints.reload();
        if changed {
            self.lay_over();
        }
        changed
    }

    /// Lays the plugin's endpoints over what the source says.
    fn lay_over(&mut self) {
        // In generic mode the pod's end must not merge segments, and the mode can change while pods stay.
        let netns = self.config.xdp.mode == XdpMode::Generic;
        let model = self.endpoints.overlay(&self.source.model, &self.node, netns);
        self.update = if Arc::ptr_eq(&model, &self.source.model) {
            Arc::clone(&self.source)
        } else {
            Arc::new(Update { model, ..(*self.source).clone() })
        };
    }

    /// What the plugin needs to know of this node.
    pub(super) fn cni_node(&self) -> CniNode {
        let this = self.update.model.nodes.get(&self.node);
        let pod_cidrs = this.map(|n| n.pod_cidrs.clone()).unwrap_or_default();
        let mut own: BTreeSet<IpAddr> = this.into_iter().flat_map(|n| n.addresses.iter().copied()).collect();
        own.extend(self.net.addresses.iter().map(|a| a.net.addr()));
        // Pods that another plugin made, before this node was switched over, live on with addresses of its own books.
        own.extend(self.endpoints.foreign_addresses(&self.source.model, &self.node));
        own.retain(|ip| pod_cidrs.iter().any(|c| c.contains(ip)));
        let uplinks = self.attacher.attached().filter(|a| a.port.role == PortRole::Uplink);
        let uplink_mtu = uplinks.map(|a| u32::from(a.port.mtu)).min();
        let outer = match (self.config.overlay.encap, self.config.overlay.family) {
            (Encap::None, _) => 0,
            (_, Family::Ipv4) => 50,
            (_, Family::Ipv6) => 70,
        };
        let max_mtu = max_mtu(self.config.memory.frame_size);
        let not_ready = if this.is_none() {
            Some(format!("node {} is not known: the source shows no Node of this name", self.node))
        } else if uplink_mtu.is_none() {
            Some("no uplink is attached".to_owned())
        } else if self.attacher.engine.acked() == 0 {
            Some("the workers have no tables yet".to_owned())
        } else {
            None
        };
        CniNode {
            not_ready,
            pod_cidrs,
            reserved: own.into_iter().collect(),
            mtu: uplink_mtu.unwrap_or_default().saturating_sub(outer).min(max_mtu),
            max_mtu,
            workers: u32::try_from(self.attacher.engine.workers()).unwrap_or(1),
            data_dir: self.config.daemon.data_dir.clone(),
        }
    }

    /// Takes an attachment that the plugin has made; the answer comes when it is in force. Returns whether to sync.
    pub(super) fn cni_attach(&mut self, record: Record, wait: Duration, reply: Reply) -> bool {
        let key = record.key.clone();
        let refuse = |reply: Reply, code, why: String| {
            // A plugin that has gone undoes nothing more.
            let _ = reply.send(Err(ApiError::new(code, why)));
            false
        };
        if record.device != key.device() {
            return refuse(
                reply,
                ErrorCode::BadRequest,
                format!("{} is not the device of {key}", record.device),
            );
        }
        let link = match self.cni.netlink.link_named(&record.device) {
            Ok(link) => link,
            Err(e) => return refuse(reply, ErrorCode::Internal, e.to_string()),
        };
        self.cni.fresh.insert(link.index, (link, Instant::now()));
        self.net = self.cni.complete(Arc::clone(&self.net));
        self.endpoints.insert(record);
        self.lay_over();
        let until = Instant::now() + wait;
        self.cni.waiting.push(Waiting { what: What::Attach(key), since: None, until, reply });
        true
    }

    /// Forgets an attachment; the answer comes when no worker knows it any more. Returns whether to sync.
    pub(super) fn cni_detach(&mut self, key: &Key, reply: Reply) -> bool {
        self.cni.fresh.retain(|_, (link, _)| link.name != key.device());
        if !self.endpoints.remove(key) {
            let _ = reply.send(to_value(&CniDetached { known: false }));
            return false;
        }
        self.lay_over();
        let until = Instant::now() + DETACH;
        self.cni.waiting.push(Waiting { what: What::Detach, since: None, until, reply });
        true
    }

    /// Whether an attachment is in order.
    pub(super) fn cni_check(&self, key: &Key) -> CniChecked {
        let wrong = match self.in_force(key) {
            Ok(_) if self.attacher.engine.acked() < self.snapshot.generation => {
                Some("the workers do not have the newest tables yet".to_owned())
            }
            Ok(_) => None,
            Err(Hindrance::Yet(why) | Hindrance::Never(why)) => Some(why),
        };
        CniChecked { wrong }
    }

    /// Whether what was last published has an attachment under its pod's policies.
    fn in_force(&self, key: &Key) -> Result<CniAttached, Hindrance> {
        let record =
            self.endpoints.get(key).ok_or_else(|| Hindrance::Never(format!("{key} was taken down")))?;
        let device = record.device.as_str();
        let Some(attached) = self.attacher.attached().find(|a| *a.port.name == *device) else {
            let about = format!("{device}: ");
            return Err(match self.attach_problems.iter().find(|p| p.starts_with(&about)) {
                Some(problem) => Hindrance::Never(problem.clone()),
                None => Hindrance::Yet(format!("{device} is not attached yet")),
            });
        };
        let pod = record.pod.object_name();
        let Some(name) = self.endpoints.pod_of(key) else {
            let uid = record.pod.uid.as_ref().map(|uid| format!(" of uid {uid}")).unwrap_or_default();
            let why = format!("the source does not show pod {pod}{uid} on node {} yet", self.node);
            return Err(Hindrance::Yet(why));
        };
        if attached.port.pod.as_ref() != Some(name) || !self.tables.knows(name) {
            return Err(Hindrance::Yet(format!("pod {pod} is not under its policies yet")));
        }
        let has = |ip: &IpAddr| self.snapshot.local.get(&Ip::from(*ip)) == Some(&attached.port.id);
        if let Some(ip) = record.addresses.iter().find(|ip| !has(ip)) {
            return Err(Hindrance::Yet(format!("{ip} of pod {pod} is not forwarded to {device}")));
        }
        Ok(CniAttached { generic: attached.mode == Mode::Generic })
    }

    /// After a pass: what came into force by it, and what could not.
    pub(super) fn cni_synced(&mut self) {
        if self.cni.waiting.is_empty() {
            return;
        }
        let generation = self.snapshot.generation;
        for mut waiting in std::mem::take(&mut self.cni.waiting) {
            match &waiting.what {
                What::Detach => waiting.since = waiting.since.or(Some(generation)),
                What::Attach(key) => match self.in_force(key) {
                    Ok(_) => waiting.since = waiting.since.or(Some(generation)),
                    Err(Hindrance::Yet(_)) => waiting.since = None,
                    Err(Hindrance::Never(why)) => {
                        let _ = waiting.reply.send(Err(ApiError::new(ErrorCode::Internal, why)));
                        continue;
                    }
                },
            }
            self.cni.waiting.push(waiting);
        }
        let (tries, pause) = ACK;
        if self.cni.waiting.iter().any(|w| w.since.is_some()) {
            for _ in 0..tries {
                if self.attacher.engine.acked() >= generation {
                    break;
                }
                std::thread::sleep(pause);
            }
        }
        self.cni_answer();
    }

    /// Answers what is in force on every worker, and what has waited long enough.
    pub(super) fn cni_answer(&mut self) {
        let (acked, now) = (self.attacher.engine.acked(), Instant::now());
        for waiting in std::mem::take(&mut self.cni.waiting) {
            let done = waiting.since.is_some_and(|since| acked >= since);
            if !done && now < waiting.until {
                self.cni.waiting.push(waiting);
                continue;
            }
            let slow =
                || ApiError::new(ErrorCode::NotReady, "the workers did not take the new tables in time");
            let answer = match &waiting.what {
                What::Detach if done => to_value(&CniDetached { known: true }),
                What::Detach => Err(slow()),
                What::Attach(key) => match self.in_force(key) {
                    Ok(attached) if done => to_value(&attached),
                    Ok(_) => Err(slow()),
                    Err(Hindrance::Yet(why) | Hindrance::Never(why)) => {
                        Err(ApiError::new(ErrorCode::NotReady, why))
                    }
                },
            };
            let _ = waiting.reply.send(answer);
        }
    }
}
