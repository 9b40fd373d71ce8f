//! Manifests read once: what each says, and what is said about wrong ones.

use std::net::IpAddr;
use std::path::Path;

use fastpath::packet::{Mac, proto};

use super::super::{Severity, Update, load_dir};
use super::Folder;
use crate::model::{ObjectName, Origin};

fn load(files: &[(&str, &str)]) -> Update {
    let dir = Folder::new();
    for (name, text) in files {
        dir.write(name, text);
    }
    let mut update = load_dir(dir.path()).expect("folder");
    // Names without the folder.
    let prefix = format!("{}/", dir.path().display());
    for p in &mut update.problems {
        p.reason = p.reason.replace(&prefix, "");
        if let Origin::File { path, .. } = &mut p.origin {
            *path = path.replace(&prefix, "").into();
        }
    }
    update
}

fn problems(u: &Update) -> Vec<String> {
    u.problems.iter().map(|p| format!("{} {p}", p.severity)).collect()
}

fn name(namespace: &str, name: &str) -> ObjectName {
    ObjectName { namespace: namespace.into(), name: name.into() }
}

fn ips(texts: &[&str]) -> Vec<IpAddr> {
    texts.iter().map(|t| t.parse().expect("address")).collect()
}

#[test]
fn demo_manifests_are_clean() {
    let demo = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../configs/demo"));
    let update = load_dir(&demo.join("manifests")).expect("folder");
    assert_eq!(problems(&update), Vec::<String>::new());
    let m = &update.model;
    assert_eq!((m.nodes.len(), m.namespaces.len(), m.pods.len()), (2, 1, 6));
    let live = load_dir(&demo.join("live")).expect("folder");
    assert_eq!(problems(&live), Vec::<String>::new());
    let a4 = &live.model.pods[&name("demo", "a4")];
    assert_eq!(a4.addresses, ips(&["10.77.1.14", "fd00:77:1::14"]));
    assert!(!m.pods.contains_key(&a4.name) && m.nodes.contains_key(a4.node.as_deref().expect("node")));
    for (node, pods) in [("node-a", ["a1", "a2", "a3"]), ("node-b", ["b1", "b2", "b3"])] {
        let config = crate::config::Config::load(&demo.join(format!("{node}.toml"))).expect("valid");
        assert_eq!(config.node_name().expect("given"), node);
        for pod in pods {
            let pod = &m.pods[&name("demo", pod)];
            assert_eq!(pod.node.as_deref(), Some(node));
            assert_eq!(pod.interface.as_deref(), Some(format!("fp-{}", pod.name.name).as_str()));
            for a in &pod.addresses {
                assert!(m.nodes[node].pod_cidrs.iter().any(|c| c.contains(a)), "{a}");
            }
        }
    }
}

