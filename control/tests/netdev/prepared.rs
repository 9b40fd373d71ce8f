//! Devices are made ready, and are afterwards what they were.

use std::path::{Path, PathBuf};

use fastpath_control::netdev::{Error, Ethtool, LinkKind, Netlink, Plan, Preparer, Queues};

use crate::lab::Ns;

/// A state directory, removed when dropped.
struct StateDir(PathBuf);

impl StateDir {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("fpnd-{}-{name}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    fn record(&self) -> PathBuf {
        self.0.join("devices.json")
    }
}

impl Drop for StateDir {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// All that can be changed of a device, in the words of the tool.
fn shown(ns: &Ns, device: &str) -> String {
    let flags = ns.json(&format!("link show {device}"))[0]["flags"].to_string();
    // "requested" marks an offload wanted but not in effect: it is part of what must be restored.
    format!(
        "up: {}\n{}{}",
        flags.contains("\"UP\""),
        ns.exec(&format!("ethtool -k {device}")),
        ns.exec(&format!("ethtool -l {device}"))
    )
}

fn is_on(ns: &Ns, device: &str, offload: &str) -> bool {
    let all = ns.exec(&format!("ethtool -k {device}"));
    let line = all.lines().find(|l| l.trim().starts_with(&format!("{offload}:"))).unwrap();
    line.split_whitespace().nth(1) == Some("on")
}

fn pair(name: &str) -> (Ns, Ns) {
    let (host, pod) = (Ns::new(&format!("{name}h")), Ns::new(&format!("{name}p")));
    host.veth("cali0", &pod, "eth0");
    // Of four queues each way, one is in use.
    host.exec("ethtool -L cali0 rx 1 tx 1");
    pod.exec("ethtool -L eth0 rx 1 tx 1");
    (host, pod)
}

#[test]
fn channels_and_offloads_are_those_ethtool_shows() {
    let (host, _pod) = pair("et");
    host.exec("ethtool -L cali0 rx 3 tx 2");
    host.exec("ethtool -K cali0 tx-tcp-segmentation off");
    host.within(|| {
        let index = host.index("cali0");
        let mut ethtool = Ethtool::open().unwrap();
        let c = ethtool.channels(index).unwrap().unwrap();
        assert_eq!((c.rx, c.tx, c.combined, c.max_rx, c.max_tx, c.max_combined), (3, 2, 0, 4, 4, 0));
        let link = Netlink::route().unwrap().link(index).unwrap();
        assert_eq!(ethtool.queues(&link).unwrap(), Queues { rx: 3, tx: 2 });

        let features = ethtool.features(index).unwrap();
        let all = host.exec("ethtool -k cali0");
        // Indented lines and those that stand for one offload name it as the kernel does.
        for line in all.lines().filter(|l| l.starts_with('\t') || l.starts_with("rx-gro-list")) {
            let mut words = line.split_whitespace();
            let name = words.next().unwrap().trim_end_matches(':');
            let on = words.next() == Some("on");
            assert_eq!(features.active.contains(name), on, "{line}");
            assert_eq!(features.changeable.contains(name), !line.contains("[fixed]"), "{line}");
        }
        assert!(!features.wanted.contains("tx-tcp-segmentation"));

        // Devices of other drivers: one that tells nothing, one that is not there.
        host.ip("link add name br0 type bridge");
        assert_eq!(ethtool.channels(host.index("br0")).unwrap(), None);
        assert_eq!(ethtool.channels(host.index("lo")).unwrap(), None);
        let lo = Netlink::route().unwrap().link(1).unwrap();
        assert_eq!(ethtool.queues(&lo).unwrap(), Queues { rx: 1, tx: 1 });
        for e in [
            ethtool.channels(4711).unwrap_err(),
            ethtool.features(4711).unwrap_err(),
            ethtool.set_features(4711, &[("rx-gro".to_owned(), true)].into()).unwrap_err(),
            ethtool.set_channels(4711, &c).unwrap_err(),
        ] {
            assert!(matches!(&e, Error::NoDevice { device } if device == "#4711"), "{e}");
        }
        // What the driver forbids is said in the kernel's words.
        let e = ethtool.set_channels(index, &fastpath_control::netdev::Channels { rx: 9, ..c }).unwrap_err();
        assert!(e.to_string().contains("exceed"), "{e}");
    });
}

#[test]
fn a_device_is_prepared_and_restored() {
    let (host, _pod) = pair("pr");
    let state = StateDir::new("pr");
    host.ip("link set cali0 down");
    host.exec("ethtool -K cali0 gro on");
    host.exec("ethtool -K cali0 tx-udp-segmentation off");
    let before = shown(&host, "cali0");
    host.within(|| {
        let mut preparer = Preparer::open(&state.0).unwrap();
        let ready = preparer.prepare(host.index("cali0"), &Plan::pod(true, 3)).unwrap();
        assert_eq!(ready.queues, Queues { rx: 3, tx: 3 });
        assert!(ready.link.up && ready.notes.is_empty(), "{:?}", ready.notes);
        assert!(!is_on(&host, "cali0", "generic-receive-offload"));
        assert!(is_on(&host, "cali0", "tx-checksumming"));
        assert!(state.record().exists());
        assert_eq!(preparer.changed().collect::<Vec<_>>(), ["cali0"]);
        // Prepared once more, and otherwise: what is recorded stays what it was before all.
        let plan = Plan { queues: 4, ..Plan::uplink(&LinkKind::Veth, true, 4) };
        let again = preparer.prepare(host.index("cali0"), &plan).unwrap();
        assert_eq!(again.queues, Queues { rx: 4, tx: 4 });
        for offload in [
            "tx-checksumming",
            "tcp-segmentation-offload",
            "generic-segmentation-offload",
            "tx-udp-segmentation",
        ] {
            assert!(!is_on(&host, "cali0", offload), "{offload}");
        }
        // More workers than queues there can be.
        let note = preparer.prepare(host.index("cali0"), &Plan::pod(false, 9)).unwrap().notes.join("");
        assert!(note.contains("4 receive and 4 transmit queues for 9 workers"), "{note}");
        preparer.restore(&again).unwrap();
        assert_eq!(shown(&host, "cali0"), before);
        assert!(!state.record().exists(), "nothing is left to restore");
        // Restoring what is not recorded changes nothing.
        preparer.restore(&again).unwrap();
        assert!(preparer.restore_all().is_empty());
        assert_eq!(shown(&host, "cali0"), before);
    });
}

/// Never fewer queues than there are, and no record where nothing was changed.
#[test]
fn what_is_right_already_is_left() {
    let (host, _pod) = pair("al");
    let state = StateDir::new("al");
    host.exec("ethtool -L cali0 rx 4 tx 4");
    let before = shown(&host, "cali0");
    host.within(|| {
        let mut preparer = Preparer::open(&state.0).unwrap();
        let ready = preparer.prepare(host.index("cali0"), &Plan::pod(false, 2)).unwrap();
        assert_eq!(ready.queues, Queues { rx: 4, tx: 4 });
        assert_eq!(shown(&host, "cali0"), before);
        assert!(!state.record().exists());
    });
}

/// A daemon killed in between restores nothing; the next one does, also when it prepared the device itself.
#[test]
fn the_next_daemon_restores_what_a_killed_one_changed() {
    let (host, pod) = pair("ki");
    let state = StateDir::new("ki");
    host.ip("link add name cali1 type veth peer name tmp1");
    host.ip("link add name cali2 type veth peer name tmp2");
    let before = [shown(&host, "cali0"), shown(&host, "cali1"), shown(&pod, "eth0")];
    host.within(|| {
        let mut killed = Preparer::open(&state.0).unwrap();
        killed.prepare(host.index("cali0"), &Plan::uplink(&LinkKind::Veth, false, 4)).unwrap();
        killed.prepare(host.index("cali1"), &Plan::pod(true, 2)).unwrap();
        killed.prepare(host.index("cali2"), &Plan::pod(true, 2)).unwrap();
        killed.prepare_peer(host.index("cali0"), &pod.path(), &Plan::pod_end(true)).unwrap();
        drop(killed);
        assert_ne!(shown(&host, "cali0"), before[0]);
        assert_ne!(shown(&host, "cali1"), before[1]);
        assert_ne!(shown(&pod, "eth0"), before[2]);

        let mut next = Preparer::open(&state.0).unwrap();
        assert_eq!(next.changed().collect::<Vec<_>>(), ["cali0", "cali1", "cali2", "eth0"]);
        next.prepare(host.index("cali0"), &Plan::uplink(&LinkKind::Veth, true, 4)).unwrap();
        // One is gone, and its index taken by another device: that one is not touched.
        let index = host.index("cali2");
        host.ip("link del cali2");
        host.ip(&format!("link add name other0 index {index} type veth peer name other1"));
        host.ip("link set other0 up");
        let other = shown(&host, "other0");
        let errors = next.restore_all();
        assert!(errors.is_empty(), "{errors:?}");
        assert_eq!([shown(&host, "cali0"), shown(&host, "cali1"), shown(&pod, "eth0")], before);
        assert_eq!(shown(&host, "other0"), other);
        assert!(!state.record().exists());
    });
}

#[test]
fn the_pods_end_is_prepared_in_its_namespace() {
    let (host, pod) = pair("pe");
    let state = StateDir::new("pe");
    let stranger = Ns::new("pes");
    let before = shown(&pod, "eth0");
    host.within(|| {
        let mut preparer = Preparer::open(&state.0).unwrap();
        let cali0 = host.index("cali0");
        let ready = preparer.prepare_peer(cali0, &pod.path(), &Plan::pod_end(false)).unwrap();
        assert_eq!((ready.link.name.as_str(), ready.netns.as_deref()), ("eth0", Some(pod.path().as_path())));
        assert!(!is_on(&pod, "eth0", "tx-checksumming"));
        assert!(is_on(&host, "cali0", "tx-checksumming"), "the host's end is another matter");
        preparer.restore(&ready).unwrap();
        assert_eq!(shown(&pod, "eth0"), before);

        // The wrong namespaces: the host's own, a stranger's with a pair that looks alike, and none.
        let far = Ns::new("pef");
        stranger.ip(&format!(
            "link add name eth0 index {} type veth peer name cali0 index {cali0} netns {}",
            pod.index("eth0"),
            far.name
        ));
        let alike = shown(&stranger, "eth0");
        for path in [host.path(), stranger.path()] {
            let e = preparer.prepare_peer(cali0, &path, &Plan::pod_end(false)).unwrap_err();
            assert!(matches!(&e, Error::NotInNetns { device, .. } if device == "cali0"), "{e}");
        }
        assert_eq!(shown(&stranger, "eth0"), alike);
        let e =
            preparer.prepare_peer(cali0, Path::new("/run/netns/no-such"), &Plan::pod_end(false)).unwrap_err();
        assert!(matches!(&e, Error::Netns { .. }) && e.to_string().contains("/run/netns/no-such"), "{e}");
        let e = preparer.prepare_peer(cali0, Path::new("/etc/hostname"), &Plan::pod_end(false)).unwrap_err();
        assert!(matches!(&e, Error::Netns { .. }), "{e}");

        // By the time of the restore another pod's end is at the same path and index, of the same name.
        let path = state.0.join("netns");
        let at = |ns: &Ns| {
            let _ = std::fs::remove_file(&path);
            std::os::unix::fs::symlink(ns.path(), &path).unwrap();
        };
        at(&pod);
        preparer.prepare_peer(cali0, &path, &Plan::pod_end(false)).unwrap();
        at(&stranger);
        assert!(preparer.restore_all().is_empty());
        assert_eq!(shown(&stranger, "eth0"), alike);
        assert!(!state.record().exists());
        // Or the path is left as a plain file.
        at(&pod);
        preparer.prepare_peer(cali0, &path, &Plan::pod_end(false)).unwrap();
        std::fs::remove_file(&path).unwrap();
        std::fs::write(&path, "").unwrap();
        let errors = preparer.restore_all();
        assert!(errors.is_empty(), "{errors:?}");
        pod.exec("ethtool -K eth0 tx on");

        // The pod ends before the daemon.
        preparer.prepare_peer(cali0, &pod.path(), &Plan::pod_end(false)).unwrap();
        drop(pod);
        let errors = preparer.restore_all();
        assert!(errors.is_empty(), "{errors:?}");
        assert!(!state.record().exists());
        // The kernel takes a namespace down behind its name.
        while host.ip("link show").contains("cali0") {
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
        let e = preparer.prepare(cali0, &Plan::pod(false, 1)).unwrap_err();
        assert!(e.is_gone(), "{e}");
    });
}

/// Nothing is changed that is not recorded first, and a record that cannot be read is not written over.
#[test]
fn without_a_record_nothing_is_changed() {
    let (host, _pod) = pair("re");
    let state = StateDir::new("re");
    host.within(|| {
        let mut preparer = Preparer::open(&state.0).unwrap();
        std::fs::remove_dir_all(&state.0).unwrap();
        let before = shown(&host, "cali0");
        let e = preparer.prepare(host.index("cali0"), &Plan::pod(true, 4)).unwrap_err();
        assert!(matches!(&e, Error::Record { .. }) && e.to_string().contains("devices.json"), "{e}");
        assert_eq!(shown(&host, "cali0"), before);

        std::fs::create_dir_all(&state.0).unwrap();
        for text in ["{", "{\"version\": 99, \"devices\": []}", "[]"] {
            std::fs::write(state.record(), text).unwrap();
            let e = Preparer::open(&state.0).unwrap_err();
            assert!(e.to_string().contains("devices.json"), "{e}");
            assert_eq!(std::fs::read_to_string(state.record()).unwrap(), text);
        }
    });
}
