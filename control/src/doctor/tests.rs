//! Each check with facts made up for it.

use std::sync::Arc;

use super::*;
use crate::netdev::features::XdpFeatures;
use crate::netdev::fixtures::{default_route, link};
use crate::netdev::nft::Chain;
use crate::netdev::{Link, LinkKind, NetView};

fn net(links: Vec<Link>) -> Result<Arc<NetView>, String> {
    Ok(Arc::new(NetView {
        links: links.into_iter().map(|l| (l.index, l)).collect(),
        routes: [default_route(false, &[2], 0)].into_iter().collect(),
        ..NetView::default()
    }))
}

/// A node where all is well.
fn facts() -> Facts {
    let native = Driver {
        name: "ice".into(),
        xdp: Some(XdpFeatures { native: true, redirect_target: true, zero_copy: true }),
    };
    Facts {
        kernel: "6.1.0-18-amd64".into(),
        xdp: Ok(()),
        xsk: Ok(()),
        btf: true,
        bpffs: true,
        capabilities: u64::MAX,
        memlock: None,
        huge_pages: 0,
        cores: (0..4).collect(),
        net: net(vec![link(2, "eth0", LinkKind::Device)]),
        drivers: [(2, native)].into(),
        rp_filter: [("all".to_owned(), 0), ("eth0".to_owned(), 0)].into(),
        networkd: None,
        tap: true,
        sysctl_writable: true,
        conflists: Ok(Vec::new()),
        chains: Some(Vec::new()),
        legacy_tables: Vec::new(),
        ipvs_services: 0,
        manifests: Some(Ok(3)),
        api: None,
    }
}

/// What one check finds, as `level: found`.
fn find(check: &str, config: &str, change: impl FnOnce(&mut Facts)) -> Vec<String> {
    let mut facts = facts();
    change(&mut facts);
    let config = Config::parse(config).unwrap();
    let all = examine(&facts, &config);
    for f in &all {
        assert_eq!(f.remedy.is_none(), f.level == Level::Ok, "a remedy where one is needed: {f:?}");
    }
    all.iter().filter(|f| f.check == check).map(|f| format!("{:?}: {}", f.level, f.found)).collect()
}

#[track_caller]
fn one(check: &str, config: &str, change: impl FnOnce(&mut Facts), want: &str) {
    let found = find(check, config, change);
    assert!(found.iter().any(|f| f.starts_with(want)), "{check}: want {want}, found {found:?}");
    let worst = want.split(':').next().unwrap();
    let of = |f: &String| ["Ok", "Warning", "Error"].iter().position(|l| f.starts_with(l));
    assert_eq!(found.iter().map(of).max().flatten(), of(&worst.to_owned()), "{check}: {found:?}");
}

#[test]
fn a_good_node_is_good() {
    let findings = examine(&facts(), &Config::default());
    assert_eq!(worst(&findings), Level::Ok, "{findings:#?}");
    // Every check says something, but that of an API that is not asked.
    for check in CHECKS.iter().filter(|c| c.name != "API server") {
        assert!(findings.iter().any(|f| f.check == check.name), "{}", check.name);
    }
}

#[test]
fn kernel_and_programs() {
    one("kernel", "", |f| f.kernel = "5.15.0".into(), "Error: Linux 5.15.0");
    one("kernel", "", |f| f.kernel = "6.18.5-arch".into(), "Ok: Linux 6.18.5");
    one("kernel", "", |f| f.kernel = "odd".into(), "Warning: Linux odd");
    one("XDP", "", |f| f.xdp = Err("EPERM".into()), "Error: the programs do not load: EPERM");
    one("AF_XDP", "", |f| f.xsk = Err("EAFNOSUPPORT".into()), "Error: no socket: EAFNOSUPPORT");
    one("BTF", "", |f| f.btf = false, "Warning: the kernel has no");
    one("bpffs", "", |f| f.bpffs = false, "Warning: /sys/fs/bpf/fastpath lies on no BPF");
    let bounded = |f: &mut Facts| {
        f.bpffs = false;
        f.capabilities = !(1 << 21);
    };
    one("bpffs", "", bounded, "Error: /sys/fs/bpf/fastpath lies on no");
    one("bpffs", "[xdp]\non_failure = \"pass\"", bounded, "Ok: ");
}

