//! Attaching, falling back, pinning, taking over, leaving nothing: on real devices. Needs root.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

mod lab;

use std::io::{BufRead, BufReader, Write};
use std::net::UdpSocket;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use fastpath_xdp::generator::Sink;
use fastpath_xdp::{LoadConfig, Mode, ModeRequest, OnFailure, Redirect, Role, XdpError};
use rustix::process::{Pid, Signal, kill_process};

use lab::{Namespace, config, pin_dir, sh, shown};

fn load(pins: &Path, on_failure: OnFailure) -> Redirect {
    Redirect::load(&config(pins.to_owned(), on_failure)).unwrap()
}

fn attach(redirect: &mut Redirect, ifindex: u32, name: &str) -> Mode {
    redirect.attach(ifindex, name, Role::Endpoint, ModeRequest::Auto).unwrap()
}

fn program_of(ifindex: u32) -> Option<u32> {
    shown(ifindex).map(|(id, _)| id)
}

#[test]
fn native_generic_and_away_again() {
    let ns = Namespace::enter_new();
    let (a, b) = ns.veth("va", "vb");
    let pins = pin_dir();
    let mut redirect = load(&pins, OnFailure::Drop);
    assert!(redirect.links_outlive_process());
    assert_eq!(attach(&mut redirect, a, "va"), Mode::Native);
    assert_eq!(redirect.attach(b, "vb", Role::Uplink, ModeRequest::Generic).unwrap(), Mode::Generic);
    assert_eq!(shown(a).unwrap().1, Mode::Native);
    assert_eq!(shown(b).unwrap().1, Mode::Generic);
    let mut attached: Vec<_> = redirect.attached().collect();
    attached.sort_by_key(|(_, name, _, _)| *name);
    let expected = [(a, "va", Role::Endpoint, Mode::Native), (b, "vb", Role::Uplink, Mode::Generic)];
    assert_eq!(attached, expected);
    // Again is nothing new; another mode or role is.
    let before = program_of(a);
    assert_eq!(attach(&mut redirect, a, "va"), Mode::Native);
    assert_eq!(program_of(a), before);
    assert_eq!(redirect.attach(a, "va", Role::Endpoint, ModeRequest::Generic).unwrap(), Mode::Generic);
    assert_eq!(shown(a).unwrap().1, Mode::Generic);
    assert_eq!(redirect.attach(a, "va", Role::Uplink, ModeRequest::Native).unwrap(), Mode::Native);
    assert_ne!(program_of(a), before);

    redirect.detach(a).unwrap();
    assert_eq!(shown(a), None);
    redirect.detach(a).unwrap();
    redirect.shutdown().unwrap();
    assert_eq!(shown(b), None);
    assert!(!pins.exists());
}

