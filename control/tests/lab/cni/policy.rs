//! A pod's first packet meets its policies, and a pod that the source does not show yet is denied everything.

use std::net::{IpAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde_json::json;

use super::runtime::{Runtime, Sandbox, addresses, connects, lab, talks};
use crate::harness::ns::NetNs;
use crate::traffic::{PATIENCE, SILENCE, eventually, unspecified};

const PORT: u16 = 4000;

fn isolate(pod: &str, direction: &str) -> String {
    format!(
        "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata:\n  name: isolate-{pod}\n  namespace: default\n\
         spec:\n  podSelector:\n    matchLabels:\n      app: {pod}\n  policyTypes: [{direction}]\n"
    )
}

/// Sends a datagram every half millisecond while `work` runs, from before there is a way to after it.
fn under_fire<T>(from: &NetNs, to: IpAddr, work: impl FnOnce() -> T) -> T {
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let socket = from.run(|| UdpSocket::bind((unspecified(to), 0))).unwrap();
            while !stop.load(Ordering::Relaxed) {
                // Until the pod has a device, there is no way.
                drop(socket.send_to(b"early", (to, PORT)));
                std::thread::sleep(Duration::from_micros(500));
            }
        });
        let done = work();
        std::thread::sleep(SILENCE);
        stop.store(true, Ordering::Relaxed);
        done
    })
}

fn listener(ns: &NetNs) -> UdpSocket {
    let socket = ns.run(|| UdpSocket::bind(("::", PORT))).unwrap();
    socket.set_read_timeout(Some(Duration::from_millis(10))).unwrap();
    socket
}

fn heard(socket: &UdpSocket) -> bool {
    socket.recv(&mut [0; 64]).is_ok()
}

/// Packets are sent from and to a pod from before its ADD begins: none passes that its policies deny, and without
/// policies they do (so the test would see one).
#[test]
fn the_first_packet_meets_its_policies() {
    let lab = lab(&["a", "b"]);
    let (a, b) = (Runtime::of(lab.node("a")), Runtime::of(lab.node("b")));
    let (near, far) = (a.pod(&lab, "near"), b.pod(&lab, "far"));
    let others = [(&near, addresses(&a.add(&near))[0]), (&far, addresses(&b.add(&far))[1])];
    // Addresses never used are given out first, in order.
    let mut next = 3..;
    for (direction, denied) in [("Egress", false), ("Egress", true), ("Ingress", false), ("Ingress", true)] {
        for (other, other_ip) in others {
            let n = next.next().unwrap();
            let name = format!("new{n}");
            if denied {
                lab.manifests.write("policy.yaml", &isolate(&name, direction));
            }
            let pod = a.pod(&lab, &name);
            let text = if other_ip.is_ipv4() { format!("10.77.1.{n}") } else { format!("fd00:77:1::{n:x}") };
            let own_ip: IpAddr = text.parse().unwrap();
            let (from, to, aim) =
                if direction == "Egress" { (&pod, other, other_ip) } else { (other, &pod, own_ip) };
            let ear = listener(&to.ns);
            let result = under_fire(&from.ns, aim, || a.add(&pod));
            assert!(addresses(&result).contains(&own_ip), "{result}");
            assert_eq!(heard(&ear), !denied, "{direction} denied: {denied}, {} to {aim}", from.pod);
            a.del(&pod);
            lab.manifests.remove(&format!("pod-{name}.yaml"));
            if denied {
                lab.manifests.remove("policy.yaml");
            }
        }
    }
}

/// Until the source shows the pod, ADD waits and nothing passes; when it does, ADD returns and everything does.
#[test]
fn a_pod_that_the_source_does_not_show_yet() {
    let lab = lab(&["a"]);
    let runtime = Runtime::of(lab.node("a"));
    let (known, late) = (runtime.pod(&lab, "known"), Sandbox::new("late"));
    let known_ip = addresses(&runtime.add(&known));
    let ear = listener(&known.ns);
    let late_ip: IpAddr = "10.77.1.3".parse().unwrap();
    let started = Instant::now();
    let call = Runtime::start(&mut runtime.command("ADD", Some(&late)), &runtime.conf);
    eventually("the veth is there", PATIENCE, || (runtime.holds().0.len() == 2).then_some(()));
    under_fire(&late.ns, known_ip[0], || {
        assert!(!connects(&known, &late, late_ip));
    });
    assert!(!heard(&ear), "the unknown pod's packets passed");
    lab.manifests.write("pod-late.yaml", &runtime.manifest("late", None));
    let result = Runtime::finish(call).result();
    assert!(started.elapsed() < Duration::from_secs(5));
    assert_eq!(addresses(&result)[0], late_ip);
    talks(&late, &known, &known_ip);
    talks(&known, &late, &addresses(&result));

    // Its manifest taken away, while it runs: denied, not let through.
    lab.manifests.remove("pod-late.yaml");
    eventually("the pod is denied", PATIENCE, || (!connects(&late, &known, known_ip[0])).then_some(()));
    lab.manifests.write("pod-late.yaml", &runtime.manifest("late", None));
    eventually("the pod is back", PATIENCE, || connects(&late, &known, known_ip[0]).then_some(()));

    // One that never comes.
    let never = Sandbox::new("never");
    let answer = runtime.with("wait_ms", json!(300)).call("ADD", Some(&never));
    assert_eq!(answer.code(), 11);
    assert!(answer.json["msg"].as_str().unwrap().contains("default/never"), "{}", answer.json);
    assert_eq!((runtime.holds().0.len(), runtime.holds().1, runtime.holds().2), (2, 2, 4));
}

/// An older pod of the same name, as of a StatefulSet, is not taken for the new one.
#[test]
fn an_older_pod_of_the_same_name() {
    let lab = lab(&["a"]);
    let runtime = Runtime::of(lab.node("a"));
    let other = runtime.pod(&lab, "other");
    let other_ip = addresses(&runtime.add(&other));
    lab.manifests.write("pod-web-0.yaml", &runtime.manifest("web-0", Some("uid-old")));
    let old = Sandbox { uid: Some("uid-old".to_owned()), ..Sandbox::new("web-0") };
    runtime.add(&old);
    talks(&old, &other, &other_ip);
    let new = Sandbox { uid: Some("uid-new".to_owned()), ..Sandbox::new("web-0") };
    assert_eq!(runtime.with("wait_ms", json!(300)).call("ADD", Some(&new)).code(), 11);
    talks(&old, &other, &other_ip);
    let call = Runtime::start(&mut runtime.command("ADD", Some(&new)), &runtime.conf);
    lab.manifests.write("pod-web-0.yaml", &runtime.manifest("web-0", Some("uid-new")));
    Runtime::finish(call).result();
    talks(&new, &other, &other_ip);
    assert!(!connects(&old, &other, other_ip[0]), "the old one is nobody now");
    runtime.del(&old);
    talks(&new, &other, &other_ip);
}
