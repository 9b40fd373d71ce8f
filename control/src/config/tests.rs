#![forbid(unsafe_code)]

use std::collections::BTreeSet;
use std::time::Duration;

use proptest::prelude::*;

use super::*;

const DOCUMENTED: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../configs/fastpath.toml");

fn wrong(text: &str) -> Vec<String> {
    let wrong = Config::parse(text).expect_err("refused");
    wrong.into_iter().map(|w| format!("{}: {}", w.line.unwrap_or(0), w.message)).collect()
}

fn net(text: &str) -> ipnet::IpNet {
    text.parse().expect("a network")
}

#[test]
fn documented_file_is_what_the_code_says() {
    let text = std::fs::read_to_string(DOCUMENTED).expect("configs/fastpath.toml");
    assert!(
        text == reference(),
        "configs/fastpath.toml is not what the code says; run `fastpath config reference > configs/fastpath.toml`"
    );
}

#[test]
fn documented_file_lists_every_key_with_its_default() {
    let text = std::fs::read_to_string(DOCUMENTED).expect("configs/fastpath.toml");
    assert_eq!(Config::load(Path::new(DOCUMENTED)).expect("valid"), Config::default());
    let mut listed = BTreeSet::new();
    let mut section = String::new();
    for line in text.lines() {
        if let Some(name) = line.strip_prefix('[') {
            section = name.trim_end_matches(']').to_owned();
        } else if let Some((key, _)) = line.trim_start_matches("# ").split_once(" = ")
            && key.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
        {
            assert!(listed.insert(format!("{section}.{key}")), "{line} is there twice");
        }
    }
    let known: BTreeSet<String> =
        read::SECTIONS.iter().flat_map(|(s, keys)| keys.iter().map(move |k| format!("{s}.{k}"))).collect();
    assert_eq!(listed, known);
}

