//! Machines made by hand, and this one.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use proptest::prelude::*;

use super::*;
use crate::config::{Config, Polling, Transmit};

/// Cores with so many threads each, evenly on the nodes; siblings are numbered as Linux does, all first threads first.
fn cores(physical: usize, threads: usize, nodes: usize) -> Vec<Core> {
    let core = |id: usize| Core {
        id,
        isolated: false,
        siblings: (0..threads).map(|t| id % physical + t * physical).collect(),
        node: Some(id % physical * nodes / physical),
    };
    (0..physical * threads).map(core).collect()
}

fn nic(queues: usize, speed: Option<u64>) -> Nic {
    Nic {
        name: "eth0".to_owned(),
        driver: Some("ice".to_owned()),
        queues,
        speed,
        node: Some(0),
        mtu: 1500,
        native: Some(true),
        zero_copy: Some(true),
    }
}

fn machine(cores: Vec<Core>, memory: u64, uplink: Nic) -> Machine {
    Machine {
        kernel: "6.12.0".to_owned(),
        cores,
        memory: Some(memory),
        limit: None,
        huge_pages: Some(0),
        uplinks: vec![uplink],
        unread: Vec::new(),
    }
}

/// The settings by key, after the printed file was read as the daemon reads it and found to say the same.
fn tuned(machine: &Machine, profile: Option<Profile>) -> (BTreeMap<String, String>, Config) {
    let settings = advise(machine, profile);
    let text = toml(machine, profile, &settings);
    let config = Config::parse(&text).unwrap_or_else(|wrong| panic!("{wrong:?}\n{text}"));
    for s in &settings {
        assert!(s.reason.len() > 10 && s.reason.ends_with(['.', ')']), "{s:?}");
        assert!(text.contains(&format!("\n{} = {}\n", s.key, s.value)), "{s:?}\n{text}");
    }
    let keys: BTreeMap<_, _> =
        settings.iter().map(|s| (format!("{}.{}", s.section, s.key), s.value.clone())).collect();
    assert_eq!(keys.len(), settings.len(), "each key once");
    (keys, config)
}

fn reason(machine: &Machine, profile: Option<Profile>, key: &str) -> String {
    let found = advise(machine, profile).into_iter().find(|s| format!("{}.{}", s.section, s.key) == key);
    found.unwrap_or_else(|| panic!("no {key}")).reason
}

const GIB: u64 = 1 << 30;

#[test]
fn one_core_is_shared() {
    for profile in [None, Some(Profile::Throughput), Some(Profile::Latency)] {
        let (keys, config) = tuned(&machine(cores(1, 1, 1), GIB, nic(1, None)), profile);
        assert_eq!(keys["workers.cores"], "[]");
        assert_eq!(config.workers.polling, Polling::Adaptive, "{profile:?}");
        assert!(config.workers.idle_spin.is_zero(), "who would send the next packet needs the core");
    }
}

#[test]
fn two_cores_leave_the_first() {
    let m = machine(cores(2, 1, 1), 4 * GIB, nic(1, Some(1000)));
    let (_, config) = tuned(&m, None);
    assert_eq!((config.workers.cores.as_slice(), config.workers.polling), (&[1][..], Polling::Adaptive));
    assert_eq!(config.memory, crate::config::Memory::default());
    assert_eq!(tuned(&m, Some(Profile::Latency)).1.workers.polling, Polling::Busy);
    // Two threads of one core: the second.
    let (_, config) = tuned(&machine(cores(1, 2, 1), 4 * GIB, nic(1, None)), None);
    assert_eq!(config.workers.cores, [1]);
}

