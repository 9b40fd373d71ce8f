//! A container runtime, as far as networks go: sandboxes, and calls of the plugin by environment and standard input.

use std::collections::BTreeSet;
use std::io::Write as _;
use std::net::IpAddr;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use fastpath_control::cni::ipam::Ipam;
use fastpath_control::cni::record::{Store, is_our_device};
use serde_json::{Value, json};

use crate::harness::cli::BINARY;
use crate::harness::lab::Lab;
use crate::harness::manifest::node_name;
use crate::harness::node::Node;
use crate::harness::ns::NetNs;
use crate::harness::spec::{LabSpec, NodeSpec};
use crate::traffic::{PATIENCE, icmp, tcp, udp};

static NEXT: AtomicU32 = AtomicU32::new(0);

/// A lab of nodes without pods: the plugin makes them.
pub(crate) fn lab(nodes: &[&'static str]) -> Lab {
    let nodes = nodes.iter().map(|n| NodeSpec::fastpath(n, 0)).collect();
    Lab::start(LabSpec { nodes, ..LabSpec::default() })
}

/// A pod's sandbox: a namespace, empty until ADD.
#[derive(Debug)]
pub(crate) struct Sandbox {
    /// Its namespace.
    pub(crate) ns: NetNs,
    /// Container id.
    pub(crate) container: String,
    /// Name of its pod.
    pub(crate) pod: String,
    /// `K8S_POD_UID`.
    pub(crate) uid: Option<String>,
}

impl Sandbox {
    /// For pod `pod` of namespace `default`.
    pub(crate) fn new(pod: &str) -> Self {
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let ns = NetNs::create(&format!("fplab-{}-cni-{number}-{pod}", std::process::id()));
        // As the kernel makes them, without what the lab sets for its own pods.
        ns.ip(["link set lo down"]);
        for key in ["accept_dad", "dad_transmits", "accept_ra"] {
            ns.sysctl(&format!("ipv6/conf/default/{key}"), "1");
        }
        Sandbox {
            ns,
            container: format!("{:08x}{number:08x}", std::process::id()),
            pod: pod.to_owned(),
            uid: None,
        }
    }
}

/// How a call ended.
#[derive(Debug)]
pub(crate) struct Answer {
    /// Exit code was zero.
    pub(crate) ok: bool,
    /// Standard output as JSON; null when there was none.
    pub(crate) json: Value,
}

impl Answer {
    fn of(output: &Output) -> Self {
        let json = if output.stdout.is_empty() {
            Value::Null
        } else {
            serde_json::from_slice(&output.stdout)
                .unwrap_or_else(|e| panic!("{e}: {}", String::from_utf8_lossy(&output.stdout)))
        };
        Answer { ok: output.status.success(), json }
    }

    /// The result of a call that must succeed.
    pub(crate) fn result(self) -> Value {
        assert!(self.ok, "{}", self.json);
        self.json
    }

    /// The error code of a call that must fail.
    pub(crate) fn code(&self) -> u64 {
        assert!(!self.ok, "succeeded: {}", self.json);
        assert!(self.json["msg"].as_str().is_some_and(|m| !m.is_empty()), "{}", self.json);
        self.json["code"].as_u64().unwrap_or_else(|| panic!("no code: {}", self.json))
    }
}

/// The addresses of a result.
pub(crate) fn addresses(result: &Value) -> Vec<IpAddr> {
    let rows = result["ips"].as_array().expect("ips");
    let address = |row: &Value| row["address"].as_str().unwrap().split('/').next().unwrap().parse().unwrap();
    rows.iter().map(address).collect()
}

/// The container runtime of a node.
#[derive(Clone, Debug)]
pub(crate) struct Runtime {
    netns: PathBuf,
    /// The node's `daemon.data_dir`.
    pub(crate) data_dir: PathBuf,
    node: String,
    /// The network configuration, without what differs by call.
    pub(crate) conf: Value,
}

impl Runtime {
    /// Of a node.
    pub(crate) fn of(node: &Node) -> Self {
        Runtime {
            netns: node.ns.path(),
            data_dir: node.data_dir.clone(),
            node: node_name(node.spec.name),
            conf: json!({
                "cniVersion": "1.1.0",
                "name": "pods",
                "type": "fastpath-cni",
                "state_dir": node.state_dir,
                "data_dir": node.data_dir,
            }),
        }
    }

    /// The same with one key of the configuration changed.
    pub(crate) fn with(&self, key: &str, value: Value) -> Self {
        let mut other = self.clone();
        other.conf[key] = value;
        other
    }

    /// The plugin, about to be called for a sandbox.
    pub(crate) fn command(&self, verb: &str, sandbox: Option<&Sandbox>) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={}", self.netns.display())).args(["--", BINARY.as_str(), "cni"]);
        command.env("CNI_COMMAND", verb).env("CNI_PATH", "/opt/cni/bin:/usr/lib/cni");
        if let Some(sandbox) = sandbox {
            let uid = sandbox.uid.as_ref().map(|u| format!(";K8S_POD_UID={u}")).unwrap_or_default();
            command
                .env("CNI_CONTAINERID", &sandbox.container)
                .env("CNI_NETNS", sandbox.ns.path())
                .env("CNI_IFNAME", "eth0")
                .env(
                    "CNI_ARGS",
                    format!("IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME={}{uid}", sandbox.pod),
                );
        }
        command
    }

    /// Starts a call, with `conf` on standard input.
    pub(crate) fn start(command: &mut Command, conf: &Value) -> Child {
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .spawn()
            .expect("nsenter starts (package util-linux)");
        // One that was killed, or that needs no configuration, does not read it.
        drop(child.stdin.take().expect("stdin is piped").write_all(conf.to_string().as_bytes()));
        child
    }

    /// Calls it to its end.
    pub(crate) fn call(&self, verb: &str, sandbox: Option<&Sandbox>) -> Answer {
        Self::finish(Self::start(&mut self.command(verb, sandbox), &self.conf))
    }

    /// Waits for the end of a call.
    pub(crate) fn finish(child: Child) -> Answer {
        Answer::of(&child.wait_with_output().expect("the plugin ends"))
    }

    /// ADD that must succeed.
    pub(crate) fn add(&self, sandbox: &Sandbox) -> Value {
        self.call("ADD", Some(sandbox)).result()
    }

    /// DEL that must succeed.
    pub(crate) fn del(&self, sandbox: &Sandbox) {
        assert_eq!(self.call("DEL", Some(sandbox)).result(), Value::Null);
    }

    /// CHECK with the result of ADD.
    pub(crate) fn check(&self, sandbox: &Sandbox, result: &Value) -> Answer {
        self.with("prevResult", result.clone()).call("CHECK", Some(sandbox))
    }

    /// GC that must succeed: only these are to stay.
    pub(crate) fn gc(&self, valid: &[&Sandbox]) {
        let row = |s: &&Sandbox| json!({ "containerID": s.container, "ifname": "eth0" });
        let valid: Vec<Value> = valid.iter().map(row).collect();
        assert_eq!(
            self.with("cni.dev/valid-attachments", json!(valid)).call("GC", None).result(),
            Value::Null
        );
    }

    /// The manifest of a pod of this node, as the API would show it at the time of ADD: no address, no device.
    pub(crate) fn manifest(&self, pod: &str, uid: Option<&str>) -> String {
        let uid = uid.map(|u| format!("\n  uid: {u}")).unwrap_or_default();
        let node = &self.node;
        format!(
            "apiVersion: v1\nkind: Pod\nmetadata:\n  name: {pod}\n  namespace: default{uid}\n  labels:\n    app: {pod}\n\
             spec:\n  nodeName: {node}\n  containers:\n  - name: main\n    image: none\nstatus:\n  phase: Pending\n"
        )
    }

    /// Makes a pod known, and its sandbox.
    pub(crate) fn pod(&self, lab: &Lab, pod: &str) -> Sandbox {
        lab.manifests.write(&format!("pod-{pod}.yaml"), &self.manifest(pod, None));
        Sandbox::new(pod)
    }

    /// What the node holds of attachments: (veths, records, addresses).
    pub(crate) fn holds(&self) -> (BTreeSet<String>, usize, usize) {
        let out = Command::new("nsenter")
            .arg(format!("--net={}", self.netns.display()))
            .args(["--", "ip", "-j", "link", "show", "type", "veth"])
            .output()
            .expect("ip(8) starts");
        let links: Value = serde_json::from_slice(&out.stdout).expect("ip -j prints JSON");
        let names = links.as_array().unwrap().iter().filter_map(|l| l["ifname"].as_str());
        let veths = names.filter(|n| is_our_device(n)).map(str::to_owned).collect();
        let (records, wrong) = Store::of(&self.data_dir).all().unwrap();
        assert!(wrong.is_empty(), "{wrong:?}");
        (veths, records.len(), Ipam::of(&self.data_dir).read().unwrap().taken().count())
    }

    /// Panics unless nothing is left of any attachment.
    pub(crate) fn holds_nothing(&self) {
        assert_eq!(self.holds(), (BTreeSet::new(), 0, 0));
    }
}

