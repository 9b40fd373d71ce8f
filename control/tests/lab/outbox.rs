//! Full vectors, sent to many veths in one call: what arrives is what was sent, in order, and nothing else.

use std::collections::BTreeMap;
use std::os::fd::AsFd as _;
use std::time::{Duration, Instant};

use fastpath::io::xsk::Outbox;
use fastpath_xdp::generator::{Flows, Generator};
use fastpath_xdp::outbox::Sender;

use crate::harness::lab::Lab;
use crate::harness::ns::NetNs;
use crate::harness::spec::{Family, LabSpec};
use crate::operation::{metrics, value};
use crate::traffic::capture::{Capture, views};
use crate::traffic::frame::{Addresses, udp};
use crate::traffic::{PATIENCE, eventually};

/// For local experiments (IEEE 802): nothing else on the device is of it.
const ETHERTYPE: [u8; 2] = [0x88, 0xb5];

/// Two veths from one namespace to another, whose ends take redirected frames.
struct Pairs {
    here: NetNs,
    there: NetNs,
}

impl Pairs {
    fn new(name: &str) -> Self {
        let name = format!("fplab-{}-{name}", std::process::id());
        let (here, there) = (NetNs::create(&format!("{name}-here")), NetNs::create(&format!("{name}-there")));
        for n in [0, 1] {
            here.ip([
                format!("link add v{n} mtu 2100 type veth peer name w{n} mtu 2100 netns {}", there.name()),
                format!("link set v{n} up"),
            ]);
            there.ip([format!("link set w{n} up")]);
            there.exec("ethtool", &["-K", &format!("w{n}"), "gro", "on"]);
        }
        Self { here, there }
    }

    fn index(&self, device: &str) -> u32 {
        let index = self.here.link_json(device)["ifindex"].as_u64().expect("an index");
        u32::try_from(index).expect("an index")
    }

    fn capture(&self, device: &str) -> Capture {
        Capture::start_matching(&self.there, device, |seen| !seen.outgoing && seen.bytes[12..14] == ETHERTYPE)
            .unwrap()
    }
}

fn outbox(sender: &mut Sender) -> Outbox {
    let mut outbox = Outbox::new(sender.program().unwrap(), sender.memory().as_fd()).unwrap();
    outbox.set_lanes(3);
    outbox
}

/// The n-th packet: bytes that tell it from all others, however long.
fn packet(n: u32, len: usize) -> Vec<u8> {
    let mut bytes = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2];
    bytes.extend(ETHERTYPE);
    let mut state = n.wrapping_mul(0x9e37_79b1) | 1;
    let noise = std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        state.to_be_bytes()[1]
    });
    bytes.extend(noise.take(len));
    bytes.truncate(len);
    bytes
}

/// Of every length, long after short and short after long, by turns to two devices and to one that is not there.
#[test]
fn packets_arrive_as_they_were_put() {
    let pairs = Pairs::new("outbox");
    let mut sender = Sender::load().unwrap();
    let mut outbox = outbox(&mut sender);
    let indexes = [pairs.index("v0"), pairs.index("v1")];
    let captures = ["w0", "w1"].map(|device| pairs.capture(device));
    let mut want = [Vec::new(), Vec::new()];
    let mut number = 0u32;
    for round in 0..24u32 {
        // Full, nearly empty, and between.
        let count = [Outbox::SLOTS, 1, 2, 63, 64, 65, 257][round as usize % 7];
        for n in 0..count {
            number += 1;
            let span = Outbox::LONGEST - 60 + 1;
            let len = 60 + (number as usize * 977 + round as usize) % span;
            let bytes = packet(number, len);
            if n % 7 == 6 {
                // Lost, and nothing else is.
                assert!(outbox.put(2, 0x7fff_0000, &bytes));
            } else {
                let to = usize::from(number.is_multiple_of(3));
                assert!(outbox.put(u16::try_from(to).unwrap(), indexes[to], &bytes));
                want[to].push(bytes);
            }
        }
        let (sent, result) = pairs.here.run(|| outbox.send());
        result.unwrap();
        assert_eq!(sent, count);
        // AF_PACKET's buffer takes a round; more at once than it is read may be lost there.
        std::thread::sleep(Duration::from_millis(20));
    }
    let all: u64 = want.iter().map(|list| list.len() as u64).sum();
    eventually("all of them", PATIENCE, || {
        (captures.iter().map(Capture::count).sum::<u64>() >= all).then_some(())
    });
    for (capture, want) in captures.into_iter().zip(want) {
        let got: Vec<Vec<u8>> = capture.stop().into_iter().map(|seen| seen.bytes).collect();
        assert_eq!(got.len(), want.len());
        for (n, (got, want)) in got.iter().zip(&want).enumerate() {
            assert_eq!(got, want, "packet {n}");
        }
    }
}

