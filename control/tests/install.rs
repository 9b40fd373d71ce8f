//! What is shipped to install fastpath: strict decoding, and that its parts fit each other.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on must say so and fail")]

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::Command;

use fastpath_control::config::{Config, SourceKind};
use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::core::v1::{ConfigMap, Container, Namespace, ServiceAccount};
use k8s_openapi::api::rbac::v1::{ClusterRole, ClusterRoleBinding};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

fn shipped(path: &str) -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/..")).join(path)
}

/// The objects of the manifest by kind. JSON of its documents is made by the project's own reader of manifests.
fn objects() -> BTreeMap<String, Value> {
    let text = std::fs::read_to_string(shipped("configs/k8s/install.yaml")).unwrap();
    let documents = fastpath_control::source::documents(&text).unwrap();
    let kind = |v: &Value| v["kind"].as_str().expect("a kind").to_owned();
    let by_kind: BTreeMap<String, Value> = documents.iter().map(|v| (kind(v), v.clone())).collect();
    assert_eq!(by_kind.len(), documents.len(), "one of each kind");
    by_kind
}

/// Decodes an object so that no field is lost: what comes out again is what was there.
fn strict<T: DeserializeOwned + Serialize>(value: &Value) -> T {
    let mut unknown = Vec::new();
    let decoded: T = serde_ignored::deserialize(value, |path| unknown.push(path.to_string())).unwrap();
    assert_eq!(unknown, [""; 0]);
    let again = serde_json::to_value(&decoded).unwrap();
    same(value, &again, value["kind"].as_str().unwrap_or("?"));
    decoded
}

/// Everything in `wanted` is in `found`; Kubernetes' types write more (empty strings, nulls).
fn same(wanted: &Value, found: &Value, path: &str) {
    match (wanted, found) {
        (Value::Object(w), Value::Object(f)) => {
            for (key, value) in w {
                let at = format!("{path}.{key}");
                same(value, f.get(key).unwrap_or_else(|| panic!("{at} is lost")), &at);
            }
        }
        (Value::Array(w), Value::Array(f)) => {
            assert_eq!(w.len(), f.len(), "{path}");
            w.iter().zip(f).enumerate().for_each(|(i, (w, f))| same(w, f, &format!("{path}[{i}]")));
        }
        _ => assert_eq!(wanted, found, "{path}"),
    }
}

#[test]
fn every_object_is_known_to_the_api_and_fits_the_others() {
    let objects = objects();
    let mut kinds: Vec<&str> = objects.keys().map(String::as_str).collect();
    kinds.sort_unstable();
    assert_eq!(
        kinds,
        ["ClusterRole", "ClusterRoleBinding", "ConfigMap", "DaemonSet", "Namespace", "ServiceAccount"]
    );
    let namespace: Namespace = strict(&objects["Namespace"]);
    let account: ServiceAccount = strict(&objects["ServiceAccount"]);
    let role: ClusterRole = strict(&objects["ClusterRole"]);
    let binding: ClusterRoleBinding = strict(&objects["ClusterRoleBinding"]);
    let config: ConfigMap = strict(&objects["ConfigMap"]);
    let daemons: DaemonSet = strict(&objects["DaemonSet"]);

    for meta in [&account.metadata, &config.metadata, &daemons.metadata] {
        assert_eq!(meta.namespace, namespace.metadata.name);
    }
    assert_eq!(binding.role_ref.name, role.metadata.name.unwrap());
    let subjects = binding.subjects.unwrap();
    assert_eq!((subjects.len(), Some(&subjects[0].name)), (1, account.metadata.name.as_ref()));
    assert_eq!(subjects[0].namespace, namespace.metadata.name);

    let spec = daemons.spec;
    let labels = spec.template.metadata.unwrap().labels.unwrap();
    let selector = spec.selector.match_labels.unwrap();
    assert!(!selector.is_empty() && selector.iter().all(|(k, v)| labels.get(k) == Some(v)));
    let pod = spec.template.spec.unwrap();
    assert_eq!((pod.host_network, pod.service_account_name), (Some(true), account.metadata.name));
    let volumes: Vec<&str> = pod.volumes.iter().flatten().map(|v| v.name.as_str()).collect();
    let init = pod.init_containers.unwrap();
    for container in pod.containers.iter().chain(&init) {
        for mount in container.volume_mounts.iter().flatten() {
            assert!(volumes.contains(&mount.name.as_str()), "{}: {}", container.name, mount.name);
        }
        let security = container.security_context.as_ref().unwrap();
        assert_ne!(security.privileged, Some(true), "{}", container.name);
        assert_eq!(security.allow_privilege_escalation, Some(false), "{}", container.name);
        let dropped = security.capabilities.as_ref().and_then(|c| c.drop.clone());
        assert_eq!(dropped, Some(vec!["ALL".to_owned()]), "{}", container.name);
    }
    let added = |c: &Container| c.security_context.clone().and_then(|s| s.capabilities).and_then(|c| c.add);
    // To write into folders of another user; the daemon has no need of it.
    assert_eq!(added(&init[0]), Some(vec!["DAC_OVERRIDE".to_owned()]));
    let daemon = added(&pod.containers[0]).unwrap();
    assert!(!daemon.iter().any(|c| c == "SYS_ADMIN" || c == "DAC_OVERRIDE"), "{daemon:?}");
    let mounts = pod.containers[0].volume_mounts.as_ref().unwrap();
    for mount in ["/sys/fs/bpf", "/run/fastpath", "/var/lib/fastpath", "/run/netns", "/dev/net"] {
        assert!(mounts.iter().any(|m| m.mount_path == mount), "{mount}");
    }
    // `fastpath doctor` in the pod looks at the node's folder.
    let seen = mounts.iter().find(|m| m.mount_path == "/etc/cni/net.d").unwrap();
    assert_eq!((seen.name.as_str(), seen.read_only), ("cni-conf", Some(true)));
}