/// TCP, UDP and ICMP from one sandbox to addresses of another.
pub(crate) fn talks(from: &Sandbox, to: &Sandbox, addresses: &[IpAddr]) {
    for ip in addresses {
        let what = format!("{} to {} at {ip}", from.pod, to.pod);
        assert!(icmp::reachable(&from.ns, *ip), "{what}: ICMP echo");
        // What fits the smallest of the labs' MTUs, and more than fits one frame merged.
        udp::exchange(&from.ns, &to.ns, *ip, &[8, 512, 1380]).unwrap_or_else(|e| panic!("{what}: UDP: {e}"));
        tcp::transfer(&from.ns, &to.ns, *ip, 500_000, 500_000).unwrap_or_else(|e| panic!("{what}: TCP: {e}"));
    }
    assert_eq!(addresses.len(), 2, "one of each family: {addresses:?}");
}

/// Whether a TCP connection to `ip` is opened.
pub(crate) fn connects(from: &Sandbox, to: &Sandbox, ip: IpAddr) -> bool {
    let listener = tcp::listen(&to.ns, ip).expect("listen");
    let target = (ip, listener.local_addr().expect("its port").port()).into();
    from.ns.run(|| std::net::TcpStream::connect_timeout(&target, PATIENCE / 5)).is_ok()
}