#[test]
fn many_cores_near_the_uplink_one_thread_each() {
    let mut m = machine(cores(32, 2, 2), 256 * GIB, Nic { node: Some(1), ..nic(64, Some(100_000)) });
    let (_, config) = tuned(&m, None);
    // Node 1 has the physical cores 16 to 31, of which the last are taken.
    assert_eq!(config.workers.cores, [28, 29, 30, 31]);
    assert_eq!((config.memory.rx_ring, config.flow.entries_v4), (4096, 1 << 20));
    assert!(config.memory.frames_per_worker >= 16 * 4096 * 2, "64 queues of four workers");
    let why = reason(&m, None, "workers.cores");
    assert!(why.contains("NUMA node 1") && why.contains("siblings 60 61 62 63"), "{why}");
    assert!(why.contains("64 queues") && why.contains("lower them to 4"), "{why}");
    assert_eq!(tuned(&m, Some(Profile::Throughput)).1.workers.cores.len(), 8);
    assert_eq!(tuned(&m, Some(Profile::Latency)).1.workers.cores, [30, 31]);
    assert_eq!(tuned(&m, Some(Profile::Small)).1.workers.cores, [31]);
    // On node 0 the system's first core is left out.
    m.uplinks[0].node = Some(0);
    let near: BTreeSet<usize> = tuned(&m, Some(Profile::Throughput)).1.workers.cores.into_iter().collect();
    assert_eq!(near, (8..16).collect());
    // Isolated ones are for this.
    for core in &mut m.cores {
        core.isolated = [5, 6, 37, 38].contains(&core.id);
    }
    let (_, config) = tuned(&m, None);
    assert_eq!((config.workers.cores.as_slice(), config.workers.polling), (&[5, 6][..], Polling::Busy));
}

#[test]
fn no_more_workers_than_queues() {
    let m = machine(cores(64, 1, 1), 64 * GIB, nic(4, Some(10_000)));
    let (_, config) = tuned(&m, Some(Profile::Throughput));
    assert_eq!((config.workers.cores.len(), config.memory.rx_ring), (4, 4096));
    assert!(reason(&m, Some(Profile::Throughput), "workers.cores").contains("queues (4)"));
    assert_eq!(tuned(&m, None).1.memory.rx_ring, 2048);
    let one = machine(cores(64, 1, 1), 64 * GIB, nic(1, None));
    assert_eq!(
        tuned(&one, Some(Profile::Throughput)).1.workers.cores.len(),
        2,
        "the second has pods to serve"
    );
}

#[test]
fn huge_pages_only_where_there_are_enough() {
    let mut m = machine(cores(4, 1, 1), 16 * GIB, nic(2, None));
    let why = reason(&m, Some(Profile::Throughput), "memory.huge_pages");
    assert!(!tuned(&m, Some(Profile::Throughput)).1.memory.huge_pages);
    assert!(
        why.contains("0 pages of 2 MB are free, 128 are needed") && why.contains("vm.nr_hugepages=128"),
        "{why}"
    );
    m.huge_pages = Some(128);
    assert!(tuned(&m, Some(Profile::Throughput)).1.memory.huge_pages);
    assert!(tuned(&m, None).1.memory.huge_pages);
    m.huge_pages = None;
    assert!(!tuned(&m, None).1.memory.huge_pages);
}

#[test]
fn drivers_and_mtu() {
    let with = |change: fn(&mut Nic)| {
        let mut m = machine(cores(4, 1, 1), 16 * GIB, nic(2, None));
        change(&mut m.uplinks[0]);
        m
    };
    let unknown = with(|n| (n.driver, n.native, n.zero_copy) = (None, None, None));
    assert!(reason(&unknown, None, "xdp.mode").contains("the kernel does not tell"));
    assert!(reason(&unknown, None, "xdp.zero_copy").contains("tried at start"));
    let generic = with(|n| (n.native, n.zero_copy) = (Some(false), Some(false)));
    assert!(reason(&generic, None, "xdp.mode").contains("generic is to be expected"));
    assert!(reason(&generic, None, "xdp.zero_copy").contains("eth0 copies"));
    assert!(reason(&with(|_| {}), None, "xdp.mode").contains("native is to be expected"));
    for (mtu, size) in [(1500, 2048), (1778, 2048), (1779, 4096), (3826, 4096), (9000, 4096)] {
        let mut m = with(|_| {});
        m.uplinks[0].mtu = mtu;
        assert_eq!(tuned(&m, None).1.memory.frame_size, size, "MTU {mtu}");
        assert_eq!(reason(&m, None, "memory.frame_size").contains("lower it"), mtu == 9000);
    }
}