#[test]
fn rights_and_memory() {
    let without = |bits: &'static [u32]| {
        move |f: &mut Facts| f.capabilities = bits.iter().fold(u64::MAX, |all, bit| all & !(1 << bit))
    };
    one("capabilities", "", without(&[12]), "Error: CAP_NET_ADMIN is missing");
    one("capabilities", "", without(&[13]), "Error: CAP_NET_RAW is missing");
    one("capabilities", "", without(&[21, 39]), "Error: CAP_BPF is missing");
    one("capabilities", "", without(&[39]), "Ok: all");
    one("capabilities", "", without(&[21]), "Ok: all");
    let generic = "[xdp]\nmode = \"generic\"";
    one("capabilities", generic, without(&[]), "Ok: all");
    one("capabilities", generic, without(&[21]), "Error: CAP_SYS_ADMIN is missing: xdp.mode = \"generic\"");
    one("capabilities", "", without(&[11]), "Warning: CAP_NET_BROADCAST is missing");
    assert_eq!(find("capabilities", "", |f| f.capabilities = 0).len(), 5);
    let limit = |bytes, capabilities| {
        move |f: &mut Facts| {
            f.memlock = Some(bytes);
            f.capabilities = capabilities;
        }
    };
    // 32768 frames of 2048 bytes.
    one("locked memory", "", limit(64 << 20, 0), "Ok: 64 MiB allowed, 64 MiB needed");
    one("locked memory", "", limit(8 << 20, 0), "Error: 8 MiB allowed, 64 MiB needed");
    one("locked memory", "", limit(8 << 20, 1 << 14), "Ok: CAP_IPC_LOCK");
    let two = "[workers]\ncores = [0, 1]";
    one("locked memory", two, limit(64 << 20, 0), "Error: 64 MiB allowed, 128 MiB needed");
    let huge = "[memory]\nhuge_pages = true";
    one("huge pages", huge, |f| f.huge_pages = 31, "Warning: 31 free, 32 needed");
    one("huge pages", huge, |f| f.huge_pages = 32, "Ok: 32 free");
    one(
        "cores",
        "[workers]\ncores = [1, 9]",
        |_| {},
        "Error: workers.cores: this process may not run on [9]",
    );
    one("cores", "", |f| f.cores = [0].into(), "Warning: only one");
}

