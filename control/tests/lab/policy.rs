//! NetworkPolicy on flows that exist: what is taken away is cut with the next packet, what stays allowed
//! notices nothing, and who asks is told which policy it was.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use serde_json::{Value, json};

use crate::harness::lab::Lab;
use crate::harness::object::{self, labels};
use crate::harness::spec::{Family, LabSpec};
use crate::traffic::capture::{Capture, views};
use crate::traffic::frame::View;
use crate::traffic::{PATIENCE, SILENCE, eventually, icmp, tcp, udp};

/// File the policies of these tests are in.
const FILE: &str = "policies.yaml";

/// Established traffic of one pair: a TCP stream and a UDP flow.
struct Pair {
    what: String,
    stream: tcp::Stream,
    flow: udp::Flow,
    server: String,
    from: IpAddr,
    to: IpAddr,
}

impl Pair {
    fn start(lab: &Lab, from: &str, to: &str, family: Family) -> Self {
        let (a, b, ip) = lab.between(from, to, family);
        assert!(icmp::reachable(a, ip), "{from} to {to}");
        let pair = Pair {
            what: format!("{from} to {to} {family:?}"),
            stream: tcp::Stream::start(a, b, ip).unwrap(),
            flow: udp::Flow::start(a, b, ip, 200, Duration::from_millis(4)).unwrap(),
            server: to.to_owned(),
            from: lab.pod(from).ip(family),
            to: ip,
        };
        pair.must_flow("before");
        pair
    }

    fn must_flow(&self, when: &str) {
        let what = format!("{}, {when}", self.what);
        self.stream.must_progress(&what, PATIENCE * 2);
        self.flow.must_progress(&what, 20);
    }

    /// Nothing of it arrives at the server.
    fn must_be_cut(&self, lab: &Lab, when: &str) {
        let capture = Capture::start(&lab.pod(&self.server).ns, "eth0").unwrap();
        std::thread::sleep(SILENCE);
        let seen = capture.stop();
        let came = views(&seen).filter(|(out, v)| !out && v.is_between(self.from, self.to)).count();
        assert_eq!(came, 0, "{}, {when}: packets at the server", self.what);
        let before = self.flow.received();
        assert!(!self.stream.progresses_within(SILENCE), "{}, {when}: the stream goes on", self.what);
        assert_eq!(self.flow.received(), before, "{}, {when}: the flow goes on", self.what);
    }

    /// It was never disturbed: not a datagram was lost, not a byte.
    fn must_be_whole(self) {
        self.must_flow("at the end");
        self.stream.stop().unwrap_or_else(|e| panic!("{}: {e}", self.what));
        let counts = self.flow.stop().unwrap();
        assert!(counts.sent > 200 && counts.lost() == 0 && counts.wrong == 0, "{}: {counts:?}", self.what);
    }
}

/// Nothing may come in to the pods `selector` selects, or go out.
fn isolating(direction: &str, selector: &Value) -> Value {
    let spec = json!({"podSelector": selector, "policyTypes": [direction]});
    object::policy("default", "cut", &spec)
}

fn app(name: &str) -> Value {
    json!({"matchLabels": {"app": name}})
}

/// A policy cuts what is established, at either end, on one node and across two, and gives it back.
#[test]
fn a_new_policy_cuts_established_flows() {
    for cores in [vec![], vec![0, 1]] {
        let lab = Lab::start(LabSpec { cores, ..LabSpec::default() });
        let others = [Pair::start(&lab, "a1", "a2", Family::V6), Pair::start(&lab, "b2", "a1", Family::V4)];
        for (from, to) in [("a2", "b1"), ("b1", "b2")] {
            for (direction, pod) in [("Ingress", to), ("Egress", from)] {
                let cut = Family::BOTH.map(|f| Pair::start(&lab, from, to, f));
                lab.apply(FILE, &[isolating(direction, &app(pod))]);
                for pair in &cut {
                    pair.must_be_cut(&lab, &format!("{direction} of {pod}"));
                }
                lab.withdraw(FILE);
                for pair in &cut {
                    pair.must_flow("the policy is gone");
                }
            }
        }
        for pair in others {
            pair.must_be_whole();
        }
    }
}

