//! Commands and options.
#![forbid(unsafe_code)]

use std::path::PathBuf;

use clap::{Parser, Subcommand, ValueEnum};

use crate::api::{MAX_FLOWS, Request, SOCKET_NAME};

/// What `fastpath --help` ends with.
const EXAMPLES: &str = "\
Examples:
  fastpath config check fastpath.toml          is the file right? every mistake with its line
  fastpath run --config fastpath.toml          the daemon, in the foreground, logging to stderr
  fastpath status                              is it well? what is degraded?
  fastpath show endpoints                      pods on this node, and the port each is behind
  fastpath show drops                          what was dropped, and what that means
  fastpath show policies                       how often each rule allowed, and each isolation denied
  fastpath show flows --limit 20 -o json       for scripts
  fastpath explain --from shop/web --to shop/db --dport 5432     may it, and which rule says so?
  fastpath policy lint --manifests ./manifests policies that cannot do what they were written for
  fastpath doctor --config fastpath.toml       may this node be switched over?
  fastpath tune --profile dense                a configuration for this machine, each value with its reason
  fastpath --state-dir /run/fp-b status        another daemon on the same machine

Exit codes:
  0  what was asked for
  1  it failed, or `status` found the daemon not ready or degraded
  2  wrong command line
  3  no daemon answers at the socket, or only root may ask it
  4  `doctor` found nothing wrong, but warns";

/// What `fastpath show flows --help` ends with.
const FLOWS: &str = "\
ORIGINAL is the first packet as it came; TRANSLATED is what it became, - when nothing was translated. A flow whose
permission a policy took away has the verdict deny, and stays until it is idle. RULES are those of the two ends that
are on this node; - means that no policy isolates them.";

/// What `fastpath show policies --help` ends with.
const POLICIES: &str = "\
A rule counts the flows it allowed, and their packets and bytes in both directions. Where several rules allow the
same connection the first counts: by the policies' names, then in the order written. What none allows is counted by
the row `isolated: no policy allows`, one for each set of policies that isolate the same pods. Policies that select
no pod of this node are not in force here. Counters begin when the daemon starts, or the rule comes.";

/// What `fastpath show services --help` ends with.
const SERVICES: &str = "\
One row for each port, kind of address and family. BACKENDS is ready/all; when none is ready, those that terminate but
still serve are used. POLICY is local where only backends of this node are used: for cluster IPs by
internalTrafficPolicy, for the others (and then for clients from outside) by externalTrafficPolicy. -o json lists the
backends.";

/// A Kubernetes dataplane in userspace over AF_XDP: the daemon, and the command to ask it.
#[derive(Debug, Parser)]
#[command(name = "fastpath", version, after_help = EXAMPLES, propagate_version = false)]
pub struct Cli {
    /// Folder of the daemon to ask (its `daemon.state_dir`).
    #[arg(long, global = true, value_name = "DIR", default_value = "/run/fastpath")]
    state_dir: PathBuf,

    /// Socket of the daemon to ask, instead of the one in the state folder.
    #[arg(long, global = true, value_name = "PATH")]
    socket: Option<PathBuf>,

    /// How answers are shown.
    #[arg(short, long, global = true, value_enum, default_value_t = Output::Table)]
    pub(super) output: Output,

    #[command(subcommand)]
    pub(super) command: Command,
}

impl Cli {
    /// The socket to ask at.
    pub(super) fn socket(&self) -> PathBuf {
        self.socket.clone().unwrap_or_else(|| self.state_dir.join(SOCKET_NAME))
    }
}

/// How answers are shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Output {
    /// Aligned columns, for reading; of `tune`, the configuration file.
    #[value(alias = "toml")]
    Table,
    /// JSON, for scripts.
    Json,
}

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Run the daemon in the foreground.
    #[command(after_help = "\
The daemon attaches to this node's devices and forwards until SIGINT or SIGTERM, then detaches from all of
them. It needs root, or these capabilities:
  CAP_NET_ADMIN, CAP_NET_RAW, CAP_BPF, CAP_PERFMON   always
  CAP_IPC_LOCK        where `ulimit -l` is less than the packet buffers take ([memory])
  CAP_SYS_ADMIN       to enter the namespaces of annotations fastpath.io/netns; to mount a BPF file system
                      where xdp.pin_dir is on none
  CAP_NET_BROADCAST   to follow the MAC address and MTU of pods' sides; else they are read once
Log level: key daemon.log, or the environment's RUST_LOG (as `debug` or `fastpath_control::source=trace`).
Exit code 1 when the configuration is wrong or the daemon cannot start; the last line on stderr says why.")]
    Run {
        /// Configuration file; `fastpath config reference` prints one with every key.
        #[arg(long, value_name = "FILE", default_value = "/etc/fastpath/fastpath.toml")]
        config: PathBuf,
    },
    /// How the daemon is: ports, workers, last sync, what is degraded.
    #[command(after_help = "\