#[test]
fn every_field_is_read() {
    let update = load(&[(
        "all.yml",
        r#"
apiVersion: v1
kind: Node
metadata:
  name: n1
  labels: {zone: a}
  annotations:
    projectcalico.org/VXLANTunnelMACAddr: "66:00:00:00:00:01"
    flannel.alpha.coreos.com/backend-data: '{"VNI":1,"VtepMAC":"66:00:00:00:00:02"}'
    flannel.alpha.coreos.com/backend-v6-data: '{"VNI":1,"VtepMAC":"66:00:00:00:00:03"}'
spec:
  podCIDR: 10.1.0.0/24
  podCIDRs: [10.1.0.9/24, "fd00:1::/64"]
status:
  addresses:
  - {type: ExternalIP, address: 203.0.113.1}
  - {type: InternalIP, address: 192.168.0.1}
  - {type: InternalIP, address: "fd77::1"}
---
apiVersion: v1
kind: Node
metadata: {name: n2, annotations: {fastpath.io/vtep-mac: "02:00:00:00:00:02", flannel.alpha.coreos.com/backend-data: "null"}}
spec: {podCIDR: 10.2.0.0/24}
---
apiVersion: v1
kind: Namespace
metadata: {name: web, labels: {team: x}}
---
apiVersion: v1
kind: Pod
metadata:
  name: p
  namespace: web
  labels: {app: front, tier: "1"}
  annotations: {fastpath.io/interface: veth0, fastpath.io/mac: "0a:00:00:00:00:01"}
spec:
  nodeName: n1
  initContainers:
  - {name: init, ports: [{name: skip, containerPort: 1}]}
  containers:
  - name: a
    ports:
    - {name: http, containerPort: 80}
    - {name: dns, containerPort: 53, protocol: UDP}
    - {containerPort: 9}
  - name: b
    ports: [{name: sig, containerPort: 2905, protocol: SCTP}]
status:
  phase: Running
  podIP: 10.1.0.5
  podIPs: [{ip: 10.1.0.5}, {ip: "fd00:1::5"}, {ip: 10.1.0.5}]
---
{"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "h"}, "spec": {"hostNetwork": true}, "status": {"podIP": "192.168.0.1"}}
---
apiVersion: v1
kind: Pod
metadata: {name: done}
status: {phase: Succeeded, podIP: 10.1.0.5}
"#,
    )]);
    assert_eq!(problems(&update), Vec::<String>::new());
    let m = &update.model;
    let n1 = &m.nodes["n1"];
    assert_eq!(n1.addresses, ips(&["192.168.0.1", "fd77::1"]));
    let cidrs: Vec<String> = n1.pod_cidrs.iter().map(ToString::to_string).collect();
    assert_eq!(cidrs, ["10.1.0.0/24", "fd00:1::/64"]);
    assert_eq!(n1.vtep_mac_v4, Some(Mac([0x66, 0, 0, 0, 0, 1])));
    assert_eq!(n1.vtep_mac_v6, Some(Mac([0x66, 0, 0, 0, 0, 3])));
    assert_eq!(n1.labels, [("zone".to_owned(), "a".to_owned())].into());
    let n2 = &m.nodes["n2"];
    assert_eq!(
        (n2.vtep_mac_v4, n2.vtep_mac_v6),
        (Some(Mac([2, 0, 0, 0, 0, 2])), Some(Mac([2, 0, 0, 0, 0, 2])))
    );
    assert_eq!(n2.pod_cidrs.len(), 1);
    assert_eq!(m.namespaces["web"].labels["kubernetes.io/metadata.name"], "web");
    assert_eq!(m.namespaces["web"].labels["team"], "x");
    // "default" has no manifest but pods.
    assert_eq!(m.namespaces["default"].origin, Origin::Implied);
    assert_eq!(m.namespaces["default"].labels["kubernetes.io/metadata.name"], "default");
    let p = &m.pods[&name("web", "p")];
    assert_eq!(p.addresses, ips(&["10.1.0.5", "fd00:1::5"]));
    assert_eq!(p.labels["tier"], "1");
    assert_eq!((p.interface.as_deref(), p.mac), (Some("veth0"), Some(Mac([10, 0, 0, 0, 0, 1]))));
    let ports = [("http", proto::TCP, 80), ("dns", proto::UDP, 53), ("sig", proto::SCTP, 2905)];
    assert_eq!(p.ports, ports.map(|(n, p, number)| (n.to_owned(), p, number)).into());
    assert!(!p.host_network && !p.finished && p.node.as_deref() == Some("n1"));
    assert!(m.pods[&name("default", "h")].host_network);
    assert!(m.pods[&name("default", "done")].finished);
    assert!(
        matches!(&p.origin, Origin::File { path, line: 29, .. } if path.ends_with("all.yml")),
        "{}",
        p.origin
    );
}

#[test]
fn lists_are_opened() {
    let update = load(&[
        (
            "a.yaml",
            "apiVersion: v1\nkind: List\nitems:\n- apiVersion: v1\n  kind: Pod\n  metadata: {name: a}\n- apiVersion: v1\n  kind: PodList\n  items:\n  - metadata: {name: b}\n",
        ),
        (
            "b.json",
            "{\"kind\": \"NodeList\", \"apiVersion\": \"v1\", \"metadata\": {},\n\"items\": [\n{\"metadata\": {\"name\": \"n\"}},\n{\"metadata\": {\"name\": \"N\"}}]}",
        ),
        (
            "c.yaml",
            "apiVersion: v1\nkind: List\nitems:\n- apiVersion: v1\n  kind: Pod\n  metadata:\n    name: bad\n  status:\n    podIP: x\n- 5\n",
        ),
        ("d.yaml", "apiVersion: v1\nkind: List\nitems: 5\n---\napiVersion: v1\nkind: List\nitems:\n"),
    ]);
    assert_eq!(update.model.pods.len(), 2);
    assert_eq!(update.model.nodes.len(), 1);
    assert_eq!(
        problems(&update),
        [
            "error b.json:4: metadata.name: \"N\" is not an RFC 1123 subdomain (at most 253 of a-z, 0-9, '-' and '.')",
            "error c.yaml:9: status.podIP: \"x\" is not an IPv4 or IPv6 address",
            "error c.yaml:10: not a Kubernetes object: want a mapping",
            "error d.yaml:3: items: want a list",
        ]
    );
}

#[test]
fn mistakes_name_file_line_part_and_reason() {
    let pod = "apiVersion: v1\nkind: Pod\nmetadata:\n  name: p\n";
    let node = "apiVersion: v1\nkind: Node\nmetadata:\n  name: n\n";
    let cases: &[(&str, &str, &[&str])] = &[
        (
            pod,
            "status:\n  podIP: 10.0.0.256\n",
            &["error x.yaml:6: status.podIP: \"10.0.0.256\" is not an IPv4 or IPv6 address"],
        ),
        (
            pod,
            "status:\n  podIP: 127.0.0.1\n",
            &["error x.yaml:6: status.podIP: 127.0.0.1 is not an address a packet can be routed to"],
        ),
        (pod, "status:\n  podIP: fe80::1\n", &["not an address a packet can be routed to"]),
        (pod, "status:\n  podIP: ::ffff:10.0.0.1\n", &["not an address a packet can be routed to"]),
        (
            pod,
            "status:\n  podIPs:\n  - ip: 10.0.0.1\n  - ip: nonsense\n  - ip: 0.0.0.0\n",
            &[
                "error x.yaml:8: status.podIPs[1].ip: \"nonsense\"",
                "error x.yaml:9: status.podIPs[2].ip: 0.0.0.0",
            ],
        ),
        (
            pod,
            "status:\n  podIPs: 5\n",
            &["error x.yaml:6: status.podIPs: invalid type: integer `5`, expected a sequence"],
        ),
        (
            pod,
            "spec:\n  nodeName: 7\n",
            &[
                "error x.yaml:6: spec.nodeName: invalid type: integer `7`, expected a string (put it in quotes)",
            ],
        ),
        (
            pod,
            "  labels:\n    on: yes\n",
            &[
                "error x.yaml:6: metadata.labels.true: invalid type: boolean `true`, expected a string (put it in quotes)",
            ],
        ),
        (
            pod,
            "  annotations:\n    fastpath.io/mac: 1:2\n",
            &["error x.yaml:6: metadata.annotations.fastpath.io/mac: \"1:2\" is not a MAC address"],
        ),
        (
            pod,
            "  annotations:\n    fastpath.io/mac: 00:+1:00:00:00:00\n",
            &[
                "error x.yaml:6: metadata.annotations.fastpath.io/mac: \"00:+1:00:00:00:00\" is not a MAC address",
            ],
        ),
        (pod, "  annotations:\n    fastpath.io/mac: ff:ff:ff:ff:ff:ff\n", &["is not a unicast MAC address"]),
        (
            pod,
            "  annotations:\n    fastpath.io/interface: a/b\n",
            &["error x.yaml:6: metadata.annotations.fastpath.io/interface: a device name has"],
        ),
        (
            pod,
            "spec:\n  containers:\n  - name: c\n    ports:\n    - containerPort: 70000\n    - containerPort: 1\n      protocol: GRE\n",
            &[
                "error x.yaml:9: spec.containers[0].ports[0].containerPort: 70000 is not a port",
                "error x.yaml:11: spec.containers[0].ports[1].protocol: \"GRE\" is not one of TCP, UDP, SCTP",
            ],
        ),
        (
            pod,
            "spec:\n  nodName: n\n  containers:\n  - name: c\n    imagee: x\n",
            &[
                "warning x.yaml:6: spec.nodName: unknown field, ignored",
                "warning x.yaml:9: spec.containers[0].imagee: unknown field, ignored",
            ],
        ),
        (pod, "  name: q\n", &["error x.yaml:5: YAML: key \"name\" is there twice, first on line 4"]),
        (pod, "  x: [\n", &["error x.yaml:5: YAML: "]),
        (
            node,
            "spec:\n  podCIDRs:\n  - 10.0.0.0/33\n",
            &["error x.yaml:7: spec.podCIDRs[0]: \"10.0.0.0/33\" is not a CIDR"],
        ),
        (node, "spec:\n  podCIDR: 10.0.0.0\n", &["error x.yaml:6: spec.podCIDR: \"10.0.0.0\" is not a CIDR"]),
        (
            node,
            "status:\n  addresses:\n  - type: InternalIP\n    address: node\n",
            &["error x.yaml:8: status.addresses[0].address: \"node\""],
        ),
        (
            node,
            "  annotations:\n    flannel.alpha.coreos.com/backend-data: x\n",
            &[
                "error x.yaml:6: metadata.annotations.flannel.alpha.coreos.com/backend-data: \"x\" is not JSON",
            ],
        ),
        ("apiVersion: v1\nkind: Pod\n", "metadata: {}\n", &["error x.yaml:3: metadata.name: is missing"]),
        ("apiVersion: v1\nkind: Pod\n", "", &["error x.yaml:1: metadata.name: is missing"]),
        ("kind: Pod\n", "", &["error x.yaml:1: not a Kubernetes object: apiVersion is missing"]),
        ("\n\napiVersion: v1\n", "", &["error x.yaml:3: not a Kubernetes object: kind is missing"]),
        ("- a\n", "", &["error x.yaml:1: not a Kubernetes object: want a mapping"]),
        ("# comment\n---\n---\n# nothing\n", "", &[]),
        (
            "apiVersion: v2\nkind: Pod\n",
            "metadata: {name: p}\n",
            &["error x.yaml:1: apiVersion: \"v2\" of Pod is not known; want v1"],
        ),
        (
            "# c\napiVersion: apps/v1\nkind: Deployment\n",
            "",
            &["ignored x.yaml:2: apps/v1 Deployment is not used by the dataplane"],
        ),
        (
            "apiVersion: v1\nkind: Namespace\nmetadata:\n",
            "  name: a.b\n",
            &["error x.yaml:4: metadata.name: \"a.b\" is not an RFC 1123 label"],
        ),
        (pod, "  namespace: A\n", &["error x.yaml:5: metadata.namespace: \"A\""]),
    ];
    for (head, tail, want) in cases {
        let text = format!("{head}{tail}");
        let update = load(&[("x.yaml", &text)]);
        let got = problems(&update);
        assert_eq!(got.len(), want.len(), "{text}\n{got:#?}");
        for (g, w) in got.iter().zip(*want) {
            assert!(g.contains(w), "{text}\n got: {g}\nwant: {w}");
        }
        let bad = update.problems.iter().any(|p| p.severity == Severity::Error);
        assert!(!bad || update.model.pods.is_empty() && update.model.nodes.is_empty(), "{text}");
    }
}

#[test]
fn a_bad_document_hides_no_other() {
    let update = load(&[
        (
            "a.yaml",
            "apiVersion: v1\nkind: Pod\nmetadata: {name: a}\n---\nfoo: [\n---\napiVersion: v1\nkind: Pod\nmetadata: {name: b}\n...\n%YAML 1.2\n---\napiVersion: v1\nkind: Pod\nmetadata: {name: c}\n",
        ),
        ("b.yaml", "apiVersion: v1\nkind: Pod\nmetadata: {name: d}\n"),
    ]);
    assert_eq!(update.model.pods.keys().map(|k| k.name.as_str()).collect::<Vec<_>>(), ["a", "b", "c", "d"]);
    assert_eq!(problems(&update).len(), 1);
    assert!(problems(&update)[0].starts_with("error a.yaml:5: YAML: "), "{:?}", problems(&update));
}

#[test]
fn duplicates_and_conflicts() {
    let pod = |name: &str, ip: &str, dev: &str| {
        format!(
            "---\napiVersion: v1\nkind: Pod\nmetadata:\n  name: {name}\n  annotations: {{fastpath.io/interface: {dev}}}\nspec: {{nodeName: n1}}\nstatus: {{podIP: {ip}}}\n"
        )
    };
    let node = |name: &str, ip: &str, cidr: &str| {
        format!(
            "---\napiVersion: v1\nkind: Node\nmetadata: {{name: {name}}}\nspec: {{podCIDR: {cidr}}}\nstatus: {{addresses: [{{type: InternalIP, address: {ip}}}]}}\n"
        )
    };
    let a = pod("a", "10.0.0.1", "v1") + &pod("z", "10.0.0.2", "v2");
    let b = pod("b", "10.0.0.1", "v1") + &pod("z", "10.0.0.3", "v3") + &pod("c", "192.168.0.1", "v4");
    let n = node("n1", "192.168.0.1", "10.0.0.0/16")
        + &node("n2", "192.168.0.1", "10.0.5.0/24")
        + &node("n3", "192.168.0.3", "10.1.0.0/16");
    let update = load(&[("a.yaml", &a), ("b.yaml", &b), ("n.yaml", &n)]);
    assert_eq!(
        problems(&update),
        [
            "warning b.yaml:2: address 10.0.0.1 belongs to Pod default/a (a.yaml:2); Pod default/b is not given it",
            "warning b.yaml:2: interface v1 belongs to Pod default/a (a.yaml:2); Pod default/b is not given it",
            "error b.yaml:10: Pod default/z is there twice, also at a.yaml:10; this one is not in force",
            "warning b.yaml:18: address 192.168.0.1 belongs to Node n1 (n.yaml:2); Pod default/c is not given it",
            "warning n.yaml:8: address 192.168.0.1 is also that of Node n1 (n.yaml:2)",
            "warning n.yaml:8: pod CIDR 10.0.5.0/24 of Node n2 overlaps 10.0.0.0/16 of Node n1",
        ]
    );
    let m = &update.model;
    assert_eq!(m.pods[&name("default", "a")].addresses, ips(&["10.0.0.1"]));
    assert_eq!(m.pods[&name("default", "b")].addresses, ips(&[]));
    assert_eq!(m.pods[&name("default", "b")].interface, None);
    assert_eq!(m.pods[&name("default", "z")].addresses, ips(&["10.0.0.2"]));
}

#[test]
fn anchors_merge_keys_and_tags() {
    let update = load(&[(
        "x.yaml",
        "apiVersion: v1\nkind: Pod\nmetadata:\n  name: &n a\n  labels: &l\n    app: web\n    tier: x\n  annotations:\n    <<: [*l, {more: \"1\"}]\n    tier: \"own\"\n    alias: *n\n    tagged: !!str 5\n",
    )]);
    // Annotations are not in the model: the pod is read, so every value was text.
    assert_eq!(problems(&update), Vec::<String>::new());
    assert_eq!(update.model.pods.len(), 1);
}

#[test]
fn files_that_are_none_of_ours() {
    let dir = Folder::new();
    dir.write(".hidden.yaml", "nonsense: [");
    dir.write("notes.txt", "nonsense: [");
    dir.write("empty.yaml", "");
    dir.write("binary.yaml", "");
    std::fs::write(dir.path().join("binary.yaml"), b"a: 1\nb: \xff\n").expect("write");
    std::fs::create_dir(dir.path().join("folder.yaml")).expect("mkdir");
    nix::unistd::mkfifo(&dir.path().join("pipe.yaml"), nix::sys::stat::Mode::S_IRUSR).expect("mkfifo");
    std::os::unix::fs::symlink("/nonexistent", dir.path().join("dangling.yaml")).expect("symlink");
    let update = load_dir(dir.path()).expect("folder");
    let got: Vec<String> = update
        .problems
        .iter()
        .map(|p| p.to_string().replace(&format!("{}/", dir.path().display()), ""))
        .collect();
    assert_eq!(
        got,
        [
            "binary.yaml: line 2 is not UTF-8 text",
            "dangling.yaml: cannot be read: No such file or directory (os error 2)",
            "pipe.yaml: is not a regular file",
        ]
    );
    // One file instead of a folder; none at all.
    assert!(load_dir(&dir.path().join("empty.yaml")).expect("file").problems.is_empty());
    let missing = load_dir(&dir.path().join("none")).expect_err("missing").to_string();
    assert!(missing.contains("none: cannot be read: No such file"), "{missing}");
}

#[test]
fn annotations_of_other_network_plugins() {
    let node = |annotations: &str| {
        format!(
            "apiVersion: v1\nkind: Node\nmetadata:\n  name: n\n  annotations:\n{annotations}spec:\n  podCIDRs: \
             [10.1.0.0/24, \"fd00:1::/64\"]\n"
        )
    };
    let calico = "    projectcalico.org/IPv4Address: 192.0.2.1/24
    projectcalico.org/IPv6Address: '2001:db8::1/64'
    projectcalico.org/IPv4VXLANTunnelAddr: 10.9.0.1
    projectcalico.org/IPv6VXLANTunnelAddr: 'fd00:9::1'
    flannel.alpha.coreos.com/public-ip: 192.0.2.9
";
    let flannel = "    flannel.alpha.coreos.com/public-ip: 192.0.2.2
    flannel.alpha.coreos.com/public-ip-overwrite: 192.0.2.3
    flannel.alpha.coreos.com/public-ipv6: '2001:db8::2'
    flannel.alpha.coreos.com/backend-data: '{\"VNI\":1,\"VtepMAC\":\"66:00:00:00:00:01\"}'
    flannel.alpha.coreos.com/backend-v6-data: 'null'
";
    for (annotations, v4, v6, inside) in [
        (calico, "192.0.2.1", "2001:db8::1", &["10.9.0.1", "fd00:9::1"][..]),
        (flannel, "192.0.2.3", "2001:db8::2", &["10.1.0.0"][..]),
    ] {
        let update = load(&[("n.yaml", &node(annotations))]);
        assert_eq!(problems(&update), Vec::<String>::new());
        let n = &update.model.nodes["n"];
        assert_eq!([n.vtep_v4, n.vtep_v6].map(Option::unwrap).to_vec(), ips(&[v4, v6]));
        assert_eq!(n.tunnel_addresses, ips(inside));
    }
    for (key, value) in [
        ("projectcalico.org/IPv4Address", "2001:db8::1"),
        ("projectcalico.org/IPv4Address", "eth0"),
        ("projectcalico.org/IPv6VXLANTunnelAddr", "10.0.0.1"),
        ("flannel.alpha.coreos.com/public-ip-overwrite", "127.0.0.1"),
    ] {
        let update = load(&[("n.yaml", &node(&format!("    {key}: '{value}'\n")))]);
        let problems = problems(&update);
        assert!(
            problems.len() == 1 && problems[0].contains(key) && problems[0].contains("n.yaml:6"),
            "{problems:?}"
        );
    }
}

/// The runtime knows a static pod by the uid that its mirror names.
#[test]
fn a_mirror_has_the_uid_of_its_static_pod() {
    for (annotations, want) in [("{}", "u-api"), ("{kubernetes.io/config.mirror: u-static}", "u-static")] {
        let text = format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: p, uid: u-api, annotations: {annotations}}}\nspec: {{nodeName: a}}\n"
        );
        let update = load(&[("p.yaml", &text)]);
        let pod = &update.model.pods[&name("default", "p")];
        assert_eq!((pod.uid.as_deref(), problems(&update)), (Some(want), vec![]));
    }
}

