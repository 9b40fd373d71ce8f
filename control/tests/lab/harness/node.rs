//! A node: a namespace with an uplink, and what forwards in it.

use std::fmt::Write as _;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use super::cli::Cli;
use super::daemon::Daemon;
use super::manifest::{Manifests, node_name};
use super::ns::NetNs;
use super::spec::{Family, Kind, LabSpec, NodeSpec, ROUTER, UPLINK, VNI, underlay};

/// A node.
#[derive(Debug)]
pub(crate) struct Node {
    /// What the lab's spec says of it.
    pub(crate) spec: NodeSpec,
    /// Its number in addresses, from 1.
    pub(crate) number: u16,
    /// Its daemon; `None` on a kernel node.
    pub(crate) daemon: Option<Daemon>,
    /// Its namespace.
    pub(crate) ns: NetNs,
    /// Where its daemon pins what must outlive it.
    pub(crate) pin_dir: PathBuf,
    /// `daemon.state_dir`.
    pub(crate) state_dir: PathBuf,
    /// `daemon.data_dir`.
    pub(crate) data_dir: PathBuf,
    capabilities: Option<&'static [&'static str]>,
    contained: bool,
    config: PathBuf,
    log: PathBuf,
}

impl Node {
    /// Makes namespace and uplink; the other end is given to a bridge of `fabric`.
    pub(crate) fn create(prefix: &str, root: &Path, lab: &LabSpec, number: u16, fabric: &NetNs) -> Self {
        let spec = lab.nodes[usize::from(number) - 1].clone();
        let ns = NetNs::create(&format!("{prefix}-node-{}", spec.name));
        plug(lab, &ns, UPLINK, fabric, &format!("to-{}", spec.name), spec.subnet, number);
        default_routes(&ns, spec.subnet);
        let dir = root.join(spec.name);
        std::fs::create_dir_all(&dir).expect("make the node's folder");
        Node {
            number,
            daemon: None,
            ns,
            pin_dir: PathBuf::from(format!("/sys/fs/bpf/{prefix}-{}", spec.name)),
            state_dir: dir.join("state"),
            data_dir: dir.join("data"),
            capabilities: lab.capabilities,
            contained: lab.contained,
            config: dir.join("fastpath.toml"),
            log: dir.join("daemon.log"),
            spec,
        }
    }

    /// Its underlay address.
    pub(crate) fn ip(&self, family: Family) -> IpAddr {
        underlay(self.spec.subnet, self.number, family)
    }

    /// Command line of its daemon.
    pub(crate) fn cli(&self) -> Cli {
        Cli::new(&self.state_dir)
    }

    /// Its daemon; panics on a kernel node.
    pub(crate) fn daemon(&mut self) -> &mut Daemon {
        self.daemon.as_mut().expect("the node runs a daemon")
    }

    /// File its daemon reads.
    pub(crate) fn config(&self) -> &Path {
        &self.config
    }

    /// Writes the config file.
    pub(crate) fn write_config(&self, lab: &LabSpec, manifests: &Manifests) {
        std::fs::write(&self.config, self.config_text(lab, manifests)).expect("write the config");
    }

    /// Starts the daemon and waits until it is ready. A daemon of before is forgotten.
    pub(crate) fn start_daemon(&mut self) {
        let cli = self.cli();
        self.spawn_daemon().wait_ready(&cli);
    }

    /// Starts the daemon. A daemon of before is forgotten.
    pub(crate) fn spawn_daemon(&mut self) -> &mut Daemon {
        assert_eq!(self.spec.kind, Kind::Fastpath, "node {} is one of Linux alone", self.spec.name);
        let root = self.config.with_file_name("root");
        let container = self.contained.then_some(&*root);
        let files = (&*self.config, &*self.log);
        self.daemon.insert(Daemon::spawn(&self.ns, files, self.capabilities, container))
    }

    /// How often its daemons have logged that a device was detached.
    pub(crate) fn detached(&self, device: &str) -> usize {
        let log = std::fs::read_to_string(&self.log).expect("read the log");
        let device = format!("device=\"{device}\"");
        log.lines().filter(|l| l.contains("detached") && l.contains(&device)).count()
    }

    fn config_text(&self, lab: &LabSpec, manifests: &Manifests) -> String {
        let (vni, port) = lab.overlay.map_or((VNI, 4789), super::overlay::Overlay::vni_and_port);
        let mut text = format!(
            "[node]
name = \"{name}\"

[daemon]
state_dir = \"{state}\"
data_dir = \"{data}\"
log = \"debug\"

[http]
listen = \"{http}\"

[source]
{source}

[xdp]
mode = \"{mode}\"
on_failure = \"{on_failure}\"
stale_after_ms = {stale}
pin_dir = \"{pins}\"

[uplink]
interfaces = [{uplinks}]
cidrs = {cidrs:?}

[overlay]
encap = \"{encap}\"
family = \"{family}\"
vni = {vni}
port = {port}
",
            name = node_name(self.spec.name),
            state = self.state_dir.display(),
            data = self.data_dir.display(),
            source = manifests.source_keys(),
            mode = lab.xdp_mode,
            on_failure = lab.on_failure,
            stale = lab.stale_after_ms,
            pins = self.pin_dir.display(),
            http = lab.http,
            cidrs = lab.uplink_cidrs,
            uplinks = if lab.uplink_by_route || !lab.uplink_cidrs.is_empty() {
                String::new()
            } else {
                format!("\"{UPLINK}\"")
            },
            encap = lab.encap.key(),
            family = lab.outer.key(),
        );
        writeln!(text, "\n[workers]\ncores = {:?}\ntransmit = \"{}\"", lab.cores, lab.transmit)
            .expect("writing to memory");
        text.push('\n');
        text.push_str(&lab.more_config);
        text
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        // The daemon first: it holds the namespace.
        self.daemon = None;
        match std::fs::remove_dir_all(&self.pin_dir) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                eprintln!("lab: {}: {e}", self.pin_dir.display());
            }
            _ => {}
        }
    }
}

/// A way to everywhere through the router of `subnet`.
pub(crate) fn default_routes(ns: &NetNs, subnet: u8) {
    ns.ip(Family::BOTH.map(|f| format!("route add default via {}", underlay(subnet, ROUTER, f))));
}

/// Gives `ns` a device on the bridge of `subnet`, addressed as host `number`.
pub(crate) fn plug(
    lab: &LabSpec,
    ns: &NetNs,
    device: &str,
    fabric: &NetNs,
    port: &str,
    subnet: u8,
    number: u16,
) {
    let mtu = lab.mtu;
    fabric.ip([
        format!("link add {port} mtu {mtu} type veth peer name {device} mtu {mtu} netns {}", ns.name()),
        format!("link set {port} master br{subnet} up"),
    ]);
    let mut lines: Vec<_> = [(Family::V4, 24), (Family::V6, 64)]
        .map(|(f, len)| {
            let nodad = if f == Family::V6 { " nodad" } else { "" };
            format!("addr add {}/{len} dev {device}{nodad}", underlay(subnet, number, f))
        })
        .into();
    lines.push(format!("link set {device} up"));
    ns.ip(lines);
    // A veth hands over unfinished checksums and VLAN tags beside the frame; a real wire carries neither.
    ns.exec("ethtool", &["-K", device, "tx", "off", "txvlan", "off"]);
    fabric.exec("ethtool", &["-K", port, "tx", "off", "txvlan", "off"]);
}