/// A policy that is widened and narrowed: each flow is decided by what holds now.
#[test]
fn a_changed_policy_decides_anew() {
    let lab = Lab::start(LabSpec::default());
    let near = Pair::start(&lab, "a1", "a2", Family::V4);
    let far = Pair::start(&lab, "b1", "a2", Family::V4);
    let allow = |pod: &str| {
        let spec = json!({
            "podSelector": app("a2"),
            "policyTypes": ["Ingress"],
            "ingress": [{"from": [{"podSelector": app(pod)}]}],
        });
        [object::policy("default", "one", &spec)]
    };
    for _ in 0..2 {
        lab.apply(FILE, &allow("a1"));
        far.must_be_cut(&lab, "a1 allowed");
        near.must_flow("a1 allowed");
        lab.apply(FILE, &allow("b1"));
        near.must_be_cut(&lab, "b1 allowed");
        far.must_flow("b1 allowed");
    }
    // An allowed flow's answers need no rule of the other direction.
    let both = [allow("b1")[0].clone(), isolating("Egress", &app("a2"))];
    lab.apply(FILE, &both);
    far.must_flow("answers to b1 may leave a2");
}

/// The labels of a pod and of a namespace are part of the decision.
#[test]
fn changed_labels_cut_established_flows() {
    let mut lab = Lab::wire(LabSpec::default());
    let b1 = |role: &str| {
        let labels = labels(&[("app", "b1"), ("role", role)]);
        [object::pod(&lab, lab.pod("b1"), ("other", "b1"), &labels, &[])]
    };
    let namespace = |team: &str| [object::namespace("other", &labels(&[("team", team)]))];
    let (client, stranger) = (b1("client"), b1("stranger"));
    lab.manifests.remove("pod-b1.yaml");
    lab.apply("other.yaml", &client);
    lab.apply("namespace-other.yaml", &namespace("blue"));
    let spec = json!({
        "podSelector": app("a1"),
        "policyTypes": ["Ingress"],
        "ingress": [{"from": [{
            "namespaceSelector": {"matchLabels": {"team": "blue"}},
            "podSelector": {"matchLabels": {"role": "client"}},
        }]}],
    });
    lab.apply(FILE, &[object::policy("default", "clients", &spec)]);
    lab.start_daemons();

    let others = [Pair::start(&lab, "b2", "a2", Family::V4), Pair::start(&lab, "b1", "a2", Family::V6)];
    let pairs = Family::BOTH.map(|f| Pair::start(&lab, "b1", "a1", f));
    let cut = |when: &str| pairs.iter().for_each(|p| p.must_be_cut(&lab, when));
    let flows = |when: &str| pairs.iter().for_each(|p| p.must_flow(when));
    lab.apply("other.yaml", &stranger);
    cut("the pod is no client");
    lab.apply("other.yaml", &client);
    flows("the pod is a client again");
    lab.apply("namespace-other.yaml", &namespace("red"));
    cut("its namespace is red");
    lab.apply("namespace-other.yaml", &namespace("blue"));
    flows("its namespace is blue again");
    // The pod that is isolated leaves the policy, and comes under it.
    let text = lab.pod_manifest(lab.pod("a1"));
    lab.apply("other.yaml", &stranger);
    cut("no client");
    lab.change(|| lab.manifests.write("pod-a1.yaml", &text.replace("app: a1", "app: free")));
    flows("a1 is not isolated");
    lab.change(|| lab.manifests.write("pod-a1.yaml", &text));
    cut("a1 is isolated again");
    for pair in others {
        pair.must_be_whole();
    }
}

