//! What the tests share: namespaces with veths, a loaded `Redirect` to run frames through, frames.
#![allow(dead_code, reason = "each test binary uses its part")]
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot be set up fails")]

pub(crate) mod families;
pub(crate) mod frames;
pub(crate) mod model;

use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use aya::programs::{TestRun, TestRunOptions};
use fastpath_xdp::{Heartbeat, LoadConfig, OnFailure, Redirect, Role};
use rustix::net::{AddressFamily, SocketType, socket};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

pub(crate) const DROP: u32 = 1;
pub(crate) const PASS: u32 = 2;
pub(crate) const REDIRECT: u32 = 4;

/// A name that no other test and no other run has.
pub(crate) fn unique(what: &str) -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    format!("fpx{}-{what}{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed))
}

/// A pin folder of its own below `/sys/fs/bpf`, not made yet.
pub(crate) fn pin_dir() -> PathBuf {
    PathBuf::from("/sys/fs/bpf").join(unique("pins"))
}

pub(crate) fn config(pin_dir: PathBuf, on_failure: OnFailure) -> LoadConfig {
    LoadConfig {
        pin_dir,
        on_failure,
        // Never stale by accident, however slow the machine: what is to be stale is made so.
        stale_after: Duration::from_secs(3600),
        max_sockets: 64,
        max_local_prefixes: 64,
        max_frontends: 256,
    }
}

/// An AF_XDP socket that is not bound: enough for the socket map.
pub(crate) fn xsk() -> OwnedFd {
    socket(AddressFamily::XDP, SocketType::RAW, None).expect("these tests need root and AF_XDP")
}

/// Runs a command that has to succeed.
pub(crate) fn sh(line: &str) -> String {
    let output = Command::new("sh").args(["-ec", line]).output().unwrap();
    assert!(
        output.status.success(),
        "`{line}` (these tests need root and iproute2): {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap()
}

/// A network namespace; the calling thread is inside from its making on. Removed when dropped.
pub(crate) struct Namespace {
    pub(crate) name: String,
}

impl Namespace {
    pub(crate) fn enter_new() -> Self {
        let name = unique("ns");
        sh(&format!("ip netns add {name}"));
        let file = std::fs::File::open(format!("/run/netns/{name}")).unwrap();
        move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
        sh("ip link set lo up");
        Self { name }
    }

    /// A veth pair inside, both ends up.
    pub(crate) fn veth(&self, left: &str, right: &str) -> (u32, u32) {
        sh(&format!(
            "ip link add {left} type veth peer name {right}
             ip link set {left} up; ip link set {right} up"
        ));
        (ifindex(left), ifindex(right))
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "del", &self.name]).status();
    }
}

pub(crate) fn ifindex(name: &str) -> u32 {
    let text = sh(&format!("ip -o link show dev {name}"));
    text.split(':').next().unwrap().parse().unwrap()
}

/// The XDP program that `ip link` shows on a device, with its mode.
pub(crate) fn shown(ifindex: u32) -> Option<(u32, fastpath_xdp::Mode)> {
    fastpath_xdp::device::query(ifindex).unwrap().unwrap().program
}

/// A loaded `Redirect` whose programs are run on single frames, as if received from `lo`.
pub(crate) struct Bench {
    pub(crate) redirect: Redirect,
    pub(crate) heart: Heartbeat,
    socket: OwnedFd,
}

/// What became of one frame: the action, and the counters that went up.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Verdict {
    pub(crate) action: u32,
    pub(crate) counted: Vec<&'static str>,
}

impl Bench {
    /// Alive, with a socket on `lo`'s queue.
    pub(crate) fn new(on_failure: OnFailure) -> Self {
        let mut redirect = Redirect::load(&config(pin_dir(), on_failure)).unwrap();
        let socket = xsk();
        redirect.register_socket(1, 0, socket.as_fd()).unwrap();
        let mut heart = redirect.take_heartbeat().unwrap();
        heart.beat().unwrap();
        Self { redirect, heart, socket }
    }

    pub(crate) fn register(&mut self) {
        self.redirect.register_socket(1, 0, self.socket.as_fd()).unwrap();
    }

    pub(crate) fn run(&mut self, role: Role, frame: &[u8]) -> Verdict {
        self.run_from(None, role, frame)
    }

    /// As if received from the device of that index.
    pub(crate) fn uplink_from(&mut self, ifindex: u32, frame: &[u8]) -> Verdict {
        // `struct xdp_md`: data, data_end, data_meta, ingress_ifindex, rx_queue_index, egress_ifindex.
        let words = [0, u32::try_from(frame.len()).unwrap(), 0, ifindex, 0, 0];
        let context: Vec<u8> = words.into_iter().flat_map(u32::to_ne_bytes).collect();
        self.run_from(Some(&context), Role::Uplink, frame)
    }

    fn run_from(&mut self, context: Option<&[u8]>, role: Role, frame: &[u8]) -> Verdict {
        let before = self.counters(role);
        let mut out = vec![0u8; frame.len() + 64];
        let result = self
            .redirect
            .program(role)
            .unwrap()
            .test_run(TestRunOptions {
                data_in: Some(frame),
                ctx_in: context,
                data_out: Some(&mut out),
                ..TestRunOptions::new()
            })
            .unwrap_or_else(|error| panic!("{} bytes: {error}", frame.len()));
        assert_eq!(out.get(..frame.len()), Some(frame), "the frame was changed");
        let after = self.counters(role);
        let counted = after
            .iter()
            .filter(|(name, value)| {
                let more = *value - before[*name];
                assert!(more <= 1, "{name} went up by {more}");
                more == 1
            })
            .map(|(name, _)| *name)
            .collect();
        Verdict { action: result.return_value, counted }
    }

    pub(crate) fn uplink(&mut self, frame: &[u8]) -> Verdict {
        self.run(Role::Uplink, frame)
    }

    /// Forgets what the program remembers of fragments; returns of how many datagrams.
    pub(crate) fn forget_fragments(&mut self) -> usize {
        let fragments = self.redirect.fragments();
        let keys: Vec<_> = fragments.keys().map(Result::unwrap).collect();
        for key in &keys {
            fragments.remove(key).unwrap();
        }
        keys.len()
    }

    fn counters(&self, role: Role) -> BTreeMap<&'static str, u64> {
        let program = match role {
            Role::Endpoint => "endpoint",
            Role::Uplink => "uplink",
        };
        let all = self.redirect.counters().unwrap();
        all.into_iter().filter(|c| c.program == program).map(|c| (c.name, c.value)).collect()
    }
}

impl Bench {
    /// Ends it as a daemon ends, so that no folder stays.
    pub(crate) fn finish(self) {
        self.redirect.shutdown().unwrap();
    }
}

/// The verdict of a frame that went to the socket through a hole.
pub(crate) fn redirected(hole: &'static str) -> Verdict {
    Verdict { action: REDIRECT, counted: vec![hole, "redirected"] }
}

/// The verdict of a frame left to the kernel.
pub(crate) fn passed(why: &'static str) -> Verdict {
    Verdict { action: PASS, counted: vec![why] }
}

/// The verdict of a frame that the kernel would take past the dataplane.
pub(crate) fn dropped_vlan0() -> Verdict {
    Verdict { action: DROP, counted: vec!["dropped_vlan0"] }
}

/// The verdict that the model's answer stands for.
pub(crate) fn verdict(answer: Result<&'static str, &'static str>) -> Verdict {
    match answer {
        Ok(hole) => redirected(hole),
        Err("dropped_vlan0") => dropped_vlan0(),
        Err(why) => passed(why),
    }
}
