//! The verbs one by one.

use std::collections::BTreeSet;
use std::net::IpAddr;

use serde_json::{Value, json};

use super::runtime::{Runtime, Sandbox, addresses, lab, talks};
use crate::harness::cli::rows;
use crate::harness::lab::Lab;
use crate::harness::spec::{LabSpec, NodeSpec};

/// ADD, CHECK, DEL in every version; the pod finds what the result says, and it talks to pods of its node and of another.
#[test]
fn added_pods_talk() {
    let lab = lab(&["a", "b"]);
    let (a, b) = (Runtime::of(lab.node("a")), Runtime::of(lab.node("b")));
    let (a1, a2, b1) = (a.pod(&lab, "a1"), a.pod(&lab, "a2"), b.pod(&lab, "b1"));
    let results = [a.add(&a1), a.add(&a2), b.add(&b1)];
    let [ip_a1, ip_a2, ip_b1] = results.each_ref().map(addresses);
    assert_eq!(ip_a1, ["10.77.1.2", "fd00:77:1::2"].map(|a| a.parse::<IpAddr>().unwrap()));
    assert_eq!(ip_b1, ["10.77.2.2", "fd00:77:2::2"].map(|a| a.parse::<IpAddr>().unwrap()));

    let eth0 = a1.ns.link_json("eth0");
    assert_eq!(eth0["mtu"], 1450, "the uplink's, less the tunnel");
    assert_eq!(eth0["address"], results[0]["interfaces"][1]["mac"]);
    assert_eq!(results[0]["interfaces"][1]["mtu"], 1450);
    let features = a1.ns.exec("ethtool", &["-k", "eth0"]);
    assert!(features.contains("tx-checksumming: off"), "{features}");
    let lo = a1.ns.link_json("lo");
    assert!(lo["flags"].as_array().unwrap().contains(&json!("UP")), "{lo}");
    let host = results[0]["interfaces"][0]["name"].as_str().unwrap();
    assert_eq!(lab.node("a").ns.link_json(host)["address"], results[0]["interfaces"][0]["mac"]);

    talks(&a1, &a2, &ip_a2);
    talks(&a1, &b1, &ip_b1);
    talks(&b1, &a2, &ip_a2);
    for (runtime, sandbox, result) in [(&a, &a1, &results[0]), (&a, &a2, &results[1]), (&b, &b1, &results[2])]
    {
        assert_eq!(runtime.check(sandbox, result).result(), Value::Null);
    }
    // As far as the daemon is concerned, all is well.
    let endpoints = rows(&lab.node("a").cli().json(&["show", "endpoints"]));
    assert_eq!(endpoints.len(), 2);
    assert!(endpoints.iter().all(|e| e["state"] == "attached"), "{endpoints:?}");

    for _ in 0..2 {
        a.del(&a1);
    }
    assert_eq!(a.holds().1, 1);
    assert_eq!(a.check(&a1, &results[0]).code(), 102);
    assert!(!super::runtime::connects(&b1, &a2, ip_a1[0]), "nobody has the address");
    talks(&b1, &a2, &ip_a2);
    a.del(&a2);
    b.del(&b1);
    a.holds_nothing();
    b.holds_nothing();
}

/// In generic mode pods must not send segments merged; and a pod's namespace is entered by the daemon too.
#[test]
fn in_generic_mode() {
    let nodes = vec![NodeSpec::fastpath("a", 0)];
    let lab = Lab::start(LabSpec { nodes, xdp_mode: "generic", cores: vec![0, 1], ..LabSpec::default() });
    let runtime = Runtime::of(lab.node("a"));
    let (p, q) = (runtime.pod(&lab, "p"), runtime.pod(&lab, "q"));
    runtime.add(&p);
    let ips = addresses(&runtime.add(&q));
    let features = p.ns.exec("ethtool", &["-k", "eth0"]);
    assert!(features.contains("tcp-segmentation-offload: off"), "{features}");
    assert_eq!(p.ns.link_json("eth0")["num_tx_queues"], 2, "as many as workers");
    talks(&p, &q, &ips);
    runtime.del(&p);
    runtime.del(&q);
    runtime.holds_nothing();
}

