//! The daemon as `configs/k8s/install.yaml` runs it: its capabilities and no others, a container's file systems, its service
//! account at a real API server.

use std::collections::BTreeSet;

use fastpath_control::source::kubernetes::rights;
use serde_json::{Value, json};

use super::{PORT, cluster_ip, must_answer, must_reach, pod, serve, spec};
use crate::apiserver::INSTALL;
use crate::forwarding::everything_crosses;
use crate::harness::lab::Lab;
use crate::harness::ns::NetNs;
use crate::harness::spec::{Encap, Family, LabSpec, UPLINK};
use crate::operation::{ask, metrics, value};
use crate::traffic::named::Server;
use crate::traffic::{PATIENCE, eventually};

const GIVEN: &[&str] = &["net_admin", "net_raw", "bpf", "perfmon", "ipc_lock", "net_broadcast"];

/// A setting of a namespace.
fn sysctl(ns: &NetNs, key: &str) -> String {
    ns.exec("cat", &[&format!("/proc/sys/net/{key}")]).trim().to_owned()
}

/// Nothing is missing, nothing degraded: pods, services, the node's own processes, pods that come and go, the end.
#[test]
fn as_the_daemonset_runs_it() {
    let manifest = std::fs::read_to_string(INSTALL).expect("configs/k8s/install.yaml");
    let list = format!("add: [{}]", GIVEN.join(", ").to_uppercase());
    assert!(manifest.contains(&list), "{list}");
    let given = LabSpec { capabilities: Some(GIVEN), contained: true, by_api: true, ..spec(Encap::Vxlan) };
    let mut lab = Lab::start(given);
    let pid = lab.node_mut("a").daemon().pid();
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let effective = status.lines().find_map(|l| l.strip_prefix("CapEff:")).unwrap().trim();
    let bits = u64::from_str_radix(effective, 16).unwrap();
    assert_eq!(bits.count_ones() as usize, GIVEN.len(), "{effective}");
    let mounts = std::fs::read_to_string(format!("/proc/{pid}/mountinfo")).unwrap();
    let options = |at: &str| {
        let of = mounts.lines().rfind(|l| l.split(' ').nth(4) == Some(at)).unwrap_or_else(|| panic!("{at}"));
        of.split(' ').nth(5).unwrap().to_owned()
    };
    for at in ["/", "/sys", "/proc/sys"] {
        assert!(options(at).starts_with("ro"), "{at}: {mounts}");
    }

    everything_crosses(&lab, "a1", "b1");
    everything_crosses(&lab, "a1", "a2");
    let node = &lab.node("a").ns;
    assert_eq!(sysctl(node, "ipv4/conf/fp-host/rp_filter"), "2");
    assert_eq!(sysctl(node, "ipv4/conf/fp-host/accept_local"), "1");
    assert_eq!(sysctl(node, "ipv6/conf/fp-host-xdp/disable_ipv6"), "1");
    assert_ne!(sysctl(node, "ipv4/ip_local_reserved_ports"), "", "the ports of [snat]");
    let _server = Server::start(&lab.pod("b1").ns, "b1", PORT).unwrap();
    serve(&lab, |family| vec![pod(&lab, "b1", family)]);
    for family in Family::BOTH {
        let (own, to) = (lab.node("a"), lab.pod("b1"));
        must_reach(&own.ns, &to.ns, to.ip(family));
        must_answer(&own.ns, (to.ip(family), PORT).into(), "b1", own.ip(family));
        must_answer(&own.ns, (cluster_ip(family), 80).into(), "b1", own.ip(family));
    }
    for node in ["a", "b"] {
        let mut degraded = lab.node(node).cli().status().0["degraded"].clone();
        // The harness's own Node, which marks what has been seen, has no address.
        degraded.as_array_mut().unwrap().retain(|d| !d.as_str().unwrap().starts_with("node marker: "));
        assert_eq!(degraded, json!([]));
    }
    let name = lab.add_pod("a");
    everything_crosses(&lab, &name, "b1");
    lab.remove_pod(&name, true);

    what_is_told(&lab);
    what_was_asked(&mut lab);
    without_the_api(&mut lab);
    assert!(lab.node_mut("a").daemon().stop().success());
    let node = &lab.node("a").ns;
    assert!(node.link_json(UPLINK)["xdp"].is_null(), "the uplink is as before");
    assert_eq!(sysctl(node, "ipv4/ip_local_reserved_ports"), "");
}