#[test]
fn little_memory_and_nothing_known() {
    let (_, config) = tuned(&machine(cores(2, 1, 1), 128 << 20, nic(1, None)), None);
    assert_eq!((config.memory.frames_per_worker, config.flow.entries_v4), (8192, 16_384));
    assert!(config.memory.rx_ring <= config.memory.frames_per_worker / 4);
    for profile in [None].into_iter().chain(Profile::ALL.map(Some)) {
        tuned(&Machine::default(), profile);
    }
    let mut odd = Machine::default();
    odd.unread.push("a\nkey = 1".to_owned());
    odd.kernel = "x\r\n[memory]\nrx_ring = 3".to_owned();
    tuned(&odd, None);
}

#[test]
fn a_worker_that_waits_says_how() {
    let mut m = machine(cores(4, 1, 1), 16 * GIB, nic(2, Some(25_000)));
    assert_eq!(tuned(&m, None).1.workers.idle_spin, Config::default().workers.idle_spin);
    assert!(reason(&m, None, "workers.idle_spin_us").contains("within 50 us"));
    assert!(reason(&m, None, "workers.idle_sleep_ms").contains("10 times a second"));
    assert!(reason(&m, Some(Profile::Latency), "workers.idle_spin_us").contains("no effect"));
    assert!(reason(&m, None, "workers.busy_poll_us").contains("from eth0 itself"));
    m.uplinks[0].driver = Some("veth".to_owned());
    assert!(reason(&m, None, "workers.busy_poll_us").contains("No uplink is a NIC"));
}

#[test]
fn what_is_sent_together_takes_a_kernel_that_tells() {
    let mut m = machine(cores(4, 1, 1), 16 * GIB, nic(2, None));
    let transmit = |m: &Machine, profile| tuned(m, profile).1.workers.transmit;
    assert_eq!(transmit(&m, Some(Profile::Throughput)), Transmit::Together);
    assert!(reason(&m, Some(Profile::Throughput), "workers.transmit").contains("Linux 6.12.0 tells"));
    m.kernel = "6.1.0-18-amd64".to_owned();
    assert_eq!(transmit(&m, Some(Profile::Throughput)), Transmit::Sockets);
    assert!(reason(&m, Some(Profile::Throughput), "workers.transmit").contains("6.3 does"));
    assert_eq!(transmit(&m, None), Config::default().workers.transmit);
}

#[test]
fn each_umem_more_is_less_for_a_pod_and_copies() {
    let m = machine(cores(8, 1, 1), 16 * GIB, nic(2, None));
    let why = reason(&m, None, "memory.umem_frames");
    assert!(why.contains("takes 2048 KiB") && why.contains("instead of 8192"), "two workers: {why}");
    assert!(why.contains("two of the 4 are copied"), "{why}");
    let m = machine(cores(2, 1, 1), 64 << 20, nic(1, None));
    assert!(
        reason(&m, None, "memory.umem_frames").contains("no packet is copied"),
        "4096 buffers are one UMEM"
    );
}

