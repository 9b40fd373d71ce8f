//! With programs of others: the reference runtime `cnitool`, and the reference IPAM plugin `host-local`.

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::json;

use super::runtime::{Runtime, addresses, lab, talks};
use crate::harness::cli::BINARY;
use crate::harness::lab::Lab;

/// `cnitool`, built by scripts/test.sh.
fn cnitool() -> PathBuf {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/tools/bin/cnitool");
    assert!(path.exists(), "{}: scripts/test.sh builds it", path.display());
    path
}

/// `host-local`, of Debian's package containernetworking-plugins.
const HOST_LOCAL: &str = "/usr/lib/cni/host-local";

/// The shipped conflist, for this lab's node, through libcni.
#[test]
fn cnitool_and_the_shipped_conflist() {
    let lab = lab(&["a"]);
    let runtime = Runtime::of(lab.node("a"));
    let (conf, bin) = (lab.root().join("net.d"), lab.root().join("bin"));
    std::fs::create_dir_all(&conf).unwrap();
    std::fs::create_dir_all(&bin).unwrap();
    std::os::unix::fs::symlink(&*BINARY, bin.join("fastpath-cni")).unwrap();
    let shipped = Path::new(env!("CARGO_MANIFEST_DIR")).join("../configs/cni/10-fastpath.conflist");
    let text = std::fs::read_to_string(shipped).unwrap();
    let mut list: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(list["plugins"][0]["type"], "fastpath-cni");
    let name = list["name"].as_str().unwrap().to_owned();
    list["plugins"][0]["state_dir"] = runtime.conf["state_dir"].clone();
    list["plugins"][0]["data_dir"] = runtime.conf["data_dir"].clone();
    std::fs::write(conf.join("10-fastpath.conflist"), list.to_string()).unwrap();

    let call = |verb: &str, pod: &super::runtime::Sandbox| {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={}", lab.node("a").ns.path().display())).arg("--").arg(cnitool());
        command.args([verb, &name]).env("NETCONFPATH", &conf).env("CNI_PATH", &bin);
        command.arg(pod.ns.path());
        command.env("CNI_ARGS", format!("K8S_POD_NAMESPACE=default;K8S_POD_NAME={}", pod.pod));
        command.env("CNI_IFNAME", "eth0");
        let out = command.output().unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        assert!(out.status.success(), "{verb}: {} {}", text(&out.stdout), text(&out.stderr));
        text(&out.stdout)
    };
    let (p, q) = (runtime.pod(&lab, "p"), runtime.pod(&lab, "q"));
    call("status", &p);
    call("add", &p);
    let result: serde_json::Value = serde_json::from_str(&call("add", &q)).unwrap();
    talks(&p, &q, &addresses(&result));
    call("check", &p);
    call("del", &p);
    call("del", &p);
    call("check", &q);
    call("del", &q);
    assert_eq!(runtime.holds(), (std::collections::BTreeSet::new(), 0, 0));
}

/// Addresses that `host-local` holds.
fn held(lab: &Lab) -> usize {
    let Ok(entries) = std::fs::read_dir(lab.root().join("host-local/pods")) else { return 0 };
    let address = |name: String| name.starts_with("10.") || name.starts_with("fd00");
    entries.flatten().filter(|e| e.file_name().into_string().is_ok_and(address)).count()
}

/// IPAM delegated: the addresses are host-local's, given back by DEL, by a failed ADD and by GC; CHECK asks it too.
#[test]
fn addresses_by_host_local() {
    assert!(Path::new(HOST_LOCAL).exists(), "{HOST_LOCAL}: package containernetworking-plugins");
    let lab = lab(&["a"]);
    for version in ["0.4.0", "1.0.0", "1.1.0"] {
        let runtime = Runtime::of(lab.node("a")).with("cniVersion", json!(version)).with(
            "ipam",
            json!({
                "type": "host-local",
                "dataDir": lab.root().join("host-local"),
                "ranges": [[{ "subnet": "10.77.1.128/25" }], [{ "subnet": "fd00:77:1::8000/120" }]],
            }),
        );
        let (p, q) = (runtime.pod(&lab, "p"), runtime.pod(&lab, "q"));
        runtime.add(&p);
        let result = runtime.add(&q);
        let ips = addresses(&result);
        assert!(ips.iter().any(|ip| ip.to_string().starts_with("10.77.1.1")), "{result}");
        assert_eq!(held(&lab), 4);
        talks(&p, &q, &ips);
        assert!(runtime.check(&q, &result).ok);
        assert!(runtime.call("STATUS", None).ok);
        let never = super::runtime::Sandbox::new("never");
        assert_eq!(runtime.with("wait_ms", json!(100)).call("ADD", Some(&never)).code(), 11);
        assert_eq!(held(&lab), 4, "a failed ADD gives its addresses back");
        runtime.del(&p);
        runtime.del(&p);
        assert_eq!(held(&lab), 2);
        runtime.gc(&[&q]);
        assert_eq!(held(&lab), 2);
        runtime.gc(&[]);
        assert_eq!(held(&lab), 0);
        runtime.holds_nothing();
    }
}