#[test]
fn a_driver_without_native_mode_gets_generic() {
    let _ns = Namespace::enter_new();
    sh("ip link add vd type bridge; ip link set vd up
        ip link add big type veth peer name peer; ip link set big mtu 9000; ip link set peer mtu 9000
        ip link set big up; ip link set peer up");
    let mut redirect = load(&pin_dir(), OnFailure::Drop);
    for name in ["vd", "big"] {
        let index = lab::ifindex(name);
        let error = redirect.attach(index, name, Role::Endpoint, ModeRequest::Native).unwrap_err();
        assert!(matches!(&error, XdpError::Native { name: n, .. } if n == name), "{error}");
        assert_eq!(shown(index), None);
        assert_eq!(attach(&mut redirect, index, name), Mode::Generic);
    }
    let error = redirect.attach(lab::ifindex("peer"), "peer", Role::Uplink, ModeRequest::Native).unwrap_err();
    assert!(error.to_string().contains("MTU 9000") && error.to_string().contains("too large"), "{error}");
    redirect.shutdown().unwrap();
}

#[test]
fn a_foreign_program_is_left_alone() {
    let ns = Namespace::enter_new();
    let (a, _) = ns.veth("va", "vb");
    let mut redirect = load(&pin_dir(), OnFailure::Pass);
    for theirs in [ModeRequest::Native, ModeRequest::Generic] {
        let foreign = Sink::attach("va", theirs).unwrap();
        let id = program_of(a);
        for ours in [ModeRequest::Auto, ModeRequest::Native, ModeRequest::Generic] {
            let error = redirect.attach(a, "va", Role::Uplink, ours).unwrap_err();
            assert!(matches!(&error, XdpError::Busy { program, .. } if *program == id), "{error}");
        }
        assert_eq!(program_of(a), id, "still there");
        drop(foreign);
        // Another test's child may hold its descriptor until it executes its program.
        let end = Instant::now() + Duration::from_secs(5);
        while shown(a).is_some() && Instant::now() < end {
            std::thread::sleep(Duration::from_millis(1));
        }
        assert_eq!(shown(a), None);
    }
    assert_eq!(attach(&mut redirect, a, "va"), Mode::Native);
    redirect.shutdown().unwrap();
}

#[test]
fn devices_that_are_not_there() {
    let ns = Namespace::enter_new();
    let (a, _) = ns.veth("va", "vb");
    let mut redirect = load(&pin_dir(), OnFailure::Pass);
    for (index, name) in [(a + 100, "va"), (a, "vb"), (a, "nope")] {
        let error = redirect.attach(index, name, Role::Endpoint, ModeRequest::Auto).unwrap_err();
        assert!(matches!(error, XdpError::NoDevice { .. }), "{error}");
    }
    // Gone while attached, and back under the same index.
    attach(&mut redirect, a, "va");
    sh("ip link del va");
    sh(&format!("ip link add va index {a} type veth peer name vb"));
    assert_eq!(shown(a), None);
    assert_eq!(attach(&mut redirect, a, "va"), Mode::Native);
    sh("ip link del va");
    redirect.detach(a).unwrap();
    redirect.shutdown().unwrap();
}

#[test]
fn under_pass_nothing_outlives_the_process() {
    let ns = Namespace::enter_new();
    let (a, _) = ns.veth("va", "vb");
    let pins = pin_dir();
    let mut redirect = load(&pins, OnFailure::Pass);
    assert!(!redirect.links_outlive_process());
    attach(&mut redirect, a, "va");
    assert!(shown(a).is_some() && !pins.exists());
    drop(redirect);
    assert_eq!(shown(a), None);
}

/// Watches that a device is never without a program, until stopped.
struct Watch {
    stop: Arc<AtomicBool>,
    thread: std::thread::JoinHandle<(u32, u32)>,
}

impl Watch {
    fn start(ifindex: u32) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let flag = Arc::clone(&stop);
        // The thread starts in the namespace of this one.
        let thread = std::thread::spawn(move || {
            let (mut with, mut without) = (0, 0);
            while !flag.load(Ordering::Relaxed) {
                match program_of(ifindex) {
                    Some(_) => with += 1,
                    None => without += 1,
                }
            }
            (with, without)
        });
        Self { stop, thread }
    }

    fn stop(self) {
        self.stop.store(true, Ordering::Relaxed);
        let (with, without) = self.thread.join().unwrap();
        assert!(with > 0);
        assert_eq!(without, 0, "the device was bare at {without} of {} looks", with + without);
    }
}

#[test]
fn pinned_links_stay_and_are_taken_over_without_a_gap() {
    let ns = Namespace::enter_new();
    let (a, b) = ns.veth("va", "vb");
    sh("ip link add vd.7 type bridge");
    let bridge = lab::ifindex("vd.7");
    let pins = pin_dir();
    let mut first = load(&pins, OnFailure::Drop);
    attach(&mut first, a, "va");
    // A dot in the name, and a driver without native mode.
    assert_eq!(attach(&mut first, bridge, "vd.7"), Mode::Generic);
    first.attach(b, "vb", Role::Uplink, ModeRequest::Generic).unwrap();
    let ids = [a, b, bridge].map(program_of);

    let watch = Watch::start(a);
    // What a killed process leaves: closed descriptors, no farewell.
    drop(first);
    assert_eq!([a, b, bridge].map(program_of), ids);

    let mut second = load(&pins, OnFailure::Drop);
    assert_eq!([a, b, bridge].map(program_of), ids, "until they are attached");
    assert_eq!(attach(&mut second, a, "va"), Mode::Native);
    assert_ne!(program_of(a), ids[0], "the new program");
    assert_eq!(
        second.attach(a, "va", Role::Uplink, ModeRequest::Auto).unwrap(),
        Mode::Native,
        "another role"
    );
    watch.stop();

    // Its mode stays under `auto`, and is changed on demand.
    assert_eq!(second.attach(b, "vb", Role::Uplink, ModeRequest::Auto).unwrap(), Mode::Generic);
    drop(second);
    let mut third = load(&pins, OnFailure::Drop);
    assert_eq!(third.attach(b, "vb", Role::Uplink, ModeRequest::Native).unwrap(), Mode::Native);

    // Nobody wants the other two any more.
    assert!(shown(a).is_some() && shown(bridge).is_some());
    assert_eq!(third.reap_stale().unwrap(), 2);
    assert_eq!([shown(a), shown(bridge)], [None, None]);
    assert!(shown(b).is_some());
    assert_eq!(third.reap_stale().unwrap(), 0);
    third.shutdown().unwrap();
    assert_eq!(shown(b), None);
    assert!(!pins.exists());
}

