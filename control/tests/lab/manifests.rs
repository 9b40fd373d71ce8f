//! The folder of YAML: what changes in it is applied, what is wrong in it is reported and changes nothing.

use std::time::Duration;

use crate::forwarding::everything_crosses;
use crate::harness::lab::Lab;
use crate::harness::spec::{Family, LabSpec};
use crate::traffic::{PATIENCE, SILENCE, eventually, icmp, tcp};

const SOON: Duration = Duration::from_secs(10);

/// Waits until `status` reports `file` and `line`.
fn reported(lab: &Lab, file: &str, line: u32) {
    let place = format!("{file}:{line}");
    eventually(&format!("status names {place}"), SOON, || {
        lab.node("a").cli().status().complaints().contains(&place).then_some(())
    });
}

fn no_complaint(lab: &Lab, file: &str) {
    eventually(&format!("status no longer names {file}"), SOON, || {
        (!lab.node("a").cli().status().complaints().contains(file)).then_some(())
    });
}

/// A file that is no YAML, a document with a wrong value, an unknown address: the last good state stays.
#[test]
fn mistakes_keep_the_last_good_state() {
    let lab = Lab::start(LabSpec::default());
    let (a, b, ip) = lab.between("a2", "b1", Family::V4);
    let stream = tcp::Stream::start(a, b, ip).unwrap();

    lab.manifests.write("bad.yaml", "apiVersion: v1\nkind: Pod\nmetadata: {name: [\n");
    eventually("status names bad.yaml", SOON, || {
        lab.node("a").cli().status().complaints().contains("bad.yaml").then_some(())
    });
    everything_crosses(&lab, "a1", "b1");
    lab.manifests.remove("bad.yaml");
    no_complaint(&lab, "bad.yaml");

    // A good document first: the line of the second one is told.
    let good = lab.pod_manifest(lab.pod("a2"));
    let lines = u32::try_from(good.lines().count()).unwrap();
    let bad_address = good.replace("- ip: \"10.77.1.12\"", "- ip: \"10.77.1.312\"");
    assert_ne!(good, bad_address);
    let line = u32::try_from(bad_address.lines().position(|l| l.contains(".312")).unwrap()).unwrap() + 1;
    lab.manifests.write("pod-a2.yaml", &bad_address);
    reported(&lab, "pod-a2.yaml", line);
    std::thread::sleep(SILENCE);
    everything_crosses(&lab, "a1", "a2");
    everything_crosses(&lab, "b1", "a2");
    stream.must_progress("with a bad document", PATIENCE);
    lab.manifests.write("pod-a2.yaml", &format!("{good}---\n{bad_address}"));
    reported(&lab, "pod-a2.yaml", lines + 1 + line);
    lab.manifests.write("pod-a2.yaml", &good);
    no_complaint(&lab, "pod-a2.yaml");
    assert!(lab.node("a").cli().status().ready());
    stream.stop().unwrap();
}

/// A pod gets other addresses: the new ones work, the old ones are nobody's.
#[test]
fn addresses_change() {
    let lab = Lab::start(LabSpec::default());
    everything_crosses(&lab, "a1", "a2");
    let text = lab
        .pod_manifest(lab.pod("a2"))
        .replace("10.77.1.12", "10.77.1.72")
        .replace("fd00:77:1::12", "fd00:77:1::72");
    lab.pod("a2").ns.ip(["addr add 10.77.1.72/32 dev eth0", "addr add fd00:77:1::72/128 dev eth0 nodad"]);
    lab.manifests.write("pod-a2.yaml", &text);
    for (new, family) in [("10.77.1.72", Family::V4), ("fd00:77:1::72", Family::V6)] {
        for from in ["a1", "b1"] {
            let ns = &lab.pod(from).ns;
            eventually(&format!("{from} reaches {new}"), SOON, || {
                icmp::reachable(ns, new.parse().unwrap()).then_some(())
            });
            assert!(icmp::unreachable(ns, lab.pod("a2").ip(family)), "{from} to the old address");
        }
    }
}

/// A pod that has finished owns no address; several documents in one file count each.
#[test]
fn finished_pods_and_many_documents() {
    let lab = Lab::start(LabSpec::default());
    let both = ["a1", "a2"].map(|p| lab.pod_manifest(lab.pod(p))).join("---\n");
    lab.manifests.write("pods.yaml", &format!("# two pods\n---\n{both}---\n"));
    lab.manifests.remove("pod-a1.yaml");
    lab.manifests.remove("pod-a2.yaml");
    std::thread::sleep(SILENCE);
    everything_crosses(&lab, "a1", "a2");
    everything_crosses(&lab, "b1", "a2");
    let finished = lab.pod_manifest(lab.pod("a2")).replace("phase: Running", "phase: Succeeded");
    lab.manifests.write("pods.yaml", &format!("{}---\n{finished}", lab.pod_manifest(lab.pod("a1"))));
    let (ns, _, ip) = lab.between("a1", "a2", Family::V4);
    eventually("a2 is gone", SOON, || icmp::unreachable(ns, ip).then_some(()));
    everything_crosses(&lab, "a1", "b1");
}

/// Every change is a new generation that all workers take; a file that says the same is none.
#[test]
fn generations_follow_changes() {
    let mut lab = Lab::start(LabSpec { cores: vec![0, 1], ..LabSpec::default() });
    let first = lab.node("a").cli().status().generation();
    assert!(first > 0);
    let added = lab.add_pod("a");
    let second = lab.node("a").cli().status().generation();
    assert!(second > first, "{second} after {first}");
    let text = lab.pod_manifest(lab.pod(&added));
    lab.manifests.write(&format!("pod-{added}.yaml"), &text);
    lab.manifests.write(
        "namespaces.yaml",
        "# a comment\napiVersion: v1\nkind: Namespace\nmetadata:\n  name: default\n",
    );
    std::thread::sleep(Duration::from_secs(1));
    everything_crosses(&lab, "a1", &added);
    assert!(lab.node("a").cli().status().ready());
}
