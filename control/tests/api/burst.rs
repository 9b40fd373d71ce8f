//! Thousands of objects.

use apiserver::load::{self, Size};
use apiserver::server::has_controllers;

use super::*;

const SIZE: Size = Size { pods: 2000, services: 500, policies: 500 };

/// Resident memory of a process, in MiB.
fn resident(pid: u32) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("the process is there");
    let line = text.lines().find_map(|l| l.strip_prefix("VmRSS:")).expect("VmRSS");
    line.trim().trim_end_matches(" kB").trim().parse::<u64>().expect("a number") / 1024
}

/// 2,000 pods, 500 policies, 500 services, and the EndpointSlices that kube-controller-manager makes of them.
#[test]
fn a_cluster_of_thousands() {
    let server = server(Options { controllers: has_controllers(), ..Options::default() });
    let source = Source::synced(&server);
    let client = server.client();
    client.apply(&load::base());
    let start = Instant::now();
    client.create_all(&load::services(SIZE));
    client.create_all(&load::policies(SIZE));
    client.create_all(&load::pods(SIZE));
    client.merge_all("Pod", true, load::running(SIZE, 0));
    let written = start.elapsed();
    let all = |u: &Update| u.model.pods.values().filter(|p| p.addresses.len() == 2).count() == SIZE.pods;
    source.until("all objects by watch", |u, _| {
        (all(u) && u.model.policies.len() == SIZE.policies && u.model.services.len() > SIZE.services)
            .then_some(())
    });
    let seen = start.elapsed() - written;
    if has_controllers() {
        let end = Instant::now() + Duration::from_secs(120);
        let ready =
            |u: &Update| u.model.slices.values().flat_map(|s| &s.endpoints).filter(|e| e.ready).count();
        while ready(&source.update()) < 2 * SIZE.pods {
            assert!(Instant::now() < end, "{} of {} endpoints", ready(&source.update()), 2 * SIZE.pods);
            std::thread::sleep(Duration::from_millis(50));
        }
    }
    let endpoints = start.elapsed();
    let state = source.state();
    assert_eq!((state.relists, state.errors), (0, 0), "{state:?}");
    let first = source.update().model.clone();
    drop(source);

    let start = Instant::now();
    let source = Source::synced(&server);
    let listed = start.elapsed();
    assert_eq!(source.update().model, first, "by lists as by watch");
    assert!(listed < Duration::from_secs(60), "{listed:?}");

    // Every pod changes, as fast as the API server takes it.
    let updates = source.state().updates;
    let start = Instant::now();
    client.merge_all("Pod", true, load::running(SIZE, 1));
    let changed = start.elapsed();
    source.until("every change", |u, _| {
        let new = |p: &fastpath_control::model::Pod| {
            p.addresses.first().is_some_and(|a| a.to_string().starts_with("10.201."))
        };
        (u.model.pods.values().filter(|p| new(p)).count() == SIZE.pods).then_some(())
    });
    let lag = start.elapsed() - changed;
    let updates = source.state().updates - updates;
    let most = (changed + lag).as_millis() / 40 + 10;
    assert!(u128::from(updates) <= most, "{updates} updates in {changed:?}");
    drop(source);
    let memory = alone(&server);
    assert!(memory < 200, "{memory} MiB");
    eprintln!(
        "2,000 pods, 500 policies, 500 services: written in {written:.1?}; model complete {seen:.1?} after the last of \
         them, {} EndpointSlices {endpoints:.1?} after the first; listed anew in {listed:.2?}, by a process of {memory} MiB; 2,000 status changes in {changed:.1?} became {updates} updates, the last {lag:.1?} later",
        first.slices.len()
    );
}

/// Resident memory of a process that does nothing but follow the API.
fn alone(server: &Server) -> u64 {
    let test = std::env::current_exe().expect("this program");
    let out = std::process::Command::new(test)
        .args(["--exact", "burst::only_the_source", "--ignored", "--nocapture"])
        .env(KUBECONFIG, server.agent_config())
        .output()
        .expect("this program starts again");
    let text = String::from_utf8_lossy(&out.stdout);
    let line = text.lines().find_map(|l| l.split_once("resident MiB: "));
    line.and_then(|(_, n)| n.trim().parse().ok())
        .unwrap_or_else(|| panic!("{text}{}", String::from_utf8_lossy(&out.stderr)))
}

const KUBECONFIG: &str = "FASTPATH_TEST_KUBECONFIG";

#[test]
#[ignore = "run by a_cluster_of_thousands, as a process of its own"]
fn only_the_source() {
    let kubeconfig = std::env::var_os(KUBECONFIG).expect("the kubeconfig");
    let source = Source::start(Path::new(&kubeconfig), None);
    source.until("the first state", |u, _| u.synced.then_some(()));
    println!("resident MiB: {}", resident(std::process::id()));
}