#[test]
fn devices() {
    let driver = |native, zero_copy| {
        move |f: &mut Facts| {
            let xdp = Some(XdpFeatures { native, redirect_target: native, zero_copy });
            f.drivers = [(2, Driver { name: "drv".into(), xdp })].into();
        }
    };
    let unknown = |name: &'static str| {
        move |f: &mut Facts| f.drivers = [(2, Driver { name: name.into(), xdp: None })].into()
    };
    one("uplink", "", driver(true, true), "Ok: eth0 (driver drv): native XDP, zero copy");
    one("uplink", "", driver(true, false), "Ok: eth0 (driver drv): native XDP, copies");
    one("uplink", "", driver(false, false), "Warning: eth0 (driver drv): no native XDP");
    one("uplink", "[xdp]\nmode = \"native\"", driver(false, false), "Error: eth0 (driver drv): no native");
    one("uplink", "[xdp]\nmode = \"generic\"", driver(false, false), "Ok: eth0 (driver drv): generic");
    one("uplink", "", unknown("ixgbe"), "Ok: eth0 (driver ixgbe): native XDP, by the driver's name, copies");
    one("uplink", "", unknown("r8169"), "Warning: eth0 (driver r8169): no native XDP, by the driver's name");
    one("uplink", "[uplink]\ninterfaces = [\"nosuch\"]", |_| {}, "Error: uplink 'nosuch'");
    one(
        "uplink",
        "",
        |f| f.net = net(vec![link(2, "bond0", LinkKind::Bond)]),
        "Error: uplink 'bond0' is a bond",
    );
    one("uplink", "", |f| f.net = Err("EPERM".into()), "Error: the network configuration");
    let small =
        |mtu| move |f: &mut Facts| f.net = net(vec![Link { mtu, ..link(2, "eth0", LinkKind::Device) }]);
    one("MTU", "", small(1500), "Ok: uplink 1500, pods 1450");
    one("MTU", "[overlay]\nfamily = \"ipv6\"", small(1500), "Ok: uplink 1500, pods 1430");
    one("MTU", "", small(1300), "Error: uplink 1300, pods 1250");
    one("MTU", "[overlay]\nencap = \"none\"", small(1300), "Ok: uplink 1300, pods 1300");
    let two = "[uplink]\ninterfaces = [\"eth0\", \"eth1\"]";
    let both = |strict: u8, second: u32| {
        move |f: &mut Facts| {
            let other = Link { mtu: second, ..link(3, "eth1", LinkKind::Device) };
            f.net = net(vec![link(2, "eth0", LinkKind::Device), other]);
            f.rp_filter = [("all".to_owned(), 0), ("eth0".to_owned(), strict), ("eth1".to_owned(), 2)].into();
        }
    };
    one("MTU", two, both(0, 1400), "Warning: the uplinks differ");
    one("rp_filter", two, both(1, 1500), "Warning: strict on eth0");
    one("rp_filter", two, both(2, 1500), "Ok: not strict");
    one("rp_filter", "", both(1, 1500), "Ok: strict, which does no harm");
    for encap in ["none", "cross-subnet"] {
        let overlay = format!("[overlay]\nencap = \"{encap}\"");
        one(
            "rp_filter",
            &overlay,
            both(1, 1500),
            &format!("Error: strict on eth0: with overlay.encap = \"{encap}\""),
        );
        one("rp_filter", &overlay, both(2, 1500), "Ok: not strict");
    }
    one("systemd-networkd", "", |f| f.networkd = Some(false), "Ok: runs");
    one("systemd-networkd", "", |f| f.networkd = Some(true), "Warning: removes others' routing rules");
    one("systemd-networkd", "[host]\nenabled = false", |f| f.networkd = Some(true), "Ok: removes");
    one("packet buffers", "", |_| {}, "Ok: 4 UMEMs of 8192 buffers: 1024 KiB of kernel memory a pod");
    one("packet buffers", "", |f| f.tap = false, "Warning: no tap device can be made: one UMEM, 4096 KiB");
    let one_umem = "[memory]\numem_frames = 65536\n[workers]\ncores = [0, 1]";
    one(
        "packet buffers",
        one_umem,
        |_| {},
        "Ok: 1 UMEM of 32768 buffers for each of 2 workers: 8192 KiB of kernel memory a pod",
    );
    let without =
        "Warning: no tap device can be made: one UMEM, 16384 KiB of kernel memory a pod instead of 8192";
    one("packet buffers", one_umem, |f| f.tap = false, without);
    let two = "[workers]\ncores = [0, 1]";
    let of_each = "Ok: 4 UMEMs of 8192 buffers for each of 2 workers: 2048 KiB of kernel memory a pod";
    one("packet buffers", two, |_| {}, of_each);
    let small = "[memory]\nframes_per_worker = 8192";
    one("packet buffers", small, |f| f.tap = false, "Ok: one UMEM of 8192 buffers: 1024 KiB");
    one("reserved ports", "", |f| f.sysctl_writable = false, "Warning: net.ipv4.ip_local_reserved_ports");
}