/// The rights are those that the source says it uses; that it uses them is shown at a real API server (test `api`).
#[test]
fn rights_are_the_least() {
    let role: ClusterRole = strict(&objects()["ClusterRole"]);
    let mut given = Vec::new();
    for rule in role.rules.unwrap() {
        assert_eq!((&rule.resource_names, &rule.non_resource_urls), (&None, &None));
        for group in rule.api_groups.unwrap() {
            for resource in rule.resources.iter().flatten() {
                given.extend(rule.verbs.iter().map(|verb| (group.clone(), resource.clone(), verb.clone())));
            }
        }
    }
    given.sort();
    let used = fastpath_control::source::kubernetes::rights(false);
    let mut used: Vec<_> =
        used.iter().map(|r| (r.group.to_owned(), r.resource.to_owned(), r.verb.to_owned())).collect();
    used.sort();
    assert_eq!(given, used);
}

/// The optional piece is what `source.node_condition` adds, for the account that the installation makes.
#[test]
fn the_node_condition_has_its_right_apart() {
    let text = std::fs::read_to_string(shipped("configs/k8s/node-condition.yaml")).unwrap();
    let documents = fastpath_control::source::documents(&text).unwrap();
    let [role, binding] = documents.as_slice() else { panic!("{documents:?}") };
    let (role, binding): (ClusterRole, ClusterRoleBinding) = (strict(role), strict(binding));
    assert_eq!(Some(binding.role_ref.name), role.metadata.name);
    let installed: ClusterRoleBinding = strict(&objects()["ClusterRoleBinding"]);
    assert_eq!(binding.subjects, installed.subjects);
    let with = fastpath_control::source::kubernetes::rights(true);
    let without = fastpath_control::source::kubernetes::rights(false);
    let [more] = with.iter().filter(|r| !without.contains(r)).collect::<Vec<_>>()[..] else {
        panic!("{with:?}")
    };
    let [rule] = &role.rules.unwrap()[..] else { panic!("one rule") };
    assert_eq!(rule.api_groups, Some(vec![more.group.to_owned()]));
    assert_eq!(
        (&rule.resources, &rule.verbs),
        (&Some(vec![more.resource.to_owned()]), &vec![more.verb.to_owned()])
    );
}

/// The embedded configuration is one, and says what the DaemonSet relies on.
#[test]
fn the_embedded_configuration_fits_the_daemonset() {
    let objects = objects();
    let data = objects["ConfigMap"]["data"].as_object().unwrap();
    let text = data["fastpath.toml"].as_str().unwrap();
    let config = Config::parse(text).unwrap_or_else(|wrong| panic!("{wrong:?}\n{text}"));
    assert_eq!((config.source.kind, config.host.enabled), (SourceKind::Kubernetes, true));
    let spec = &objects["DaemonSet"]["spec"]["template"]["spec"];
    let container = &spec["containers"][0];
    let listen = config.http.listen.unwrap();
    assert!(listen.ip().is_loopback());
    for (probe, path) in
        [("livenessProbe", "/livez"), ("readinessProbe", "/readyz"), ("startupProbe", "/livez")]
    {
        let get = &container[probe]["httpGet"];
        let want = json!({"host": "127.0.0.1", "port": listen.port(), "path": path});
        assert_eq!(*get, want, "{probe}");
    }
    let mounted = |path: &std::path::Path| {
        let mounts = container["volumeMounts"].as_array().unwrap();
        mounts.iter().any(|m| path.starts_with(m["mountPath"].as_str().unwrap()))
    };
    let folders = [&config.daemon.state_dir, &config.daemon.data_dir, &config.xdp.pin_dir];
    folders.iter().for_each(|dir| assert!(mounted(dir), "{}", dir.display()));
    // What host port and reserved ports are set by.
    assert!(mounted(std::path::Path::new("/host/proc/sys/net/ipv4/conf")));
    assert_eq!(container["command"], json!(["fastpath", "run", "--config", "/etc/fastpath/fastpath.toml"]));
}