/// What cannot be sent is refused when it is put.
#[test]
fn limits() {
    let mut sender = Sender::load().unwrap();
    let mut outbox = outbox(&mut sender);
    assert_eq!(outbox.send().0, 0, "nothing was put");
    let long = packet(1, Outbox::LONGEST + 1);
    assert!(!outbox.put(0, 1, &long));
    assert!(!outbox.put(0, 1, &long[..Outbox::SHORTEST - 1]));
    assert!(!outbox.put(3, 1, &long[..64]), "no such lane");
    for _ in 0..Outbox::SLOTS {
        assert!(outbox.put(2, 0x7fff_0000, &long[..Outbox::SHORTEST]));
    }
    assert!(!outbox.put(0, 1, &long[..64]), "full");
    let (sent, result) = outbox.send();
    result.unwrap();
    assert_eq!(sent, Outbox::SLOTS);
    assert!(outbox.put(0, 1, &long[..64]), "empty again");
}

/// The program runs at its full speed from the first call on: it is in the kernel's dispatcher.
#[test]
fn a_call_waits_for_nothing() {
    let mut sender = Sender::load().unwrap();
    let mut outbox = outbox(&mut sender);
    let start = Instant::now();
    for _ in 0..100 {
        for _ in 0..64 {
            assert!(outbox.put(0, 0x7fff_0000, &packet(1, 60)));
        }
        outbox.send().1.unwrap();
    }
    // Two grace periods a call would be seconds; a call is microseconds.
    assert!(start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());
}

/// Bursts from pod a1 to pod a2 of a node that sends together.
struct Bursts<'a> {
    lab: &'a Lab,
    frame: Vec<u8>,
}

impl<'a> Bursts<'a> {
    fn new(lab: &'a Lab) -> Self {
        let (from, to) = (lab.pod("a1"), lab.pod("a2"));
        let addresses = Addresses {
            from_mac: from.ns.mac("eth0"),
            to_mac: [0xee; 6],
            from: from.ip(Family::V4),
            to: to.ip(Family::V4),
        };
        Self { lab, frame: udp(addresses, (2000, 3000), &packet(7, 700)) }
    }

    /// The row of the receiver's port.
    fn port(&self) -> serde_json::Value {
        let ports = self.lab.node("a").cli().json(&["show", "ports"]);
        let rows = crate::harness::cli::rows(&ports);
        rows.iter().find(|p| p["name"] == "fp-a2").expect("the pod's port").clone()
    }

    /// Packets sent to it together.
    fn redirected(&self) -> u64 {
        let port = self.port();
        port["queues"].as_array().expect("queues").iter().filter_map(|q| q["tx_redirected"].as_u64()).sum()
    }

    fn capture(&self) -> Capture {
        let to = &self.lab.pod("a2").ns;
        Capture::start_matching(to, "eth0", |s| !s.outgoing && s.bytes.len() > 700).unwrap()
    }

    /// Sends so many packets, each of another source port from 2000 on, and that so many times.
    fn send(&self, packets: u32, count: u32) {
        self.lab.pod("a1").ns.run(|| {
            let mut generator = Generator::new("eth0").unwrap();
            generator.set_flows(Flows { flows: 64, ports: 64, to_many: false });
            for _ in 0..count {
                generator.send(&self.frame, packets).unwrap();
                std::thread::sleep(Duration::from_millis(5));
            }
        });
    }

    /// Sends, and sees that all of it arrives.
    fn arrive(&self, count: u32) {
        let capture = self.capture();
        self.send(64, count);
        let all = u64::from(count) * 64;
        eventually("every packet", PATIENCE, || (capture.count() >= all).then_some(()));
        let (from, to) = (self.lab.pod("a1"), self.lab.pod("a2"));
        let seen = capture.stop();
        let mut by_port = BTreeMap::<u16, u32>::new();
        for (_, view) in views(&seen) {
            assert_eq!(view.payload, packet(7, 700));
            assert!(view.checksum_ok);
            assert!(view.is_between(from.ip(Family::V4), to.ip(Family::V4)));
            *by_port.entry(view.ports.expect("UDP").1).or_default() += 1;
        }
        let want: BTreeMap<u16, u32> = (2000..2064).map(|port| (port, count)).collect();
        assert_eq!(by_port, want);
    }