#[test]
fn every_key_is_read() {
    let text = r#"
        [node]
        name = "node-a"
        [daemon]
        state_dir = "/run/fastpath-demo/a"
        data_dir = "/var/lib/fastpath-demo/a"
        log = "debug"
        [http]
        listen = "[::1]:9991"
        [source]
        kind = "kubernetes"
        path = "manifests"
        kubeconfig = "/etc/fastpath/kubeconfig"
        api_server = "https://[fd77::1]:6443/"
        node_condition = true
        [pods]
        interfaces = { "demo/a1" = "fp-a1" }
        annotations = true
        [xdp]
        mode = "generic"
        zero_copy = "off"
        on_failure = "pass"
        stale_after_ms = 500
        pin_dir = "/sys/fs/bpf/x"
        [uplink]
        interfaces = ["up-a", "up-b"]
        cidrs = ["192.0.2.7/24"]
        [host]
        enabled = false
        interface = "h0"
        node_ports = false
        [overlay]
        encap = "cross-subnet"
        family = "ipv6"
        vni = 0xffffff
        port = 8472
        udp6_checksum = false
        [workers]
        cores = [1, 0]
        polling = "busy"
        idle_spin_us = 0
        idle_spin_longest_us = 30
        idle_sleep_ms = 10
        halt_poll_us = 150
        transmit = "sockets"
        busy_poll_us = 20
        busy_poll_budget = 32
        [memory]
        frames_per_worker = 4096
        umem_frames = 2048
        frame_size = 4096
        rx_ring = 1024
        tx_ring = 2048
        huge_pages = true
        [flow]
        entries_v4 = 1024
        entries_v6 = 2048
        tcp_pickup = "deny"
        [flow.timeouts]
        tcp_syn = 1
        tcp_established = 2
        tcp_fin = 3
        tcp_rst = 4
        udp = 5
        icmp = 6
        other = 7
        [icmp]
        errors_per_second = 0
        [policy]
        deny = "reject"
        [services]
        cidrs = ["10.96.0.0/12", "fd00:96::/112"]
        [snat]
        enabled = false
        port_range = "50000-50000"
        exempt_cidrs = ["10.1.2.3/8"]
    "#;
    let c = Config::parse(text).expect("valid");
    let a1 = crate::model::ObjectName { namespace: "demo".into(), name: "a1".into() };
    let want = Config {
        node: NodeSection { name: Some("node-a".into()) },
        daemon: Daemon {
            state_dir: "/run/fastpath-demo/a".into(),
            data_dir: "/var/lib/fastpath-demo/a".into(),
            log: LogLevel::Debug,
        },
        http: Http { listen: Some("[::1]:9991".parse().expect("an address")) },
        source: Source {
            kind: SourceKind::Kubernetes,
            path: "manifests".into(),
            kubeconfig: Some("/etc/fastpath/kubeconfig".into()),
            api_server: Some("https://[fd77::1]:6443".to_owned()),
            node_condition: true,
        },
        pods: Pods { interfaces: [(a1, "fp-a1".to_owned())].into(), annotations: true },
        xdp: Xdp {
            mode: XdpMode::Generic,
            zero_copy: ZeroCopy::Off,
            on_failure: OnFailure::Pass,
            stale_after: Duration::from_millis(500),
            pin_dir: "/sys/fs/bpf/x".into(),
        },
        uplink: Uplink { interfaces: vec!["up-a".into(), "up-b".into()], cidrs: vec![net("192.0.2.0/24")] },
        host: Host { enabled: false, interface: "h0".to_owned(), node_ports: false },
        overlay: Overlay {
            encap: Encap::CrossSubnet,
            family: Family::Ipv6,
            vni: 0xff_ffff,
            port: 8472,
            udp6_checksum: false,
        },
        workers: Workers {
            cores: vec![1, 0],
            polling: Polling::Busy,
            idle_spin: Duration::ZERO,
            idle_spin_longest: Duration::from_micros(30),
            idle_sleep: Duration::from_millis(10),
            halt_poll: Duration::from_micros(150),
            transmit: Transmit::Sockets,
            busy_poll: Duration::from_micros(20),
            busy_poll_budget: 32,
        },
        memory: Memory {
            frames_per_worker: 4096,
            umem_frames: 2048,
            frame_size: 4096,
            rx_ring: 1024,
            tx_ring: 2048,
            huge_pages: true,
        },
        flow: Flow { entries_v4: 1024, entries_v6: 2048, tcp_pickup: TcpPickup::Deny },
        timeouts: Timeouts {
            tcp_syn: Duration::from_secs(1),
            tcp_established: Duration::from_secs(2),
            tcp_fin: Duration::from_secs(3),
            tcp_rst: Duration::from_secs(4),
            udp: Duration::from_secs(5),
            icmp: Duration::from_secs(6),
            other: Duration::from_secs(7),
        },
        icmp: Icmp { errors_per_second: 0 },
        policy: Policy { deny: Deny::Reject },
        services: Services { cidrs: ["10.96.0.0/12", "fd00:96::/112"].map(net).to_vec() },
        snat: Snat {
            enabled: false,
            port_range: SnatPorts { first: 50_000, last: 50_000 },
            exempt_cidrs: vec![net("10.0.0.0/8")],
        },
    };
    assert_eq!(c, want);
    assert_eq!(c.socket(), Path::new("/run/fastpath-demo/a/fastpath.sock"));
    assert_eq!(c.node_name().expect("given"), "node-a");
    assert_eq!(Config::parse("").expect("empty"), Config::default());
    assert_eq!(Config::parse("[http]\nlisten = \"\"").expect("off").http.listen, None);
}

