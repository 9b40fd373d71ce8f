use std::path::Path;

use serde_json::json;

use super::*;
use crate::source::kinds::KINDS;
use crate::source::kubernetes::decode::decode;
use crate::source::kubernetes::store::Store;

/// A folder of its own, removed at the end.
struct Dir(PathBuf);

impl Dir {
    fn new(name: &str) -> Self {
        let dir = std::env::temp_dir().join(format!("fpsaved-{}-{name}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        Self(dir)
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// One object of each kind, with as many fields as there are.
fn model() -> Model {
    let mut store = Store::default();
    for (kind, object) in [
        (
            "Node",
            json!({"metadata": {"name": "n", "labels": {"zone": "z"}, "annotations": {"fastpath.io/vtep-mac": "02:00:00:00:00:01"}},
            "spec": {"podCIDRs": ["10.0.0.0/24", "fd00::/64"]},
            "status": {"addresses": [{"type": "InternalIP", "address": "192.0.2.1"}]}}),
        ),
        ("Namespace", json!({"metadata": {"name": "a", "labels": {"team": "t"}}})),
        (
            "Pod",
            json!({"metadata": {"name": "p", "namespace": "a", "labels": {"app": "x"},
            "annotations": {"fastpath.io/interface": "veth0", "fastpath.io/mac": "02:00:00:00:00:02", "fastpath.io/netns": "/run/netns/p"}},
            "spec": {"nodeName": "n", "containers": [{"name": "c", "ports": [{"name": "http", "containerPort": 80}]}]},
            "status": {"podIPs": [{"ip": "10.0.0.2"}, {"ip": "fd00::2"}]}}),
        ),
        (
            "NetworkPolicy",
            json!({"metadata": {"name": "p", "namespace": "a"}, "spec": {
            "podSelector": {"matchExpressions": [{"key": "app", "operator": "NotIn", "values": ["y"]}, {"key": "k", "operator": "Exists"}]},
            "policyTypes": ["Ingress", "Egress"],
            "ingress": [{"from": [{"ipBlock": {"cidr": "10.0.0.0/8", "except": ["10.1.0.0/16"]}}, {"namespaceSelector": {}}],
                "ports": [{"port": "http"}, {"protocol": "UDP", "port": 53, "endPort": 54}, {"protocol": "SCTP"}]}],
            "egress": [{"to": [{"podSelector": {"matchLabels": {"app": "x"}}}]}]}}),
        ),
        (
            "Service",
            json!({"metadata": {"name": "s", "namespace": "a"}, "spec": {"type": "LoadBalancer", "clusterIPs": ["10.96.0.1", "fd96::1"],
            "clusterIP": "10.96.0.1", "externalIPs": ["192.0.2.9"], "sessionAffinity": "ClientIP", "trafficDistribution": "PreferSameNode",
            "externalTrafficPolicy": "Local", "healthCheckNodePort": 30001, "loadBalancerSourceRanges": ["10.0.0.0/8"],
            "ports": [{"name": "http", "port": 80, "nodePort": 30000}]}}),
        ),
        (
            "EndpointSlice",
            json!({"metadata": {"name": "s-1", "namespace": "a", "labels": {"kubernetes.io/service-name": "s"}}, "addressType": "IPv4",
            "ports": [{"name": "http", "port": 80}],
            "endpoints": [{"addresses": ["10.0.0.2"], "nodeName": "n", "zone": "z", "hints": {"forZones": [{"name": "z"}]},
                "targetRef": {"kind": "Pod", "name": "p"}}]}),
        ),
    ] {
        let kind = KINDS.iter().find(|k| k.kind == kind).unwrap();
        let seen = decode(kind, object, true).unwrap();
        assert!(seen.problems.is_empty(), "{:?}", seen.problems);
        store.put(seen);
    }
    store.model().clone()
}

#[test]
fn what_is_saved_is_read_back() {
    let dir = Dir::new("round");
    let mut saved = SavedState::new(&dir.0.join("made/as/needed"), true);
    assert!(saved.read().unwrap().is_none(), "nothing saved is no mistake");
    saved.changed(Arc::new(model()));
    saved.write();
    saved.end();
    let (read, at) = saved.read().unwrap().unwrap();
    assert_eq!(read, model());
    assert!(at.elapsed().unwrap() < Duration::from_secs(60));
    // What annotations said in a run that honoured them, one that does not forgets.
    let (read, _) = SavedState::new(&dir.0.join("made/as/needed"), false).read().unwrap().unwrap();
    assert!(!read.pods.is_empty());
    assert!(read.pods.values().all(|p| p.interface.is_none() && p.netns.is_none() && p.mac.is_none()));
    // Nothing new: nothing is written.
    std::fs::remove_file(&saved.path).unwrap();
    saved.write();
    saved.end();
    assert!(saved.read().unwrap().is_none());
    saved.changed(Arc::new(Model::default()));
    saved.write();
    saved.end();
    assert_eq!(saved.read().unwrap().unwrap().0, Model::default());
}

/// Whoever writes waits for no disk: here, for a reader of a pipe that does not come.
#[test]
fn a_slow_disk_is_waited_for_by_nobody_but_the_end() {
    let dir = Dir::new("slow");
    let mut saved = SavedState::new(&dir.0, true);
    std::fs::create_dir_all(&dir.0).unwrap();
    let beside = saved.path.with_extension("new");
    let fifo = std::process::Command::new("mkfifo").arg(&beside).status().unwrap();
    assert!(fifo.success());
    for _ in 0..3 {
        saved.changed(Arc::new(model()));
        saved.write();
    }
    // One is being written, the newest waits for its turn.
    assert!(saved.pending.is_some() && saved.due().unwrap() > Instant::now());
    let reader = std::thread::spawn(move || {
        assert!(!std::fs::read(&beside).unwrap().is_empty());
        std::fs::remove_file(&beside).unwrap();
    });
    reader.join().unwrap();
    saved.end();
    assert!(saved.pending.is_none());
    assert_eq!(saved.read().unwrap().unwrap().0, model());
}

/// Whatever becomes of the file, it is either what was saved or refused.
#[test]
fn a_broken_file_is_refused() {
    let dir = Dir::new("broken");
    let mut saved = SavedState::new(&dir.0, true);
    saved.changed(Arc::new(model()));
    saved.write();
    saved.end();
    let good = std::fs::read(&saved.path).unwrap();
    let refused = |bytes: &[u8], path: &Path| {
        std::fs::write(path, bytes).unwrap();
        saved.read().expect_err("refused").to_string()
    };
    for cut in [0, 1, 10, 30, good.len() / 2, good.len() - 1] {
        refused(&good[..cut], &saved.path);
    }
    for at in (0..good.len()).step_by(37) {
        let mut bytes = good.clone();
        bytes[at] ^= 1;
        // The moment of saving is not covered by the hash.
        let moment = good.iter().take(at).filter(|b| **b == b' ').count() == 2 && at < 60;
        if !moment {
            refused(&bytes, &saved.path);
        }
    }
    let mut longer = good.clone();
    longer.push(b' ');
    assert!(refused(&longer, &saved.path).contains("bytes long"));
    let other = String::from_utf8(good).unwrap().replacen(" 1 ", " 999 ", 1);
    assert!(refused(other.as_bytes(), &saved.path).contains("has version 999"));
    std::fs::remove_file(&saved.path).unwrap();
    std::fs::create_dir(&saved.path).unwrap();
    assert!(saved.read().is_err());
}
