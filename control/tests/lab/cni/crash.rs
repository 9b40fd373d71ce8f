//! Processes that are killed, a daemon that is away, a machine that was restarted, a disk that is full.

use std::collections::BTreeSet;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::runtime::{Runtime, Sandbox, addresses, connects, lab, talks};
use crate::harness::cli::rows;
use crate::traffic::{PATIENCE, eventually};

/// Calls the plugin and kills it after `after`; whether it came to its end before.
fn killed(runtime: &Runtime, verb: &str, sandbox: &Sandbox, after: Duration) -> bool {
    let child = Runtime::start(&mut runtime.command(verb, Some(sandbox)), &runtime.conf);
    std::thread::sleep(after);
    // It is our child and not waited for: the number is its own yet. `nsenter` has become the plugin.
    kill(Pid::from_raw(child.id().try_into().unwrap()), Signal::SIGKILL).unwrap();
    let out = child.wait_with_output().unwrap();
    out.status.success()
}

/// Killed at many moments of ADD, then of DEL; GC leaves nothing, and what was not touched goes on.
#[test]
fn killed_in_the_middle() {
    let lab = lab(&["a"]);
    let runtime = Runtime::of(lab.node("a"));
    let (stays, other) = (runtime.pod(&lab, "stays"), runtime.pod(&lab, "other"));
    let ips = addresses(&runtime.add(&stays));
    runtime.add(&other);
    let pod = runtime.pod(&lab, "victim");
    let time = {
        let start = Instant::now();
        runtime.add(&pod);
        let added = start.elapsed();
        runtime.del(&pod);
        added.max(Duration::from_millis(10))
    };
    let mut ended = [0, 0];
    for step in 0..24u32 {
        // Every moment of it once, and a little longer than it takes.
        let after = time * step / 20;
        let victim = Sandbox::new("victim");
        ended[0] += usize::from(killed(&runtime, "ADD", &victim, after));
        if step % 2 == 0 {
            // As a runtime does.
            runtime.del(&victim);
        } else {
            drop(victim);
            runtime.gc(&[&stays, &other]);
        }
        let (veths, records, addresses) = runtime.holds();
        assert_eq!((veths.len(), records, addresses), (2, 2, 4), "ADD killed after {after:?}");
    }
    for step in 0..24u32 {
        let after = time * step / 20;
        let victim = Sandbox::new("victim");
        runtime.add(&victim);
        ended[1] += usize::from(killed(&runtime, "DEL", &victim, after));
        if step % 2 == 0 {
            runtime.del(&victim);
        } else {
            runtime.gc(&[&stays, &other]);
        }
        let (veths, records, addresses) = runtime.holds();
        assert_eq!((veths.len(), records, addresses), (2, 2, 4), "DEL killed after {after:?}");
    }
    println!("of 24 each, came to their end before the kill: ADD {}, DEL {}", ended[0], ended[1]);
    assert!(ended.iter().all(|n| *n < 24), "none was killed in the middle");
    talks(&other, &stays, &ips);
    let cli = lab.node("a").cli();
    eventually("the daemon has two pods", PATIENCE * 2, || (cli.status().pod_ports() == 2).then_some(()));
}

/// DEL while the daemon is away takes everything down; the daemon that comes back knows nothing of it, and serves the
/// pods that stayed, which the source need not show again first.
#[test]
fn deleted_while_the_daemon_is_away() {
    let mut lab = lab(&["a"]);
    let runtime = Runtime::of(lab.node("a"));
    let [p, q, r] = ["p", "q", "r"].map(|n| runtime.pod(&lab, n));
    let [_, ip_q, ip_r] = [&p, &q, &r].map(|s| addresses(&runtime.add(s)));
    for kill in [true, false] {
        if kill {
            lab.node_mut("a").daemon().kill();
        } else {
            assert!(lab.node_mut("a").daemon().stop().success());
        }
        let gone = if kill { &p } else { &r };
        runtime.del(gone);
        assert_eq!(runtime.holds().0.len(), if kill { 2 } else { 1 });
        lab.node_mut("a").start_daemon();
        let left = if kill { 2 } else { 1 };
        let cli = lab.node("a").cli();
        eventually("the pods that stayed are served", PATIENCE, || {
            let endpoints = rows(&cli.json(&["show", "endpoints"]));
            (endpoints.iter().filter(|e| e["state"] == "attached").count() == left).then_some(())
        });
        if kill {
            talks(&q, &r, &ip_r);
            talks(&r, &q, &ip_q);
        }
    }
    // And new ones come.
    let s = runtime.pod(&lab, "s");
    runtime.add(&s);
    talks(&s, &q, &ip_q);
}