#[test]
fn other_plugins() {
    let conflists = |names: &'static [&'static str]| {
        move |f: &mut Facts| f.conflists = Ok(names.iter().map(|n| (*n).to_owned()).collect())
    };
    one("network plugins", "", conflists(&["10-fastpath.conflist", "99-loopback.conf"]), "Ok: 10-fastpath");
    one("network plugins", "", conflists(&[]), "Ok: /etc/cni/net.d is empty");
    // As in a container that has not the node's folder.
    let unseen = |f: &mut Facts| f.conflists = Err("No such file or directory".into());
    one("network plugins", "", unseen, "Warning: /etc/cni/net.d cannot be seen from here: No such file");
    one("network plugins", "", conflists(&["10-calico.conflist"]), "Warning: /etc/cni/net.d/10-calico");
    one(
        "network plugins",
        "",
        conflists(&["05-cilium.conflist", "10-fastpath.conflist"]),
        "Error: /etc/cni/net.d/05-cilium.conflist comes before",
    );
    for (name, kind, whose) in [
        ("cali12345", LinkKind::Veth, "Calico: cali12345"),
        ("vxlan.calico", LinkKind::Vxlan, "Calico: vxlan.calico"),
        ("cilium_host", LinkKind::Veth, "Cilium"),
        ("flannel.1", LinkKind::Vxlan, "flannel: flannel.1"),
    ] {
        let links = vec![link(2, "eth0", LinkKind::Device), link(3, name, kind)];
        one("network plugins", "", |f| f.net = net(links), &format!("Warning: devices of {whose}"));
    }
    let chain = |table: &str, name: &str| Chain { table: table.into(), name: name.into() };
    let chains = |all: Vec<Chain>| move |f: &mut Facts| f.chains = Some(all);
    one(
        "kube-proxy",
        "",
        chains(vec![chain("nat", "KUBE-SERVICES")]),
        "Warning: iptables rules of kube-proxy",
    );
    one(
        "kube-proxy",
        "",
        chains(vec![chain("kube-proxy", "services")]),
        "Warning: nftables rules of kube-proxy",
    );
    one("kube-proxy", "", chains(vec![chain("filter", "INPUT")]), "Ok: no rules");
    one("kube-proxy", "", |f| f.ipvs_services = 3, "Warning: 3 virtual services in IPVS");
    one("kube-proxy", "", |f| f.legacy_tables = vec!["nat".into()], "Warning: iptables-legacy is in use");
    one("kube-proxy", "", |f| f.chains = None, "Warning: the packet filter's chains");
    let ipvs =
        vec![link(2, "eth0", LinkKind::Device), link(3, "kube-ipvs0", LinkKind::Other("dummy".into()))];
    one("kube-proxy", "", |f| f.net = net(ipvs), "Error: device kube-ipvs0");
}

#[test]
fn sources() {
    one("source", "", |f| f.manifests = Some(Ok(0)), "Warning: /etc/fastpath/manifests holds no");
    one("source", "", |f| f.manifests = Some(Err("gone".into())), "Error: gone");
    let api = |version: Result<&str, &str>, denied: &[&str], node_exists| ApiFacts {
        server: "https://10.0.0.1:6443".into(),
        version: version.map(str::to_owned).map_err(str::to_owned),
        denied: Ok(denied.iter().map(|d| (*d).to_owned()).collect()),
        node_exists,
    };
    let config = "[node]\nname = \"n1\"";
    let with = |api: ApiFacts| move |f: &mut Facts| f.api = Some(api);
    one(
        "API server",
        config,
        with(api(Ok("v1.34.1"), &[], Some(true))),
        "Ok: https://10.0.0.1:6443 answers: v1.34.1",
    );
    one(
        "API server",
        config,
        with(api(Err("refused"), &[], None)),
        "Error: https://10.0.0.1:6443 cannot be reached: refused",
    );
    one("API server", config, with(api(Ok("v1"), &["watch pods"], None)), "Error: may not watch pods");
    let unknown = ApiFacts { denied: Err("refused".into()), ..api(Ok("v1"), &[], Some(true)) };
    one(
        "API server",
        config,
        with(unknown),
        "Warning: which rights this account has cannot be asked: refused",
    );
    for server in ["https://10.96.0.1", "https://[fd00:96::1]:443/"] {
        let by_service = ApiFacts { server: server.into(), ..api(Ok("v1"), &[], Some(true)) };
        let config = "[services]\ncidrs = [\"10.96.0.0/16\", \"fd00:96::/112\"]";
        let found = find("API server", config, with(by_service));
        assert!(
            found[1].starts_with("Warning: ") && found[1].contains("is a service's address"),
            "{found:?}"
        );
    }
    one("API server", config, with(api(Ok("v1"), &[], Some(false))), "Error: there is no Node n1");
}
