use std::path::PathBuf;

use super::*;
use crate::cni::env::PodRef;
use crate::cni::record::NewRecord;
use crate::model::Origin;

const NODE: &str = "n1";

fn name(pod: &str) -> ObjectName {
    ObjectName { namespace: "shop".to_owned(), name: pod.to_owned() }
}

fn pod(pod: &str, uid: Option<&str>, addresses: &[&str]) -> Pod {
    Pod {
        name: name(pod),
        uid: uid.map(str::to_owned),
        labels: BTreeMap::new(),
        node: Some(NODE.to_owned()),
        addresses: addresses.iter().map(|a| a.parse().unwrap()).collect(),
        host_network: false,
        finished: false,
        ports: std::collections::BTreeSet::new(),
        host_ports: std::collections::BTreeSet::new(),
        interface: None,
        mac: None,
        netns: None,
        origin: Origin::Api,
    }
}

fn model(pods: impl IntoIterator<Item = Pod>) -> Arc<Model> {
    let pods = pods.into_iter().map(|p| (p.name.clone(), Arc::new(p))).collect();
    Arc::new(Model { pods, ..Model::default() })
}

fn record(container: &str, pod: &str, uid: Option<&str>, addresses: &[&str], created_us: u64) -> Record {
    let key = Key { container: container.to_owned(), ifname: "eth0".to_owned() };
    let new = NewRecord {
        network: "pods".to_owned(),
        netns: PathBuf::from(format!("/run/netns/{container}")),
        pod: PodRef { namespace: "shop".to_owned(), name: pod.to_owned(), uid: uid.map(str::to_owned) },
        addresses: addresses.iter().map(|a| a.parse().unwrap()).collect(),
        ipam: None,
    };
    Record { created_us, ..Record::new(key, new) }
}

struct Folder(PathBuf);