#[test]
fn every_version_of_the_spec() {
    let lab = lab(&["a"]);
    let runtime = Runtime::of(lab.node("a"));
    let versions = runtime.call("VERSION", None).result();
    assert_eq!(versions["supportedVersions"], json!(["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"]));
    for version in versions["supportedVersions"].as_array().unwrap() {
        let runtime = runtime.with("cniVersion", version.clone());
        assert_eq!(runtime.call("VERSION", None).result()["cniVersion"], *version);
        let pod = runtime.pod(&lab, "p");
        let result = runtime.add(&pod);
        assert_eq!(result["cniVersion"], *version);
        let old = version.as_str().unwrap().starts_with("0.");
        assert_eq!(result["ips"][0]["version"], if old { json!("4") } else { Value::Null });
        assert_eq!(runtime.check(&pod, &result).result(), Value::Null);
        runtime.del(&pod);
    }
    runtime.holds_nothing();
    assert_eq!(runtime.with("cniVersion", json!("9.9.9")).call("STATUS", None).code(), 1);
}

/// What is wrong with a call has the spec's code, and leaves nothing behind.
#[test]
fn mistakes_have_their_codes() {
    let lab = lab(&["a"]);
    let runtime = Runtime::of(lab.node("a"));
    let pod = runtime.pod(&lab, "p");
    let add_with = |key: &str, value: &str| {
        let mut command = runtime.command("ADD", Some(&pod));
        command.env(key, value);
        Runtime::finish(Runtime::start(&mut command, &runtime.conf)).code()
    };
    for (key, value, code) in [
        ("CNI_COMMAND", "UPDATE", 4),
        ("CNI_COMMAND", "", 4),
        ("CNI_CONTAINERID", "", 4),
        ("CNI_CONTAINERID", "../x", 4),
        ("CNI_IFNAME", "", 4),
        ("CNI_IFNAME", "a/b", 4),
        // `lo` is there already.
        ("CNI_IFNAME", "lo", 101),
        ("CNI_NETNS", "", 4),
        ("CNI_NETNS", "/run/netns/none-such", 3),
        ("CNI_NETNS", "/dev/null", 4),
        ("CNI_ARGS", "", 4),
    ] {
        assert_eq!(add_with(key, value), code, "{key}={value}");
    }
    let own = lab.node("a").ns.path();
    assert_eq!(add_with("CNI_NETNS", own.to_str().unwrap()), 4, "the node's own namespace");
    for (key, value, code) in [
        ("data_dir", json!("/var/lib/another"), 7),
        ("mtu", json!(9000), 7),
        ("ipam", json!({ "type": "none-such" }), 7),
        ("wait_ms", json!("soon"), 6),
        ("name", json!(""), 7),
    ] {
        assert_eq!(runtime.with(key, value.clone()).call("ADD", Some(&pod)).code(), code, "{key}: {value}");
    }
    assert_eq!(runtime.call("CHECK", Some(&pod)).code(), 7, "without prevResult");
    assert_eq!(runtime.call("GC", None).code(), 7, "without cni.dev/valid-attachments");
    runtime.holds_nothing();
    // A smaller MTU than fits is as good.
    let small = runtime.with("mtu", json!(1300));
    assert_eq!(small.add(&pod)["interfaces"][1]["mtu"], 1300);
    assert_eq!(pod.ns.link_json("eth0")["mtu"], 1300);
    small.del(&pod);
}

/// CHECK finds whatever was taken away.
#[test]
fn check_finds_what_is_broken() {
    let lab = lab(&["a"]);
    let runtime = Runtime::of(lab.node("a"));
    let pod = runtime.pod(&lab, "p");
    for (inside, line, says) in [
        (true, "addr del 10.77.1.{n}/32 dev eth0", "address"),
        (true, "route del default dev eth0", "default route"),
        (true, "route del ::/0 dev eth0", "default route"),
        (true, "link set eth0 down", "down"),
        (true, "link set eth0 name eth9", "no device"),
        (false, "link del {host}", "no device"),
    ] {
        let result = runtime.add(&pod);
        assert_eq!(runtime.check(&pod, &result).result(), Value::Null, "before {line}");
        let last = addresses(&result)[0].to_string();
        let last = last.rsplit('.').next().unwrap();
        let host = result["interfaces"][0]["name"].as_str().unwrap();
        let ns = if inside { &pod.ns } else { &lab.node("a").ns };
        ns.ip([line.replace("{n}", last).replace("{host}", host)]);
        let answer = runtime.check(&pod, &result);
        assert_eq!(answer.code(), 102, "{line}");
        let text = answer.json.to_string();
        assert!(text.contains(says), "{line}: {text}");
        runtime.del(&pod);
    }
    runtime.holds_nothing();
}

