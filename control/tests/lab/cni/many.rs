//! Many at once, and many there already.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use super::runtime::{Runtime, Sandbox, addresses, lab, talks};
use crate::harness::lab::Lab;
use crate::traffic::{PATIENCE, eventually};

/// Sandboxes of so many pods, all of them known.
fn pods(lab: &Lab, runtime: &Runtime, prefix: &str, count: usize) -> Vec<Sandbox> {
    let names: Vec<String> = (0..count).map(|n| format!("{prefix}{n}")).collect();
    let text: String = names.iter().map(|n| format!("{}---\n", runtime.manifest(n, None))).collect();
    lab.manifests.write(&format!("pods-{prefix}.yaml"), &text);
    names.iter().map(|n| Sandbox::new(n)).collect()
}

/// Runs `work` for each, all at once.
fn at_once<T: Send>(pods: &[Sandbox], work: impl Fn(&Sandbox) -> T + Sync) -> Vec<T> {
    std::thread::scope(|scope| {
        let threads: Vec<_> = pods.iter().map(|pod| scope.spawn(|| work(pod))).collect();
        threads.into_iter().map(|t| t.join().expect("no call panics")).collect()
    })
}

#[test]
fn fifty_at_once() {
    let lab = lab(&["a"]);
    let runtime = Runtime::of(lab.node("a")).with("wait_ms", 30_000.into());
    let pods = pods(&lab, &runtime, "p", 50);
    let results = at_once(&pods, |pod| runtime.add(pod));
    let all: BTreeSet<IpAddr> = results.iter().flat_map(addresses).collect();
    assert_eq!(all.len(), 100, "no address twice");
    assert_eq!((runtime.holds().0.len(), runtime.holds().1, runtime.holds().2), (50, 50, 100));
    for n in [0, 17, 49] {
        talks(&pods[n], &pods[(n + 1) % 50], &addresses(&results[(n + 1) % 50]));
        assert!(runtime.check(&pods[n], &results[n]).ok);
    }
    at_once(&pods, |pod| runtime.del(pod));
    runtime.holds_nothing();
    let cli = lab.node("a").cli();
    eventually("the daemon has no pod's port", PATIENCE, || (cli.status().pod_ports() == 0).then_some(()));
}

/// Fifty workers add and delete as they like; at no moment do two have one address.
#[test]
fn no_address_twice_under_churn() {
    let lab = lab(&["a"]);
    let runtime = Runtime::of(lab.node("a")).with("wait_ms", 60_000.into());
    let pods = pods(&lab, &runtime, "p", 50);
    let held: Mutex<BTreeSet<IpAddr>> = Mutex::default();
    at_once(&pods, |pod| {
        for _ in 0..3 {
            let ips = addresses(&runtime.add(pod));
            for ip in &ips {
                assert!(held.lock().unwrap().insert(*ip), "{ip} twice");
            }
            for ip in &ips {
                held.lock().unwrap().remove(ip);
            }
            runtime.del(pod);
        }
    });
    runtime.holds_nothing();
}

/// How long ADD and DEL take beside 250 pods: printed, for the machine and the build decide. `cargo test --release`.
#[test]
fn time_of_an_add_beside_250_pods() {
    let lab = lab(&["a"]);
    // Room for 350 pods.
    let node = std::fs::read_to_string(lab.manifests.dir().join("node-a.yaml")).unwrap();
    let larger = node.replace("10.77.1.0/24", "10.77.0.0/22");
    assert_ne!(node, larger);
    lab.manifests.write("node-a.yaml", &larger);
    let runtime = Runtime::of(lab.node("a")).with("wait_ms", 60_000.into());
    let there = pods(&lab, &runtime, "there", 250);
    for some in there.chunks(25) {
        at_once(some, |pod| runtime.add(pod));
    }
    let new = pods(&lab, &runtime, "new", 100);
    let cli = lab.node("a").cli();
    eventually("the new pods are read", Duration::from_secs(30), || {
        (crate::harness::cli::rows(&cli.json(&["show", "endpoints"])).len() == 350).then_some(())
    });
    let time = |work: &dyn Fn(&Sandbox)| {
        let mut times: Vec<Duration> = new
            .iter()
            .map(|pod| {
                let start = Instant::now();
                work(pod);
                start.elapsed()
            })
            .collect();
        times.sort_unstable();
        times
    };
    for (verb, times) in [
        ("VERSION", time(&|_| drop(runtime.call("VERSION", None).result()))),
        ("ADD", time(&|pod| drop(runtime.add(pod)))),
        ("DEL", time(&|pod| runtime.del(pod))),
    ] {
        println!("{verb} beside 250 pods: p50 {:?}, p99 {:?}, max {:?}", times[49], times[98], times[99]);
    }
    assert_eq!(runtime.holds().1, 250);
}