/// The init container's command, with the ConfigMap's files, installs what a runtime reads.
#[test]
fn the_init_container_installs_the_plugin() {
    let root = std::env::temp_dir().join(format!("fastpath-install-yaml-{}", std::process::id()));
    let objects = objects();
    let config = root.join("etc");
    for dir in ["etc", "bin", "conf"] {
        std::fs::create_dir_all(root.join(dir)).unwrap();
    }
    for (name, text) in objects["ConfigMap"]["data"].as_object().unwrap() {
        std::fs::write(config.join(name), text.as_str().unwrap()).unwrap();
    }
    let command = objects["DaemonSet"]["spec"]["template"]["spec"]["initContainers"][0]["command"].clone();
    let args: Vec<String> = serde_json::from_value(command).unwrap();
    let place = |arg: &String| match arg.as_str() {
        "/host/opt/cni/bin" => root.join("bin").display().to_string(),
        "/host/etc/cni/net.d" => root.join("conf").display().to_string(),
        other => other.to_owned(),
    };
    let run = |more: &[&str]| {
        let out = Command::new(env!("CARGO_BIN_EXE_fastpath"))
            .args(args.iter().skip(1).map(place))
            .arg("--conflist")
            .arg(config.join("10-fastpath.conflist"))
            .args(more)
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&out.stderr).into_owned();
        assert!(out.status.success(), "{said}");
        said
    };
    assert_eq!(run(&[]), "");
    // Another's that a runtime would take instead.
    let other = root.join("conf/05-cilium.conflist");
    std::fs::write(&other, "{}").unwrap();
    let said = run(&[]);
    assert!(said.contains("warning") && said.contains("05-cilium.conflist"), "{said}");
    std::fs::remove_file(&other).unwrap();
    let installed = std::fs::read(root.join("bin/fastpath-cni")).unwrap();
    assert!(installed == std::fs::read(env!("CARGO_BIN_EXE_fastpath")).unwrap(), "the same program");
    let conflist: Value =
        serde_json::from_slice(&std::fs::read(root.join("conf/10-fastpath.conflist")).unwrap()).unwrap();
    assert_eq!(conflist["plugins"][0]["type"], "fastpath-cni");
    let own = std::fs::read_to_string(shipped("configs/cni/10-fastpath.conflist")).unwrap();
    assert_eq!(conflist, serde_json::from_str::<Value>(&own).unwrap(), "configs/cni/10-fastpath.conflist");
    run(&["--remove"]);
    assert_eq!(std::fs::read_dir(root.join("bin")).unwrap().count(), 0);
    assert_eq!(std::fs::read_dir(root.join("conf")).unwrap().count(), 0);
    std::fs::remove_dir_all(&root).unwrap();
}

/// The unit's capabilities are the DaemonSet's, and systemd takes it, where it is installed.
#[test]
fn the_systemd_unit() {
    let unit = shipped("configs/systemd/fastpath.service");
    let text = std::fs::read_to_string(&unit).unwrap();
    let line = text.lines().find_map(|l| l.strip_prefix("CapabilityBoundingSet=")).unwrap();
    let unit_set: Vec<&str> = line.split(' ').map(|c| c.strip_prefix("CAP_").unwrap()).collect();
    let container = &objects()["DaemonSet"]["spec"]["template"]["spec"]["containers"][0];
    assert_eq!(json!(unit_set), container["securityContext"]["capabilities"]["add"]);
    // It is verified with a binary that is there.
    let root = std::env::temp_dir().join(format!("fastpath-unit-{}", std::process::id()));
    std::fs::create_dir_all(&root).unwrap();
    let copy = root.join("fastpath.service");
    std::fs::write(&copy, text.replace("/usr/bin/fastpath", env!("CARGO_BIN_EXE_fastpath"))).unwrap();
    match Command::new("systemd-analyze").arg("verify").arg(&copy).output() {
        Ok(out) => {
            let said = String::from_utf8_lossy(&out.stderr).into_owned();
            let ours: Vec<&str> = said.lines().filter(|l| l.contains("fastpath.service")).collect();
            assert!(out.status.success() && ours.is_empty(), "{said}");
        }
        Err(e) => assert_eq!(e.kind(), std::io::ErrorKind::NotFound, "systemd-analyze: {e}"),
    }
    std::fs::remove_dir_all(&root).unwrap();
}
