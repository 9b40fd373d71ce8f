//! The verbs (CNI spec 1.1.0, section 2).
//!
//! ADD: addresses, record, veth (the pod's end down), attachment by the daemon under the pod's policies, the pod's end
//! up. Whatever fails on the way undoes all of it by the same steps as DEL: mark the record, remove the veth, tell the
//! daemon, have another's addresses given back, remove the record, give our own back. Each step may find its work done,
//! so the whole can be repeated after a crash at any point, by DEL or by GC.
#![forbid(unsafe_code)]

use std::collections::BTreeSet;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Value, json};

use super::delegate::Delegate;
use super::env::{Env, PodRef};
use super::ipam::{Ipam, Owner};
use super::record::{Key, NewRecord, Record, Store, StoreError, is_our_device};
use super::types::{Attachment, Code, Conf, Error, Made, NEWEST, VERSIONS};
use crate::api::types::{CniAttached, CniChecked, CniDetached, CniNode};
use crate::api::{Client, ClientError, ErrorCode, Request, SOCKET_NAME};
use crate::netdev::veth::{NewVeth, PodEnd, check_pod, set_up_pod};
use crate::netdev::{Netlink, Plan, netns};

/// How long DEL waits for a daemon that is there: it can do without.
const DETACH: Duration = Duration::from_secs(3);
/// How long CHECK lets the daemon come to rest, and how often it looks.
const SETTLE: (u32, Duration) = (20, Duration::from_millis(100));

/// Serves a call. Returns what is to be printed, and whether the call succeeded.
#[must_use]
pub fn run(env: &Env, stdin: &[u8]) -> (Option<Value>, bool) {
    let version = serde_json::from_slice::<Value>(stdin)
        .ok()
        .and_then(|v| v.get("cniVersion")?.as_str().map(str::to_owned))
        .unwrap_or_else(|| NEWEST.to_owned());
    let answer = match env.command() {
        Ok("VERSION") => Ok(Some(json!({ "cniVersion": version, "supportedVersions": VERSIONS }))),
        Ok(verb) => Conf::parse(stdin).and_then(|conf| Call { env, conf: &conf }.serve(verb)),
        Err(e) => Err(e),
    };
    match answer {
        Ok(value) => (value, true),
        Err(e) => (Some(e.to_json(&version)), false),
    }
}

/// One call.
#[derive(Debug)]
struct Call<'a> {
    env: &'a Env,
    conf: &'a Conf,
}

/// What ADD has found out before it makes anything.
#[derive(Debug)]
struct Order {
    key: Key,
    pod: PodRef,
    /// The pod's namespace, as the runtime names it, and opened.
    path: PathBuf,
    netns: File,
    node: CniNode,
    mtu: u32,
}

/// What the steps of ADD made, for the result.
struct Done {
    made: Made,
    dns: Option<Value>,
}