/// A container's memory limit holds both the flow table and the packet buffers.
#[test]
fn the_flow_table_by_the_limit_of_the_control_group() {
    let mut m = machine(cores(4, 1, 1), 64 * GIB, nic(2, None));
    assert_eq!(tuned(&m, None).1.flow.entries_v4, 1 << 20, "there is memory for many");
    m.limit = Some(GIB);
    let (_, config) = tuned(&m, None);
    assert_eq!((config.flow.entries_v4, config.flow.entries_v6), (262_144, 65_536));
    let why = reason(&m, None, "flow.entries_v4");
    assert!(why.contains("131072 connections at once, 25600 KiB, 2.4 % of the 1024 MiB"), "{why}");
    assert!(why.contains("control group may take"), "{why}");
    assert_eq!(tuned(&m, Some(Profile::Throughput)).1.flow.entries_v4, 1 << 20, "149 MiB of 256");
    m.limit = Some(256 << 20);
    let (_, config) = tuned(&m, Some(Profile::Throughput));
    assert_eq!((config.flow.entries_v4, config.flow.entries_v6), (262_144, 65_536));
    assert!(reason(&m, Some(Profile::Throughput), "flow.entries_v6").contains("no more than 64 MiB"));
    assert_eq!(config.memory.frames_per_worker, 16_384, "64 MiB for two workers");
    // A limit that is hardly one: the machine has the say.
    m.limit = Some(60 * GIB);
    assert_eq!(m.share(32, 4).unwrap().most, 2 * GIB);
}

/// What is on file is what the program has, and is right: every key is known, differs from the default and says why.
#[test]
fn profiles_are_complete_and_say_why() {
    let default = Config::default();
    for profile in Profile::ALL {
        let name = profile.name();
        let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(format!("../configs/profiles/{name}.toml"));
        assert_eq!(std::fs::read_to_string(&path).unwrap(), profile.text());
        let config = Config::load(&path).unwrap_or_else(|e| panic!("{e}"));
        assert_ne!(config, default, "{name}");
        let settings = profile.settings();
        // The scanner of comments saw every key that the reader of TOML sees.
        let parsed: ::toml::Table = profile.text().parse().unwrap();
        let keys = parsed.values().map(|section| section.as_table().unwrap().len()).sum::<usize>();
        assert_eq!(settings.len(), keys, "{name}");
        for s in &settings {
            assert!(s.reason.len() > 20, "{name}: {s:?}");
            let one = format!("[{}]\n{} = {}\n", s.section, s.key, s.value);
            assert_ne!(Config::parse(&one).unwrap(), default, "{name}: {s:?} is the default");
        }
        // Nothing else differs: each key put to its value makes the whole.
        let mut again = String::new();
        for s in &settings {
            again.push_str(&format!("{}.{} = {}\n", s.section, s.key, s.value));
        }
        assert_eq!(Config::parse(&again).unwrap(), config, "{name}");
    }
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../configs/profiles");
    assert_eq!(std::fs::read_dir(folder).unwrap().count(), Profile::ALL.len(), "no file that no profile is");
}

#[test]
fn files_of_the_kernel() {
    assert_eq!(machine::numbers("0-2,5\n"), [0, 1, 2, 5].into());
    assert_eq!(machine::numbers("\n"), [].into());
    assert_eq!(machine::numbers("x-3,7-5"), [].into());
    let root = std::env::temp_dir().join(format!("fastpath-tune-{}", std::process::id()));
    let write = |path: &str, text: &str| {
        let path = root.join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    };
    write("proc/meminfo", "MemTotal:       2097152 kB\nMemFree: 5 kB\n");
    write("sys/devices/system/cpu/online", "0-3\n");
    write("sys/devices/system/cpu/isolated", "3\n");
    write("sys/devices/system/cpu/cpu1/topology/thread_siblings_list", "1,3\n");
    write("sys/devices/system/node/node0/cpulist", "0-1\n");
    write("sys/devices/system/node/node1/cpulist", "2-3\n");
    // A container sees its own group as the root; elsewhere groups above have a say too.
    write("proc/self/cgroup", "0::/system.slice/fastpath.service\n");
    write("sys/fs/cgroup/memory.max", "1073741824\n");
    write("sys/fs/cgroup/system.slice/memory.max", "max\n");
    let m = Machine::of(&root, &[1, 3, 9].into());
    let ids: Vec<_> = m.cores.iter().map(|c| (c.id, c.isolated, c.node)).collect();
    assert_eq!(ids, [(1, false, Some(0)), (3, true, Some(1))], "online and allowed");
    assert_eq!(m.cores[0].siblings, [1, 3].into());
    assert_eq!((m.memory, m.limit, m.huge_pages), (Some(2 * GIB), Some(GIB), None));
    assert!(m.summary().contains(&"Memory limit of the control group: 1024 MiB".to_owned()));
    let unread = m.unread.join("\n");
    assert!(unread.contains("the kernel's release") && unread.contains("pages of 2 MB"), "{unread}");
    write("sys/fs/cgroup/system.slice/fastpath.service/memory.max", "536870912\n");
    assert_eq!(Machine::of(&root, &[0].into()).limit, Some(GIB / 2));
    // Version 1, and what says that there is none.
    write("proc/self/cgroup", "4:cpu,cpuacct:/a\n3:memory:/kube\n");
    write("sys/fs/cgroup/memory/kube/memory.limit_in_bytes", "268435456\n");
    write("sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n");
    assert_eq!(Machine::of(&root, &[0].into()).limit, Some(GIB / 4));
    write("proc/self/cgroup", "0::/\n");
    write("sys/fs/cgroup/memory.max", "max\n");
    assert_eq!(Machine::of(&root, &[0].into()).limit, None);
    std::fs::remove_dir_all(&root).unwrap();
}