impl Folder {
    fn new(test: &str) -> Self {
        let dir = std::env::temp_dir().join(format!("fp-endpoints-{test}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&dir);
        Self(dir)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn strangers(e: &Endpoints) -> Vec<&str> {
    e.strangers().map(|r| r.key.container.as_str()).collect()
}

#[test]
fn without_records_the_model_is_the_sources() {
    let dir = Folder::new("none");
    let mut endpoints = Endpoints::open(&dir.0);
    let source = model([pod("a", None, &["10.0.0.2"])]);
    assert!(Arc::ptr_eq(&endpoints.overlay(&source, NODE, false), &source));
}

#[test]
fn a_pod_gets_what_its_record_says() {
    let dir = Folder::new("gets");
    let mut endpoints = Endpoints::open(&dir.0);
    let source = model([pod("a", Some("u1"), &[]), pod("b", None, &["10.0.0.9"])]);
    let r = record("c1", "a", Some("u1"), &["10.0.0.2", "fd00::2"], 1);
    endpoints.insert(r.clone());
    let first = endpoints.overlay(&source, NODE, false);
    let a = &first.pods[&name("a")];
    assert_eq!((&a.addresses, a.interface.as_ref(), a.mac), (&r.addresses, Some(&r.device), Some(r.mac)));
    assert_eq!(a.netns, None, "the daemon has no business there");
    assert!(Arc::ptr_eq(&first.pods[&name("b")], &source.pods[&name("b")]));
    assert_eq!(endpoints.pod_of(&r.key), Some(&name("a")));
    // Nothing changed: the same. The source changed elsewhere: the same pod.
    assert!(Arc::ptr_eq(&endpoints.overlay(&source, NODE, false), &first));
    let mut more = (*source).clone();
    more.pods.insert(name("c"), Arc::new(pod("c", None, &[])));
    let second = endpoints.overlay(&Arc::new(more), NODE, false);
    assert!(Arc::ptr_eq(&second.pods[&name("a")], a));
    // A record of a pod that is not shown changes nothing.
    endpoints.overlay(&source, NODE, false);
    let before = endpoints.overlay(&source, NODE, false);
    endpoints.insert(record("c9", "z", None, &["10.0.0.7"], 5));
    assert!(Arc::ptr_eq(&endpoints.overlay(&source, NODE, false), &before));
    assert_eq!(strangers(&endpoints), ["c9"]);
    // In generic mode it has.
    endpoints.insert(r);
    let generic = endpoints.overlay(&source, NODE, true);
    assert_eq!(generic.pods[&name("a")].netns, Some(PathBuf::from("/run/netns/c1")));
    // Gone, it is as the source says.
    assert!(endpoints.remove(&Key { container: "c1".to_owned(), ifname: "eth0".to_owned() }));
    assert!(endpoints.remove(&Key { container: "c9".to_owned(), ifname: "eth0".to_owned() }));
    assert!(!endpoints.remove(&Key { container: "c9".to_owned(), ifname: "eth0".to_owned() }));
    assert!(Arc::ptr_eq(&endpoints.overlay(&source, NODE, false), &source));
}

#[test]
fn which_pod_is_meant() {
    let elsewhere = Pod { node: Some("n2".to_owned()), ..pod("a", None, &[]) };
    let host = Pod { host_network: true, ..pod("a", None, &[]) };
    let finished = Pod { finished: true, ..pod("a", None, &[]) };
    for (shown, uid, meant) in [
        (pod("a", Some("u1"), &[]), Some("u1"), true),
        (pod("a", Some("u0"), &[]), Some("u1"), false),
        (pod("a", None, &[]), Some("u1"), true),
        (pod("a", Some("u0"), &[]), None, true),
        (elsewhere, None, false),
        (host, None, false),
        (finished, None, false),
        (pod("b", Some("u1"), &[]), Some("u1"), false),
    ] {
        let dir = Folder::new("which");
        let mut endpoints = Endpoints::open(&dir.0);
        endpoints.insert(record("c1", "a", uid, &["10.0.0.2"], 1));
        let source = model([shown.clone()]);
        let got = endpoints.overlay(&source, NODE, false);
        assert_eq!(got.pods[&shown.name].interface.is_some(), meant, "{shown:?} {uid:?}");
        assert_eq!(strangers(&endpoints).is_empty(), meant, "{shown:?} {uid:?}");
    }
}

#[test]
fn the_newest_of_two_sandboxes() {
    let dir = Folder::new("newest");
    let mut endpoints = Endpoints::open(&dir.0);
    let source = model([pod("a", Some("u1"), &[])]);
    for (container, address, at) in [("c3", "10.0.0.3", 3), ("c1", "10.0.0.1", 1), ("c2", "10.0.0.2", 2)] {
        endpoints.insert(record(container, "a", Some("u1"), &[address], at));
    }
    let got = endpoints.overlay(&source, NODE, false);
    assert_eq!(got.pods[&name("a")].addresses, ["10.0.0.3".parse::<IpAddr>().unwrap()]);
    assert_eq!(strangers(&endpoints), ["c1", "c2"]);
}

/// An address given out anew is not the old pod's any more, whatever the API shows; a pod of another node keeps it.
#[test]
fn an_address_has_one_owner() {
    let dir = Folder::new("owner");
    let mut endpoints = Endpoints::open(&dir.0);
    let other_node = Pod { node: Some("n2".to_owned()), ..pod("c", None, &["10.0.0.2"]) };
    let source = model([pod("a", None, &["10.0.0.2", "fd00::2"]), pod("b", None, &[]), other_node]);
    endpoints.insert(record("c1", "b", None, &["10.0.0.2"], 1));
    let got = endpoints.overlay(&source, NODE, false);
    assert_eq!(got.pods[&name("a")].addresses, ["fd00::2".parse::<IpAddr>().unwrap()]);
    assert_eq!(got.pods[&name("b")].addresses, ["10.0.0.2".parse::<IpAddr>().unwrap()]);
    assert!(Arc::ptr_eq(&got.pods[&name("c")], &source.pods[&name("c")]));
}

#[test]
fn the_folder_is_followed() {
    let dir = Folder::new("folder");
    let store = Store::of(&dir.0);
    let (a, b) = (record("c1", "a", None, &["10.0.0.1"], 1), record("c2", "b", None, &["10.0.0.2"], 2));
    let rebooted = Record { boot: "another".to_owned(), ..record("c3", "c", None, &["10.0.0.3"], 3) };
    for r in [&a, &b, &rebooted] {
        store.write(r).unwrap();
    }
    let mut endpoints = Endpoints::open(&dir.0);
    assert!(endpoints.get(&a.key).is_some() && endpoints.get(&b.key).is_some());
    assert!(endpoints.get(&rebooted.key).is_none(), "its device went with its boot");
    assert!(!endpoints.reload());
    // Being taken down, and gone: by a plugin that could not tell.
    store.write(&Record { deleting: true, ..a.clone() }).unwrap();
    store.remove(&b.key).unwrap();
    assert!(endpoints.reload());
    assert!(endpoints.get(&a.key).is_none() && endpoints.get(&b.key).is_none());
    std::fs::write(dir.0.join("endpoints/fpc000000000000.json"), "{}").unwrap();
    assert!(endpoints.reload());
    assert_eq!(endpoints.problems().len(), 1);
}

/// A file that cannot be read now: the record known before stays, and the file is read again though it has not changed.
#[test]
fn an_error_of_reading_is_not_kept() {
    let dir = Folder::new("unreadable");
    let store = Store::of(&dir.0);
    let a = record("c1", "a", None, &["10.0.0.1"], 1);
    store.write(&a).unwrap();
    let mut endpoints = Endpoints::open(&dir.0);
    // A link stays the same file, whatever it leads to; reading a folder is an error of reading.
    let file = dir.0.join(format!("endpoints/{}.json", a.device));
    let target = dir.0.join("target");
    std::fs::remove_file(&file).unwrap();
    std::fs::create_dir(&target).unwrap();
    std::os::unix::fs::symlink(&target, &file).unwrap();
    assert!(endpoints.reload());
    assert_eq!(endpoints.problems().len(), 1);
    assert_eq!(endpoints.get(&a.key).map(AsRef::as_ref), Some(&a), "what is known stays in force");
    assert!(!endpoints.reload());
    let newer = Record { created_us: 2, ..a.clone() };
    std::fs::remove_dir(&target).unwrap();
    std::fs::write(&target, serde_json::to_vec(&newer).unwrap()).unwrap();
    assert!(endpoints.reload());
    assert_eq!(endpoints.problems(), [""; 0]);
    assert_eq!(endpoints.get(&a.key).map(AsRef::as_ref), Some(&newer));
}

/// What another plugin gave to pods that still live is in no book of ours, and must not be given out.
#[test]
fn addresses_of_pods_that_others_made() {
    let dir = Folder::new("foreign");
    let mut endpoints = Endpoints::open(&dir.0);
    endpoints.insert(record("c1", "ours", None, &["10.0.0.2"], 1));
    let source = model([
        pod("ours", None, &["10.0.0.2"]),
        pod("theirs", None, &["10.0.0.3", "fd00::3"]),
        Pod { finished: true, ..pod("done", None, &["10.0.0.4"]) },
        Pod { host_network: true, ..pod("host", None, &["10.0.0.5"]) },
        Pod { node: Some("n2".to_owned()), ..pod("elsewhere", None, &["10.0.0.6"]) },
    ]);
    let want = ["10.0.0.3", "fd00::3"].map(|a| a.parse().unwrap());
    assert_eq!(endpoints.foreign_addresses(&source, NODE), BTreeSet::from(want));
}