#[test]
fn mistakes_name_line_key_and_what_is_allowed() {
    let cases: &[(&str, &[&str])] = &[
        (
            "[overlay]\nencap = \"gre\"",
            &["2: overlay.encap: \"gre\" is not one of \"vxlan\", \"none\", \"cross-subnet\""],
        ),
        ("[http]\nlisten = \"9990\"", &["2: http.listen: \"9990\" is not an address and port, as"]),
        ("[http]\nlisten = \"127.0.0.1:0\"", &["http.listen: \"127.0.0.1:0\" is not"]),
        ("[http]\nlisten = 9990", &["not the integer 9990"]),
        ("[uplink]\ncidrs = [\"eth0\"]", &["uplink.cidrs: \"eth0\" is not a network"]),
        ("[overlay]\nencap = 3", &["want one of \"vxlan\", \"none\", \"cross-subnet\", not the integer 3"]),
        ("[overlay]\nvni = 16777216", &["2: overlay.vni: 16777216 is not an integer from 1 to 16777215"]),
        ("[overlay]\nvni = -1", &["-1 is not an integer from 1"]),
        ("[overlay]\nvni = 1.5", &["not the float 1.5"]),
        ("[overlay]\nport = 0", &["overlay.port: 0 is not an integer from 1 to 65535"]),
        ("[overlay]\nport = \"4789\"", &["want an integer from 1 to 65535, not the string \"4789\""]),
        ("[overlay]\nudp6_checksum = \"yes\"", &["want true or false, not the string \"yes\""]),
        ("[overlay]\n\nencp = \"vxlan\"", &["3: unknown key overlay.encp; did you mean overlay.encap?"]),
        ("[overlay]\nmode = \"auto\"", &["unknown key overlay.mode; did you mean xdp.mode?"]),
        ("[overlay]\nzzz = 1", &["unknown key overlay.zzz; [overlay] has encap, family, vni, port"]),
        ("mode = \"auto\"", &["1: unknown key mode outside any section; it belongs below [xdp]"]),
        ("[overlai]\nvni = 1", &["1: unknown section [overlai]; did you mean [overlay]?"]),
        ("[storage]\nvni = 1", &["unknown section [storage]; there are [node], [daemon]"]),
        ("xdp = 3", &["1: xdp is a section: write [xdp]"]),
        // The heartbeat is written each 100 ms, while every worker has passed its loop within a second.
        ("[xdp]\nstale_after_ms = 499", &["xdp.stale_after_ms: 499 is not an integer from 500"]),
        ("[workers]\nidle_sleep_ms = 501", &["workers.idle_sleep_ms: 501 is not an integer from 1 to 500"]),
        ("[flow.timeouts]\nudp = 0", &["flow.timeouts.udp: 0 is not an integer from 1 to 86400"]),
        ("[flow.timeout]\nudp = 0", &["1: unknown key flow.timeout"]),
        ("[memory]\nrx_ring = 500", &["memory.rx_ring: 500 is not a power of two from 64 to 32768"]),
        ("[memory]\nframe_size = 3000", &["memory.frame_size: 3000 is not a power of two from 2048 to 4096"]),
        (
            "[memory]\nrx_ring = 1024\nframes_per_worker = 1024",
            &["3: memory.frames_per_worker: 1024 is less than one socket's rings hold"],
        ),
        ("[workers]\ncores = [0, 0]", &["workers.cores: core 0 is there twice"]),
        ("[workers]\ncores = [-1]", &["-1 is not an integer from 0 to 1023"]),
        ("[workers]\ncores = 1", &["want a list of core numbers"]),
        ("[uplink]\ninterfaces = [\"eth0/1\"]", &["\"eth0/1\": a device name has"]),
        ("[uplink]\ninterfaces = [\"eth0\", \"eth0\"]", &["\"eth0\" is there twice"]),
        ("[uplink]\ninterfaces = [\"abcdefghijklmnop\"]", &["device name"]),
        ("[pods]\ninterfaces = { a1 = \"x\" }", &["\"a1\" is not \"namespace/pod\""]),
        ("[pods]\ninterfaces = { \"d/a\" = \"x\", \"d/b\" = \"x\" }", &["\"x\" is given to"]),
        ("[daemon]\nstate_dir = \"run\"", &["\"run\" is not an absolute path"]),
        ("[daemon]\nstate_dir = \"/run/../etc\"", &["is not an absolute path without \"..\""]),
        ("[daemon]\nlog = \"verbose\"", &["\"verbose\" is not one of \"error\", \"warn\""]),
        ("[policy]\ndeny = \"refuse\"", &["2: policy.deny: \"refuse\" is not one of \"drop\", \"reject\""]),
        ("[snat]\nport_range = \"50000\"", &["2: snat.port_range: \"50000\" is not a range of ports"]),
        ("[snat]\nport_range = \"50001-50000\"", &["\"50001-50000\" is not a range of ports"]),
        ("[snat]\nport_range = \"1023-50000\"", &["\"first-last\", both from 1024 to 65535"]),
        ("[snat]\nport_range = \"+1024-65536\"", &["is not a range of ports"]),
        ("[snat]\nport_range = 50000", &["want a range of ports"]),
        (
            "[overlay]\nport = 50000\n[snat]\nport_range = \"40000-50000\"",
            &["4: snat.port_range: 40000-50000 holds 50000, which is overlay.port"],
        ),
        ("[overlay]\nport = 50000", &["2: snat.port_range: 40000-56383 holds 50000"]),
        ("[snat]\nenabled = 1", &["want true or false, not the integer 1"]),
        ("[snat]\nexempt_cidrs = \"10.0.0.0/8\"", &["want a list of networks"]),
        ("[snat]\nexempt_cidrs = [\"10.0.0.0/33\"]", &["\"10.0.0.0/33\" is not a network"]),
        ("[services]\ncidrs = [\"10.96.0.1\"]", &["2: services.cidrs: \"10.96.0.1\" is not a network"]),
        ("[services]\ncidrs = [\"10.96.0.0/12\", \"10.97.0.0/12\"]", &["10.96.0.0/12 is there twice"]),
        ("[node]\nname = \"Node_A\"", &["node.name: \"Node_A\""]),
        ("[xdp]\nmode = \"auto\"\nmode = \"native\"", &["3: duplicate key"]),
        ("[xdp\nmode = 1", &["1: "]),
        // All mistakes, in the order of the lines.
        (
            "[xdp]\nmode = 1\non_failure = \"x\"\n[icmp]\nrate = 5\n[overlay]\nport = 70000",
            &["2: xdp.mode", "3: xdp.on_failure", "5: unknown key icmp.rate", "7: overlay.port"],
        ),
    ];
    for (text, want) in cases {
        let got = wrong(text);
        assert_eq!(got.len(), want.len(), "{text}\n{got:?}");
        for (g, w) in got.iter().zip(*want) {
            assert!(g.contains(w), "{text}\n got: {g}\nwant: {w}");
        }
    }
}

