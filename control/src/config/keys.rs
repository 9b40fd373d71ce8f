//! Every section and key of the configuration file: type, default, what is allowed, meaning.
//!
//! The doc comment of a key is its text in `configs/fastpath.toml`.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;

use super::networks::{Listen, Networks, PortRange, SnatPorts};
use super::read::Found;
use super::reference::KeyDoc;
use super::value::{
    AbsolutePath, AnyPath, Check, Cores, Devices, Flag, HostDevice, NodeName, OneOf, OptionalPath,
    PodDevices, ServerUrl, choices, int, micros, millis, power_of_two, seconds,
};
use crate::model::ObjectName;

choices! {
    /// `daemon.log`.
    LogLevel {
        /// What stops something from working.
        Error = "error",
        /// What is degraded.
        Warn = "warn",
        /// What changed.
        Info = "info",
        /// Every decision.
        Debug = "debug",
        /// Everything.
        Trace = "trace",
    }
}

choices! {
    /// `source.kind`.
    SourceKind {
        /// A folder of Kubernetes manifests.
        Directory = "directory",
        /// The Kubernetes API.
        Kubernetes = "kubernetes",
    }
}

choices! {
    /// `xdp.mode`.
    XdpMode {
        /// Native where the driver can, else generic.
        Auto = "auto",
        /// In the driver.
        Native = "native",
        /// In the network stack.
        Generic = "generic",
    }
}

choices! {
    /// `xdp.zero_copy`.
    ZeroCopy {
        /// Where the driver can, else copy.
        Auto = "auto",
        /// Always copy.
        Off = "off",
    }
}

choices! {
    /// `xdp.on_failure`.
    OnFailure {
        /// Pod traffic is dropped: no policy is bypassed.
        Drop = "drop",
        /// Pod traffic goes to the kernel.
        Pass = "pass",
    }
}

choices! {
    /// `overlay.encap`.
    Encap {
        /// Every other node is reached through VXLAN.
        Vxlan = "vxlan",
        /// No encapsulation: the network routes pod addresses.
        None = "none",
        /// VXLAN only to nodes outside our subnet.
        CrossSubnet = "cross-subnet",
    }
}

choices! {
    /// `overlay.family`.
    Family {
        /// IPv4.
        Ipv4 = "ipv4",
        /// IPv6.
        Ipv6 = "ipv6",
    }
}

choices! {
    /// `workers.polling`.
    Polling {
        /// Spins while there is traffic, sleeps when there is none.
        Adaptive = "adaptive",
        /// Never sleeps.
        Busy = "busy",
    }
}

choices! {
    /// `workers.transmit`.
    Transmit {
        /// Full vectors in one call.
        Together = "together",
        /// AF_XDP only.
        Sockets = "sockets",
    }
}

choices! {
    /// `flow.tcp_pickup`.
    TcpPickup {
        /// A segment in the middle of a connection may open a flow.
        Allow = "allow",
        /// Only a SYN opens a flow.
        Deny = "deny",
    }
}

choices! {
    /// `policy.deny`.
    Deny {
        /// Nothing is answered.
        Drop = "drop",
        /// TCP is answered by a reset, everything else by an ICMP error.
        Reject = "reject",
    }
}