#[test]
fn a_restart_under_pass_unpins() {
    let ns = Namespace::enter_new();
    let (a, b) = ns.veth("va", "vb");
    let pins = pin_dir();
    let mut first = load(&pins, OnFailure::Drop);
    attach(&mut first, a, "va");
    attach(&mut first, b, "vb");
    drop(first);
    let mut second = load(&pins, OnFailure::Pass);
    let watch = Watch::start(a);
    attach(&mut second, a, "va");
    watch.stop();
    drop(second);
    // The kernel lets go of what a pin held some moments after it was removed.
    let deadline = Instant::now() + Duration::from_secs(10);
    while shown(a).is_some() {
        assert!(Instant::now() < deadline, "still pinned");
        std::thread::sleep(Duration::from_millis(5));
    }
    assert!(shown(b).is_some(), "not taken over, not reaped");
    let third = load(&pins, OnFailure::Pass);
    third.shutdown().unwrap();
    assert_eq!(shown(b), None);
    assert!(!pins.exists());
}

#[test]
fn pins_of_devices_that_are_gone_recreated_or_renamed() {
    let ns = Namespace::enter_new();
    let (a, _) = ns.veth("va", "vb");
    let (c, _) = ns.veth("vc", "vd");
    let (e, _) = ns.veth("ve", "vh");
    let pins = pin_dir();
    let mut first = load(&pins, OnFailure::Drop);
    for (index, name) in [(a, "va"), (c, "vc"), (e, "ve")] {
        attach(&mut first, index, name);
    }
    drop(first);
    let renamed = program_of(e);
    // Gone, and back with its index but without its program; gone for good; renamed.
    sh(&format!("ip link del va; ip link add va index {a} type veth peer name vb; ip link set va up"));
    sh("ip link del vc; ip link set ve down; ip link set ve name vg; ip link set vg up");

    let mut second = load(&pins, OnFailure::Drop);
    assert_eq!(shown(a), None);
    assert_eq!(attach(&mut second, a, "va"), Mode::Native);
    assert_eq!(program_of(e), renamed);
    assert_eq!(attach(&mut second, e, "vg"), Mode::Native);
    assert_ne!(program_of(e), renamed);
    assert_eq!(second.reap_stale().unwrap(), 1, "the one of `c`");
    drop(second);
    assert!(shown(a).is_some() && shown(e).is_some(), "pinned again");
    load(&pins, OnFailure::Drop).shutdown().unwrap();
    assert_eq!([shown(a), shown(e)], [None, None]);
    assert!(!pins.exists());
}

#[test]
fn a_pin_folder_has_one_user() {
    let pins = pin_dir();
    let first = load(&pins, OnFailure::Drop);
    for on_failure in [OnFailure::Drop, OnFailure::Pass] {
        let error = Redirect::load(&config(pins.clone(), on_failure)).unwrap_err();
        assert!(matches!(&error, XdpError::PinDirInUse(dir) if *dir == pins), "{error}");
    }
    first.shutdown().unwrap();
    load(&pins, OnFailure::Drop).shutdown().unwrap();
    assert!(!pins.exists());
}