    /// Sends until it goes together.
    fn until_together(&self) {
        self.lab.pod("a2").ns.exec("ethtool", &["-K", "eth0", "gro", "on"]);
        eventually("that bursts are sent together", PATIENCE, || {
            self.arrive(4);
            (self.redirected() > 0).then_some(())
        });
    }
}

/// How worker 0 of node a sends, as `status` and the metrics say it; both are the same.
fn transmit(lab: &Lab) -> String {
    let way =
        lab.node("a").cli().status().0["workers"][0]["transmit"].as_str().expect("how it sends").to_owned();
    let metric = value(&metrics(lab), "fastpath_worker_sends_together", &[("worker", "0")]);
    assert_eq!(metric > 0.0, way == "together");
    way
}

/// A burst from one pod to another: the daemon sends it by the outbox, once the pod's end takes such frames, and by its
/// sockets again when it does not any more.
#[test]
fn bursts_between_pods() {
    let lab = Lab::start(LabSpec { transmit: "together", ..LabSpec::default() });
    assert_eq!(transmit(&lab), "together");
    let bursts = Bursts::new(&lab);
    bursts.until_together();
    lab.pod("a2").ns.exec("ethtool", &["-K", "eth0", "gro", "off"]);
    // Until the daemon has seen it, bursts may be lost: that is said where this is documented.
    std::thread::sleep(Duration::from_secs(4));
    let before = bursts.redirected();
    bursts.arrive(4);
    assert_eq!(bursts.redirected(), before);
    let status = lab.node("a").cli().json(&["status"]);
    let port = status["ports"].as_array().expect("ports").iter().find(|p| p["name"] == "fp-a2");
    let notes = &port.expect("the pod's port")["notes"];
    assert!(notes.to_string().contains("full vectors leave by the socket"), "{notes}");
}

/// A pod whose kernel does not take packets off its ring: what does not fit is a drop with a name, to the packet.
#[test]
fn what_a_receiver_does_not_take_has_a_name() {
    let lab = Lab::start(LabSpec { transmit: "together", ..LabSpec::default() });
    let bursts = Bursts::new(&lab);
    bursts.until_together();
    let lost = || {
        let drops = lab.node("a").cli().json(&["show", "drops"]);
        let rows = crate::harness::cli::rows(&drops);
        let row = rows.iter().find(|d| d["reason"] == "receiver_full").expect("the reason");
        let (all, port) = (row["packets"].as_u64(), bursts.port()["receiver_full"].as_u64());
        assert_eq!(all, port, "lost at one port, and said of that one");
        all.expect("a number")
    };
    assert_eq!(lost(), 0);
    // After some work, but less than the 64 packets of a turn, NAPI is not run again for a second: a ring holds 256.
    let stall = "mount -t sysfs none /sys && cd /sys/class/net/eth0 && echo 1 > napi_defer_hard_irqs && \
                 echo 1000000000 > gro_flush_timeout";
    lab.pod("a2").ns.exec("unshare", &["--mount", "sh", "-c", stall]);
    let before = bursts.redirected();
    let capture = bursts.capture();
    bursts.send(60, 16);
    let all = 16 * 60;
    eventually("every packet, or its loss", PATIENCE, || (capture.count() + lost() == all).then_some(()));
    assert!(capture.count() >= 256, "{} arrived", capture.count());
    assert!(lost() > 256, "{} were lost", lost());
    assert_eq!(bursts.redirected() - before, all);
    let samples = metrics(&lab);
    #[expect(clippy::cast_possible_truncation, reason = "a count")]
    let count = |name, labels: &[(&str, &str)]| value(&samples, name, labels) as u64;
    assert_eq!(count("fastpath_drops_total", &[("reason", "receiver_full")]), lost());
    let fault = [("device", "fp-a2"), ("fault", "receiver_full")];
    assert_eq!(count("fastpath_port_faults_total", &fault), lost());
}

/// Without the capability that it takes, the daemon sends by its sockets, and says so.
#[test]
fn who_may_not_send_together_says_so() {
    let all_but_that = &["net_admin", "net_raw", "bpf", "perfmon", "ipc_lock", "net_broadcast"];
    let mut lab =
        Lab::start(LabSpec { transmit: "together", capabilities: Some(all_but_that), ..LabSpec::default() });
    assert_eq!(transmit(&lab), "sockets");
    let said = "workers.transmit: worker 0 sends by its sockets only: ";
    let complaints = lab.node("a").cli().status().complaints();
    assert_eq!(complaints.matches(said).count(), 1, "{complaints}");
    let log = lab.node_mut("a").daemon().log_text();
    assert_eq!(log.matches(said).count(), 1, "{log}");
    Bursts::new(&lab).arrive(4);
}
