//! Daemons that follow a real API server: it goes away, and comes back.

use std::time::Duration;

use serde_json::{Value, json};

use crate::forwarding::everything_crosses;
use crate::harness::cli::Cli;
use crate::harness::lab::Lab;
use crate::harness::object;
use crate::harness::spec::{Family, LabSpec};
use crate::traffic::{eventually, icmp};

const PATIENCE: Duration = Duration::from_secs(30);

fn source(cli: &Cli) -> Value {
    cli.status().0["source"].clone()
}

fn wait_connected(cli: &Cli, connected: bool) -> Value {
    let what = format!("connected: {connected}");
    eventually(&what, PATIENCE, || Some(source(cli)).filter(|s| s["connected"] == connected))
}

/// Policies and pods by the API; without it, everything stays as it is, also over a daemon's restart.
#[test]
fn forwarding_goes_on_without_the_api() {
    let mut lab = Lab::start(LabSpec { by_api: true, ..LabSpec::default() });
    let cli = lab.node("a").cli();
    everything_crosses(&lab, "a1", "b1");
    let state = wait_connected(&cli, true);
    assert_eq!((&state["kind"], &state["saved_at"]), (&json!("kubernetes"), &Value::Null), "{state}");
    assert!(
        cli.run(&["status"]).stdout.contains("kubernetes, connected for "),
        "{}",
        cli.run(&["status"]).stdout
    );

    let isolate =
        object::policy("default", "isolate", &json!({"podSelector": {"matchLabels": {"app": "b2"}}}));
    lab.apply("isolate.yaml", &[isolate]);
    let reachable = |lab: &Lab, to: &str| {
        let (from, _, ip) = lab.between("a1", to, Family::V4);
        icmp::reachable(from, ip)
    };
    assert!(!reachable(&lab, "b2") && reachable(&lab, "b1"));

    lab.manifests.server().kill_apiserver();
    let state = wait_connected(&cli, false);
    assert!(state["error"].is_string() && state["last_contact"]["at"].is_string(), "{state}");
    let status = cli.status();
    assert!(
        status.ready() && status.complaints().contains("no connection to the Kubernetes API since"),
        "{status:?}"
    );
    assert!(cli.run(&["status"]).stdout.contains("kubernetes, away for "), "{}", cli.run(&["status"]).stdout);
    everything_crosses(&lab, "a1", "b1");
    assert!(!reachable(&lab, "b2"));

    // Gracefully, then not so: the saved state is there each time.
    for graceful in [true, false] {
        for node in ["a", "b"] {
            let node = lab.node_mut(node);
            if graceful {
                assert!(node.daemon().stop().success());
            } else {
                node.daemon().kill();
            }
            node.start_daemon();
        }
        lab.wait_pods(0);
        lab.wait_pods(1);
        let state = source(&cli);
        assert!(state["saved_at"]["at"].is_string() && state["connected"] == false, "{state}");
        assert!(cli.status().complaints().contains("in force is the state saved at"));
        everything_crosses(&lab, "a1", "b1");
        assert!(!reachable(&lab, "b2"), "policies are part of the saved state");
    }

    lab.manifests.server().start_apiserver();
    wait_connected(&cli, true);
    lab.withdraw("isolate.yaml");
    assert!(reachable(&lab, "b2"));
    let (state, complaints) = (source(&cli), cli.status().complaints());
    assert!(state["saved_at"].is_null() && !complaints.contains("source:"), "{state} {complaints}");
}

/// With neither API nor saved state there is nothing to forward by, and nothing is made up.
#[test]
fn a_first_start_waits_for_the_api() {
    let mut lab = Lab::wire(LabSpec { by_api: true, ..LabSpec::default() });
    lab.manifests.server().kill_apiserver();
    lab.node_mut("a").spawn_daemon();
    let cli = lab.node("a").cli();
    let status = eventually("it says what it waits for", PATIENCE, || {
        cli.try_status().filter(|s| s.complaints().contains("no connection to the Kubernetes API"))
    });
    assert!(!status.ready() && status.generation() == 0, "{status:?}");
    assert!(status.0["last_sync"].is_null(), "{status:?}");
    assert!(lab.node("a").ns.link_json("fp-a1")["xdp"].is_null(), "nothing is attached");
    lab.manifests.server().start_apiserver();
    eventually("it is ready", PATIENCE, || cli.status().ready().then_some(()));
    lab.node_mut("b").start_daemon();
    lab.wait_pods(0);
    lab.wait_pods(1);
    everything_crosses(&lab, "a1", "b1");
}