#[test]
fn a_pin_folder_elsewhere_gets_a_mount_of_its_own() {
    let ns = Namespace::enter_new();
    let (a, _) = ns.veth("va", "vb");
    let top = std::env::temp_dir().join(lab::unique("dir"));
    let pins = top.join("bpf");
    let mounted =
        || std::fs::read_to_string("/proc/self/mountinfo").unwrap().contains(pins.to_str().unwrap());
    let mut first = load(&pins, OnFailure::Drop);
    assert!(mounted());
    attach(&mut first, a, "va");
    drop(first);
    assert!(mounted() && shown(a).is_some());
    let mut second = load(&pins, OnFailure::Drop);
    let before = program_of(a);
    attach(&mut second, a, "va");
    assert_ne!(program_of(a), before);
    second.shutdown().unwrap();
    assert!(!mounted() && shown(a).is_none() && !pins.exists());
    // The parent was there for others.
    std::fs::remove_dir(top).unwrap();
}

#[test]
fn nested_pin_folders_go_without_their_neighbours() {
    let top = pin_dir();
    let (left, right) = (top.join("left"), top.join("right"));
    let a = load(&left, OnFailure::Drop);
    let b = load(&right, OnFailure::Drop);
    a.shutdown().unwrap();
    assert!(!left.exists() && right.exists());
    b.shutdown().unwrap();
    assert!(!top.exists());
}

#[test]
fn limits_are_checked() {
    for (change, key) in [
        ((|c| c.max_sockets = 0) as fn(&mut LoadConfig), "max_sockets"),
        (|c| c.max_local_prefixes = u32::MAX, "max_local_prefixes"),
        (|c| c.max_frontends = 0, "max_frontends"),
    ] {
        let mut config = config(pin_dir(), OnFailure::Drop);
        change(&mut config);
        let error = Redirect::load(&config).unwrap_err();
        assert!(matches!(error, XdpError::Limit { key: k, .. } if k == key), "{error}");
        assert!(!config.pin_dir.exists());
    }
    let mut redirect = load(&pin_dir(), OnFailure::Pass);
    let socket = lab::xsk();
    for queue in 0..64 {
        redirect.register_socket(1, queue, socket.as_fd()).unwrap();
    }
    let error = redirect.register_socket(1, 64, socket.as_fd()).unwrap_err();
    assert!(matches!(error, XdpError::NoFreeSlot { queue: 64, max: 64, .. }), "{error}");
    redirect.unregister_socket(1, 7).unwrap();
    redirect.unregister_socket(1, 7).unwrap();
    redirect.register_socket(1, 64, socket.as_fd()).unwrap();
    // Not an AF_XDP socket: refused, and its slot is free again.
    redirect.unregister_socket(1, 64).unwrap();
    let file = std::fs::File::open("/dev/null").unwrap();
    assert!(redirect.register_socket(1, 65, file.as_fd()).is_err());
    redirect.register_socket(1, 66, socket.as_fd()).unwrap();
}

// A daemon in a process of its own, to be stopped and killed.

const CHILD: &str = "FASTPATH_XDP_TEST_CHILD";

/// Not a test by itself: what the child process runs. Holds the program on a device and beats.
#[test]
fn child_process() {
    let Ok(arguments) = std::env::var(CHILD) else { return };
    let [ns, name, role, on_failure, pins] = arguments.split(' ').collect::<Vec<_>>()[..] else { panic!() };
    let file = std::fs::File::open(format!("/run/netns/{ns}")).unwrap();
    rustix::thread::move_into_link_name_space(file.as_fd(), None).unwrap();
    let on_failure = if on_failure == "drop" { OnFailure::Drop } else { OnFailure::Pass };
    let role = if role == "uplink" { Role::Uplink } else { Role::Endpoint };
    let stale_after = Duration::from_millis(500);
    let mut redirect =
        Redirect::load(&LoadConfig { stale_after, ..config(PathBuf::from(pins), on_failure) }).unwrap();
    // A socket, so that a healthy daemon takes the frames (this one is unbound: they end there).
    let socket = lab::xsk();
    let index = lab::ifindex(name);
    redirect.register_socket(index, 0, socket.as_fd()).unwrap();
    let mut heart = redirect.take_heartbeat().unwrap();
    heart.beat().unwrap();
    redirect.attach(index, name, role, ModeRequest::Auto).unwrap();
    println!("\nready");
    std::io::stdout().flush().unwrap();
    loop {
        heart.beat().unwrap();
        std::thread::sleep(Duration::from_millis(50));
    }
}

struct Daemon(Child);