Ready: this node is known and has an uplink, and every worker forwards by the newest state. What is wrong with
single pods, or in the source, is degraded: the others are served all the same.
Exit code 0 only when the daemon is ready and nothing is degraded, else 1; -o json has both apart.")]
    Status,
    /// Tables of the daemon.
    #[command(subcommand_required = true, arg_required_else_help = true)]
    Show {
        #[command(subcommand)]
        what: Show,
    },
    /// What becomes of a connection, and which rule decides.
    #[command(after_help = super::explain::HELP)]
    Explain(super::explain::ExplainArgs),
    /// NetworkPolicies.
    #[command(subcommand_required = true, arg_required_else_help = true)]
    Policy {
        #[command(subcommand)]
        command: PolicyCommand,
    },
    /// Configuration files.
    #[command(subcommand_required = true, arg_required_else_help = true)]
    Config {
        #[command(subcommand)]
        command: ConfigCommand,
    },
    /// The CNI plugin: a container runtime's call, by environment and standard input.
    #[command(after_help = "\
Container runtimes start this program by the name `fastpath-cni`, which is the same. The verb is in CNI_COMMAND, the
network configuration on standard input (CNI spec 1.1.0, 1.0.0, 0.4.0, 0.3); configs/cni/10-fastpath.conflist is an
example with every key. By hand:
  CNI_COMMAND=STATUS fastpath cni < net.json   can pods be added? {\"cniVersion\": \"1.1.0\", \"name\": \"pods\"}")]
    Cni,
    /// May this node be switched over? Kernel, rights, devices, other network plugins, kube-proxy, the API server.
    #[command(after_help = super::doctor::DOCTOR)]
    Doctor(super::doctor::DoctorArgs),
    /// A configuration for this machine, with the reason for each value.
    #[command(after_help = super::tune::HELP)]
    Tune(super::tune::TuneArgs),
    /// Install the CNI plugin on this node, or remove it.
    #[command(after_help = super::doctor::INSTALL)]
    InstallCni(super::doctor::InstallArgs),
    /// Version of this program, and of the daemon if one runs.
    Version,
}

#[derive(Clone, Copy, Debug, Subcommand)]
pub(super) enum Show {
    /// Pods on this node: addresses, device, port, worker.
    Endpoints,
    /// Nodes of the cluster, and how each is reached.
    Nodes,
    /// The flow table, in no particular order: translations, and the rules that decide on each flow.
    #[command(after_help = FLOWS)]
    Flows {
        /// Most flows to list.
        #[arg(long, value_name = "N", default_value_t = crate::api::DEFAULT_FLOWS,
              value_parser = clap::value_parser!(u32).range(1..=i64::from(MAX_FLOWS)))]
        limit: u32,
    },
    /// Routes in force.
    Routes,
    /// Neighbours on the uplinks.
    Neighbors,
    /// Policy rules in force on this node: packets, bytes and flows of each.
    #[command(after_help = POLICIES)]
    Policies,
    /// Services: addresses, and how many backends of each are ready.
    #[command(after_help = SERVICES)]
    Services,
    /// Packets dropped, by reason; what policies denied also by the policies that isolate.
    Drops {
        /// Also reasons that dropped nothing.
        #[arg(long)]
        all: bool,
    },
    /// Counters of the ports, by queue, and of the XDP programs.
    Ports,
    /// Counters of the graph's nodes: packets a vector, clocks a packet.
    Runtime,
}

impl Show {
    /// What to ask the daemon.
    pub(super) fn request(self) -> Request {
        match self {
            Show::Endpoints => Request::Endpoints,
            Show::Nodes => Request::Nodes,
            Show::Flows { limit } => Request::Flows { limit: Some(limit) },
            Show::Routes => Request::Routes,
            Show::Neighbors => Request::Neighbors,
            Show::Drops { .. } => Request::Drops,
            Show::Policies => Request::Policies,
            Show::Services => Request::Services,
            Show::Ports => Request::Ports,
            Show::Runtime => Request::Runtime,
        }
    }
}

#[derive(Debug, Subcommand)]
pub(super) enum ConfigCommand {
    /// Check a configuration file: every mistake with its line; exit code 0 or 1.
    Check {
        /// The file.
        file: PathBuf,
    },
    /// Print a configuration file with every key, its default and what it means.
    Reference,
}

#[derive(Debug, Subcommand)]
pub(super) enum PolicyCommand {
    /// Find what policies say that cannot be meant: rules and selectors that match nothing, and the like.
    #[command(after_help = super::policy::HELP)]
    Lint(super::policy::LintArgs),
}