/// A mistake in an object: a metric, and an Event on it.
fn what_is_told(lab: &Lab) {
    let samples = metrics(lab);
    assert_eq!(value(&samples, "fastpath_source_connected", &[]), 1.0);
    assert_eq!(value(&samples, "fastpath_source_synced", &[]), 1.0);
    assert_eq!(value(&samples, "fastpath_source_saved_state", &[]), 0.0);
    assert_eq!(value(&samples, "fastpath_source_lists_total", &[]), 6.0);
    assert_eq!(value(&samples, "fastpath_source_errors_total", &[]), 0.0);
    assert!(value(&samples, "fastpath_source_updates_total", &[]) > 0.0);
    assert!(value(&samples, "fastpath_source_last_contact_timestamp_seconds", &[]) > 1.7e9);
    let wrong = [("severity", "error"), ("kind", "Pod")];
    assert_eq!(value(&samples, "fastpath_source_problems", &wrong), 0.0);
    let mistake = json!({"apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": "wrong", "namespace": "default", "annotations": {"fastpath.io/mac": "nonsense"}},
        "spec": {"containers": [{"name": "c", "image": "none"}]}});
    lab.manifests.write("wrong.yaml", &mistake.to_string());
    eventually("it is counted, and told", PATIENCE, || {
        let samples = metrics(lab);
        let counted = value(&samples, "fastpath_source_problems", &wrong);
        // Either of the two daemons was the first to say it.
        let status = ["a", "b"].map(|n| lab.node(n).cli().status().0["source"]["reported"].as_u64());
        (counted == 1.0 && status.iter().flatten().sum::<u64>() == 1).then_some(())
    });
    lab.manifests.remove("wrong.yaml");
    eventually("it is well again", PATIENCE, || {
        (value(&metrics(lab), "fastpath_source_problems", &wrong) == 0.0).then_some(())
    });
}

/// By the audit log: nothing was refused, and everything that the role allows was done.
fn what_was_asked(lab: &mut Lab) {
    let mut used = BTreeSet::new();
    for event in lab.manifests.server().audit() {
        let code = event["responseStatus"]["code"].as_u64().unwrap_or(200);
        let decision = &event["annotations"]["authorization.k8s.io/decision"];
        assert!(code != 401 && code != 403 && *decision != "forbid", "{event:#}");
        let text = |v: &Value| v.as_str().unwrap_or_default().to_owned();
        let object = &event["objectRef"];
        assert!(object["subresource"].is_null(), "{event:#}");
        used.insert((text(&object["apiGroup"]), text(&object["resource"]), text(&event["verb"])));
    }
    let allowed =
        rights(false).into_iter().map(|r| (r.group.to_owned(), r.resource.to_owned(), r.verb.to_owned()));
    assert_eq!(used, allowed.collect());
}

/// Without the API the node stays ready, and the metrics tell.
fn without_the_api(lab: &mut Lab) {
    lab.manifests.server().kill_apiserver();
    eventually("it is told", PATIENCE * 4, || {
        let samples = metrics(lab);
        let away = value(&samples, "fastpath_source_connected", &[]) == 0.0;
        (away && value(&samples, "fastpath_source_errors_total", &[]) > 0.0).then_some(())
    });
    let (status, _, body) = ask(lab, "/readyz?verbose");
    assert!(status == 200 && body.contains("[+]source ok"), "{body}");
    assert!(ask(lab, "/livez?verbose").2.contains("[+]source ok"));
    everything_crosses(lab, "a1", "b1");
}