fn machines() -> impl Strategy<Value = Machine> {
    let nic = (1usize..129, prop::option::of(1u64..400_000), prop::option::of(0usize..4), 68u32..10_000)
        .prop_map(|(queues, speed, node, mtu)| Nic { node, mtu, ..nic(queues, speed) });
    let cores =
        (1usize..65, 1usize..3, 1usize..5).prop_map(|(n, threads, nodes)| cores(n, threads, nodes.min(n)));
    (
        cores,
        prop::collection::vec(nic, 0..3),
        prop::option::of(1u64 << 26..1 << 40),
        prop::option::of(1u64 << 26..1 << 34),
        prop::option::of(0u64..10_000),
    )
        .prop_map(|(cores, uplinks, memory, limit, huge_pages)| Machine {
            kernel: "6.1.0".to_owned(),
            cores,
            memory,
            limit,
            huge_pages,
            uplinks,
            unread: Vec::new(),
        })
}

proptest! {
    /// Whatever the machine: the file is right, its cores are there and of different physical cores, its buffers fit.
    #[test]
    fn any_machine_gets_a_configuration(m in machines(), profile in 0usize..5) {
        let profile = Profile::ALL.get(profile).copied();
        let (_, config) = tuned(&m, profile);
        let cores = &config.workers.cores;
        let of = |id: &usize| m.cores.iter().find(|c| c.id == *id);
        prop_assert!(cores.iter().all(|id| of(id).is_some()));
        let siblings: Vec<_> = cores.iter().filter_map(of).flat_map(|c| &c.siblings).collect();
        prop_assert_eq!(siblings.iter().collect::<BTreeSet<_>>().len(), siblings.len());
        if m.cores.len() > 1 {
            prop_assert!(!cores.is_empty() && cores.len() < m.cores.len() && !cores.contains(&0));
        }
        let memory = &config.memory;
        let bytes = u64::from(memory.frames_per_worker) * u64::from(memory.frame_size) * cores.len().max(1) as u64;
        let fits = |bytes, of: u64| m.memory.is_none_or(|all| bytes <= all / of) && m.limit.is_none_or(|all| bytes <= all / 4);
        prop_assert!(memory.frames_per_worker <= 4096 || fits(bytes, 8));
        let flow = u64::from(config.flow.entries_v4) * 100 + u64::from(config.flow.entries_v6) * 196;
        prop_assert!(config.flow.entries_v4.min(config.flow.entries_v6) <= 4096 || fits(flow, 32));
        prop_assert!(memory.rx_ring.saturating_mul(4) <= memory.frames_per_worker);
        prop_assert!(!memory.huge_pages || m.huge_pages.is_some_and(|free| free * (2 << 20) >= bytes));
    }
}