impl Daemon {
    fn start(ns: &str, name: &str, role: &str, on_failure: &str, pins: &Path) -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["child_process", "--exact", "--nocapture"])
            .env(CHILD, format!("{ns} {name} {role} {on_failure} {}", pins.display()))
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let ready = BufReader::new(child.stdout.take().unwrap()).lines().any(|line| line.unwrap() == "ready");
        assert!(ready, "the child failed");
        Self(child)
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.0), signal).unwrap();
    }

    fn kill(mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

/// A pod's namespace and the node's, joined by a veth, with a UDP echo of one way: pod to node.
struct Pair {
    node: Namespace,
    pod: Namespace,
    to: UdpSocket,
    from: UdpSocket,
    sent: u32,
}

impl Pair {
    /// The calling thread ends up in the node's namespace.
    fn new() -> Self {
        let pod = Namespace::enter_new();
        let from = {
            // Made here, in the pod; moved to the node below.
            sh("ip link add eth0 type veth peer name host");
            sh("ip addr add 10.77.0.2/24 dev eth0; ip link set eth0 up");
            UdpSocket::bind("10.77.0.2:0").unwrap()
        };
        let node = Namespace::enter_new();
        sh(&format!("ip -n {} link set host netns {}", pod.name, node.name));
        sh("ip addr add 10.77.0.1/24 dev host; ip link set host up");
        let to = UdpSocket::bind("10.77.0.1:7777").unwrap();
        to.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
        from.connect("10.77.0.1:7777").unwrap();
        Self { node, pod, to, from, sent: 0 }
    }

    /// Whether a datagram sent now arrives.
    fn passes(&mut self) -> bool {
        self.sent += 1;
        let number = self.sent.to_be_bytes();
        // An unresolved neighbour is an error here or there: then it did not pass.
        if self.from.send(&number).is_err() {
            return false;
        }
        let mut buffer = [0; 4];
        let deadline = Instant::now() + Duration::from_millis(100);
        while Instant::now() < deadline {
            if self.to.recv(&mut buffer).is_ok() && buffer == number {
                return true;
            }
        }
        false
    }

    /// Waits until it is so, then checks that it stays so.
    fn settles(&mut self, passes: bool, when: &str) {
        let deadline = Instant::now() + Duration::from_secs(30);
        while self.passes() != passes {
            assert!(Instant::now() < deadline, "{when}: passes is not {passes}");
        }
        for _ in 0..5 {
            assert_eq!(self.passes(), passes, "{when}");
        }
    }
}

#[test]
fn drop_holds_through_stop_and_kill() {
    let mut pair = Pair::new();
    let pins = pin_dir();
    pair.settles(true, "before");
    let daemon = Daemon::start(&pair.node.name, "host", "endpoint", "drop", &pins);
    pair.settles(false, "taken by the daemon");
    daemon.signal(Signal::STOP);
    pair.settles(false, "stopped");
    daemon.signal(Signal::CONT);
    daemon.signal(Signal::KILL);
    daemon.kill();
    pair.settles(false, "killed");
    std::thread::sleep(Duration::from_millis(600));
    pair.settles(false, "killed and stale");
    load(&pins, OnFailure::Drop).shutdown().unwrap();
    pair.settles(true, "shut down");
    assert!(!pins.exists());
    let _ = &pair.pod;
}

#[test]
fn pass_lets_go_on_stop_and_kill() {
    let mut pair = Pair::new();
    let pins = pin_dir();
    let daemon = Daemon::start(&pair.node.name, "host", "endpoint", "pass", &pins);
    pair.settles(false, "taken by the daemon");
    daemon.signal(Signal::STOP);
    pair.settles(true, "stopped");
    daemon.signal(Signal::CONT);
    pair.settles(false, "going on");
    daemon.kill();
    pair.settles(true, "killed");
    assert!(!pins.exists());
}

#[test]
fn the_uplink_stays_the_kernels_in_every_state() {
    for on_failure in ["drop", "pass"] {
        let mut pair = Pair::new();
        let pins = pin_dir();
        let daemon = Daemon::start(&pair.node.name, "host", "uplink", on_failure, &pins);
        pair.settles(true, "attached");
        daemon.signal(Signal::STOP);
        std::thread::sleep(Duration::from_millis(600));
        pair.settles(true, "stopped and stale");
        daemon.kill();
        pair.settles(true, "killed");
        load(&pins, OnFailure::Drop).shutdown().unwrap();
        assert!(!pins.exists());
    }
}