#[test]
fn host_ports_are_read() {
    let pod = |spec: &str| {
        let text = format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: p}}\nspec: {{nodeName: a, {spec}}}\nstatus: {{podIP: 10.0.0.1}}\n"
        );
        let update = load(&[("p.yaml", &text)]);
        let ports = update.model.pods.get(&name("default", "p")).map(|p| {
            let text = |h: &crate::model::HostPort| {
                let address = h.address.map_or_else(|| "*".to_owned(), |a| a.to_string());
                format!("{address} {} {}->{}", h.protocol, h.port, h.target)
            };
            p.host_ports.iter().map(text).collect::<Vec<_>>()
        });
        (ports, problems(&update))
    };
    let port = |fields: &str| format!("containers: [{{name: c, ports: [{{containerPort: 80{fields}}}]}}]");
    for (fields, want) in [
        ("", None),
        (", hostPort: 0", None),
        (", hostPort: 8080", Some("* TCP 8080->80")),
        (", hostPort: 53, protocol: UDP", Some("* UDP 53->80")),
        (", hostPort: 53, hostIP: ''", Some("* TCP 53->80")),
        (", hostPort: 53, hostIP: 0.0.0.0", Some("0.0.0.0 TCP 53->80")),
        (", hostPort: 53, hostIP: '2001:db8::1'", Some("2001:db8::1 TCP 53->80")),
    ] {
        let want: Vec<String> = want.into_iter().map(str::to_owned).collect();
        assert_eq!(pod(&port(fields)), (Some(want), vec![]), "{fields}");
    }
    let (ports, _) = pod(&format!("hostNetwork: true, {}", port(", hostPort: 80")));
    assert_eq!(ports, Some(vec![]), "a pod on the host network has its ports itself");
    for (fields, said) in [
        (", hostPort: 70000", "hostPort: 70000 is not a port from 1 to 65535"),
        (", hostPort: 80, hostIP: nowhere", "hostIP"),
    ] {
        let (ports, said_is) = pod(&port(fields));
        assert!(ports.is_none() && said_is.iter().any(|p| p.contains(said)), "{fields}: {said_is:?}");
    }
}