#[test]
fn errors_display_as_path_line_message() {
    let dir = std::env::temp_dir().join(format!("fastpath-config-{}", std::process::id()));
    std::fs::create_dir_all(&dir).expect("temp dir");
    let path = dir.join("x.toml");
    std::fs::write(&path, "[overlay]\nencap = \"gre\"\nvni = 0\n").expect("write");
    let shown = Config::load(&path).expect_err("refused").to_string();
    let p = path.display();
    assert_eq!(
        shown,
        format!(
            "{p}:2: overlay.encap: \"gre\" is not one of \"vxlan\", \"none\", \"cross-subnet\"\n\
             {p}:3: overlay.vni: 0 is not an integer from 1 to 16777215"
        )
    );
    assert!(Config::load(&dir).expect_err("a folder").to_string().ends_with("is not a regular file"));
    assert!(Config::load(&dir.join("none")).expect_err("missing").to_string().contains("cannot be read"));
    std::fs::write(&path, [0xff, 0xfe]).expect("write");
    assert!(Config::load(&path).expect_err("binary").to_string().contains("not UTF-8"));
    std::fs::remove_dir_all(&dir).expect("clean up");
}

#[test]
fn cores_of_the_machine() {
    let mut c = Config::default();
    assert_eq!(c.missing_cores().expect("mask"), Vec::<usize>::new());
    c.workers.cores = vec![1023];
    assert_eq!(c.missing_cores().expect("mask"), vec![1023]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    /// Mutations of the documented file: never a panic, and what is accepted reads the same again when shown.
    #[test]
    fn mutated_files_never_panic(edits in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>(), 0u8..4), 1..8)) {
        let mut bytes = reference().into_bytes();
        for (at, byte, how) in edits {
            if bytes.is_empty() {
                break;
            }
            let i = at.index(bytes.len());
            match how {
                0 => bytes[i] = byte,
                1 => { bytes.remove(i); }
                2 => bytes.insert(i, byte),
                _ => bytes.truncate(i.max(1)),
            }
        }
        let text = String::from_utf8_lossy(&bytes);
        let lines = text.matches('\n').count() + 1;
        if let Err(wrong) = Config::parse(&text) {
            prop_assert!(!wrong.is_empty());
            for w in wrong {
                prop_assert!(w.line.is_some_and(|l| l >= 1 && l <= lines), "{w:?}");
                prop_assert!(!w.message.contains('\n') && !w.message.is_empty());
            }
        }
    }

    /// An integer key accepts exactly its range.
    #[test]
    fn ranges_are_exact(n in any::<i64>()) {
        let port = Config::parse(&format!("[overlay]\nport = {n}\nencap = \"none\""));
        prop_assert_eq!(port.is_ok(), (1..=65535).contains(&n));
        let vni = Config::parse(&format!("[overlay]\nvni = {}", n & 0x1ff_ffff));
        prop_assert_eq!(vni.is_ok(), (1..=0xff_ffff).contains(&(n & 0x1ff_ffff)));
        let (first, last) = (n & 0x1_ffff, (n >> 20) & 0x1_ffff);
        let snat = Config::parse(&format!(
            "[overlay]\nencap = \"none\"\n[snat]\nport_range = \"{first}-{last}\""
        ));
        prop_assert_eq!(snat.is_ok(), 1024 <= first && first <= last && last <= 65_535);
        let ring = Config::parse(&format!("[memory]\nrx_ring = {}", n & 0x3ff));
        let want = n & 0x3ff;
        prop_assert_eq!(ring.is_ok(), want >= 64 && want.count_ones() == 1);
    }
}