/// One section: its struct, its defaults, how its keys are read, what the documented file says of them.
macro_rules! section {
    ($(#[doc = $about:literal])+ $table:literal $name:ident {
        $($(#[doc = $doc:literal])+ $key:literal $field:ident: $ty:ty = $default:expr, $check:expr;)+
    }) => {
        $(#[doc = $about])+
        #[derive(Clone, Debug, PartialEq, Eq)]
        pub struct $name { $($(#[doc = $doc])+ pub $field: $ty,)+ }

        impl Default for $name {
            fn default() -> Self {
                Self { $($field: $default,)+ }
            }
        }

        impl $name {
            /// The section's name in the file.
            pub(super) const TABLE: &'static str = $table;
            /// The section's keys.
            pub(super) const KEYS: &'static [&'static str] = &[$($key,)+];
            /// What the section is about.
            pub(super) const ABOUT: &'static [&'static str] = &[$($about,)+];

            /// Takes the section's keys from what the file has; a missing or wrong one keeps its default.
            pub(super) fn read(found: &mut Found<'_>) -> Self {
                let mut out = Self::default();
                $(found.take(Self::TABLE, $key, &$check, &mut out.$field);)+
                out
            }

            /// The section's keys for the documented file.
            pub(super) fn describe() -> Vec<KeyDoc> {
                let default = Self::default();
                vec![$(KeyDoc {
                    key: $key,
                    about: &[$($doc,)+],
                    allowed: Check::<$ty>::allowed(&$check),
                    default: $check.show(&default.$field),
                },)+]
            }
        }
    };
}

section! {
    /// This node.
    "node" NodeSection {
        /// Name of this node, as its Node object has it.
        /// Default: $NODE_NAME, else the host name in lower case.
        "name" name: Option<String> = None, NodeName;
    }
}

section! {
    /// The daemon itself.
    "daemon" Daemon {
        /// Folder of the daemon's socket (`fastpath.sock`) and lock; one per daemon on a machine.
        "state_dir" state_dir: PathBuf = PathBuf::from("/run/fastpath"), AbsolutePath;
        /// Folder of what must outlive a restart and a reboot; one per daemon on a machine.
        "data_dir" data_dir: PathBuf = PathBuf::from("/var/lib/fastpath"), AbsolutePath;
        /// Least severe message logged to stderr; the environment's RUST_LOG overrides it.
        "log" log: LogLevel = LogLevel::Info, OneOf;
    }
}

section! {
    /// Health and metrics over HTTP.
    "http" Http {
        /// Where `/livez`, `/readyz` and `/metrics` are answered, without TLS and to whoever can connect; "" is nowhere.
        "listen" listen: Option<SocketAddr> = Some(SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 9990)), Listen;
    }
}

section! {
    /// Where nodes, namespaces, pods, policies and services are learnt from.
    "source" Source {
        /// "directory": ordinary Kubernetes YAML or JSON in a folder, followed as it changes. "kubernetes": the API.
        "kind" kind: SourceKind = SourceKind::Directory, OneOf;
        /// The folder; its .yaml, .yml and .json files are read, folders in it are not.
        "path" path: PathBuf = PathBuf::from("/etc/fastpath/manifests"), AnyPath;
        /// The kubeconfig file that leads to the Kubernetes API. Default: the service account of the pod that this runs in.
        "kubeconfig" kubeconfig: Option<PathBuf> = None, OptionalPath;
        /// URL of the API server, if not the one that the kubeconfig or the pod's environment names. The latter names the
        /// Service `kubernetes`, which this daemon itself makes reachable: best is an address of the control plane.
        "api_server" api_server: Option<String> = None, ServerUrl;
        /// Whether the condition `FastpathReady` of this node's Node object says whether it forwards (source "kubernetes" only).
        /// It takes the right to patch `nodes/status`: configs/k8s/node-condition.yaml.
        /// A daemon that is killed leaves its word, which the next one begins by making `Unknown`: a `lastHeartbeatTime` older
        /// than 12 minutes says nothing. The DaemonSet's pod is not Ready from the moment on.
        "node_condition" node_condition: bool = false, Flag;
    }
}

section! {
    /// Pods of this node.
    "pods" Pods {
        /// Host side of the veth of pods that have no annotation `fastpath.io/interface`; wins over it where both are.
        "interfaces" interfaces: BTreeMap<ObjectName, String> = BTreeMap::new(), PodDevices;
        /// Whether pods of the Kubernetes API may say by annotations (`fastpath.io/interface`, `fastpath.io/mac`,
        /// `fastpath.io/netns`) which device is theirs: whoever may create pods can then claim any. A folder's always may.
        "annotations" annotations: bool = false, Flag;
    }
}

section! {
    /// The XDP program on pod and uplink devices.
    "xdp" Xdp {
        /// Where the program runs: in the driver, in the network stack, or the first that works.
        /// Measured between veths: no clear difference for what sockets send (0.22 and 0.29 Mpps, ranges overlap).
        "mode" mode: XdpMode = XdpMode::Auto, OneOf;
        /// Whether sockets share the driver's memory where the driver can. Without effect on veths, which copy.
        "zero_copy" zero_copy: ZeroCopy = ZeroCopy::Auto, OneOf;
        /// What becomes of pod traffic while the daemon is stopped or hangs. The node's own traffic always passes.
        "on_failure" on_failure: OnFailure = OnFailure::Drop, OneOf;
        /// Age of the daemon's heartbeat, in milliseconds, from which it counts as hanging.
        "stale_after_ms" stale_after: Duration = Duration::from_millis(2000), millis(500, 600_000);
        /// Folder on a BPF file system for the program's links and maps; one per daemon on a machine.
        "pin_dir" pin_dir: PathBuf = PathBuf::from("/sys/fs/bpf/fastpath"), AbsolutePath;
    }
}

section! {
    /// Devices towards other nodes.
    "uplink" Uplink {
        /// Their names. Without any, and without `cidrs`, the devices of the default routes.
        "interfaces" interfaces: Vec<String> = Vec::new(), Devices;
        /// Networks: every device with an address in one of them is an uplink, beside those of `interfaces`.
        "cidrs" cidrs: Vec<IpNet> = Vec::new(), Networks;
    }
}

section! {
    /// The way between pods and services and the node's own processes: kubelet, API server, pods on the host network.
    "host" Host {
        /// Whether there is one: a veth pair, with routes for pods and cluster addresses in a table of their own.
        "enabled" enabled: bool = true, Flag;
        /// Name of the pair's end in the host's stack; the other end has the same name with "-xdp" behind it.
        "interface" interface: String = "fp-host".to_owned(), HostDevice;
        /// Whether the node's own processes reach node ports, host ports and external addresses by routing rules for
        /// those ports. While there are such ports, the kernel's rule for the table `local` is at preference 100.
        "node_ports" node_ports: bool = true, Flag;
    }
}

section! {
    /// How pods of other nodes are reached.
    "overlay" Overlay {
        /// VXLAN (RFC 7348) to every node, to nodes outside our subnet only, or never (the network routes pods).
        "encap" encap: Encap = Encap::Vxlan, OneOf;
        /// IP family of the outer header.
        "family" family: Family = Family::Ipv4, OneOf;
        /// VXLAN network identifier, the same on all nodes.
        "vni" vni: u32 = 4096, int(1, (1 << 24) - 1);
        /// UDP destination port, the same on all nodes.
        "port" port: u16 = 4789, int(1, 65535);
        /// Whether the outer UDP checksum is filled in over IPv6 (RFC 6935 allows zero); over IPv4 it is zero.
        /// Measured: encapsulation takes 63 cycles a packet of 64 bytes with it, 23 over IPv4 without.
        "udp6_checksum" udp6_checksum: bool = true, Flag;
    }
}

section! {
    /// The threads that forward packets.
    "workers" Workers {
        /// Cores to pin one worker to each; empty is one worker on the last core of the process's affinity mask.
        /// Measured: on the pods' own core round trips take 22 us (p99 128) and 0.30 Mpps are forwarded, on a core of its own
        /// 29 to 48 us (p99 57 to 127) and 0.47 to 0.75 Mpps.
        "cores" cores: Vec<usize> = Vec::new(), Cores;
        /// "adaptive" sleeps when idle, "busy" keeps its core at 100 % for the lowest latency.
        /// Measured, p50: round trips every 5 ms 125 us with adaptive, 76 with busy, one after the other 34 and 28 (ranges overlap);
        /// at full load no gain (0.73 Mpps, 0.56 with overlapping ranges).
        "polling" polling: Polling = Polling::Adaptive, OneOf;
        /// Adaptive: how long a worker without packets goes on polling before it sleeps, at least, in microseconds; with 0 it
        /// sleeps at once, whatever `idle_spin_longest_us` says.
        /// Measured without `idle_spin_longest_us`, p50 of round trips between pods one after the other: 112 us with 0, 32 with 50, no less with 1000, where a
        /// packet every 5 ms takes 19 % of the core instead of 2. On the pods' own core: 28 us (p99 45) with 0, 23 (127) with 50.
        "idle_spin_us" idle_spin: Duration = Duration::from_micros(50), micros(0, 1_000_000);
        /// Adaptive: the same while packets come in pauses shorter than this, in microseconds: they are then taken up without
        /// a wake-up, and the worker's core is busy all the time. No effect below `idle_spin_us`.
        /// Measured with 200 instead of 50, p50 of round trips with pauses of 30 us between them: 35 to 45 us, not 64; with pauses
        /// of 100 us 39 to 44, not 64 to 69; of 0.9 ms the same.
        "idle_spin_longest_us" idle_spin_longest: Duration = Duration::from_micros(200), micros(0, 1_000_000);
        /// Adaptive: longest sleep before it looks again without being woken, in milliseconds.
        /// Measured with 250 idle pods: 0.8 % of a core with 10, 0.2 % with 100, 0.05 % with 250, 0.03 % with 500.
        "idle_sleep_ms" idle_sleep: Duration = Duration::from_millis(100), millis(1, 500);
        /// How long an idle core of a virtual machine looks out for work before it is given back to the hypervisor, in
        /// microseconds: for all cores of the node, by the kernel's idle governor haltpoll (`guest_halt_poll_ns`), raised at
        /// start if it is less (200 is the kernel's own default; some machines are booted with 0) and put back at the end; 0
        /// leaves it as it is. To wake a core given back costs tens of microseconds, and
        /// most of a round trip between two pods is that. Without that governor (no virtual machine) it does nothing; where `/sys` is
        /// read-only, as in most containers, `status` says that it could not be done: set it on the node then.
        /// Measured with 200 instead of 0, p50 of round trips one after the other: 17 to 21 us, not 31 to 45.
        "halt_poll_us" halt_poll: Duration = Duration::ZERO, micros(0, 10_000);
        /// How full vectors are sent to veths: "together" in one system call for all devices, through the kernel's
        /// XDP (Linux 5.18, capability SYS_ADMIN, GRO on in the pod, which is seen to), or device by device by the
        /// AF_XDP "sockets". The former is four times as fast, but a datagram that a pod leaves unread then takes more than a
        /// page of the kernel's memory, not charged to the pod: for trusted pods. Measured: 60 bytes 0.77 Mpps by sockets, 3.51
        /// together; no difference for round trips and single datagrams.
        "transmit" transmit: Transmit = Transmit::Sockets, OneOf;
        /// How long a system call of a worker polls a device that has nothing, in microseconds (SO_BUSY_POLL); 0
        /// leaves reception to the kernel. For NICs, with `napi_defer_hard_irqs` and `gro_flush_timeout` set on them.
        /// Measured between veths: no effect on rate or round trips.
        "busy_poll_us" busy_poll: Duration = Duration::ZERO, micros(0, 1_000);
        /// Packets of a device that one such poll handles (SO_BUSY_POLL_BUDGET). Measured between veths: no effect.
        "busy_poll_budget" busy_poll_budget: u32 = 64, int(8, 1024);
    }
}

section! {
    /// Packet buffers and rings.
    "memory" Memory {
        /// Packet buffers of one worker. Each pod's queue holds 64 at the least, those on their way come on top.
        /// Measured: 2.1 KiB of the process's memory each (8192: 87 MiB in all, 32768: 137, 65536: 205), and no effect on rate or
        /// round trips of a few pods; with 250 pods 16384 are all in the quiet pods' queues, and every packet is lost.
        "frames_per_worker" frames_per_worker: u32 = 32768, int(1024, 16_777_216);
        /// Buffers of one UMEM: a worker's are divided into so many as it takes, each shared by a part of the pods. Each queue
        /// of each pod takes 128 bytes of kernel memory for each buffer of its UMEM, and its attachment takes the time to
        /// clear them; packets between pods of two UMEMs are copied. Raised to four times `rx_ring`. Measured with 250 pods:
        /// 4096 takes 270 MiB of the machine's memory and 0.4 s from start to attached, 8192 360 MiB and 0.6 s, one UMEM of
        /// 32768 1130 MiB and 3.0 s; the rate is the same.
        "umem_frames" umem_frames: u32 = 8192, power_of_two(1024, 16_777_216);
        /// Size of a buffer in bytes; 4096 for an MTU above 1778.
        /// Measured: 4096 takes twice the memory (64 MiB more by default), no effect on the rate of 60 B or of 1464 B.
        "frame_size" frame_size: u32 = 2048, power_of_two(2048, 4096);
        /// Descriptors of a socket's rx ring and of its fill ring: so many packets may wait for the worker.
        /// Measured, loss of bursts of 1024 packets at once: 68 % with 256, 44 % with 512, 1 % with 1024; of 4096: 61 % with 1024, 1 %
        /// with 4096. No effect on the rate, and shorter ones do not shorten round trips under load (34 to 36 us with 512 or 1024).
        "rx_ring" rx_ring: u32 = 1024, power_of_two(64, 32768);
        /// Descriptors of a socket's tx ring and of its completion ring.
        /// Measured: no effect from 64 to 2048 on rate or loss between veths, which take what they are given at once.
        "tx_ring" tx_ring: u32 = 512, power_of_two(64, 32768);
        /// Whether buffers lie in 2 MB pages; reported and done without when the machine has none free.
        /// Measured: no effect on rate or round trips here; they are not counted as the process's resident memory (72 MiB, not 136).
        "huge_pages" huge_pages: bool = false, Flag;
    }
}

section! {
    /// The flow table.
    "flow" Flow {
        /// Entries of the IPv4 flow table, which all workers share; a flow takes two. Taken at start: 100 bytes each.
        /// Measured, resident memory and start with 250 pods: 262,144 165 MiB and 0.5 s, 1,048,576 239 MiB and 0.7 s, 4,194,304 538 MiB
        /// and 1.5 s. In memory a packet costs 118 cycles with 64k flows, 143 with 1M; through veths no difference is seen.
        "entries_v4" entries_v4: u32 = 262_144, power_of_two(1024, 16_777_216);
        /// Entries of the IPv6 flow table, which all workers share; a flow takes two. Taken at start: 196 bytes each.
        "entries_v6" entries_v6: u32 = 65_536, power_of_two(1024, 16_777_216);
        /// Whether a TCP segment in the middle of a connection may open a flow ("deny" drops it as `tcp_no_flow`). For ten
        /// minutes after the start it may be of either direction, for connections that a restart has forgotten.
        "tcp_pickup" tcp_pickup: TcpPickup = TcpPickup::Allow, OneOf;
    }
}

section! {
    /// How long a flow without packets is kept, in seconds, by protocol and state.
    "flow.timeouts" Timeouts {
        /// TCP, handshake not finished.
        "tcp_syn" tcp_syn: Duration = Duration::from_secs(20), seconds(1, 86_400);
        /// TCP, established.
        "tcp_established" tcp_established: Duration = Duration::from_secs(3600), seconds(1, 864_000);
        /// TCP, closing.
        "tcp_fin" tcp_fin: Duration = Duration::from_secs(30), seconds(1, 86_400);
        /// TCP, reset.
        "tcp_rst" tcp_rst: Duration = Duration::from_secs(40), seconds(1, 86_400);
        /// UDP.
        "udp" udp: Duration = Duration::from_secs(60), seconds(1, 86_400);
        /// ICMP and ICMPv6 echo.
        "icmp" icmp: Duration = Duration::from_secs(5), seconds(1, 86_400);
        /// Every other protocol.
        "other" other: Duration = Duration::from_secs(600), seconds(1, 86_400);
    }
}

section! {
    /// ICMP errors the dataplane sends.
    "icmp" Icmp {
        /// Most errors (time exceeded, unreachable) and resets a worker sends in a second, and as many "too big"; one
        /// receiver gets an eighth of that, or 100. 0 sends none. Measured: one takes 310 cycles, 1000 in a second 0.01 % of a core.
        "errors_per_second" errors_per_second: u32 = 1000, int(0, 1_000_000);
    }
}

section! {
    /// NetworkPolicies.
    "policy" Policy {
        /// What becomes of a packet that policies deny: it is dropped, or answered (TCP by a reset, everything else by
        /// ICMP "administratively prohibited").
        "deny" deny: Deny = Deny::Drop, OneOf;
    }
}

section! {
    /// Services.
    "services" Services {
        /// Networks that service addresses are given out from; pods' connections to them are never translated
        /// as to the outside, also while no service has the address.
        "cidrs" cidrs: Vec<IpNet> = Vec::new(), Networks;
    }
}

section! {
    /// Translation of sources to the node's address.
    "snat" Snat {
        /// Whether pods reach the outside (all but pods, services, nodes and `exempt_cidrs`) by the node's address.
        /// Clients from outside whose service's backend is on another node are translated in any case.
        "enabled" enabled: bool = true, Flag;
        /// Ports (ICMP: echo identifiers) that sources become, first and last. They are kept out of the kernel's
        /// ephemeral ports by `net.ipv4.ip_local_reserved_ports`, and belong to no service of the node itself.
        "port_range" port_range: SnatPorts = SnatPorts { first: 40_000, last: 56_383 }, PortRange;
        /// Destinations outside that see a pod's own address.
        "exempt_cidrs" exempt_cidrs: Vec<IpNet> = Vec::new(), Networks;
    }
}