/// A plugin that could not tell a daemon that hung: it notices by itself.
#[test]
fn deleted_while_the_daemon_hangs() {
    let mut lab = lab(&["a"]);
    let runtime = Runtime::of(lab.node("a"));
    let (p, q) = (runtime.pod(&lab, "p"), runtime.pod(&lab, "q"));
    let ips = addresses(&runtime.add(&p));
    runtime.add(&q);
    lab.node_mut("a").daemon().signal(Signal::SIGSTOP);
    runtime.del(&p);
    assert_eq!(runtime.holds().0.len(), 1);
    lab.node_mut("a").daemon().signal(Signal::SIGCONT);
    let cli = lab.node("a").cli();
    eventually("the daemon has forgotten it", PATIENCE * 2, || {
        let routes = rows(&cli.json(&["show", "routes"]));
        (!routes.iter().any(|r| r["prefix"] == format!("{}/32", ips[0]))).then_some(())
    });
}

/// After a restart of the machine there are records, but no namespaces and no veths: new sandboxes come for the same
/// pods, and GC clears the rest.
#[test]
fn the_machine_was_restarted() {
    let mut lab = lab(&["a"]);
    let runtime = Runtime::of(lab.node("a"));
    let before = ["p", "q"].map(|n| runtime.pod(&lab, n));
    let old: BTreeSet<_> = before.iter().flat_map(|s| addresses(&runtime.add(s))).collect();
    lab.node_mut("a").daemon().kill();
    let lost = before.map(|s| Sandbox { ns: Sandbox::new("lost").ns, ..s });
    eventually("the veths went with their namespaces", PATIENCE, || {
        runtime.holds().0.is_empty().then_some(())
    });
    lab.node_mut("a").start_daemon();
    let after = ["p", "q"].map(Sandbox::new);
    let [ip_p, ip_q] = after.each_ref().map(|s| addresses(&runtime.add(s)));
    assert!(ip_p.iter().chain(&ip_q).all(|ip| !old.contains(ip)), "the old ones are not given back yet");
    talks(&after[0], &after[1], &ip_q);
    runtime.del(&lost[0]);
    talks(&after[1], &after[0], &ip_p);
    runtime.gc(&[&after[0], &after[1]]);
    let (veths, records, addresses) = runtime.holds();
    assert_eq!((veths.len(), records, addresses), (2, 2, 4));
    talks(&after[0], &after[1], &ip_q);
    assert!(connects(&after[1], &after[0], ip_p[1]));
    let cli = lab.node("a").cli();
    eventually("nothing is degraded", PATIENCE, || {
        let status = cli.status();
        (status.0["degraded"].as_array().unwrap().is_empty()).then_some(())
    });
}

/// A small disk of its own in the place of a folder.
struct Disk(PathBuf);

impl Disk {
    fn mount(folder: &Path) -> Self {
        std::fs::create_dir_all(folder).unwrap();
        let size = Some("size=256k,mode=0755");
        mount(Some("fplab"), folder, Some("tmpfs"), MsFlags::empty(), size).expect("a tmpfs is mounted");
        Self(folder.to_owned())
    }

    fn filler(&self) -> PathBuf {
        self.0.join("filler")
    }

    /// Until not a byte more fits.
    fn fill(&self) {
        let mut filler = std::fs::File::options().create(true).append(true).open(self.filler()).unwrap();
        while filler.write(&[1; 4096]).is_ok() {}
        std::fs::write(self.0.join("more"), "1").expect_err("the disk is full");
        std::fs::remove_file(self.0.join("more")).unwrap();
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = umount2(&self.0, MntFlags::MNT_DETACH);
    }
}

/// DEL and GC need no room; an ADD that finds none leaves nothing.
#[test]
fn a_full_disk() {
    let lab = lab(&["a"]);
    let runtime = Runtime::of(lab.node("a"));
    let disk = Disk::mount(&runtime.data_dir);
    let (p, q, stays) = (runtime.pod(&lab, "p"), runtime.pod(&lab, "q"), runtime.pod(&lab, "stays"));
    runtime.add(&p);
    runtime.add(&q);
    let ips = addresses(&runtime.add(&stays));
    disk.fill();
    runtime.del(&p);
    disk.fill();
    runtime.gc(&[&stays]);
    let (veths, records, held) = runtime.holds();
    assert_eq!((veths.len(), records, held), (1, 1, 2));
    disk.fill();
    let late = runtime.pod(&lab, "late");
    let answer = runtime.call("ADD", Some(&late));
    assert!(!answer.ok, "{}", answer.json);
    let (veths, records, held) = runtime.holds();
    assert_eq!((veths.len(), records, held), (1, 1, 2));
    // There is room again.
    std::fs::remove_file(disk.filler()).unwrap();
    runtime.add(&late);
    talks(&late, &stays, &ips);
    runtime.gc(&[]);
    runtime.holds_nothing();
}