/// ADD again, without DEL, and an ADD whose namespace is another by then: the second counts, nothing is left of the first.
#[test]
fn added_twice() {
    let lab = lab(&["a"]);
    let runtime = Runtime::of(lab.node("a"));
    let (first, other) = (runtime.pod(&lab, "p"), runtime.pod(&lab, "q"));
    let ips = addresses(&runtime.add(&other));
    runtime.add(&first);
    let mut second = Sandbox::new("p");
    second.container.clone_from(&first.container);
    runtime.add(&second);
    talks(&second, &other, &ips);
    assert_eq!(runtime.holds().1, 2);
    runtime.gc(&[&second, &other]);
    assert_eq!(runtime.holds().1, 2, "both are to stay");
    runtime.gc(&[]);
    runtime.holds_nothing();
}

/// GC takes down what is not valid, and a leaked address and veth that no record names; not those of another network.
#[test]
fn gc_takes_what_leaked() {
    let lab = lab(&["a"]);
    let runtime = Runtime::of(lab.node("a"));
    let second = runtime.with("name", json!("second"));
    let (stays, goes, theirs) = (runtime.pod(&lab, "p"), runtime.pod(&lab, "q"), runtime.pod(&lab, "r"));
    let ips = addresses(&runtime.add(&stays));
    runtime.add(&goes);
    second.add(&theirs);
    lab.node("a").ns.ip(["link add fpc0123456789ab type veth peer name leaked"]);
    let ipam = fastpath_control::cni::ipam::Ipam::of(&runtime.data_dir);
    let key = fastpath_control::cni::record::Key { container: "gone".to_owned(), ifname: "eth0".to_owned() };
    let owner = fastpath_control::cni::ipam::Owner { network: "pods".to_owned(), key };
    ipam.allocate(&owner, &["10.77.1.0/24".parse().unwrap()], &BTreeSet::new()).unwrap();
    assert_eq!(runtime.holds().2, 7);
    // A record that makes no sense.
    std::fs::write(runtime.data_dir.join("endpoints/fpc0123456789ab.json"), "{}").unwrap();
    runtime.gc(&[&stays]);
    let (veths, records, addresses) = runtime.holds();
    assert_eq!((veths.len(), records, addresses), (2, 2, 4));
    talks(&theirs, &stays, &ips);
    second.gc(&[]);
    runtime.gc(&[]);
    runtime.holds_nothing();
}

/// STATUS: ready; no Node object; no daemon.
#[test]
fn status_says_whether_pods_can_come() {
    let mut lab = lab(&["a"]);
    let runtime = Runtime::of(lab.node("a"));
    assert_eq!(runtime.call("STATUS", None).result(), Value::Null);
    let node = std::fs::read_to_string(lab.manifests.dir().join("node-a.yaml")).unwrap();
    lab.manifests.remove("node-a.yaml");
    crate::traffic::eventually("the node is unknown", crate::traffic::PATIENCE, || {
        let answer = runtime.call("STATUS", None);
        (!answer.ok).then(|| assert_eq!(answer.code(), 50))
    });
    let pod = runtime.pod(&lab, "p");
    assert_eq!(runtime.call("ADD", Some(&pod)).code(), 11);
    lab.manifests.write("node-a.yaml", &node);
    crate::traffic::eventually("the node is known", crate::traffic::PATIENCE, || {
        runtime.call("STATUS", None).ok.then_some(())
    });
    lab.node_mut("a").daemon().kill();
    assert_eq!(runtime.call("STATUS", None).code(), 51);
    assert_eq!(runtime.call("ADD", Some(&pod)).code(), 11);
    runtime.holds_nothing();
}