impl Call<'_> {
    fn serve(&self, verb: &str) -> Result<Option<Value>, Error> {
        match verb {
            "ADD" => self.add().map(|done| Some(done.made.to_json(&self.conf.version, done.dns.as_ref()))),
            "DEL" => self.del().map(|()| None),
            "CHECK" => self.check().map(|()| None),
            "STATUS" => self.status().map(|()| None),
            "GC" => self.gc().map(|()| None),
            other => {
                let msg =
                    format!("CNI_COMMAND: {other:?} is not one of ADD, DEL, CHECK, STATUS, GC, VERSION");
                Err(Error::new(Code::InvalidEnvironment, msg))
            }
        }
    }

    fn key(&self) -> Result<Key, Error> {
        let (container, ifname) = (self.env.container()?.to_owned(), self.env.ifname()?.to_owned());
        Ok(Key { container, ifname })
    }

    fn owner(&self, key: &Key) -> Owner {
        Owner { network: self.conf.name.clone(), key: key.clone() }
    }

    fn store(&self) -> Store {
        Store::of(&self.conf.data_dir)
    }

    fn daemon(&self) -> Result<Client, ClientError> {
        Client::connect(&self.conf.state_dir.join(SOCKET_NAME))
    }

    fn delegate<'a>(&'a self, name: &'a str) -> Result<Delegate<'a>, Error> {
        Delegate::find(name, self.env, self.conf)
    }

    fn add(&self) -> Result<Done, Error> {
        let key = self.key()?;
        let pod = self.env.pod()?;
        let path =
            self.env.netns().ok_or_else(|| Error::new(Code::InvalidEnvironment, "CNI_NETNS: is missing"))?;
        let netns = netns::open(&path).map_err(|e| {
            let code = match e.kind() {
                std::io::ErrorKind::NotFound => Code::UnknownContainer,
                _ => Code::InvalidEnvironment,
            };
            Error::new(code, format!("CNI_NETNS: {}: {e}", path.display()))
        })?;
        if is_own_namespace(&netns) {
            return Err(Error::new(Code::InvalidEnvironment, "CNI_NETNS: is the host's own namespace"));
        }
        if let Some(name) = &self.conf.ipam {
            // Before there is anything that it would be needed to undo.
            self.delegate(name)?;
        }
        let mut daemon = self.daemon().map_err(later)?;
        let node: CniNode = daemon.ask(Request::CniNode).map_err(later)?;
        let mtu = self.suits(&node)?;
        if !matches!(self.store().read(&key), Ok(None)) {
            // An ADD of this attachment that was never undone.
            self.take_down(&key, self.leftover(&key)?)?;
        }
        let order = Order { key, pod, path, netns, node, mtu };
        self.make(&order, &mut daemon).map_err(|e| {
            let key = &order.key;
            let undone = self.leftover(key).and_then(|record| self.take_down(key, record));
            match undone {
                Ok(()) => e,
                Err(also) => {
                    let first = if e.details.is_empty() { String::new() } else { format!("{}; ", e.details) };
                    e.with(format!("{first}and it could not be undone: {also}"))
                }
            }
        })
    }

    /// Whether the daemon is one that this configuration is for, and ready; gives the pods' MTU.
    fn suits(&self, node: &CniNode) -> Result<u32, Error> {
        if node.data_dir != self.conf.data_dir {
            let (theirs, ours) = (node.data_dir.display(), self.conf.data_dir.display());
            let msg =
                format!("data_dir: is {ours}, the daemon's daemon.data_dir is {theirs}: give both the same");
            return Err(Error::new(Code::InvalidConfig, msg));
        }
        if let Some(reason) = &node.not_ready {
            return Err(Error::new(Code::TryAgainLater, format!("the daemon is not ready: {reason}")));
        }
        if self.conf.ipam.is_none() && node.pod_cidrs.is_empty() {
            let msg = "this node has no pod CIDRs (spec.podCIDRs), and no other IPAM plugin is named";
            return Err(Error::new(Code::TryAgainLater, msg));
        }
        let mtu = self.conf.mtu.unwrap_or(node.mtu);
        if mtu > node.max_mtu {
            let msg = format!("mtu: {mtu} is more than the daemon's packet buffers take ({})", node.max_mtu);
            return Err(Error::new(Code::InvalidConfig, msg));
        }
        Ok(mtu)
    }

    fn make(&self, order: &Order, daemon: &mut Client) -> Result<Done, Error> {
        let Order { key, pod, path, netns, node, mtu } = order;
        let (store, mtu) = (self.store(), *mtu);
        let mut record = Record::new(
            key.clone(),
            NewRecord {
                network: self.conf.name.clone(),
                netns: path.clone(),
                pod: pod.clone(),
                addresses: Vec::new(),
                ipam: self.conf.ipam.clone(),
            },
        );
        let mut dns = None;
        record.addresses = match &self.conf.ipam {
            None => {
                let reserved: BTreeSet<_> = node.reserved.iter().copied().collect();
                Ipam::of(&self.conf.data_dir).allocate(&self.owner(key), &node.pod_cidrs, &reserved)?
            }
            Some(name) => {
                // GC has no other way to know that the plugin has given an address out. `deleting`: not to be served.
                store.write(&Record { deleting: true, ..record.clone() }).map_err(io)?;
                let given = self.delegate(name)?.add()?;
                dns = given.dns;
                given.addresses
            }
        };
        store.write(&record).map_err(io)?;

        let made = Made {
            host: record.device.clone(),
            host_mac: key.mac(false),
            ifname: key.ifname.clone(),
            pod_mac: record.mac,
            netns: path.display().to_string(),
            mtu,
            addresses: record.addresses.clone(),
        };
        Netlink::route()?.create_veth(&NewVeth {
            host: &made.host,
            host_mac: made.host_mac,
            pod: &made.ifname,
            pod_mac: made.pod_mac,
            netns,
            mtu,
            queues: node.workers.max(1),
        })?;
        let request = Request::CniAttach { record: Box::new(record), wait_ms: self.conf.wait_ms };
        let attached: CniAttached = daemon.ask(request).map_err(later)?;
        let end = PodEnd {
            netns: path.clone(),
            name: made.ifname.clone(),
            mac: made.pod_mac,
            addresses: made.addresses.clone(),
        };
        set_up_pod(&end, &Plan::pod_end(attached.generic))?;
        Ok(Done { made, dns })
    }

    /// Takes an attachment down, whatever there is of it.
    fn take_down(&self, key: &Key, record: Option<Record>) -> Result<(), Error> {
        self.take_down_by(key, record, |device| Ok(Netlink::route()?.delete_link(device).map(drop)?))
    }

    /// As [`Call::take_down`]; `delete` removes the device. A disk that takes nothing more keeps only our own addresses
    /// from being given back: whose they are stands with them, and DEL or GC finds them later.
    fn take_down_by(
        &self,
        key: &Key,
        record: Option<Record>,
        delete: impl FnOnce(&str) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let store = self.store();
        let ipam = record.as_ref().map_or(self.conf.ipam.clone(), |r| r.ipam.clone());
        let network = record.as_ref().map_or(self.conf.name.clone(), |r| r.network.clone());
        if let Some(record) = record.filter(|r| !r.deleting) {
            let marked = store.write(&Record { deleting: true, ..record });
            if marked.is_err() && ipam.is_none() {
                // Removing needs no room, and says the same. What another plugin gave out only the record tells: it stays
                // until that is given back. What cannot be removed now is reported in the end.
                let _ = store.remove(key);
            }
        }
        delete(&key.device())?;
        // A daemon that is away learns of it from the records when it is back.
        if let Ok(mut daemon) = self.daemon() {
            let _ = daemon.ask_within::<CniDetached>(DETACH, Request::CniDetach { key: key.clone() });
        }
        if let Some(name) = &ipam {
            self.delegate(name)?.del(&key.container, &key.ifname)?;
        }
        let removed = store.remove(key).map_err(io);
        // Last: it needs room on the disk, and the record has just made some.
        Ipam::of(&self.conf.data_dir).free(&[Owner { network, key: key.clone() }])?;
        removed
    }

    fn del(&self) -> Result<(), Error> {
        let key = self.key()?;
        self.take_down(&key, self.leftover(&key)?)
    }

    /// The record of what is to be taken down. One that makes no sense is none: device and owner follow from the key.
    fn leftover(&self, key: &Key) -> Result<Option<Record>, Error> {
        self.store().read_if_any(key).map_err(io)
    }

    fn check(&self) -> Result<(), Error> {
        let key = self.key()?;
        let broken = |what: String| Error::new(Code::Broken, what);
        let prev = self.conf.prev.as_ref().ok_or_else(|| {
            Error::new(Code::InvalidConfig, "prevResult: is missing, and CHECK compares with it")
        })?;
        let record = self.store().read(&key).map_err(io)?.filter(|r| !r.deleting);
        let record = record.ok_or_else(|| broken(format!("there is no record of {key}")))?;
        let listed: BTreeSet<_> = prev.ips.iter().map(|ip| ip.address.addr()).collect();
        if let Some(missing) = record.addresses.iter().find(|ip| !listed.contains(ip)) {
            return Err(broken(format!("prevResult: has not the address {missing} that ADD gave to {key}")));
        }
        let ours = prev.interfaces.iter().find(|i| i.name == key.ifname && !i.sandbox.is_empty());
        if ours.is_none_or(|i| !i.mac.eq_ignore_ascii_case(&record.mac.to_string())) {
            return Err(broken(format!(
                "prevResult: has no interface {} with MAC {}",
                key.ifname, record.mac
            )));
        }
        match &self.conf.ipam {
            Some(name) => self.delegate(name)?.check()?,
            None => {
                let held = Ipam::of(&self.conf.data_dir).read()?.of(&self.owner(&key));
                if let Some(ip) = record.addresses.iter().find(|ip| !held.contains(ip)) {
                    return Err(broken(format!("{ip} is not reserved for {key}")));
                }
            }
        }
        let netns = self.env.netns().unwrap_or(record.netns);
        let end = PodEnd { netns, name: key.ifname.clone(), mac: record.mac, addresses: record.addresses };
        let mut wrong = check_pod(&end)?;
        if let Err(e) = Netlink::route()?.link_named(&record.device) {
            wrong.push(e.to_string());
        }
        if let Some(first) = wrong.first() {
            return Err(broken(first.clone()).with(wrong.join("; ")));
        }
        self.check_daemon(&key)
    }

    /// What the daemon says of an attachment; it may be just about to have it.
    fn check_daemon(&self, key: &Key) -> Result<(), Error> {
        let mut daemon = self.daemon().map_err(later)?;
        let (tries, pause) = SETTLE;
        let mut left = tries;
        loop {
            let checked: CniChecked = daemon.ask(Request::CniCheck { key: key.clone() }).map_err(later)?;
            let Some(wrong) = checked.wrong else { return Ok(()) };
            left = left.saturating_sub(1);
            if left == 0 {
                return Err(Error::new(Code::Broken, wrong));
            }
            std::thread::sleep(pause);
        }
    }

    fn status(&self) -> Result<(), Error> {
        // Without a daemon the pods there are go by what `xdp.on_failure` says: dropped, or past their policies.
        let limited = |e: ClientError| Error::new(Code::LimitedConnectivity, e.to_string());
        let node: CniNode = self.daemon().map_err(limited)?.ask(Request::CniNode).map_err(limited)?;
        self.suits(&node).map_err(|e| match e.code {
            code if code == Code::TryAgainLater as u32 => Error { code: Code::NotAvailable as u32, ..e },
            _ => e,
        })?;
        match &self.conf.ipam {
            Some(name) => self.delegate(name)?.newer("STATUS"),
            None => Ok(()),
        }
    }

    /// Takes down what is not in `cni.dev/valid-attachments`: by records, then by addresses, then by devices, so that
    /// whichever of them a crash left is found.
    fn gc(&self) -> Result<(), Error> {
        let valid: BTreeSet<Key> = self
            .conf
            .valid
            .as_ref()
            .ok_or_else(|| {
                // Taken for an empty list it would be the end of every pod.
                Error::new(Code::InvalidConfig, "cni.dev/valid-attachments: is missing")
            })?
            .iter()
            .map(|Attachment { container, ifname }| Key {
                container: container.clone(),
                ifname: ifname.clone(),
            })
            .collect();
        let mut failures = Vec::new();
        let (records, unreadable) = self.store().all().map_err(io)?;
        let mut keep: BTreeSet<String> = valid.iter().map(Key::device).collect();
        for e in unreadable {
            let removed = match (&e, e.device()) {
                (StoreError::Wrong { path, .. }, Some(device)) if !keep.contains(device) => {
                    self.store().remove_wrong(path, &self.conf.name)
                }
                _ => Ok(false),
            };
            match removed {
                Ok(true) => continue,
                Ok(false) => failures.push(e.to_string()),
                Err(also) => failures.push(also.to_string()),
            }
            // Whose it is cannot be told.
            keep.extend(e.device().map(str::to_owned));
        }
        let ours = |record: &&Record| record.network == self.conf.name;
        for record in records.iter().filter(ours).filter(|r| !valid.contains(&r.key)) {
            if let Err(e) = self.take_down(&record.key, Some(record.clone())) {
                failures.push(format!("{}: {e}", record.key));
            }
        }
        let owners = Ipam::of(&self.conf.data_dir).read()?.owners();
        for owner in owners.into_iter().filter(|o| o.network == self.conf.name && !valid.contains(&o.key)) {
            let record = self.leftover(&owner.key);
            if let Err(e) = record.and_then(|record| self.take_down(&owner.key, record)) {
                failures.push(format!("{}: {e}", owner.key));
            }
        }
        keep.extend(records.into_iter().filter(|r| r.network != self.conf.name).map(|r| r.device));
        let mut netlink = Netlink::route()?;
        for name in netlink.veth_names()?.iter().filter(|n| is_our_device(n) && !keep.contains(*n)) {
            if let Err(e) = netlink.delete_link(name) {
                failures.push(e.to_string());
            }
        }
        if let Some(name) = &self.conf.ipam
            && let Err(e) = self.delegate(name).and_then(|d| d.newer("GC"))
        {
            failures.push(e.to_string());
        }
        match failures.first() {
            None => Ok(()),
            Some(first) => Err(Error::new(Code::Io, first.clone()).with(failures.join("; "))),
        }
    }
}

/// The daemon cannot do it now.
fn later(e: ClientError) -> Error {
    match &e {
        ClientError::Refused(refused) if refused.code == ErrorCode::Internal => {
            Error::new(Code::Device, e.to_string())
        }
        _ => Error::new(Code::TryAgainLater, e.to_string()),
    }
}

fn io(e: StoreError) -> Error {
    Error::new(Code::Io, e.to_string())
}

/// Whether a namespace is the one this process is in.
fn is_own_namespace(netns: &File) -> bool {
    use std::os::unix::fs::MetadataExt as _;
    let of = |m: std::io::Result<std::fs::Metadata>| m.ok().map(|m| (m.dev(), m.ino()));
    let theirs = of(netns.metadata());
    theirs.is_some() && theirs == of(std::fs::metadata(Path::new("/proc/self/ns/net")))
}

#[cfg(test)]
mod tests;