/// What a client sees who is denied: refused, or nothing.
fn denied_connection(lab: &Lab, from: &str, to: SocketAddr) -> io::Error {
    // Shorter than the first retransmission: an answer, if any, was to the first SYN.
    let limit = Duration::from_millis(900);
    let ns = &lab.pod(from).ns;
    ns.run(|| std::net::TcpStream::connect_timeout(&to, limit)).expect_err("it is denied")
}

/// By default a denied connection meets silence.
#[test]
fn denied_is_silent() {
    let lab = Lab::start(LabSpec::default());
    for (pod, direction) in [("a2", "Ingress"), ("b1", "Ingress"), ("a1", "Egress")] {
        lab.apply(FILE, &[isolating(direction, &app(pod))]);
        for to in ["a2", "b1"].into_iter().filter(|to| direction == "Egress" || *to == pod) {
            for family in Family::BOTH {
                let ip = lab.pod(to).ip(family);
                let listener = tcp::listen(&lab.pod(to).ns, ip).unwrap();
                let target = SocketAddr::new(ip, listener.local_addr().unwrap().port());
                let capture = Capture::start(&lab.pod("a1").ns, "eth0").unwrap();
                let error = denied_connection(&lab, "a1", target);
                assert_eq!(error.kind(), io::ErrorKind::TimedOut, "{direction} of {pod}: {error}");
                assert!(icmp::unreachable(&lab.pod("a1").ns, ip));
                let seen = capture.stop();
                // Neighbour discovery apart, nothing at all.
                let ours = lab.pod("a1").ip(family);
                let discovery = |v: &View| {
                    family == Family::V6 && v.ports.is_none() && matches!(v.payload.first(), Some(133..=137))
                };
                let answers = views(&seen)
                    .filter(|(out, v)| !out && v.ip.is_some_and(|(_, to, _)| to == ours) && !discovery(v))
                    .map(|(_, v)| v)
                    .collect::<Vec<_>>();
                assert_eq!(answers, [], "{direction} of {pod}: something came back");
            }
        }
    }
}

/// With `deny = "reject"` it is refused at once, and what was established ends.
#[test]
fn denied_is_rejected_by_config() {
    let more_config = "[policy]\ndeny = \"reject\"\n".to_owned();
    let lab = Lab::start(LabSpec { more_config, ..LabSpec::default() });
    for (pod, direction) in [("a2", "Ingress"), ("b1", "Ingress"), ("a1", "Egress")] {
        let targets: Vec<_> =
            ["a2", "b1"].into_iter().filter(|to| direction == "Egress" || *to == pod).collect();
        let mut established = Vec::new();
        for to in &targets {
            for family in Family::BOTH {
                let (a, b, ip) = lab.between("a1", to, family);
                let stream = tcp::Stream::start(a, b, ip).unwrap();
                stream.must_progress("before", PATIENCE);
                established.push((format!("{direction} of {pod}: a1 to {to} {family:?}"), stream));
            }
        }
        lab.apply(FILE, &[isolating(direction, &app(pod))]);
        for to in &targets {
            for family in Family::BOTH {
                let ip = lab.pod(to).ip(family);
                let listener = tcp::listen(&lab.pod(to).ns, ip).unwrap();
                let target = SocketAddr::new(ip, listener.local_addr().unwrap().port());
                let error = denied_connection(&lab, "a1", target);
                assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused, "{direction} of {pod}: {error}");
                listener.set_nonblocking(true).unwrap();
                assert!(listener.accept().is_err(), "{direction} of {pod}: it arrived all the same");
            }
        }
        for (what, stream) in established {
            eventually(&format!("{what}: the stream ends"), PATIENCE, || {
                (!stream.progresses_within(SILENCE)).then_some(())
            });
            let end = stream.stop().expect_err(&format!("{what}: reset"));
            let resets = [io::ErrorKind::ConnectionReset, io::ErrorKind::BrokenPipe];
            assert!(resets.contains(&end.kind()), "{what}: {end}");
        }
        lab.withdraw(FILE);
    }
}
